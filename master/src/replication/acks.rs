//! What an acknowledgement of a backup means.

use std::time::Duration;

use ramkeep_wire::replicate::{ReplicateAck, ReplicateStatus};
use ramkeep_wire::{Micros, ServerId};

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
        let Some(segment) = self.segments.get_mut(&ack.segment) else {
            return AckEffect::None;
        };
        let Some(replica) = segment.replicas.iter_mut().find(|r| r.backup == from) else {
            return AckEffect::None;
        };
        match ack.status {
            ReplicateStatus::Done => replica.acknowledged(now, ack),
            ReplicateStatus::Gap => {
                replica.in_flight = replica.in_flight.saturating_sub(1);
                if replica.in_flight == 0 {
                    replica.rewind();
                    replica.sent.length = replica.sent.length.min(ack.length);
                }
            }
            ReplicateStatus::NoFrame => {
                let until = now + Duration::from_micros(self.config.retry_us);
                self.backups.set(from, Health::Full { until });
                self.give_up(ack, from);
            }
            ReplicateStatus::Unknown
            | ReplicateStatus::StaleEpoch
            | ReplicateStatus::Closed
            | ReplicateStatus::Refused => {
                let until = now + Duration::from_micros(self.config.retry_us);
                self.backups.set(from, Health::Suspect { until });
                self.give_up(ack, from);
            }
            ReplicateStatus::Fenced => {}
        }
        AckEffect::None
    }

    /// A replica that can't be brought to what it should be is replaced by another.
    fn give_up(&mut self, ack: &ReplicateAck, from: ServerId) {
        let Some(segment) = self.segments.get_mut(&ack.segment) else {
            return;
        };
        if segment.lose(from) {
            self.active.insert(ack.segment);
            self.orphans.entry(from).or_default().insert(ack.segment);
        }
    }
}
