//! Every planted fault is caught: by seeds, or by the story that it belongs to.
#![cfg(feature = "mutants")]

use ramkeep_wire::mutants::Mutant;
use sim::run::{Options, Report, run};
use sim::scenarios::{ALL, Scenario};
use sim::trace::Lines;

/// Seeds that a fault may take to be found.
const SEEDS: u64 = 300;

/// Seeds that are tried when a story has found the fault already.
const A_FEW: u64 = 40;

/// Faults that whole runs don't show, with where they are caught instead.
const ELSEWHERE: &[(Mutant, &str)] = &[
    (
        Mutant::StaleReply,
        "coordinator/src/desk/tests: a simulated process does not stop while it handles something",
    ),
    (
        Mutant::AnswerTheNewest,
        "coordinator/src/desk/tests: who gets another's answer asks again",
    ),
    (
        Mutant::KeepOldSessions,
        "coordinator/src/desk/tests: as above; all simulated coordinators are of one cluster",
    ),
    (
        Mutant::HelloUnknownCluster,
        "rpc/src/hello/tests.rs: in whole runs all are of one cluster",
    ),
    (
        Mutant::KillTheOriginal,
        "coordinator/tests/core/claims.rs: no seed starts a copy beside its original, a story does",
    ),
    (
        Mutant::StartCopies,
        "coordinator/src/desk/tests/moved.rs: as above",
    ),
    (
        Mutant::RescueForgets,
        "coordinator/tests/core/rescue.rs: no run loses most coordinators for good",
    ),
    (
        Mutant::RescueKeepsGeneration,
        "coordinator/tests/core/rescue.rs: as above",
    ),
    (
        Mutant::FoundUnasked,
        "coordinator/tests/core/lost_disks.rs: no run loses the disks of all coordinators",
    ),
    (
        Mutant::HideTheGroup,
        "coordinator/src/desk/tests: no seed replaces coordinators, a story does",
    ),
    (
        Mutant::HearAnyPeer,
        "coordinator/src/desk/tests: no simulated coordinator lies",
    ),
    (
        Mutant::PromiseNothing,
        "master/tests/recovery/main.rs: few logs of few objects are replayed side by side",
    ),
    (
        Mutant::LoseQuestions,
        "coordinator/src/desk/tests: few questions are lost in the moment of a recovery",
    ),
    (
        Mutant::ForgetLostCalls,
        "server/tests/planted_faults.rs: they are late a second later, and told then",
    ),
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
    (
        Mutant::EndIgnoresEpoch,
        "coordinator/src/core/recovery/end/tests.rs: within the promise a longer replica is there, too",
    ),
    (
        Mutant::NameWhatIsNew,
        "coordinator/src/core/recovery/end/tests.rs: few runs lose two segments one after the other",
    ),
    (
        Mutant::EndIgnoresFloor,
        "coordinator/src/core/recovery/end/tests.rs: as above",
    ),
    (
        Mutant::TakeLateRecovered,
        "coordinator/tests/apply: who is given up seldom answers once more",
    ),
    (
        Mutant::ReplayIgnoresTakeover,
        "master/tests/store/replay.rs: tablets seldom come back to a master that had them",
    ),
    (
        Mutant::DropEndsFinishedReplay,
        "master/tests/store/replay.rs: few seeds drop a table at that moment",
    ),
    (
        Mutant::BelieveInventories,
        "coordinator/tests/core/damage.rs: what all copies lack is beyond the promise of a seed",
    ),
    (Mutant::FirstDamageOnly, "master/tests/recovery: as above"),
    (Mutant::ReplayBeforeProof, "master/tests/recovery: as above"),
    (
        Mutant::PlansOfOthersAreUnknown,
        "coordinator/tests/core/budgets.rs: a simulated recovery comes to its end, or everything is mended",
    ),
    (
        Mutant::StuckPlansTakeFrames,
        "coordinator/tests/core/budgets.rs: as above",
    ),
    (
        Mutant::UnwantedTriesStay,
        "coordinator/tests/apply/tries.rs: what stays does no harm but for the memory that it takes",
    ),
    (
        Mutant::DecidedTriesAreOver,
        "coordinator/tests/apply/tries.rs: a report seldom comes between",
    ),
    (
        Mutant::OldVerdictsEndTries,
        "master/tests/recovery: as above",
    ),
    (
        Mutant::NewcomersHaveHeardNothing,
        "coordinator/tests/core/newcomers.rs: a simulated server that dies is not back before it is found dead",
    ),
    (
        Mutant::RecoveredBeforeTold,
        "master/tests/recovery: few clients of a simulated cluster live at a time",
    ),
    (
        Mutant::FirstClientsOnly,
        "coordinator/tests/apply/clients.rs: as above",
    ),
    (
        Mutant::RestartOnNews,
        "master/tests/recovery: few leases end while a simulated log is replayed",
    ),
    (
        Mutant::FailedTryBeginsAnew,
        "master/tests/recovery: what a failed try leaves does no harm but for the memory that it takes",
    ),
    (
        Mutant::CrowdedOrdersAreLost,
        "coordinator/src/desk/tests: a simulated server has few orders on their way, and what is lost comes again",
    ),
    (
        Mutant::RefusedIsTaken,
        "coordinator/tests/core/orders.rs: no simulated server refuses a tablet",
    ),
    (
        Mutant::OrdersOneByOne,
        "coordinator/tests/core/orders.rs: what comes one by one comes later, and not wrong",
    ),
    (
        Mutant::ServeEndedClients,
        "master/tests/store/calls.rs: no simulated client outlives its lease",
    ),
    (
        Mutant::HelloAnyCluster,
        "sim/src/strangers/tests.rs: in whole runs all are of one cluster",
    ),
    (
        Mutant::JoinOnAnyWord,
        "control/tests/planted_faults.rs: a story",
    ),
    (
        Mutant::OnlyLearnCoordinators,
        "control/tests/planted_faults.rs: a story",
    ),
    (
        Mutant::RedirectWithoutRest,
        "control/tests/planted_faults.rs: random groups and a story",
    ),
    (
        Mutant::ForgetEarlierSend,
        "control/tests/planted_faults.rs: as above",
    ),
    (
        Mutant::TakeOldBallot,
        "control/tests/planted_faults.rs: as above",
    ),
    (
        Mutant::ResendAsAnother,
        "control/tests/planted_faults.rs: as above",
    ),
    (
        Mutant::TakeOldCorrelation,
        "control/tests/planted_faults.rs: as above",
    ),
];

