//! What the workload did and found.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde_json::{Map, Value, json};

/// Findings told one by one on standard error; the others are only counted.
const TOLD: u64 = 20;

/// Counted while tasks run.
#[derive(Debug, Default)]
pub(super) struct Counts {
    operations: AtomicU64,
    acknowledged_writes: AtomicU64,
    lost_writes: AtomicU64,
    stale_reads: AtomicU64,
    wrong_values: AtomicU64,
    failed: AtomicU64,
    uncertain: AtomicU64,
    slowest_read_us: AtomicU64,
    slowest_write_us: AtomicU64,
}

/// Something that must not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// An acknowledged write is not there.
    Lost,
    /// A read returned what was outdated when it began.
    Stale,
    /// A value that nobody wrote, or a condition judged wrongly.
    Wrong,
    /// An operation failed.
    Failed,
}

/// Counted at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) operations: u64,
    pub(super) acknowledged_writes: u64,
    pub(super) lost_writes: u64,
    pub(super) stale_reads: u64,
    pub(super) wrong_values: u64,
    pub(super) failed: u64,
    /// Of those, the ones that may have been applied.
    pub(super) uncertain: u64,
    pub(super) slowest_read: Duration,
    pub(super) slowest_write: Duration,
}

impl Counts {
    /// A read came back, with whatever.
    pub(super) fn read(&self, took: Duration) {
        self.operations.fetch_add(1, Relaxed);
        self.slowest_read_us.fetch_max(micros(took), Relaxed);
    }

    /// A write was acknowledged.
    pub(super) fn written(&self, took: Duration) {
        self.acknowledged_writes.fetch_add(1, Relaxed);
        self.answered(took);
    }

    /// A write was answered, acknowledged or refused as it had to be.
    pub(super) fn answered(&self, took: Duration) {
        self.operations.fetch_add(1, Relaxed);
        self.slowest_write_us.fetch_max(micros(took), Relaxed);
    }

    /// Notes what must not be.
    pub(super) fn find(&self, finding: Finding, what: impl std::fmt::Display) {
        let count = match finding {
            Finding::Lost => &self.lost_writes,
            Finding::Stale => &self.stale_reads,
            Finding::Wrong => &self.wrong_values,
            Finding::Failed => &self.failed,
        };
        if count.fetch_add(1, Relaxed) < TOLD {
            tracing::warn!(?finding, "{what}");
        }
    }

    /// Of what failed, one that may have been applied.
    pub(super) fn uncertain(&self) {
        self.uncertain.fetch_add(1, Relaxed);
    }

    /// As it stands.
    pub(super) fn tally(&self) -> Tally {
        let read = |count: &AtomicU64| count.load(Relaxed);
        Tally {
            operations: read(&self.operations),
            acknowledged_writes: read(&self.acknowledged_writes),
            lost_writes: read(&self.lost_writes),
            stale_reads: read(&self.stale_reads),
            wrong_values: read(&self.wrong_values),
            failed: read(&self.failed),
            uncertain: read(&self.uncertain),
            slowest_read: Duration::from_micros(read(&self.slowest_read_us)),
            slowest_write: Duration::from_micros(read(&self.slowest_write_us)),
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Milliseconds with one digit after the point.
pub(super) fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 10_000.0).round() / 10.0
}

impl Tally {
    /// Both together.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            operations: self.operations + other.operations,
            acknowledged_writes: self.acknowledged_writes + other.acknowledged_writes,
            lost_writes: self.lost_writes + other.lost_writes,
            stale_reads: self.stale_reads + other.stale_reads,
            wrong_values: self.wrong_values + other.wrong_values,
            failed: self.failed + other.failed,
            uncertain: self.uncertain + other.uncertain,
            slowest_read: self.slowest_read.max(other.slowest_read),
            slowest_write: self.slowest_write.max(other.slowest_write),
        }
    }

    /// For programs.
    pub(super) fn json(&self) -> Map<String, Value> {
        let fields = json!({
            "operations": self.operations,
            "acknowledged_writes": self.acknowledged_writes,
            "lost_writes": self.lost_writes,
            "stale_reads": self.stale_reads,
            "wrong_values": self.wrong_values,
            "failed_operations": self.failed,
            "failed_uncertain": self.uncertain,
            "slowest_read_ms": ms(self.slowest_read),
            "slowest_write_ms": ms(self.slowest_write),
        });
        match fields {
            Value::Object(fields) => fields,
            _ => Map::new(),
        }
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let failed = match (self.failed, self.uncertain) {
            (failed, 0) => format!("{failed} failed"),
            (failed, some) => format!("{failed} failed, of which {some} may have been applied"),
        };
        format!(
            "{} operations, {} acknowledged writes: {} lost, {} stale reads, {} wrong values, \
             {failed}; slowest read {} ms, write {} ms",
            self.operations,
            self.acknowledged_writes,
            self.lost_writes,
            self.stale_reads,
            self.wrong_values,
            ms(self.slowest_read),
            ms(self.slowest_write),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finding_is_counted_by_its_own_name() {
        let named = [
            (Finding::Lost, "lost_writes"),
            (Finding::Stale, "stale_reads"),
            (Finding::Wrong, "wrong_values"),
            (Finding::Failed, "failed_operations"),
        ];
        for (finding, name) in named {
            let counts = Counts::default();
            counts.read(Duration::from_millis(3));
            counts.find(finding, "one");
            let both = counts.tally().and(counts.tally()).json();
            assert_eq!(both[name], 2);
            assert_eq!(both["slowest_read_ms"], 3.0);
            let others = named.iter().filter(|(other, _)| *other != finding);
            assert!(
                others
                    .map(|(_, name)| &both[*name])
                    .all(|count| *count == 0)
            );
        }
    }
}
