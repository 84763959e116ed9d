//! Operations in windows of time.

use std::time::{Duration, Instant};

use super::Scene;
use crate::drill::samples::percentile;

/// Longest span that is drawn in the narrow windows.
const NARROW_UP_TO: Duration = Duration::from_secs(12);
const NARROW: Duration = Duration::from_millis(50);
/// Windows of a picture at most, beyond which they are wider.
const MAX_WINDOWS: u32 = 400;

/// What ended in one window.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Window {
    /// Its middle.
    pub(super) at: Instant,
    /// Operations a second, on all keys and on those that are hurt.
    pub(super) all: f64,
    pub(super) hurt: f64,
    /// Milliseconds: median, 99th percentile, longest. `None`: nothing ended in it.
    pub(super) latency: Option<[f64; 3]>,
}

/// All windows, with their width.
pub(super) struct Windows {
    pub(super) width: Duration,
    pub(super) all: Vec<Window>,
}

/// The scene's samples from `from` to `to`.
pub(super) fn windows(scene: &Scene<'_>, from: Instant, to: Instant) -> Windows {
    let span = to.duration_since(from);
    let mut width = if span <= NARROW_UP_TO {
        NARROW
    } else {
        2 * NARROW
    };
    width = width.max(span / MAX_WINDOWS);
    // Whole ones only: the last would seem slow.
    let count = (span.as_secs_f64() / width.as_secs_f64() + 1e-6).floor() as u32;
    let mut samples = scene.samples.iter().peekable();
    let mut all = Vec::new();
    for number in 0..count {
        let end = from + width * (number + 1);
        let mut took = Vec::new();
        let mut hurt = 0;
        while let Some(sample) = samples.next_if(|sample| sample.at < end) {
            took.push(sample.took);
            let own = scene.hurt.get(usize::from(sample.group));
            hurt += u32::from(own.copied().unwrap_or(false));
        }
        let a_second = |count: f64| count / width.as_secs_f64();
        all.push(Window {
            at: end - width / 2,
            all: a_second(took.len() as f64),
            hurt: a_second(f64::from(hurt)),
            latency: latency(took),
        });
    }
    Windows { width, all }
}

fn latency(mut took: Vec<Duration>) -> Option<[f64; 3]> {
    took.sort_unstable();
    let at = |percent: usize| percentile(&took, percent).as_secs_f64() * 1e3;
    (!took.is_empty()).then(|| [at(50), at(99), at(100)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::samples::Sample;

    #[test]
    fn every_operation_is_in_the_window_in_which_it_ended() {
        let from = Instant::now();
        let sample = |ms: u64, group| Sample {
            at: from + Duration::from_millis(ms),
            took: Duration::from_millis(ms),
            group,
        };
        let samples = [sample(10, 0), sample(20, 1), sample(49, 1), sample(120, 0)];
        let scene = Scene {
            title: "",
            marks: &[],
            parts: &[],
            samples: &samples,
            hurt: &[false, true],
        };
        let windows = windows(&scene, from, from + Duration::from_millis(150)).all;
        let counts: Vec<_> = windows.iter().map(|one| (one.all, one.hurt)).collect();
        assert_eq!(counts, [(60.0, 40.0), (0.0, 0.0), (20.0, 0.0)]);
        assert_eq!(windows[0].latency, Some([20.0, 49.0, 49.0]));
        assert_eq!(windows[1].latency, None);
    }
}
