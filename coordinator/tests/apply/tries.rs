//! Tries in the state: each has a name of its own, whatever is repeated.

use ramkeep_wire::{HeldTry, TryId};

use super::recoveries::{accept, crashed};
use super::*;

/// A try as its recovery master reports it; `at` where its replay began, once it is finished.
fn held(master: ServerId, attempt: u32, at: Option<u64>) -> HeldTry {
    HeldTry {
        id: TryId { master, attempt },
        takeover: at.map(LogPosition),
    }
}

#[test]
fn a_try_is_wanted_until_what_it_replayed_is_taken() {
    let (mut state, dead, [b, c], table) = crashed();
    let (low, high) = (range(table, 0, 99), range(table, 100, u64::MAX));
    state
        .apply(&plan(dead, 7, &[(&[low], b), (&[high], c)]))
        .unwrap();
    for at in [None, Some(500)] {
        assert!(state.wants_try(b, &held(dead, 1, at)), "{at:?}");
        assert!(!state.wants_try(c, &held(dead, 1, at)), "of another");
    }
    state.apply(&recovered(dead, 1, b, &[(low, 500)])).unwrap();
    assert!(state.wants_try(b, &held(dead, 1, Some(500))), "it is given");
    assert!(!state.wants_try(b, &held(dead, 1, Some(400))));
    let took = Command::TabletsTaken {
        owner: b,
        taken: vec![(low, LogPosition(900))],
    };
    state.apply(&took).unwrap();
    assert!(
        !state.wants_try(b, &held(dead, 1, Some(500))),
        "it is taken"
    );
    assert!(
        state.wants_try(c, &held(dead, 2, None)),
        "the other goes on"
    );
}

#[test]
fn a_try_that_nobody_will_take_over_is_wanted_no_more() {
    let whole = |table| range(table, 0, u64::MAX);
    let drops = Command::DropTable {
        name: "t".into(),
        once: None,
    };
    type Ends = fn(ServerId, [ServerId; 2]) -> Command;
    let ends: [(&str, Ends); 3] = [
        ("its plan is given up", |dead, _| Command::GiveUpPlan {
            master: dead,
            end: end(7),
        }),
        ("a loss is accepted", |dead, _| {
            accept(dead, &[], &[4], false)
        }),
        ("another has it", |dead, [_, c]| Command::AssignRecovery {
            master: dead,
            attempt: 1,
            by: c,
        }),
    ];
    for at in [None, Some(500)] {
        for (why, ended) in ends {
            let (mut state, dead, others @ [b, _], table) = crashed();
            state
                .apply(&plan(dead, 7, &[(&[whole(table)], b)]))
                .unwrap();
            state.apply(&ended(dead, others)).unwrap();
            assert!(!state.wants_try(b, &held(dead, 1, at)), "{why}");
        }
        let (mut state, dead, [b, _], table) = crashed();
        state
            .apply(&plan(dead, 7, &[(&[whole(table)], b)]))
            .unwrap();
        state.apply(&drops).unwrap();
        assert!(
            !state.wants_try(b, &held(dead, 1, at)),
            "the table is dropped"
        );
    }
}

#[test]
fn a_loss_that_is_accepted_once_more_gives_up_no_plan_that_was_made_with_it() {
    let (mut state, dead, [b, _], table) = crashed();
    let whole = range(table, 0, u64::MAX);
    let acceptance = accept(dead, &[], &[4], false);
    state.apply(&acceptance).unwrap();
    state.apply(&plan(dead, 7, &[(&[whole], b)])).unwrap();
    let before = postcards::encode(&state);
    state.apply(&acceptance).unwrap();
    assert_eq!(postcards::encode(&state), before, "the try goes on");
    // What is lost since is another loss.
    state.apply(&accept(dead, &[], &[4, 5], false)).unwrap();
    assert!(state.recoveries().by_master(dead).is_none());
}

#[cfg(feature = "mutants")]
#[test]
fn planted_faults_of_tries_are_caught() {
    use ramkeep_wire::mutants::{self, Mutant};

    let faults: [(Mutant, fn()); 2] = [
        (
            Mutant::UnwantedTriesStay,
            a_try_that_nobody_will_take_over_is_wanted_no_more,
        ),
        (
            Mutant::DecidedTriesAreOver,
            a_try_is_wanted_until_what_it_replayed_is_taken,
        ),
    ];
    for (mutant, story) in faults {
        assert!(mutants::fails(mutant, story), "{mutant:?}");
        story();
    }
}