fn play(seed: u64, mutant: Option<Mutant>) -> Report {
    run(Options {
        seed,
        mutant,
        crash_at: None,
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

/// Faults of the coordinators, each with the story that is about it.
const OF_COORDINATORS: &[(Mutant, &str)] = &[
    (
        Mutant::BelievePeers,
        "detection_a_cut_between_two_servers_kills_neither",
    ),
    (
        Mutant::AnswerWithoutLease,
        "group_a_leader_that_wakes_up_answers_nothing_stale",
    ),
    (
        Mutant::ForgetOnce,
        "group_a_retried_drop_does_not_hit_the_table_made_since",
    ),
    (
        Mutant::TimersNotAfresh,
        "safety_08_nobody_is_dead_for_silence_while_there_was_no_leader",
    ),
    (
        Mutant::HearTheDead,
        "safety_04_nothing_is_taken_from_the_dead",
    ),
    (
        Mutant::RecordAnyEpoch,
        "safety_03_a_record_that_comes_late_is_refused",
    ),
];

#[test]
fn faults_of_coordinators_are_caught_by_their_own_story() {
    for (mutant, name) in OF_COORDINATORS {
        let story = Scenario::named(name).expect("the list above names scenarios that exist");
        let played = story.play(Some(*mutant), Lines::No);
        println!("{}: {played:?}", mutant.name());
        assert!(played.is_err(), "{mutant:?} is not caught by {name}");
        assert_eq!(story.play(None, Lines::No), Ok(()), "{name}");
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
        Mutant::AnswerBeforeSync,
        Mutant::AnswerWithoutLease,
        Mutant::ForgetOnce,
    ] {
        assert!(seed_that_finds(mutant, SEEDS).is_some(), "{mutant:?}");
    }
}
