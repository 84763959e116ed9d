//! Every planted fault is caught: by seeds, or by the story that it belongs to.
#![cfg(feature = "mutants")]

use ramkeep_wire::mutants::Mutant;
use sim::run::{Options, Report, run};
use sim::scenarios::ALL;
use sim::trace::Lines;

/// Seeds that a fault may take to be found.
const SEEDS: u64 = 300;

/// Seeds that are tried when a story has found the fault already.
const A_FEW: u64 = 40;

/// Faults that whole runs don't show, with where they are caught instead.
const ELSEWHERE: &[(Mutant, &str)] = &[
    (
        Mutant::AcceptStaleEpoch,
        "backup/tests/planted_faults.rs: late bytes are refused by their connection already",
    ),
    (
        Mutant::ShowIncomplete,
        "backup/tests/planted_faults.rs: small segments are copied in one message",
    ),
    (
        Mutant::LeaseBeforeLooking,
        "master/tests/planted_faults.rs: a simulated process does not stop while it handles something",
    ),
];

fn play(seed: u64, mutant: Option<Mutant>) -> Report {
    run(Options {
        seed,
        mutant,
        lines: Lines::No,
    })
}

/// The first seed below `end` that finds the fault.
fn seed_that_finds(mutant: Mutant, end: u64) -> Option<u64> {
    (0..end).find(|seed| !play(*seed, Some(mutant)).findings.is_empty())
}

fn story_that_finds(mutant: Mutant) -> Option<&'static str> {
    let found = ALL.iter().find(|scenario| {
        let played = std::panic::catch_unwind(|| scenario.play(Some(mutant), Lines::No));
        !matches!(played, Ok(Ok(())))
    });
    // A story that panicked has left the fault planted.
    ramkeep_wire::mutants::plant(None);
    found.map(|scenario| scenario.name)
}

fn is_caught(mutant: Mutant) {
    let story = story_that_finds(mutant);
    let seed = seed_that_finds(mutant, if story.is_some() { A_FEW } else { SEEDS });
    println!("{}: seed {seed:?}, story {story:?}", mutant.name());
    assert!(
        seed.is_some() || story.is_some(),
        "{mutant:?} is not caught"
    );
    // The seed is clean without the fault: it is the fault that was found.
    if let Some(seed) = seed {
        assert_eq!(
            play(seed, None).findings,
            Vec::<String>::new(),
            "seed {seed}"
        );
    }
}

#[test]
fn every_planted_fault_is_caught() {
    for mutant in Mutant::ALL {
        if !ELSEWHERE.iter().any(|(elsewhere, _)| elsewhere == mutant) {
            is_caught(*mutant);
        }
    }
}

#[test]
fn seeds_alone_catch_what_loses_or_shows_too_much() {
    for mutant in [
        Mutant::AckEarly,
        Mutant::ShowNotDurable,
        Mutant::LoseTombstone,
        Mutant::ReuseVersion,
        Mutant::SkipEpochRecord,
        Mutant::OneAckIsEnough,
    ] {
        assert!(seed_that_finds(mutant, SEEDS).is_some(), "{mutant:?}");
    }
}
