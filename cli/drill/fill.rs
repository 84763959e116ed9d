//! How full the masters' memory is, and whether what one had fits into the others.

use ramkeep_wire::coordinator::{ClusterStatus, MasterStats, ServerState};
use serde_json::{Value, json};

use crate::units::Size;

/// Beyond what a dead master had alive, recovery may take so many percent of it for tombstones and
/// index, and leave a segment half empty on each survivor. What fits with that must be recovered.
const MARGIN_PERCENT: u64 = 5;
const SEGMENT: u64 = ramkeep_wire::limits::SEGMENT_SIZE as u64;

/// Of the masters that are up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Memory(Vec<(u64, MasterStats)>);

impl Memory {
    /// As the servers reported it last.
    pub(super) fn of(status: &ClusterStatus) -> Self {
        let living = status.servers.iter();
        let living = living.filter(|one| one.entry.state == ServerState::Up);
        let reported = living.filter_map(|one| {
            let stats = one.heartbeat.as_ref()?.master?;
            Some((one.entry.server.0, stats))
        });
        Self(reported.collect())
    }

    /// Bytes that are missing until this share of all is used.
    pub(super) fn bytes_to(&self, share: f64) -> u64 {
        let wanted = (self.sum(|one| one.memory) as f64 * share) as u64;
        wanted.saturating_sub(self.sum(|one| one.used))
    }

    /// Whether what these servers have alive fits into the memory that the others have free.
    pub(super) fn holds(&self, dead: &[u64]) -> bool {
        let (mut needed, mut free) = (0, 0);
        for (id, one) in &self.0 {
            if dead.contains(id) {
                needed += one.live + one.live * MARGIN_PERCENT / 100;
            } else {
                free += one.memory.saturating_sub(one.used + SEGMENT);
            }
        }
        needed <= free
    }

    /// The share that is used where most is.
    pub(super) fn fullest(&self) -> f64 {
        let shares = self.0.iter().map(|(_, one)| share(one.used, one.memory));
        shares.fold(0.0, f64::max)
    }

    /// For people: what each uses.
    pub(super) fn text(&self) -> String {
        let each = self.0.iter().map(|(id, one)| {
            let (used, live, memory) = (Size(one.used), Size(one.live), Size(one.memory));
            format!("server {id} {used} of {memory} with {live} alive")
        });
        each.collect::<Vec<_>>().join(", ")
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        let each = self.0.iter().map(|(id, one)| {
            json!({ "server": id, "memory": one.memory, "used": one.used, "live": one.live })
        });
        each.collect()
    }

    fn sum(&self, of: impl Fn(&MasterStats) -> u64) -> u64 {
        self.0.iter().map(|(_, one)| of(one)).sum()
    }
}

/// In hundredths.
fn share(part: u64, whole: u64) -> f64 {
    (part as f64 / whole.max(1) as f64 * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(used_mib: u64) -> Memory {
        let one = |id| {
            let stats = MasterStats {
                memory: 128 << 20,
                used: used_mib << 20,
                live: used_mib << 20,
                ..<_>::default()
            };
            (id, stats)
        };
        Memory((1..=4).map(one).collect())
    }

    #[test]
    fn one_of_four_fits_into_the_others_up_to_two_thirds() {
        for (used, fits) in [
            (38, true),
            (77, true),
            (84, true),
            (92, false),
            (103, false),
        ] {
            assert_eq!(memory(used).holds(&[2]), fits, "{used}");
        }
        assert!(!memory(64).holds(&[1, 2, 3]));
    }

    #[test]
    fn what_is_missing_is_counted_over_all_masters() {
        assert_eq!(memory(32).bytes_to(0.5), 128 << 20);
        assert_eq!(memory(64).bytes_to(0.5), 0);
        assert_eq!(memory(32).fullest(), 0.25);
    }
}
