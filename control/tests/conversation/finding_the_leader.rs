//! Who is asked when one does not lead, is silent or gone.

use std::time::Duration;

use ramkeep_control::limits::MAX_ASKS;
use ramkeep_control::{Sequencing, Unanswered};
use ramkeep_wire::coordinator::{Answer, Request};
use ramkeep_wire::limits::MAX_COORDINATORS;
use ramkeep_wire::{Ballot, Micros, PeerId};

use crate::bench::{Bench, CLUSTER, SECOND, create, led, map, map_after, not_leader, table};

fn fresh(coordinators: usize) -> Bench {
    let mut bench = Bench::new(coordinators, Sequencing::AsGiven);
    bench.ask(map_after(0));
    bench
}

#[test]
fn a_coordinator_that_does_not_lead_is_left_for_the_next() {
    let mut bench = Bench::leased(3);
    bench.ask(map_after(0));
    let owner = bench.ask(create());
    let first = bench.asked();
    assert!(first.iter().all(|(peer, _, _)| *peer == 0) && first.len() == 2);
    bench.answer_at(0, first[1].1, 0, not_leader(None, &[]));
    let second = bench.asked();
    assert!(second.iter().all(|(peer, _, _)| *peer == 1) && second.len() == 2);
    bench.answer_at(0, first[1].1, 1, table());
    bench.answer_at(1, first[1].1, 1, table());
    assert_eq!(bench.result(owner), None, "an answer to what was given up");
    bench.answer_at(0, second[1].1, 1, table());
    assert_eq!(bench.result(owner), None, "an answer of another one");
    bench.answer_at(1, second[1].1, 1, table());
    assert_eq!(bench.result(owner), Some(Ok(table())));
}

#[test]
fn the_leader_that_is_named_is_asked_at_once_though_it_was_unknown() {
    let mut bench = fresh(1);
    let (_, correlation, _) = bench.asked().remove(0);
    let redirect = not_leader(Some("c:9"), &["c:0", "c:8", ""]);
    bench.answer_at(0, correlation, 0, redirect);
    let (peer, correlation, _) = bench.asked().remove(0);
    assert_eq!(bench.talk.address(peer).unwrap(), "c:9");
    // The list was learned with it: the others are found when the leader is lost.
    bench.answer_at(peer, correlation, 1, map(1));
    bench.ask(map_after(1));
    bench.asked();
    bench.break_link(peer);
    let mut next = Vec::new();
    for _ in 0..2 {
        let (peer, _, _) = bench.asked().remove(0);
        next.push(bench.talk.address(peer).unwrap().clone());
        bench.break_link(peer);
    }
    next.sort();
    assert_eq!(next, ["c:0", "c:8"]);
}

#[test]
fn the_list_of_coordinators_does_not_grow_without_end() {
    let mut bench = fresh(1);
    for round in 0..40 {
        let addresses: Vec<_> = (0..10).map(|n| format!("x:{round}:{n}")).collect();
        let addresses: Vec<_> = addresses.iter().map(String::as_str).collect();
        while bench.asks.is_empty() {
            bench.pass(Duration::from_millis(20));
        }
        let (peer, correlation, _) = bench.asked().remove(0);
        let redirect = not_leader(Some(addresses[0]), &addresses);
        bench.answer_at(peer, correlation, 0, redirect);
    }
    assert!(bench.talk.address(MAX_COORDINATORS - 1).is_some());
    assert!(bench.talk.address(MAX_COORDINATORS).is_none());
}

/// How often each of three is asked in two seconds, of which the first two name each other.
pub(crate) fn asked_during_an_election() -> [u32; 3] {
    let mut bench = fresh(3);
    let begin = bench.now;
    let mut asked = [0; 3];
    while bench.now.since(begin) < 2 * SECOND {
        for (peer, correlation, _) in bench.asked() {
            asked[peer] += 1;
            let named = ["c:1", "c:0", "c:0"][peer];
            bench.answer_at(peer, correlation, 0, not_leader(Some(named), &[]));
        }
        bench.pass(Duration::from_millis(1));
    }
    asked
}

#[test]
fn during_an_election_all_are_asked_every_few_tens_of_milliseconds() {
    let asked = asked_during_an_election();
    let all: u32 = asked.iter().sum();
    assert!((150..=400).contains(&all), "{asked:?}");
    assert!(asked[0] > 20 && asked[1] > 20, "{asked:?}");
}

#[test]
fn one_that_names_a_lost_leader_does_not_hide_the_new_one() {
    let mut bench = fresh(3);
    let begin = bench.now;
    loop {
        bench.pass(Duration::from_millis(1));
        let Some((peer, correlation, _)) = bench.asked().pop() else {
            continue;
        };
        match peer {
            0 => bench.answer_at(0, correlation, 0, not_leader(Some("c:1"), &[])),
            1 => bench.break_link(1),
            _ => break,
        }
        assert!(bench.now.since(begin) < Duration::from_millis(100));
    }
}

#[test]
fn after_a_round_without_success_it_waits() {
    let mut bench = Bench::leased(2);
    bench.ask(create());
    bench.asked();
    bench.break_link(0);
    assert!(bench.asked().iter().all(|(peer, _, _)| *peer == 1));
    bench.break_link(1);
    assert!(bench.asked().is_empty());
    bench.pass(Duration::from_millis(1));
    let asked = bench.asked();
    assert!(!asked.is_empty() && asked.iter().all(|(peer, _, _)| *peer == 0));
}

