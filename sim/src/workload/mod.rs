//! What clients do: few contended keys and many of their own, values that say who wrote them.

pub mod client;
mod scan;
pub mod tables;
mod words;

use std::time::Duration;

use ramkeep_wire::Version;
use ramkeep_wire::data::RejectRules;

use crate::history::{Action, Place};
use crate::rng::Rng;

/// The next thing a client does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Something with one key.
    Key(Vec<u8>, Action),
    /// The same, in a table that somebody may drop.
    Doomed(Place, Action),
    /// Look at every object.
    Scan,
}

/// What a client does in one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Several only if all are for keys.
    pub steps: Vec<Step>,
    /// It gives the call up after this time, unless it is over by then.
    pub cancelled_after: Option<Duration>,
    /// It does not look at the results for so long.
    pub held_for: Duration,
}

/// How a workload is mixed.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// Steps.
    pub steps: usize,
    /// Keys that all clients fight for.
    pub hot: u64,
    /// Counters that all clients increment.
    pub counters: u64,
    /// Longest value.
    pub longest: u64,
    /// Steps in a thousand that are scans.
    pub scans_per_mille: u64,
    /// Calls in a thousand with several operations, and how many at most.
    pub many_per_mille: (u64, u64),
    /// Calls in a thousand that are given up at some moment.
    pub cancels_per_mille: u64,
    /// Calls in a thousand whose results lie for a time.
    pub held_per_mille: u64,
}

impl Mix {
    /// Nothing but what a script adds.
    pub const NOTHING: Self = Self {
        steps: 0,
        hot: 1,
        counters: 1,
        longest: 16,
        scans_per_mille: 0,
        many_per_mille: (0, 1),
        cancels_per_mille: 0,
        held_per_mille: 0,
    };
}

/// How long a client waits before it gives a call up: before it was sent, while it is on its way, after
/// it was given up for lost.
const CANCELLED_AFTER: [u64; 4] = [1, 300, 5_000, 600_000];
/// How long results lie at most, microseconds.
const HELD_FOR: u64 = 50_000;

/// A client's workload.
#[derive(Debug)]
pub struct Workload {
    rng: Rng,
    client: u32,
    mix: Mix,
    made: usize,
    written: u64,
    own: u64,
    /// Steps given to it beside the mix.
    extra: Vec<Step>,
    stopped: bool,
}

impl Workload {
    /// The workload of one client.
    #[must_use]
    pub fn new(rng: Rng, client: u32, mix: Mix) -> Self {
        Self {
            rng,
            client,
            mix,
            made: 0,
            written: 0,
            own: 0,
            extra: Vec::new(),
            stopped: false,
        }
    }

    /// A workload of these steps only.
    #[must_use]
    pub fn scripted(rng: Rng, client: u32, mut steps: Vec<Step>) -> Self {
        steps.reverse();
        Self {
            extra: steps,
            ..Self::new(rng, client, Mix::NOTHING)
        }
    }

    /// Does this before anything else.
    pub fn add(&mut self, step: Step) {
        self.extra.insert(0, step);
    }

    /// No more steps of the mix are made.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// Whether there is nothing more to do.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.extra.is_empty() && (self.stopped || self.made >= self.mix.steps)
    }

    /// The next call. What a script wants is never given up.
    pub fn next_call(&mut self) -> Option<Plan> {
        if let Some(step) = self.extra.pop() {
            return Some(Plan {
                steps: vec![step],
                cancelled_after: None,
                held_for: Duration::ZERO,
            });
        }
        let mut steps = vec![self.next_step()?];
        let (many, most) = self.mix.many_per_mille;
        if steps[0] != Step::Scan && self.rng.per_mille(many) {
            let count = self.rng.below(1..most) as usize;
            let more = std::iter::from_fn(|| self.next_step()).take(count);
            steps.extend(more.filter(|step| *step != Step::Scan));
        }
        let cancelled = self.rng.per_mille(self.mix.cancels_per_mille);
        let held = self.rng.per_mille(self.mix.held_per_mille);
        Some(Plan {
            steps,
            cancelled_after: cancelled.then(|| {
                let most = *self.rng.choose(&CANCELLED_AFTER);
                self.rng.micros(0..most)
            }),
            held_for: match held {
                true => self.rng.micros(0..HELD_FOR),
                false => Duration::ZERO,
            },
        })
    }

    fn next_step(&mut self) -> Option<Step> {
        if self.is_over() {
            return None;
        }
        self.made += 1;
        if self.rng.per_mille(self.mix.scans_per_mille) {
            return Some(Step::Scan);
        }
        Some(match self.rng.below(0..10) {
            0..=5 => self.hot_step(),
            6 => self.counter_step(),
            _ => self.own_step(),
        })
    }

    fn hot_step(&mut self) -> Step {
        let key = format!("hot{}", self.rng.below(0..self.mix.hot)).into_bytes();
        let action = match self.rng.below(0..20) {
            0..=7 => Action::Read,
            8..=16 => Action::Write {
                value: self.value(),
                rules: self.rules(),
            },
            _ => Action::Remove {
                rules: self.rules(),
            },
        };
        Step::Key(key, action)
    }

    fn counter_step(&mut self) -> Step {
        let key = format!("count{}", self.rng.below(0..self.mix.counters)).into_bytes();
        let action = match self.rng.below(0..8) {
            0 => Action::Read,
            1 => Action::Remove {
                rules: RejectRules::default(),
            },
            2 if self.rng.percent(20) => Action::Increment {
                by: *self.rng.choose(&[i64::MIN, i64::MAX, i64::MAX / 2]),
            },
            _ => Action::Increment {
                by: self.rng.below(1..100) as i64 - 30,
            },
        };
        Step::Key(key, action)
    }

    fn own_step(&mut self) -> Step {
        let number = if self.own == 0 || self.rng.percent(50) {
            self.own += 1;
            self.own
        } else {
            self.rng.below(1..self.own + 1)
        };
        let key = format!("own{}-{number}", self.client).into_bytes();
        let action = match self.rng.below(0..10) {
            0..=5 => Action::Write {
                value: self.value(),
                rules: RejectRules::default(),
            },
            6..=7 => Action::Read,
            _ => Action::Remove {
                rules: RejectRules::default(),
            },
        };
        Step::Key(key, action)
    }

    /// A value that no other write has.
    fn value(&mut self) -> Vec<u8> {
        self.written += 1;
        let mut value = format!("client{}-{}-", self.client, self.written).into_bytes();
        let length = self.rng.below(0..self.mix.longest) as usize;
        value.resize(value.len() + length, b'.');
        value
    }

    fn rules(&mut self) -> RejectRules {
        match self.rng.below(0..10) {
            0 => RejectRules {
                exists: true,
                ..RejectRules::default()
            },
            1 => RejectRules {
                absent: true,
                ..RejectRules::default()
            },
            2 => RejectRules {
                unless_version: Some(Version(self.rng.below(1..30))),
                ..RejectRules::default()
            },
            _ => RejectRules::default(),
        }
    }
}
