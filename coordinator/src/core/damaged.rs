//! Replicas that were found damaged, for `status`.
//!
//! Soft: who found one says so with every heartbeat, so that a new leader hears of it again.

use std::collections::BTreeMap;

use ramkeep_wire::coordinator::DamagedReplica;
use ramkeep_wire::limits::MAX_DAMAGED_REPORTED;

/// Each with its place in the order in which they became known.
#[derive(Debug, Default)]
pub(super) struct Damaged(BTreeMap<DamagedReplica, usize>);

impl Damaged {
    /// One was found, perhaps not for the first time.
    pub(super) fn note(&mut self, replica: DamagedReplica) {
        let place = self.0.len();
        if place < MAX_DAMAGED_REPORTED {
            self.0.entry(replica).or_insert(place);
        }
    }

    /// All, the last found last.
    pub(super) fn report(&self) -> Vec<DamagedReplica> {
        let mut all: Vec<_> = self.0.iter().collect();
        all.sort_unstable_by_key(|(_, place)| **place);
        all.into_iter().map(|(replica, _)| *replica).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ramkeep_wire::{SegmentId, ServerId};

    #[test]
    fn what_is_reported_again_and_again_is_known_once_and_there_is_an_end_to_it() {
        let replica = |number: u64| DamagedReplica {
            backup: ServerId(2),
            master: ServerId(1),
            segment: SegmentId(1_000 - number),
        };
        let mut damaged = Damaged::default();
        for number in (0..MAX_DAMAGED_REPORTED as u64 + 9).chain(0..9) {
            damaged.note(replica(number));
        }
        let report = damaged.report();
        assert_eq!(report.len(), MAX_DAMAGED_REPORTED);
        assert_eq!(report[..2], [replica(0), replica(1)]);
    }
}
