//! Healing: living masters replicate anew what died with a backup, and what clients feel of it.

use std::time::{Duration, Instant};

use ramkeep_wire::coordinator::{ClusterStatus, ServerState};
use serde_json::{Value, json};

use crate::drill::counts::ms;
use crate::drill::samples::{Samples, percentile};

/// From when a death was over for clients until every segment had all its copies again.
#[derive(Clone, Copy, Debug)]
pub(in crate::drill) struct Healing {
    pub(super) from: Instant,
    pub(super) to: Instant,
}

/// The workload's latency before a death and while its damage healed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Felt {
    took: Duration,
    healthy: Latency,
    healing: Latency,
}

/// Of operations that ended in a span of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Latency {
    operations: usize,
    median: Duration,
    p99: Duration,
}

impl Healing {
    /// What clients felt of it, against the time from `calm` until the kill.
    pub(super) fn felt(&self, samples: &Samples, calm: Instant, killed: Instant) -> Felt {
        let latency = |from, to| Latency::of(samples.between(from, to).iter().map(|one| one.took));
        Felt {
            took: self.to.duration_since(self.from),
            healthy: latency(calm, killed),
            healing: latency(self.from, self.to),
        }
    }
}

impl Felt {
    /// For programs.
    pub(super) fn json(&self) -> Value {
        json!({
            "ms": ms(self.took),
            "healthy": self.healthy.json(),
            "healing": self.healing.json(),
            "p99_ratio": self.ratio(),
        })
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        format!(
            "\nhealed {} ms later; p99 meanwhile {} ms, healthy {} ms: {} times that (medians {} and {} ms)",
            ms(self.took),
            ms(self.healing.p99),
            ms(self.healthy.p99),
            self.ratio(),
            ms(self.healing.median),
            ms(self.healthy.median),
        )
    }

    /// How many times the healthy p99 that of healing is, in hundredths.
    fn ratio(&self) -> f64 {
        let healthy = self.healthy.p99.as_secs_f64();
        let ratio = self.healing.p99.as_secs_f64() / healthy.max(1e-9);
        (ratio * 100.0).round() / 100.0
    }
}

impl Latency {
    fn of(took: impl Iterator<Item = Duration>) -> Self {
        let mut sorted: Vec<Duration> = took.collect();
        sorted.sort_unstable();
        Self {
            operations: sorted.len(),
            median: percentile(&sorted, 50),
            p99: percentile(&sorted, 99),
        }
    }

    fn json(&self) -> Value {
        json!({
            "operations": self.operations,
            "p50_ms": ms(self.median),
            "p99_ms": ms(self.p99),
        })
    }
}

/// The newest server list that any server has.
pub(super) fn newest_list(status: &ClusterStatus) -> u64 {
    let lists = status.servers.iter();
    let lists = lists.filter_map(|one| one.heartbeat.as_ref().map(|report| report.list.0));
    lists.max().unwrap_or(0)
}

/// Segments that lack a copy, once every living server has heard of a death after the list `known`.
pub(in crate::drill) fn lacking(status: &ClusterStatus, known: u64) -> Option<u32> {
    let living = status.servers.iter();
    let mut living = living.filter(|one| one.entry.state == ServerState::Up);
    living.try_fold(0, |sum, one| {
        let report = one.heartbeat.as_ref()?;
        let lacking = report.master.map_or(0, |master| master.under_replicated);
        (report.list.0 > known).then_some(sum + lacking)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_felt_is_what_ended_in_each_span() {
        let samples = Samples::default();
        let calm = Instant::now();
        (0..100).for_each(|_| samples.note(0, Duration::from_millis(2)));
        let killed = Instant::now();
        samples.note(0, Duration::from_secs(1));
        let from = Instant::now();
        (0..100).for_each(|_| samples.note(0, Duration::from_millis(3)));
        let to = Instant::now();
        let felt = Healing { from, to }.felt(&samples, calm, killed);
        assert_eq!(felt.healthy.p99, Duration::from_millis(2));
        assert_eq!(felt.healing.p99, Duration::from_millis(3));
        assert_eq!(felt.ratio(), 1.5);
        let nothing = Healing { from: to, to }.felt(&samples, to, to);
        assert_eq!(nothing.healing.operations, 0);
    }
}
