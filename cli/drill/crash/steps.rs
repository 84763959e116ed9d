//! A recovery step by step: when each step of it came, and what it took.
//!
//! # Invariants
//! 1. The parts of an outage add up to it: no step counts as earlier than the one before, and none
//!    as later than the end.

use std::time::{Duration, Instant};

use ramkeep_wire::coordinator::RecoveryReport;

/// Steps that the coordinator tells of.
const STEPS: usize = 6;
/// What comes before each step, and before the end.
const PARTS: [&str; STEPS + 1] = [
    "detect",
    "fence",
    "end",
    "plan",
    "replay",
    "commit",
    "first_read",
];
/// What a step's coming means, for people.
const TEXTS: [&str; STEPS] = [
    "detected: it is decided crashed",
    "fenced: every backup refuses it and shows what it holds",
    "the end of its log and its digest are found, nothing is missing",
    "partitions are decided",
    "replayed, and durable",
    "committed: new owners are decided",
];
/// Names in a picture.
const MARKS: [&str; STEPS] = [
    "detected",
    "fenced",
    "digest",
    "partitions",
    "replayed",
    "committed",
];

/// A step that came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    /// When.
    pub(super) at: Instant,
    /// For people.
    pub(super) text: &'static str,
    /// For a picture.
    pub(super) mark: &'static str,
}

/// What took how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Took {
    /// Its name.
    pub(super) name: &'static str,
    pub(super) from: Instant,
    pub(super) to: Instant,
}

impl Took {
    /// How long.
    pub(super) fn duration(&self) -> Duration {
        self.to.duration_since(self.from)
    }
}

/// When each step of one recovery came.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Steps([Option<Instant>; STEPS]);

impl Steps {
    /// Takes what a status of the moment `at` says. Returns what is new.
    pub(super) fn follow(&mut self, at: Instant, report: &RecoveryReport) -> Vec<Step> {
        let back = Duration::from_micros(report.since_us);
        let began = at.checked_sub(back).unwrap_or(at);
        let moments = &report.moments;
        let told = [
            Some(0),
            moments.fenced_us,
            moments.end_us,
            moments.planned_us,
            moments.replayed_us,
            moments.committed_us,
        ];
        let told = told.map(|after| after.map(|us| began + Duration::from_micros(us)));
        let mut news = Vec::new();
        for (step, moment) in told.into_iter().enumerate() {
            let Some(moment) = moment else { continue };
            let known = self.0[step].replace(moment);
            if known.is_none() {
                news.push(self.step(step, moment));
            } else if step == 0 {
                // A new leader begins to count later.
                self.0[0] = known;
            }
        }
        news
    }

    fn step(&self, step: usize, at: Instant) -> Step {
        Step {
            at,
            text: TEXTS[step],
            mark: MARKS[step],
        }
    }

    /// Everything was served at `at`: that it is committed is known now, if not before.
    pub(super) fn close(&mut self, at: Instant) {
        self.0[STEPS - 1].get_or_insert(at);
    }

    /// When it was decided crashed.
    pub(super) fn detected(&self) -> Option<Instant> {
        self.0[0]
    }

    /// When the last new owner was decided.
    pub(super) fn committed(&self) -> Option<Instant> {
        self.0[STEPS - 1]
    }

    /// What took how long from the kill until everything was `read` again.
    pub(super) fn parts(&self, killed: Instant, read: Instant) -> Vec<Took> {
        let mut from = killed;
        let ends = self.0.iter().copied().chain([Some(read)]);
        let parts = PARTS.iter().zip(ends).map(|(name, to)| {
            let to = to.unwrap_or(from).clamp(from, read.max(from));
            let part = Took { name, from, to };
            from = to;
            part
        });
        parts.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ramkeep_wire::ServerId;
    use ramkeep_wire::coordinator::RecoveryMoments;

    fn report(since_us: u64, moments: RecoveryMoments) -> RecoveryReport {
        RecoveryReport {
            master: ServerId(1),
            phase: String::new(),
            stuck: false,
            tablets: 1,
            since_us,
            moments,
            missing: None,
        }
    }

    #[test]
    fn parts_add_up_to_the_outage_whatever_was_told() {
        let killed = Instant::now();
        let after = |ms: u64| killed + Duration::from_millis(ms);
        let mut steps = Steps::default();
        let moments = RecoveryMoments {
            fenced_us: Some(5_000),
            ..<_>::default()
        };
        let news = steps.follow(after(110), &report(10_000, moments));
        assert_eq!(news.len(), 2, "{news:?}");
        let moments = RecoveryMoments {
            fenced_us: Some(5_000),
            planned_us: Some(9_000),
            replayed_us: Some(80_000),
            committed_us: Some(200_000),
            ..<_>::default()
        };
        let news = steps.follow(after(300), &report(200_000, moments));
        assert_eq!(news.len(), 3, "{news:?}");
        let parts = steps.parts(killed, after(250));
        let took: Vec<_> = parts
            .iter()
            .map(|part| part.duration().as_millis())
            .collect();
        assert_eq!(took, [100, 5, 0, 4, 71, 70, 0]);
        let nothing = Steps::default().parts(killed, after(70));
        let sum: Duration = nothing.iter().map(Took::duration).sum();
        assert_eq!(sum, Duration::from_millis(70));
    }

    #[test]
    fn a_new_leader_does_not_make_the_crash_younger() {
        let at = Instant::now() + Duration::from_secs(9);
        let mut steps = Steps::default();
        steps.follow(at, &report(1_000_000, RecoveryMoments::default()));
        let detected = steps.detected();
        steps.follow(
            at + Duration::from_secs(1),
            &report(7_000, RecoveryMoments::default()),
        );
        assert_eq!(steps.detected(), detected);
    }
}
