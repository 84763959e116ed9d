//! What clients do: few contended keys and many of their own, values that say who wrote them.

use ramkeep_wire::Version;
use ramkeep_wire::data::RejectRules;

use crate::history::Action;
use crate::rng::Rng;

/// The next thing a client does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Something with one key.
    Key(Vec<u8>, Action),
    /// Look at every object.
    Scan,
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
}

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
        let mix = Mix {
            steps: 0,
            hot: 1,
            counters: 1,
            longest: 16,
            scans_per_mille: 0,
        };
        steps.reverse();
        Self {
            extra: steps,
            ..Self::new(rng, client, mix)
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

    /// The next step.
    pub fn next_step(&mut self) -> Option<Step> {
        if let Some(step) = self.extra.pop() {
            return Some(step);
        }
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
