//! The checkers bite: hand-made good and bad histories, and the fast checker against the search.

use ramkeep_wire::data::RejectRules;
use ramkeep_wire::{TableId, Version};
use sim::check::linear::check_key;
use sim::check::wgl::{Search, search};
use sim::check::zones::{self, Violation};
use sim::history::{Action, History, Operation, Outcome};
use sim::rng::Rng;

fn op(invoked: u64, returned: u64, action: Action, outcome: Outcome) -> Operation {
    Operation {
        client: 0,
        invoked,
        returned,
        action,
        outcome,
    }
}

fn write(invoked: u64, returned: u64, value: &[u8], version: u64) -> Operation {
    let action = Action::Write {
        value: value.to_vec(),
        rules: RejectRules::default(),
    };
    let version = Version(version);
    op(invoked, returned, action, Outcome::Written { version })
}

fn open_write(invoked: u64, value: &[u8]) -> Operation {
    let action = Action::Write {
        value: value.to_vec(),
        rules: RejectRules::default(),
    };
    op(invoked, u64::MAX, action, Outcome::Unknown)
}

fn open_remove(invoked: u64) -> Operation {
    let rules = RejectRules::default();
    op(
        invoked,
        u64::MAX,
        Action::Remove { rules },
        Outcome::Unknown,
    )
}

fn read(invoked: u64, returned: u64, value: &[u8], version: u64) -> Operation {
    let outcome = Outcome::Found {
        version: Version(version),
        value: value.to_vec(),
    };
    op(invoked, returned, Action::Read, outcome)
}

fn absent(invoked: u64, returned: u64) -> Operation {
    op(invoked, returned, Action::Read, Outcome::Absent)
}

fn remove(invoked: u64, returned: u64, version: u64) -> Operation {
    let rules = RejectRules::default();
    let version = (version != 0).then_some(Version(version));
    op(
        invoked,
        returned,
        Action::Remove { rules },
        Outcome::Removed { version },
    )
}

fn increment(invoked: u64, returned: u64, by: i64, total: i64, version: u64) -> Operation {
    let outcome = Outcome::Found {
        version: Version(version),
        value: total.to_le_bytes().to_vec(),
    };
    op(invoked, returned, Action::Increment { by }, outcome)
}

/// Both checkers accept.
fn good(operations: &[Operation]) {
    assert_eq!(check_key(operations), Ok(()));
    assert_eq!(search(operations, 100_000), Search::Linearizable);
}

/// Both checkers refuse, the fast one for this reason.
fn bad(operations: &[Operation], why: &Violation) {
    assert_eq!(check_key(operations), Err(why.clone()));
    assert_eq!(search(operations, 100_000), Search::NotLinearizable);
}

#[test]
fn overlapping_writes_may_take_effect_in_either_order() {
    good(&[
        write(1, 10, b"a", 2),
        write(2, 9, b"b", 1),
        read(11, 12, b"a", 2),
    ]);
}

#[test]
fn a_read_may_see_a_write_under_way() {
    good(&[
        write(1, 10, b"a", 1),
        read(2, 3, b"a", 1),
        read(4, 5, b"a", 1),
    ]);
    good(&[write(1, 10, b"a", 1), absent(2, 3), read(4, 5, b"a", 1)]);
}

#[test]
fn a_stale_read_is_found() {
    let why = Violation::BackInTime {
        earlier: zones::State(2),
        later: zones::State(4),
    };
    bad(
        &[
            write(1, 2, b"a", 1),
            write(3, 4, b"b", 2),
            read(5, 6, b"a", 1),
        ],
        &why,
    );
}

#[test]
fn two_reads_may_not_go_back() {
    let why = Violation::BackInTime {
        earlier: zones::State(2),
        later: zones::State(4),
    };
    bad(
        &[
            write(1, 2, b"a", 1),
            write(3, 20, b"b", 2),
            read(5, 6, b"b", 2),
            read(7, 8, b"a", 1),
        ],
        &why,
    );
}

#[test]
fn a_lost_write_is_found() {
    bad(
        &[write(1, 2, b"a", 1), absent(3, 4)],
        &Violation::NeverAbsent,
    );
}

#[test]
fn a_removed_object_that_comes_back_is_found() {
    let why = Violation::BackInTime {
        earlier: zones::State(2),
        later: zones::State(3),
    };
    bad(
        &[write(1, 2, b"a", 1), remove(3, 4, 1), read(5, 6, b"a", 1)],
        &why,
    );
}

