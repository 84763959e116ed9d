//! One replica: what a message would make of it. Decides only; the core carries it out.
//!
//! # Invariants
//! 1. The epoch never goes back, and neither does the length under the certificate.
//! 2. `held` is never less than the certified length: bytes under a certificate are only compared.
//! 3. A closed replica never changes but for its epoch.

use ramkeep_wire::ReplicationEpoch;
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::replicate::{Replicate, ReplicateStatus, flags};

use crate::frames::{Certified, FrameId, Identity};

/// A replica in a frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Replica {
    pub(crate) frame: FrameId,
    pub(crate) identity: Identity,
    /// Messages of a lower one are refused.
    pub(crate) epoch: ReplicationEpoch,
    /// Bytes in the frame.
    pub(crate) held: u32,
    /// The complete state, if there is one: what recovery may see.
    pub(crate) certified: Option<Certified>,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Refuse the message; nothing changes.
    Refuse(ReplicateStatus),
    /// Adopt the epoch, but the bytes start too late.
    Gap,
    /// Adopt the epoch, append the message's bytes from `held` on, then certify.
    Apply {
        /// The new complete state, if it changes.
        certify: Option<Certified>,
    },
}

impl Replica {
    pub(crate) fn new(frame: FrameId, identity: Identity, epoch: ReplicationEpoch) -> Self {
        Self {
            frame,
            identity,
            epoch,
            held: 0,
            certified: None,
        }
    }

    /// CLOSED and COMPLETE as the replica is now: COMPLETE if a certificate covers all that it
    /// holds, at its epoch (a closed replica's names none).
    pub(crate) fn flags(&self) -> u8 {
        let Some(certified) = self.certified else {
            return 0;
        };
        if certified.closed {
            flags::CLOSED | flags::COMPLETE
        } else if certified.epoch == self.epoch && certified.length == self.held {
            flags::COMPLETE
        } else {
            0
        }
    }

    /// What `message`, well-formed and of this replica, makes of it. `contents` are the frame's.
    pub(crate) fn judge(&self, message: &Replicate<'_>, contents: &[u8]) -> Verdict {
        use ReplicateStatus::{Refused, StaleEpoch};
        if message.kind != self.identity.kind {
            return Verdict::Refuse(Refused);
        }
        if message.epoch < self.epoch && !mutants::active(Mutant::AcceptStaleEpoch) {
            return Verdict::Refuse(StaleEpoch);
        }
        if let Some(closed) = self.certified.filter(|state| state.closed) {
            return self.judge_closed(&closed, message, contents);
        }
        if message.offset > self.held {
            return Verdict::Gap;
        }
        if !self.same_bytes(message, contents) {
            return Verdict::Refuse(Refused);
        }
        if !message.has(flags::COMPLETE) {
            return Verdict::Apply { certify: None };
        }
        match self.certified {
            Some(state) => judge_complete(&state, message),
            None => certify(message),
        }
    }

    /// Only an identical repeat is acknowledged; one with a higher epoch carries it over.
    fn judge_closed(&self, state: &Certified, message: &Replicate<'_>, contents: &[u8]) -> Verdict {
        if message.length > state.length {
            return Verdict::Refuse(ReplicateStatus::Closed);
        }
        if !self.same_bytes(message, contents) {
            return Verdict::Refuse(ReplicateStatus::Refused);
        }
        if !message.has(flags::CLOSED) {
            return Verdict::Apply { certify: None };
        }
        if message.length != state.length || message.certificate != state.certificate {
            return Verdict::Refuse(ReplicateStatus::Closed);
        }
        if message.epoch > state.epoch {
            return certify(message);
        }
        Verdict::Apply { certify: None }
    }

    /// Whether the bytes that the replica holds already are the message's.
    fn same_bytes(&self, message: &Replicate<'_>, contents: &[u8]) -> bool {
        let end = self.held.min(message.length) as usize;
        let start = (message.offset as usize).min(end);
        contents[start..end] == message.bytes[..end - start]
    }
}

/// A complete message for a replica that is complete and open.
fn judge_complete(state: &Certified, message: &Replicate<'_>) -> Verdict {
    let closes = message.has(flags::CLOSED);
    if message.length < state.length {
        // A late repeat of this epoch changes nothing; a new state can't take back what an
        // acknowledged certificate covers.
        return if message.epoch == state.epoch && !closes {
            Verdict::Apply { certify: None }
        } else {
            Verdict::Refuse(ReplicateStatus::Refused)
        };
    }
    if message.length > state.length || message.epoch > state.epoch || closes {
        return certify(message);
    }
    if message.certificate == state.certificate {
        Verdict::Apply { certify: None }
    } else {
        Verdict::Refuse(ReplicateStatus::Refused)
    }
}

fn certify(message: &Replicate<'_>) -> Verdict {
    Verdict::Apply {
        certify: Some(Certified {
            epoch: message.epoch,
            length: message.length,
            closed: message.has(flags::CLOSED),
            certificate: message.certificate,
        }),
    }
}
