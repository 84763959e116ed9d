//! Who the coordinators are: as their leader says, in the place of what was known (SAFETY 28).

use std::time::Duration;

use ramkeep_control::Sequencing;
use ramkeep_wire::coordinator::GroupFacts;

use crate::bench::{Bench, SECOND, map, map_after, not_leader};

fn facts(generation: u32, coordinators: &[&str]) -> Option<GroupFacts> {
    let coordinators = coordinators.iter().map(|&one| one.to_owned()).collect();
    Some(GroupFacts {
        generation,
        coordinators,
    })
}

/// Asks for the map, and has it answered with these facts beside it.
fn told(bench: &mut Bench, told: Option<GroupFacts>) {
    bench.facts = told;
    let owner = bench.ask(map_after(0));
    let (peer, correlation, _) = bench.asked().pop().unwrap();
    bench.answer_at(peer, correlation, 1, map(1));
    assert!(bench.result(owner).is_some());
}

/// Whom one asks in turn that only ever talked to `c:0`, which led and dies, after the other two were
/// replaced: at which addresses, until the first comes again.
pub(crate) fn asked_after_two_were_replaced() -> Vec<String> {
    let mut bench = Bench::new(3, Sequencing::AsGiven);
    told(&mut bench, facts(0, &["c:0", "c:1", "c:2"]));
    told(&mut bench, facts(1, &["c:0", "d", "c:2"]));
    told(&mut bench, facts(2, &["c:0", "d", "e"]));
    bench.ask_within(map_after(1), 60 * SECOND);
    let mut asked = Vec::new();
    while asked.len() < 4 {
        for (peer, ..) in bench.asked() {
            asked.push(bench.talk.address(peer).unwrap().clone());
            bench.break_link(peer);
        }
        let next = bench.talk.next_timeout();
        bench.pass(next.map_or(SECOND, |next| next.since(bench.now)));
    }
    asked.truncate(4);
    asked
}

#[test]
fn who_only_talked_to_one_finds_those_that_took_the_places_of_the_others() {
    let asked = asked_after_two_were_replaced();
    assert_eq!(asked[0], "c:0");
    let mut next = asked[1..3].to_vec();
    next.sort();
    assert_eq!(next, ["d", "e"], "{asked:?}");
}

/// Addresses that are known in the end, of which three are current.
pub(crate) fn known_after_many_replacements() -> usize {
    let mut bench = Bench::new(1, Sequencing::AsGiven);
    for generation in 0..200 {
        let others = [generation, generation + 1].map(|n| format!("x:{n}"));
        told(
            &mut bench,
            facts(generation, &["c:0", &others[0], &others[1]]),
        );
    }
    (0..1_000)
        .filter(|n| bench.talk.address(*n).is_some())
        .count()
}

#[test]
fn what_is_known_is_replaced_and_does_not_grow() {
    assert_eq!(known_after_many_replacements(), 3);
}

#[test]
fn an_earlier_generation_replaces_nothing() {
    let mut bench = Bench::new(1, Sequencing::AsGiven);
    told(&mut bench, facts(5, &["c:0", "d"]));
    told(&mut bench, facts(4, &["c:0", "b"]));
    bench.ask(map_after(1));
    bench.asked();
    bench.break_link(0);
    let (peer, ..) = bench.asked().remove(0);
    assert_eq!(bench.talk.address(peer).unwrap(), "d");
}

#[test]
fn addresses_of_the_start_are_tried_again_once_no_member_answers() {
    let mut bench = Bench::new(2, Sequencing::AsGiven);
    told(&mut bench, facts(1, &["c:0", "d"]));
    bench.ask_within(map_after(1), 60 * SECOND);
    let mut asked = Vec::new();
    for _ in 0..200 {
        for (peer, correlation, _) in bench.asked() {
            let address = bench.talk.address(peer).unwrap().clone();
            match address.as_str() {
                // As long as one of them answers, though it does not lead, the others don't come.
                "d" if asked.len() < 6 => {
                    bench.answer_at(peer, correlation, 0, not_leader(None, &[]));
                }
                _ => bench.break_link(peer),
            }
            asked.push(address);
        }
        bench.pass(Duration::from_millis(1));
    }
    let first = asked.iter().position(|address| address == "c:1");
    assert!(first.is_some_and(|at| at >= 6), "{asked:?}");
}

#[test]
fn what_is_said_with_an_answer_that_comes_too_late_counts() {
    let mut bench = Bench::new(1, Sequencing::AsGiven);
    told(&mut bench, None);
    bench.facts = facts(3, &["c:0", "d"]);
    bench.answer_at(0, 999, 1, map(1));
    bench.ask(map_after(1));
    bench.asked();
    bench.break_link(0);
    let (peer, ..) = bench.asked().remove(0);
    assert_eq!(bench.talk.address(peer).unwrap(), "d");
}
