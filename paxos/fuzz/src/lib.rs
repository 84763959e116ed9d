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
    world.run();
    Outcome {
        counts: world.counts,
        finding: world.finding,
    }
}
