//! Whole runs: the same seed gives the same bytes, and nothing is found.

use sim::run::{Options, Report, run};
use sim::trace::Lines;

/// Few, for builds without optimisation; the change pipeline runs a thousand.
const SEEDS: u64 = 4;

fn play(seed: u64, lines: Lines) -> Report {
    run(Options {
        seed,
        mutant: None,
        crash_at: None,
        lines,
    })
}

#[test]
fn a_seed_gives_the_same_bytes_twice() {
    let seed = 3;
    let (one, two) = (play(seed, Lines::No), play(seed, Lines::Last(50)));
    assert!(one.events > 500, "the seed did something");
    assert_eq!(one.trace, two.trace);
    assert_eq!(
        (one.events, one.operations, one.envelopes, one.recoveries),
        (two.events, two.operations, two.envelopes, two.recoveries)
    );
    let again = play(seed, Lines::Last(50));
    assert_eq!(two.lines, again.lines);
    assert_ne!(one.trace, play(seed + 1, Lines::No).trace);
}

#[test]
fn nothing_is_found_in_the_first_seeds() {
    let (mut operations, mut refused, mut recoveries, mut faults) = (0, 0, 0, 0);
    for seed in 0..SEEDS {
        let report = play(seed, Lines::No);
        assert_eq!(report.findings, Vec::<String>::new(), "seed {seed}");
        operations += report.operations;
        refused += report.refused;
        recoveries += report.recoveries;
        faults += report.faults.values().sum::<u32>();
    }
    // The runs do something: most operations succeed, faults happen, logs are recovered.
    assert!(operations > 1_000, "{operations}");
    assert!(refused < operations as u64 / 4, "{refused} of {operations}");
    assert!(recoveries > 50 && faults > 20, "{recoveries} {faults}");
}