#[test]
fn absent_reads_may_not_hop_back_over_a_write() {
    // Absent before version 1 or after its removal: the first fits only after, the second then too.
    let history = [
        write(1, 2, b"a", 1),
        remove(3, 20, 1),
        absent(4, 5),
        read(6, 7, b"a", 1),
    ];
    assert!(check_key(&history).is_err());
    assert_eq!(search(&history, 100_000), Search::NotLinearizable);
}

#[test]
fn a_change_that_took_effect_twice_is_found() {
    let once = [write(1, 2, b"a", 1), write(3, 4, b"b", 2)];
    assert_eq!(check_key(&once), Ok(()));
    let twice = [write(1, 2, b"a", 1), write(3, 6, b"b", 3)];
    let (old, new) = (Version(1), Version(3));
    assert_eq!(check_key(&twice), Err(Violation::Twice { old, new }));
    // A removal leaves the next version open.
    let anew = [write(1, 2, b"a", 1), remove(3, 4, 1), write(5, 6, b"b", 7)];
    assert_eq!(check_key(&anew), Ok(()));
}

#[test]
fn a_reused_version_is_found() {
    bad(
        &[write(1, 2, b"a", 1), remove(3, 4, 1), write(5, 6, b"b", 1)],
        &Violation::VersionReused(Version(1)),
    );
}

#[test]
fn a_value_from_nowhere_is_found() {
    let version = Version(1);
    bad(
        &[write(1, 2, b"a", 1), read(3, 4, b"x", 1)],
        &Violation::WrongValue { version },
    );
    bad(&[read(3, 4, b"x", 1)], &Violation::NeverWritten(version));
}

#[test]
fn a_lost_increment_is_found() {
    good(&[increment(1, 2, 5, 5, 1), increment(3, 4, 2, 7, 2)]);
    bad(
        &[increment(1, 2, 5, 5, 1), increment(3, 4, 2, 2, 2)],
        &Violation::Increment(Version(2)),
    );
}

#[test]
fn a_condition_decided_wrongly_is_found() {
    let if_absent = RejectRules {
        exists: true,
        ..RejectRules::default()
    };
    let create = |invoked, returned, version| {
        op(
            invoked,
            returned,
            Action::Write {
                value: b"new".to_vec(),
                rules: if_absent,
            },
            Outcome::Written {
                version: Version(version),
            },
        )
    };
    good(&[write(1, 2, b"a", 1), remove(3, 4, 1), create(5, 6, 2)]);
    bad(
        &[write(1, 2, b"a", 1), create(5, 6, 2)],
        &Violation::Rules(Version(2)),
    );
}

#[test]
fn a_rejection_needs_the_state_it_names() {
    let rules = RejectRules {
        unless_version: Some(Version(1)),
        ..RejectRules::default()
    };
    let rejected = |version: Option<u64>| {
        let action = Action::Write {
            value: b"x".to_vec(),
            rules,
        };
        let version = version.map(Version);
        op(5, 6, action, Outcome::Rejected { version })
    };
    good(&[write(1, 2, b"a", 2), rejected(Some(2))]);
    bad(
        &[write(1, 2, b"a", 1), rejected(Some(1))],
        &Violation::Rules(Version(1)),
    );
    bad(
        &[write(1, 2, b"a", 2), rejected(None)],
        &Violation::NeverAbsent,
    );
}

#[test]
fn an_open_write_may_take_effect_late_or_never_but_once() {
    good(&[open_write(1, b"a"), absent(2, 3), read(4, 5, b"a", 1)]);
    good(&[open_write(1, b"a"), absent(2, 3), write(4, 5, b"b", 1)]);
    let twice = [
        open_write(1, b"a"),
        read(2, 3, b"a", 1),
        remove(4, 5, 1),
        read(6, 7, b"a", 2),
    ];
    assert_eq!(check_key(&twice), Err(Violation::NoOrder));
}

#[test]
fn an_open_removal_explains_an_absence_once() {
    good(&[write(1, 2, b"a", 1), open_remove(3), absent(4, 5)]);
    let twice = [
        write(1, 2, b"a", 1),
        open_remove(3),
        absent(4, 5),
        write(6, 7, b"b", 2),
        absent(8, 9),
    ];
    assert_eq!(check_key(&twice), Err(Violation::NoOrder));
}

#[test]
fn an_open_increment_explains_a_gap() {
    let open = op(3, u64::MAX, Action::Increment { by: 10 }, Outcome::Unknown);
    good(&[increment(1, 2, 1, 1, 1), open, increment(4, 5, 1, 12, 3)]);
}

