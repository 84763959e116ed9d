//! The evidence for `paxos`.
#![forbid(unsafe_code)]

mod acts;
mod check;
mod clients;
mod dice;
mod disk;
mod faults;
mod machine;
mod peer;
mod plan;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

pub use check::{Check, Counts, Finding};

/// What came of one seed.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What happened in it.
    pub counts: Counts,
    /// The first check that failed.
    pub finding: Option<Finding>,
}

/// Runs one seed. Prints what happens if `trace`.
#[must_use]
pub fn run(seed: u64, trace: bool) -> Outcome {
    let mut world = world::World::new(seed, trace);
    let ended = catch_unwind(AssertUnwindSafe(|| world.run()));
    let panicked = || Finding {
        check: Check::Panic,
        detail: "see above".to_owned(),
        at: world.now,
    };
    let finding = world.finding.clone();
    Outcome {
        counts: world.counts,
        finding: finding.or_else(|| ended.is_err().then(panicked)),
    }
}

/// The first of some seeds with a finding, while a fault is planted.
#[cfg(feature = "mutants")]
#[must_use]
pub fn hunt(mutant: paxos::mutants::Mutant, seeds: std::ops::Range<u64>) -> Option<(u64, Finding)> {
    let before = paxos::mutants::plant(Some(mutant));
    let found = seeds
        .into_iter()
        .find_map(|seed| run(seed, false).finding.map(|finding| (seed, finding)));
    paxos::mutants::plant(before);
    found
}
