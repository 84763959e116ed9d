//! Recoveries in the state: plans, tries, and who gets what.

use super::*;

/// A master that crashed with the only tablet of a table, and two others.
pub(super) fn crashed() -> (State, ServerId, [ServerId; 2], TableId) {
    let mut state = bootstrapped();
    let dead = up(&mut state, 1);
    let Ok(Applied::Table(table)) = state.apply(&create("t")) else {
        panic!("no table");
    };
    let served = taken(dead, range(table, 0, u64::MAX));
    state.apply(&served).unwrap();
    let others = [up(&mut state, 2), up(&mut state, 3)];
    state
        .apply(&Command::DeclareCrashed { server: dead })
        .unwrap();
    (state, dead, others, table)
}

pub(super) fn states(state: &State, table: TableId) -> Vec<(ServerId, TabletState, LogPosition)> {
    let tablets = state.table(table).unwrap().table.tablets.iter();
    tablets.map(|t| (t.owner, t.state, t.takeover)).collect()
}

pub(super) fn is_recovered(state: &State, server: ServerId) -> bool {
    let mut entries = state.server_list().servers.into_iter();
    entries.any(|entry| entry.server == server && entry.recovered)
}

#[test]
fn the_partitions_of_a_plan_are_taken_over_one_by_one() {
    let (mut state, dead, [b, c], table) = crashed();
    let (low, high) = (range(table, 0, 99), range(table, 100, u64::MAX));
    state
        .apply(&plan(dead, 7, &[(&[low], b), (&[high], c)]))
        .unwrap();
    let old = LogPosition(77);
    let waits = (dead, TabletState::Recovering, old);
    assert_eq!(states(&state, table), [waits, waits]);
    let parts = &state.recoveries().by_master(dead).unwrap().partitions;
    assert_eq!([parts[0].attempt, parts[1].attempt], [1, 2]);
    assert_eq!(parts[1].tablets[0].takeover, old);

    state.apply(&recovered(dead, 2, c, &[(high, 500)])).unwrap();
    let taken_over = (c, TabletState::Assigning, LogPosition(500));
    assert_eq!(states(&state, table), [waits, taken_over]);
    // It serves the tablet, and says where its log is by now: the replayed entries lie before that.
    state
        .apply(&Command::TabletsTaken {
            owner: c,
            taken: vec![(high, LogPosition(900))],
        })
        .unwrap();
    let served = (c, TabletState::Normal, LogPosition(500));
    assert_eq!(states(&state, table), [waits, served]);

    state.apply(&Command::Fenced { server: dead }).unwrap();
    assert!(!is_recovered(&state, dead), "a tablet waits for its log");
    let list = state.list_version();
    state.apply(&recovered(dead, 1, b, &[(low, 600)])).unwrap();
    assert!(is_recovered(&state, dead) && state.list_version() > list);
    assert!(state.recoveries().by_master(dead).is_none());
}

#[test]
fn where_a_log_ends_is_decided_once() {
    let (mut state, dead, [b, c], table) = crashed();
    let whole = range(table, 0, u64::MAX);
    state.apply(&plan(dead, 7, &[(&[whole], b)])).unwrap();
    let other = state.apply(&plan(dead, 8, &[(&[whole], c)]));
    assert!(matches!(other, Err(Refused::Invalid(_))), "{other:?}");
    let again = state.apply(&plan(dead, 7, &[(&[whole], c)]));
    assert!(matches!(again, Err(Refused::Invalid(_))), "{again:?}");
    assert_eq!(state.recoveries().by_master(dead).unwrap().end, end(7));
}

#[test]
fn a_plan_tiles_whole_tablets_that_are_down() {
    let (mut state, dead, [b, c], table) = crashed();
    let before = postcards::encode(&state);
    let bad: [&[TabletGrant]; 5] = [
        &[range(table, 0, 99)],
        &[range(table, 1, u64::MAX)],
        &[range(table, 0, 99), range(table, 101, u64::MAX)],
        &[range(table, 0, 99), range(table, 99, u64::MAX)],
        &[],
    ];
    for grants in bad {
        let outcome = state.apply(&plan(dead, 7, &[(grants, b)]));
        assert!(matches!(outcome, Err(Refused::Invalid(_))), "{grants:?}");
    }
    let whole = range(table, 0, u64::MAX);
    let living = state.apply(&plan(b, 7, &[(&[whole], c)]));
    assert!(matches!(living, Err(Refused::Invalid(_))), "{living:?}");
    let by_the_dead = state.apply(&plan(dead, 7, &[(&[whole], dead)]));
    assert_eq!(by_the_dead, Err(Refused::Crashed));
    assert_eq!(postcards::encode(&state), before);
}

