//! How long each operation of the workload took, and when it ended: what a picture is drawn from.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Operations that are kept; a drill that does more is drawn without the later ones.
const MAX_SAMPLES: usize = 2 << 20;

/// One operation that was answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// When.
    pub(super) at: Instant,
    /// After how long.
    pub(super) took: Duration,
    /// The place of the key's group.
    pub(super) group: u16,
}

/// All of them, in the order in which they ended.
#[derive(Debug, Default)]
pub(super) struct Samples(Mutex<Vec<Sample>>);

impl Samples {
    /// An operation on a key of that group is answered now.
    pub(super) fn note(&self, group: usize, took: Duration) {
        let mut all = self.0.lock();
        if all.len() < MAX_SAMPLES {
            all.push(Sample {
                at: Instant::now(),
                took,
                group: u16::try_from(group).unwrap_or(u16::MAX),
            });
        }
    }

    /// Those that ended between these two.
    pub(super) fn between(&self, from: Instant, to: Instant) -> Vec<Sample> {
        let all = self.0.lock();
        let first = all.partition_point(|sample| sample.at < from);
        let after = all.partition_point(|sample| sample.at < to);
        all[first..after.max(first)].to_vec()
    }
}

/// The value of `sorted` that so many percent of them do not exceed; nothing of nothing.
pub(super) fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let at = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted.get(at).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let sorted: Vec<Duration> = (1..=10).map(Duration::from_millis).collect();
        let at = |percent| percentile(&sorted, percent).as_millis();
        assert_eq!([at(50), at(90), at(100)], [5, 9, 10]);
        assert_eq!(percentile(&sorted[..1], 50).as_millis(), 1);
    }
}
