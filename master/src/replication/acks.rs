//! What an acknowledgement of a backup means.

use std::collections::btree_map::Entry;
use std::time::Duration;

use ramkeep_wire::replicate::{ReplicateAck, ReplicateStatus};
use ramkeep_wire::{Micros, SegmentId, ServerId};

use super::Replication;
use super::placement::Health;

/// What else an acknowledgement calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckEffect {
    /// Nothing; call [`Replication::pump`].
    None,
    /// A backup has fenced this master: it was decided crashed and must stop.
    Fenced,
}

impl Replication {
    /// Takes in an acknowledgement that came on the current connection to `from`.
    pub fn handle_ack(&mut self, now: Micros, from: ServerId, ack: &ReplicateAck) -> AckEffect {
        if ack.status == ReplicateStatus::Fenced {
            return AckEffect::Fenced;
        }
        if self.is_late(from, ack.segment) {
            return AckEffect::None;
        }
        let Some(segment) = self.segments.get_mut(&ack.segment) else {
            return AckEffect::None;
        };
        let possible = segment.is_possible(ack);
        let paced = segment.is_paced();
        let Some(replica) = segment.replicas.iter_mut().find(|r| r.backup == from) else {
            return AckEffect::None;
        };
        let sent = replica.in_flight.pop_front();
        if let Some(sent) = sent.filter(|_| paced) {
            self.pace.answered(now, sent);
        }
        if ack.status == ReplicateStatus::Done && possible {
            replica.acknowledged(now, ack);
            if let Some(sent) = sent {
                self.leases.granted(now, from, sent, ack.lease_us);
            }
            return AckEffect::None;
        }
        if ack.status == ReplicateStatus::NoFrame && !replica.acked.opened {
            // It has nothing that recovery could ask it for.
            segment.witnesses.retain(|witness| *witness != from);
        }
        let until = now + Duration::from_micros(self.config.retry_us);
        let health = match ack.status {
            ReplicateStatus::NoFrame => Health::Full { until },
            // A replica that can't be brought to what it should be is replaced by another.
            _ => Health::Suspect { until },
        };
        self.backups.doubt(from, health);
        self.lose(ack.segment, from);
        AckEffect::None
    }

    /// Whether an acknowledgement is of a replica that was given up. Every message is answered
    /// once, in order: so many as were on their way then come before any other.
    fn is_late(&mut self, from: ServerId, segment: SegmentId) -> bool {
        let Entry::Occupied(mut left) = self.late_acks.entry((from, segment)) else {
            return false;
        };
        *left.get_mut() -= 1;
        if *left.get() == 0 {
            left.remove();
        }
        true
    }
}