#[test]
fn nothing_is_freed_while_a_planned_tablet_waits() {
    let (mut state, dead, [b, c], table) = crashed();
    state.apply(&Command::Fenced { server: dead }).unwrap();
    let (low, high) = (range(table, 0, 99), range(table, 100, u64::MAX));
    state
        .apply(&plan(dead, 7, &[(&[low], b), (&[high], c)]))
        .unwrap();
    assert!(!is_recovered(&state, dead), "nothing is replayed yet");
    state.apply(&recovered(dead, 1, b, &[(low, 500)])).unwrap();
    assert!(!is_recovered(&state, dead), "one partition still waits");
    state.apply(&recovered(dead, 2, c, &[(high, 500)])).unwrap();
    assert!(is_recovered(&state, dead));
}

#[test]
fn who_was_given_up_gets_nothing() {
    let (mut state, dead, [b, c], table) = crashed();
    let whole = range(table, 0, u64::MAX);
    state.apply(&plan(dead, 7, &[(&[whole], b)])).unwrap();
    let assign = |attempt, by| Command::AssignRecovery {
        master: dead,
        attempt,
        by,
    };
    state.apply(&assign(1, c)).unwrap();
    let stale = state.apply(&assign(1, b));
    assert!(matches!(stale, Err(Refused::Invalid(_))), "{stale:?}");
    let late = state.apply(&recovered(dead, 1, b, &[(whole, 500)]));
    assert!(matches!(late, Err(Refused::Invalid(_))), "{late:?}");
    let not_its_own = state.apply(&recovered(dead, 2, b, &[(whole, 500)]));
    assert!(matches!(not_its_own, Err(Refused::Invalid(_))));
    state.apply(&Command::DeclareCrashed { server: c }).unwrap();
    let dead_too = state.apply(&recovered(dead, 2, c, &[(whole, 500)]));
    assert_eq!(dead_too, Err(Refused::Crashed));
    assert_eq!(state.apply(&assign(2, c)), Err(Refused::Crashed));
    state.apply(&assign(2, b)).unwrap();
    state
        .apply(&recovered(dead, 3, b, &[(whole, 500)]))
        .unwrap();
    let owner = (b, TabletState::Assigning, LogPosition(500));
    assert_eq!(states(&state, table), [owner]);
}

#[test]
fn a_recovery_master_that_crashes_is_recovered_from_where_its_replay_began() {
    let (mut state, dead, [b, c], table) = crashed();
    let whole = range(table, 0, u64::MAX);
    state.apply(&plan(dead, 7, &[(&[whole], b)])).unwrap();
    state
        .apply(&recovered(dead, 1, b, &[(whole, 500)]))
        .unwrap();
    state.apply(&Command::DeclareCrashed { server: b }).unwrap();
    assert_eq!(
        states(&state, table),
        [(b, TabletState::Down, LogPosition(500))]
    );
    state.apply(&plan(b, 9, &[(&[whole], c)])).unwrap();
    let part = &state.recoveries().by_master(b).unwrap().partitions[0];
    assert_eq!(part.tablets[0].takeover, LogPosition(500));
}

#[test]
fn a_recovery_goes_on_without_a_table_that_is_dropped() {
    let (mut state, dead, [b, _], table) = crashed();
    state.apply(&Command::Fenced { server: dead }).unwrap();
    let whole = range(table, 0, u64::MAX);
    state.apply(&plan(dead, 7, &[(&[whole], b)])).unwrap();
    state.apply(&drop_once("t", None)).unwrap();
    assert!(state.table(table).is_none(), "its owner is fenced");
    assert!(state.recoveries().by_master(dead).is_none());
    assert!(is_recovered(&state, dead));
    let late = state.apply(&recovered(dead, 1, b, &[(whole, 500)]));
    assert!(matches!(late, Err(Refused::Invalid(_))), "{late:?}");
}

#[test]
fn a_crashed_server_without_tablets_is_recovered_once_it_is_fenced() {
    let mut state = bootstrapped();
    let dead = up(&mut state, 1);
    state
        .apply(&Command::DeclareCrashed { server: dead })
        .unwrap();
    assert!(!is_recovered(&state, dead));
    state.apply(&Command::Fenced { server: dead }).unwrap();
    assert!(is_recovered(&state, dead));
}

