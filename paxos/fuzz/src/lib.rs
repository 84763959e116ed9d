//! The evidence for `paxos`: seeds that make a world of faults in virtual time, and all states of
//! small worlds.
//!
//! ```text
//! cargo run --release -p paxos-fuzz -- --seeds 0..20000 --jobs 2
//! cargo run --release -p paxos-fuzz -- --seed 7 --trace
//! cargo run --release -p paxos-fuzz -- --exhaustive
//! cargo run --release -p paxos-fuzz --features mutants -- --mutants
//! ```
//!
//! # What may happen
//! - **Groups** of 1, 3 and 5 peers, 1 to 7 clients.
//! - **Network**: messages are lost, doubled, delayed and reordered, slow for a while; one peer is
//!   cut off in both directions, in one, or from some; two are cut from each other. A message of a
//!   life may arrive after that life.
//! - **Processes** crash at any point, between any two actions too, one or many at once, and begin
//!   anew; they pause with their clock running on. An IO error is a crash.
//! - **Disks** are slow or slow for a while. What was handed out to be written and not synced is
//!   lost but for a prefix of the writes, and of the next write a prefix of its records; a snapshot
//!   with the journal that begins with it is kept whole or not at all. A sync may be done and not
//!   reported.
//! - **Wiped disks**: the peer begins as a new incarnation. Of no group that may still decide do
//!   more than a minority lack their disk at once.
//! - **Members are replaced** by peers of new numbers, dead or alive, the leader too. Who was
//!   replaced stops once [`paxos::Node::is_settled`], or goes on for ever.
//! - **Clocks** begin anywhere in each life; the rates of any two differ by less than one part in
//!   [`paxos::limits::CLOCK_RATE_PARTS`].
//! - Pages, what is kept, and the distances that make a peer fetch are small
//!   ([`paxos::limits::Sizes`]), so that a run of seconds sees them all.
//!
//! Not in the model: peers that lie, disks that damage what they have synced, a majority of disks
//! lost, and a replaced peer started again on an empty disk with a configuration in which it and
//! its like are a whole new group.
//!
//! # What must hold
//! Each is a [`Check`], by which a finding is named: agreement, order, durability of what a client
//! was told, one effect per command, one lease at a time, no stale local read, ballots used once,
//! one entry per ballot and slot, persist before send, a quorum of disks behind what is applied,
//! promises kept across restarts, one member per change of the group, journals that can be gone on
//! with, proposals said to be lost for good that are, and, once faults have stopped, a leader,
//! decided commands and members that all agree.
#![forbid(unsafe_code)]

mod acts;
mod check;
mod clients;
mod dice;
mod disk;
mod faults;
mod machine;
mod model;
mod peer;
mod plan;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

pub use check::{Check, Counts, Finding};
pub use model::{Bounds, Explored, explore};

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
    run_without(&[], seed, trace)
}

/// As [`run`], without some checks.
fn run_without(ignored: &'static [Check], seed: u64, trace: bool) -> Outcome {
    let mut world = world::World::new(seed, trace);
    world.ignored = ignored;
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

/// The first of some seeds in which this check fails while a fault is planted. Of the `ignored`
/// checks none is made: often one that looks at each step sees a fault before its effect shows.
#[cfg(feature = "mutants")]
#[must_use]
pub fn hunt(
    mutant: paxos::mutants::Mutant,
    check: Check,
    ignored: &'static [Check],
    seeds: std::ops::Range<u64>,
) -> Option<u64> {
    let before = paxos::mutants::plant(Some(mutant));
    let fails = |seed: &u64| {
        run_without(ignored, *seed, false)
            .finding
            .is_some_and(|f| f.check == check)
    };
    let found = seeds.into_iter().find(fails);
    paxos::mutants::plant(before);
    found
}
