//! One replica's progress, and the next message that it implies.
//!
//! Replication converges from progress rather than following a script: what a replica should be
//! follows from the log, what it is from the backup's acknowledgements, and the next message from
//! the difference. A replica whose connection breaks before it is closed is given up: another takes
//! its place, on the same backup perhaps, and what that has already is only compared.

use std::collections::VecDeque;

use ramkeep_wire::limits::{MAX_REPLICATE_BYTES, MAX_REPLICATES_IN_FLIGHT, MAX_UNSENT};
use ramkeep_wire::replicate::{ReplicateAck, flags};
use ramkeep_wire::{Micros, ReplicationEpoch, ServerId};

/// Bytes in one message of a copy under way, so that it does not hold up the head's messages; with
/// its header it fits the buffer that connections receive into.
pub const COPY_CHUNK: u32 = 248 << 10;
/// Messages in flight of a copy of a closed segment.
pub const COPY_IN_FLIGHT: usize = 2;
/// Bytes in flight to one replica, past which nothing more is sent to it.
pub const MAX_BYTES_IN_FLIGHT: u32 = 2 << 20;

/// What is left of a segment goes in one message if it is no more than this.
const MAX_MESSAGE: u32 = MAX_REPLICATE_BYTES as u32 / 2;

// What a backup that does not read can make wait on its connection: two heads, and the copies.
const UNREAD: usize = 2 * (MAX_BYTES_IN_FLIGHT + MAX_MESSAGE) as usize
    + (super::MAX_COPIES + super::MAX_PACED) * COPY_IN_FLIGHT * COPY_CHUNK as usize;
const _: () = assert!(UNREAD < MAX_UNSENT);

/// What a replica has, as sent or as acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// It exists.
    pub opened: bool,
    /// Its bytes.
    pub length: u32,
    /// Its replication epoch.
    pub epoch: ReplicationEpoch,
    /// Bytes under its certificate.
    pub certified: u32,
    /// Nothing follows.
    pub closed: bool,
}

/// What a replica should be.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// The segment's bytes.
    pub length: u32,
    /// The replication epoch.
    pub epoch: ReplicationEpoch,
    /// It may be closed: it is sealed, and a newer head is open on all its backups.
    pub close: bool,
    /// Its master needs a lease for it: it may be taken for the log's end.
    pub lease: bool,
}

/// The next message to a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// See [`ramkeep_wire::replicate::flags`].
    pub flags: u8,
    /// Where its bytes start.
    pub offset: u32,
    /// Where they end.
    pub length: u32,
}

/// One copy of a segment on a backup.
#[derive(Clone, Debug)]
pub struct Replica {
    /// The backup.
    pub backup: ServerId,
    /// What was sent.
    pub sent: Progress,
    /// What was acknowledged.
    pub acked: Progress,
    /// When each of the messages was sent that are not acknowledged, oldest first.
    pub in_flight: VecDeque<Micros>,
    /// When the oldest of them was sent, or the last acknowledgement came.
    pub waiting_since: Micros,
}

impl Replica {
    /// Nothing sent yet.
    #[must_use]
    pub fn new(backup: ServerId) -> Self {
        let none = Progress::default();
        Self {
            backup,
            sent: none,
            acked: none,
            in_flight: VecDeque::new(),
            waiting_since: Micros(0),
        }
    }

    /// The next message, if one is needed and may be sent now.
    #[must_use]
    pub fn next_step(&self, wanted: &Wanted) -> Option<Step> {
        let sent = &self.sent;
        let up_to_date = sent.opened
            && sent.certified == wanted.length
            && sent.epoch == wanted.epoch
            && (sent.closed || !wanted.close);
        if up_to_date || sent.closed {
            return None;
        }
        let copying = wanted.length - sent.length > MAX_MESSAGE;
        let window = if copying && !wanted.lease {
            COPY_IN_FLIGHT
        } else {
            MAX_REPLICATES_IN_FLIGHT
        };
        let unanswered = sent.length.saturating_sub(self.acked.length);
        let full = self.in_flight.len() >= window || unanswered >= MAX_BYTES_IN_FLIGHT;
        if full && !self.in_flight.is_empty() {
            return None;
        }
        let length = if copying {
            sent.length + COPY_CHUNK
        } else {
            wanted.length
        };
        let whole = length == wanted.length;
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        Some(Step {
            flags: flag(!sent.opened, flags::OPEN)
                | flag(whole, flags::COMPLETE)
                | flag(whole && wanted.close, flags::CLOSED)
                | flag(wanted.lease, flags::LEASE),
            offset: sent.length,
            length,
        })
    }