#[test]
fn a_plan_whose_end_is_lost_is_given_up_and_another_end_can_be_decided() {
    let (mut state, dead, [b, c], table) = crashed();
    let (low, high) = (range(table, 0, 99), range(table, 100, u64::MAX));
    let give_up = |number| Command::GiveUpPlan {
        master: dead,
        end: end(number),
    };
    assert_eq!(state.apply(&give_up(7)), Err(Refused::Unknown));
    state
        .apply(&plan(dead, 7, &[(&[low], b), (&[high], c)]))
        .unwrap();
    state.apply(&recovered(dead, 2, c, &[(high, 500)])).unwrap();
    let other = state.apply(&give_up(6));
    assert!(matches!(other, Err(Refused::Invalid(_))), "{other:?}");
    state.apply(&give_up(7)).unwrap();
    let down = (dead, TabletState::Down, LogPosition(77));
    let taken_over = (c, TabletState::Assigning, LogPosition(500));
    assert_eq!(states(&state, table), [down, taken_over]);
    state.apply(&plan(dead, 6, &[(&[low], b)])).unwrap();
    let record = state.recoveries().by_master(dead).unwrap();
    assert_eq!((record.partitions[0].attempt, record.end), (3, end(6)));
}

pub(super) fn accept(master: ServerId, dead: &[ServerId], segments: &[u64], tail: bool) -> Command {
    Command::AcceptLoss(AcceptedLoss {
        master,
        loss: Loss {
            dead: dead.to_vec(),
            segments: segments.iter().copied().map(SegmentId).collect(),
            tail,
        },
    })
}

#[test]
fn a_loss_is_accepted_only_of_a_log_that_is_waited_for_and_with_servers_that_are_dead() {
    let (mut state, dead, [b, c], _) = crashed();
    state.apply(&Command::DeclareCrashed { server: c }).unwrap();
    let before = postcards::encode(&state);
    let wrong = [
        accept(b, &[], &[], true),
        accept(c, &[], &[], true),
        accept(dead, &[], &[], false),
        accept(dead, &[b], &[], true),
        accept(dead, &[ServerId(99)], &[], true),
        accept(dead, &[c, c], &[], true),
        accept(dead, &[c], &[5, 4], false),
    ];
    for command in wrong {
        let outcome = state.apply(&command);
        assert!(matches!(outcome, Err(Refused::Invalid(_))), "{command:?}");
    }
    assert_eq!(postcards::encode(&state), before);
    state.apply(&accept(dead, &[c], &[4, 5], false)).unwrap();
    let lost = state.losses().of(dead).unwrap();
    assert_eq!(lost.segments, [SegmentId(4), SegmentId(5)]);
}

#[test]
fn a_plan_is_given_up_with_what_was_lost_after_it_and_no_try_is_numbered_twice() {
    let (mut state, dead, [b, c], table) = crashed();
    let (low, high) = (range(table, 0, 99), range(table, 100, u64::MAX));
    state
        .apply(&plan(dead, 7, &[(&[low], b), (&[high], c)]))
        .unwrap();
    state.apply(&recovered(dead, 2, c, &[(high, 500)])).unwrap();
    state.apply(&accept(dead, &[], &[4], false)).unwrap();
    assert!(state.recoveries().by_master(dead).is_none());
    let down = (dead, TabletState::Down, LogPosition(77));
    let taken_over = (c, TabletState::Assigning, LogPosition(500));
    assert_eq!(states(&state, table), [down, taken_over]);
    let late = state.apply(&recovered(dead, 1, b, &[(low, 600)]));
    assert!(matches!(late, Err(Refused::Invalid(_))), "{late:?}");

    // Another end, for what is left.
    state.apply(&plan(dead, 6, &[(&[low], c)])).unwrap();
    let record = state.recoveries().by_master(dead).unwrap();
    assert_eq!((record.partitions[0].attempt, record.end), (3, end(6)));
    state.apply(&recovered(dead, 3, c, &[(low, 600)])).unwrap();
    state.apply(&Command::Fenced { server: dead }).unwrap();
    assert!(is_recovered(&state, dead));
}

#[test]
fn frames_that_came_back_through_another_that_crashed_are_not_away() {
    let mut state = bootstrapped();
    let first = up(&mut state, 1);
    let enlisted = |state: &mut State, nonce, old| match state.apply(&enlist(nonce, Some(old))) {
        Ok(Applied::Server(server)) => server,
        other => panic!("{other:?}"),
    };
    let second = enlisted(&mut state, 2, first.0);
    assert!(state.servers().away().is_empty());
    state
        .apply(&Command::DeclareCrashed { server: second })
        .unwrap();
    assert_eq!(state.servers().away(), [first, second].into());
    enlisted(&mut state, 3, second.0);
    assert!(state.servers().away().is_empty());
}

#[cfg(feature = "mutants")]
#[test]
fn planted_faults_of_recoveries_are_caught() {
    use ramkeep_wire::mutants::{self, Mutant};

    let faults: [(Mutant, fn()); 2] = [
        (Mutant::TakeLateRecovered, who_was_given_up_gets_nothing),
        (
            Mutant::FreedEarly,
            nothing_is_freed_while_a_planned_tablet_waits,
        ),
    ];
    for (mutant, story) in faults {
        assert!(mutants::fails(mutant, story), "{mutant:?}");
        story();
    }
}