#[test]
fn stamps_of_a_history_order_returns_before_later_invocations() {
    let mut history = History::default();
    let place = (TableId(1), b"k".to_vec());
    let first = history.invoke(0, &place, Action::Read);
    history.complete(first, Outcome::Absent);
    let second = history.invoke(1, &place, Action::Read);
    history.complete(second, Outcome::Absent);
    let operations = history.of(&place);
    assert!(operations[0].returned < operations[1].invoked);
}

/// A random history that is linearizable by construction: each operation is carried out at a moment
/// between its invocation and its return.
fn random_history(rng: &mut Rng, count: usize) -> Vec<Operation> {
    let mut plan: Vec<(u64, usize, u8)> = Vec::new();
    for index in 0..count {
        let start = rng.below(0..count as u64 * 4) * 8;
        let (run, end) = (rng.below(1..40), rng.below(1..40));
        plan.push((start * 64 + index as u64, index, 0));
        plan.push(((start + run) * 64 + index as u64, index, 1));
        plan.push(((start + run + end) * 64 + index as u64, index, 2));
    }
    plan.sort_unstable();
    let mut operations = vec![absent(0, 0); count];
    let (mut object, mut highest): (Option<(u64, Vec<u8>)>, u64) = (None, 0);
    for (stamp, (_, index, phase)) in plan.into_iter().enumerate() {
        let stamp = stamp as u64 + 1;
        match phase {
            0 => operations[index].invoked = stamp,
            2 => operations[index].returned = stamp,
            _ => {
                let (action, outcome) = random_step(rng, index, &mut object, &mut highest);
                operations[index].action = action;
                operations[index].outcome = outcome;
            }
        }
    }
    operations
}

fn random_step(
    rng: &mut Rng,
    index: usize,
    object: &mut Option<(u64, Vec<u8>)>,
    highest: &mut u64,
) -> (Action, Outcome) {
    let current = object.as_ref().map(|(version, _)| Version(*version));
    let rules = match rng.below(0..6) {
        0 => RejectRules {
            exists: true,
            ..RejectRules::default()
        },
        1 => RejectRules {
            absent: true,
            ..RejectRules::default()
        },
        2 => RejectRules {
            unless_version: Some(Version(rng.below(1..highest.saturating_add(2)))),
            ..RejectRules::default()
        },
        _ => RejectRules::default(),
    };
    match rng.below(0..4) {
        0 | 1 => (
            Action::Read,
            match object {
                Some((version, value)) => Outcome::Found {
                    version: Version(*version),
                    value: value.clone(),
                },
                None => Outcome::Absent,
            },
        ),
        2 => {
            let value = vec![index as u8];
            let action = Action::Write {
                value: value.clone(),
                rules,
            };
            if rules.reject(current) {
                return (action, Outcome::Rejected { version: current });
            }
            *highest += 1;
            *object = Some((*highest, value));
            let version = Version(*highest);
            (action, Outcome::Written { version })
        }
        _ => {
            let action = Action::Remove { rules };
            if rules.reject(current) {
                return (action, Outcome::Rejected { version: current });
            }
            *object = None;
            (action, Outcome::Removed { version: current })
        }
    }
}

/// Changes one answer or one time.
fn damage(rng: &mut Rng, operations: &mut [Operation]) {
    let (one, two) = (rng.index(operations.len()), rng.index(operations.len()));
    if rng.percent(50) && operations[one].action == operations[two].action {
        let outcome = operations[one].outcome.clone();
        operations[two].outcome = outcome;
    } else {
        let (invoked, returned) = (operations[one].invoked, operations[one].returned);
        operations[one].invoked = operations[two].invoked;
        operations[one].returned = operations[two].returned;
        operations[two].invoked = invoked;
        operations[two].returned = returned;
    }
}

