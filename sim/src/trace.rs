//! What happened, as a hash that two runs can be compared by, and as lines for a person.
//!
//! # Invariants
//! 1. Whatever a run does reaches the hash, whether lines are kept or not.

use std::fmt;
use std::hash::{BuildHasher, Hasher};

use foldhash::fast::FixedState;
use ramkeep_wire::Micros;

/// How much is kept as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lines {
    /// The hash alone.
    No,
    /// The last lines, for the report of a finding.
    Last(usize),
    /// Print each at once.
    Print,
}

/// The trace of a run.
#[derive(Debug)]
pub struct Trace {
    hash: u64,
    events: u64,
    lines: Lines,
    kept: std::collections::VecDeque<String>,
}

impl Trace {
    /// An empty trace.
    #[must_use]
    pub fn new(lines: Lines) -> Self {
        Self {
            hash: 0,
            events: 0,
            lines,
            kept: std::collections::VecDeque::new(),
        }
    }

    /// Whether lines are wanted: building one costs more than the event it tells of.
    #[must_use]
    pub fn wants_lines(&self) -> bool {
        self.lines != Lines::No
    }

    /// Notes an event by its bytes.
    pub fn note(&mut self, now: Micros, tag: u64, bytes: &[u8]) {
        let mut hasher = FixedState::with_seed(self.hash).build_hasher();
        hasher.write_u64(now.0);
        hasher.write_u64(tag);
        hasher.write(bytes);
        self.hash = hasher.finish();
        self.events += 1;
    }

    /// Tells of an event in words.
    pub fn line(&mut self, now: Micros, text: fmt::Arguments<'_>) {
        match self.lines {
            Lines::No => {}
            Lines::Print => println!("{:>10.3} ms  {text}", now.0 as f64 / 1000.0),
            Lines::Last(most) => {
                if self.kept.len() >= most {
                    self.kept.pop_front();
                }
                self.kept
                    .push_back(format!("{:>10.3} ms  {text}", now.0 as f64 / 1000.0));
            }
        }
    }

    /// Hash over everything noted.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Events noted.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.events
    }

    /// The lines kept.
    pub fn kept(&self) -> impl Iterator<Item = &str> {
        self.kept.iter().map(String::as_str)
    }
}