#[test]
fn a_silent_coordinator_is_given_up_and_not_asked_again_soon() {
    let mut bench = fresh(3);
    bench.asked();
    bench.pass(Duration::from_millis(499));
    assert!(bench.asked().is_empty());
    bench.pass(Duration::from_millis(1));
    assert_eq!(bench.closed, [0]);
    let begin = bench.now;
    let mut asked = Vec::new();
    while bench.now.since(begin) < Duration::from_millis(290) {
        for (peer, correlation, _) in bench.asked() {
            asked.push(peer);
            bench.answer_at(peer, correlation, 0, not_leader(Some("c:0"), &[]));
        }
        bench.pass(Duration::from_millis(1));
    }
    assert_eq!(asked[..4], [1, 2, 1, 2]);
    assert!(!asked.contains(&0) && asked.len() > 20, "{}", asked.len());
}

#[test]
fn a_coordinator_that_does_not_accept_connections_in_time_is_given_up() {
    let mut bench = fresh(2);
    bench.talk.connecting(0);
    bench.asked();
    bench.talk.link_down(bench.now, 1, "broken");
    bench.pass(Duration::from_millis(500));
    let peers: Vec<_> = bench.asked().iter().map(|ask| ask.0).collect();
    assert!(
        !peers.is_empty() && peers.iter().all(|peer| *peer == 1),
        "{peers:?}"
    );
}

#[test]
fn what_waits_for_a_connection_wants_no_ticks_meanwhile() {
    let mut bench = Bench::leased(1);
    bench.ask(create());
    bench.answer(Answer::Refused(
        ramkeep_wire::coordinator::Refused::NoMaster,
    ));
    bench.talk.connecting(0);
    bench.pass(Duration::from_millis(100));
    assert!(bench.asked().is_empty());
    bench.talk.link_up(0, CLUSTER);
    bench.drain();
    assert_eq!(bench.asked().len(), 1);
}

/// What comes of a map that an old leader sends, after a newer one had answered.
pub(crate) fn answer_of_an_old_leader() -> Option<Result<Answer, Unanswered>> {
    let mut bench = fresh(2);
    let (_, correlation, _) = bench.asked().remove(0);
    bench.answer_at(0, correlation, 5, map(7));
    let owner = bench.ask(map_after(7));
    let (_, correlation, _) = bench.asked().remove(0);
    bench.answer_at(0, correlation, 4, map(9));
    let result = bench.result(owner);
    if result.is_none() {
        let (peer, _, request) = bench.asked().remove(0);
        assert_eq!((peer, request), (1, map_after(7)));
    }
    result
}

#[test]
fn an_answer_from_before_the_present_leader_is_not_taken() {
    assert_eq!(answer_of_an_old_leader(), None);
}

/// What comes of an answer to a send that was given up with its connection.
pub(crate) fn answer_to_a_lost_send() -> Option<Result<Answer, Unanswered>> {
    let mut bench = Bench::leased(2);
    let owner = bench.ask(create());
    let (_, first, _) = bench.asked().remove(0);
    bench.break_link(0);
    let (peer, second, _) = bench.asked().remove(0);
    assert_eq!((peer, second > first), (1, true));
    bench.answer_at(0, first, 1, table());
    bench.result(owner)
}

#[test]
fn an_answer_to_a_send_that_was_given_up_is_not_taken() {
    assert_eq!(answer_to_a_lost_send(), None);
}

#[test]
fn an_answer_says_when_it_was_asked_and_under_which_ballot() {
    let mut bench = fresh(2);
    bench.asked();
    bench.break_link(0);
    let begin = bench.now;
    bench.pass(Duration::from_millis(3));
    let (peer, correlation, _) = bench.asked().remove(0);
    bench.answer_at(peer, correlation, 3, map(1));
    let answered = bench.done.remove(0);
    let ballot = Ballot {
        round: 3,
        peer: PeerId(1),
    };
    assert_eq!(answered.outcome, Ok(led(3, map(1))));
    assert_eq!(answered.sent, begin, "when it left for the second");
    assert_eq!(bench.talk.ballot(), ballot);
}

#[test]
fn a_question_that_is_not_answered_did_nothing() {
    let mut bench = Bench::leased(1);
    let (sent, unsent) = (bench.ask(Request::Status), bench.ask(create()));
    bench.asked();
    bench.break_link(0);
    bench.talk.connecting(0);
    let late = bench.ask(Request::Status);
    bench.pass(5 * SECOND);
    for (owner, maybe_applied) in [(sent, false), (unsent, true), (late, false)] {
        let unanswered = bench.result(owner).unwrap().unwrap_err();
        assert_eq!(unanswered.maybe_applied, maybe_applied);
        let reason = "coordinator c:0: no connection in time";
        assert_eq!(unanswered.reason.unwrap(), reason);
    }
}

#[test]
fn so_many_are_asked_at_a_time_and_what_is_cancelled_makes_room() {
    let mut bench = Bench::new(1, Sequencing::AsGiven);
    for owner in 0..u32::try_from(MAX_ASKS).unwrap() {
        let asked = bench.talk.ask(Micros(1), owner, Request::Status, None);
        assert_eq!(asked, Ok(()));
    }
    let ask = |bench: &mut Bench| bench.talk.ask(Micros(1), 99_999, Request::Status, None);
    assert_eq!(ask(&mut bench), Err(99_999));
    bench.talk.cancel(&7);
    assert_eq!(ask(&mut bench), Ok(()));
    assert_eq!(bench.talk.len(), MAX_ASKS);
}