    /// Notes that `step` was sent under `epoch`.
    pub fn sent(&mut self, now: Micros, step: &Step, epoch: ReplicationEpoch) {
        self.waits_from(now);
        let whole = step.flags & flags::COMPLETE != 0;
        self.sent = Progress {
            opened: true,
            length: step.length,
            epoch,
            certified: if whole {
                step.length
            } else {
                self.sent.certified
            },
            closed: step.flags & flags::CLOSED != 0,
        };
    }

    /// The message that renews the lease and changes nothing: what was sent last, without a byte.
    /// None while something is on its way that does as well, or nothing is there to name.
    #[must_use]
    pub fn renewal(&self) -> Option<Step> {
        let idle = self.sent.opened && self.in_flight.is_empty();
        idle.then_some(Step {
            flags: flags::LEASE,
            offset: self.sent.length,
            length: self.sent.length,
        })
    }

    /// A message goes out at `now`, whose answer is waited for.
    pub fn waits_from(&mut self, now: Micros) {
        if self.in_flight.is_empty() {
            self.waiting_since = now;
        }
        self.in_flight.push_back(now);
    }

    /// Notes a positive acknowledgement.
    pub fn acknowledged(&mut self, now: Micros, ack: &ReplicateAck) {
        self.waiting_since = now;
        let acked = &mut self.acked;
        acked.opened = true;
        acked.length = acked.length.max(ack.length);
        if ack.flags & flags::COMPLETE != 0 {
            acked.certified = acked.certified.max(ack.length);
            acked.epoch = acked.epoch.max(ack.epoch);
        }
        acked.closed |= ack.flags & flags::CLOSED != 0;
    }

    /// Whether it holds the first `length` bytes under a certificate of `epoch`, or is closed: a
    /// closed replica is never outdated.
    #[must_use]
    pub fn holds(&self, length: u32, epoch: ReplicationEpoch) -> bool {
        let current = self.acked.closed || self.acked.epoch >= epoch;
        self.acked.opened && self.acked.certified >= length && current
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: ReplicationEpoch = ReplicationEpoch(1);

    fn wanted(length: u32, close: bool) -> Wanted {
        Wanted {
            length,
            epoch: EPOCH,
            close,
            lease: true,
        }
    }

    #[test]
    fn a_replica_opens_appends_and_closes_in_that_order() {
        let mut replica = Replica::new(ServerId(1));
        let open = replica
            .next_step(&wanted(100, false))
            .expect("an unopened replica is opened");
        assert_eq!((open.offset, open.length), (0, 100));
        assert_eq!(open.flags, flags::OPEN | flags::COMPLETE | flags::LEASE);
        replica.sent(Micros(0), &open, EPOCH);
        assert_eq!(replica.next_step(&wanted(100, false)), None);
        let more = replica
            .next_step(&wanted(150, false))
            .expect("new bytes are sent at once");
        assert_eq!(
            (more.flags, more.offset),
            (flags::COMPLETE | flags::LEASE, 100)
        );
        replica.sent(Micros(0), &more, EPOCH);
        let close = replica
            .next_step(&wanted(150, true))
            .expect("a sealed replica is closed");
        assert_eq!(close.flags & flags::CLOSED, flags::CLOSED);
        replica.sent(Micros(0), &close, EPOCH);
        assert_eq!(replica.next_step(&wanted(150, true)), None);
    }

    #[test]
    fn a_large_copy_goes_in_chunks_without_a_certificate_until_the_last() {
        let mut replica = Replica::new(ServerId(1));
        let target = wanted(2 << 20, true);
        let mut steps = 0;
        while let Some(step) = replica.next_step(&target) {
            replica.sent(Micros(0), &step, EPOCH);
            replica.in_flight.clear();
            steps += 1;
            let last = step.length == 2 << 20;
            assert_eq!(step.flags & (flags::COMPLETE | flags::CLOSED) != 0, last);
        }
        assert!(steps > 4 && replica.sent.closed);
    }

    #[test]
    fn a_new_epoch_is_told_even_when_no_byte_is_new() {
        let mut replica = Replica::new(ServerId(1));
        let open = replica.next_step(&wanted(100, false)).expect("opens");
        replica.sent(Micros(0), &open, EPOCH);
        let next = Wanted {
            epoch: ReplicationEpoch(2),
            ..wanted(100, false)
        };
        let step = replica.next_step(&next).expect("the epoch is told");
        assert_eq!((step.offset, step.length), (100, 100));
    }
}