#[test]
fn the_fast_checker_and_the_search_agree() {
    let (mut accepted, mut refused) = (0, 0);
    for seed in 0..4_000 {
        let mut rng = Rng::new(seed);
        let count = 3 + rng.index(9);
        let mut operations = random_history(&mut rng, count);
        assert_eq!(search(&operations, 1_000_000), Search::Linearizable);
        assert_eq!(
            zones::check(&operations),
            Ok(()),
            "seed {seed}: {operations:#?}"
        );
        damage(&mut rng, &mut operations);
        let fast = zones::check(&operations);
        let slow = search(&operations, 1_000_000);
        assert_eq!(
            fast.is_ok(),
            slow == Search::Linearizable,
            "seed {seed}: {fast:?} against {slow:?}: {operations:#?}"
        );
        match fast {
            Ok(()) => accepted += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(accepted > 200 && refused > 200, "{accepted} {refused}");
}

#[test]
fn opening_an_operation_never_makes_a_good_history_bad() {
    for seed in 0..1_000 {
        let mut rng = Rng::new(seed);
        let count = 3 + rng.index(7);
        let mut operations = random_history(&mut rng, count);
        for operation in &mut operations {
            if operation.action.mutates() && rng.percent(30) {
                operation.outcome = Outcome::Unknown;
                operation.returned = u64::MAX;
            }
        }
        assert_eq!(
            check_key(&operations),
            Ok(()),
            "seed {seed}: {operations:#?}"
        );
    }
}

/// Whether an order of the rest explains all answers, by trying them all. A key's object is its version
/// and value.
fn any_order(left: &[Operation], object: &Option<(u64, Vec<u8>)>, highest: u64) -> bool {
    if left.iter().all(Operation::is_open) {
        return true;
    }
    let deadline = left.iter().map(|one| one.returned).min().unwrap_or(0);
    (0..left.len()).any(|index| {
        let mut rest = left.to_vec();
        let one = rest.remove(index);
        let may_be_next = one.invoked <= deadline;
        // A write that overwrites nothing may take any version that was not used.
        let versions = match object {
            Some((version, _)) => version + 1..=version + 1,
            None => highest + 1..=14,
        };
        may_be_next
            && versions.into_iter().any(|version| {
                let after = carried_out(&one, object, version);
                after.is_some_and(|after| {
                    let used = after.as_ref().map_or(0, |(version, _)| *version);
                    any_order(&rest, &after, highest.max(used))
                })
            })
    })
}

/// The object after an operation, if it was answered as it would be here.
#[expect(
    clippy::option_option,
    reason = "there may be no object, and no such answer"
)]
fn carried_out(
    one: &Operation,
    object: &Option<(u64, Vec<u8>)>,
    version: u64,
) -> Option<Option<(u64, Vec<u8>)>> {
    let current = object.as_ref().map(|(version, _)| Version(*version));
    let (after, outcome) = match &one.action {
        Action::Write { rules, .. } | Action::Remove { rules } if rules.reject(current) => {
            let outcome = Outcome::Rejected { version: current };
            (object.clone(), outcome)
        }
        Action::Write { value, .. } => {
            let outcome = Outcome::Written {
                version: Version(version),
            };
            (Some((version, value.clone())), outcome)
        }
        Action::Remove { .. } => (None, Outcome::Removed { version: current }),
        Action::Read => {
            let outcome = match object.clone() {
                Some((version, value)) => Outcome::Found {
                    version: Version(version),
                    value,
                },
                None => Outcome::Absent,
            };
            (object.clone(), outcome)
        }
        Action::Increment { .. } => return None,
    };
    (one.is_open() || outcome == one.outcome).then_some(after)
}

#[test]
fn the_search_agrees_with_trying_all_orders() {
    let (mut accepted, mut refused) = (0, 0);
    for seed in 0..3_000 {
        let mut rng = Rng::new(seed);
        let count = 3 + rng.index(4);
        let mut operations = random_history(&mut rng, count);
        if rng.percent(70) {
            damage(&mut rng, &mut operations);
        }
        for operation in &mut operations {
            if operation.action.mutates() && rng.percent(50) {
                operation.outcome = Outcome::Unknown;
                operation.returned = u64::MAX;
            }
        }
        let all = any_order(&operations, &None, 0);
        let found = search(&operations, 1_000_000);
        let agree = all == (found == Search::Linearizable);
        assert!(
            agree,
            "seed {seed}: {all} against {found:?}: {operations:#?}"
        );
        match all {
            true => accepted += 1,
            false => refused += 1,
        }
    }
    assert!(accepted > 200 && refused > 200, "{accepted} {refused}");
}

#[test]
fn open_increments_and_removes_that_fill_a_gap_are_found() {
    let by = [60, 27, 62, -16, -2, -20, 52, 11, 18, 3, 47];
    let open = |invoked: u64, action: Action| op(invoked, u64::MAX, action, Outcome::Unknown);
    let mut history = vec![increment(1, 2, 5, 5, 59)];
    for (invoked, by) in (3..).zip(by) {
        history.push(open(invoked, Action::Increment { by }));
    }
    history.extend((20..23).map(open_remove));
    // Eight of them came before it.
    let sum = 60 + 62 - 16 - 2 - 20 + 52 + 11 + 27;
    history.push(increment(30, 31, 57, 5 + sum + 57, 68));
    assert_eq!(check_key(&history), Ok(()));
    history.push(increment(32, 33, 1, 5 + sum + 57, 69));
    assert_eq!(check_key(&history), Err(Violation::NoOrder));
}
