//! A few hundred seeds, and those that found something once.

// A test fails by panicking, in its helpers too.
#![allow(clippy::unwrap_used)]

use paxos_fuzz::{Bounds, Counts, explore, run};

fn holds(seed: u64) {
    let finding = run(seed, false).finding;
    assert!(finding.is_none(), "seed {seed}: {}", finding.unwrap());
}

#[test]
fn three_hundred_seeds_hold_and_see_every_kind_of_fault() {
    let mut counts = Counts::default();
    for seed in 0..300 {
        let outcome = run(seed, false);
        assert_eq!(outcome.finding, None, "seed {seed}");
        counts.add(&outcome.counts);
    }
    for (name, count) in counts.named() {
        assert!(count > 0, "nothing of the kind: {name}");
    }
}

#[test]
fn who_was_replaced_stays_until_most_know() {
    holds(5_614);
}

#[test]
fn the_same_seed_makes_the_same_run() {
    assert_eq!(run(7, false).counts, run(7, false).counts);
}

#[test]
fn all_states_of_one_leader_with_a_message_that_comes_twice_hold() {
    let bounds = Bounds {
        timeouts: [1, 0, 0],
        commands: 0,
        crashes: 0,
        doubles: 1,
        slow_disks: false,
    };
    let explored = explore(bounds, 100_000);
    assert!(explored.complete && explored.deciding > 0, "{explored:?}");
    assert_eq!(explored.broken, None);
}
