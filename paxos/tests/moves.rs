//! Members whose directories were moved to other addresses.

// A test fails by panicking, in its helpers too.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod lab;

use lab::{Lab, address, among};
use paxos::{Body, Envelope, Incarnation, PeerId};

const NEW: &str = "elsewhere";

/// A group of three whose member 3 was moved, and whose member 2 is gone. Member 1 was not told.
fn moved_in_a_minority() -> Lab {
    let mut lab = Lab::led_by_1(3);
    lab.run(|_| true);
    lab.kill(2);
    lab.kill(3);
    lab.move_to(3, NEW);
    lab.start(3);
    lab.pass(3_000, &[1, 3], |_| true);
    lab
}

#[test]
fn a_moved_member_is_not_called_where_nobody_was_told_that_it_is_but_it_is_known_to_say_so() {
    let lab = moved_in_a_minority();
    assert!(lab.node(1).leads().is_none() || !lab.holds_lease(1));
    assert_eq!(lab.node(1).calls_from(PeerId(3)), Some(NEW));
    assert_eq!(lab.node(1).addresses_of(PeerId(3)), [address(3)]);
    assert_eq!(lab.node(3).has_moved_to(), Some(NEW));
}

#[test]
fn once_one_other_was_told_the_moved_one_counts_and_the_group_has_its_address() {
    let mut lab = moved_in_a_minority();
    lab.name(1, 3, NEW);
    lab.restart(1);
    lab.pass(5_000, &[1, 3], |_| true);
    assert!(lab.holds_lease(1) || lab.holds_lease(3));
    assert_eq!(lab.recorded(1, 3), NEW);
    assert_eq!(lab.node(1).group().unwrap().generation, 1);
    assert_eq!(lab.node(3).has_moved_to(), None);
    // Who was away, and was told nothing, calls it there, too.
    lab.start(2);
    lab.pass(3_000, &[1, 2, 3], |_| true);
    assert_eq!(lab.recorded(2, 3), NEW);
    assert_eq!(lab.node(2).addresses_of(PeerId(3))[0], NEW);
    lab.kill(1);
    lab.pass(5_000, &[2, 3], |_| true);
    assert!(lab.holds_lease(2) || lab.holds_lease(3));
}

#[test]
fn who_was_away_when_the_group_took_the_address_on_is_told_by_the_moved_one() {
    let mut lab = moved_in_a_minority();
    lab.name(1, 3, NEW);
    lab.restart(1);
    lab.pass(5_000, &[1, 3], |_| true);
    assert_eq!(lab.recorded(3, 3), NEW);
    lab.kill(1);
    lab.start(2);
    assert_eq!(lab.node(2).addresses_of(PeerId(3)), [address(3)]);
    lab.pass(5_000, &[2, 3], |_| true);
    assert!(lab.holds_lease(2) || lab.holds_lease(3));
    assert_eq!(lab.recorded(2, 3), NEW);
}

#[test]
fn a_moved_member_that_leads_gets_its_address_from_who_calls_it_there() {
    let mut lab = moved_in_a_minority();
    lab.name(1, 3, NEW);
    lab.restart(1);
    for _ in 0..400 {
        if lab.node(3).leads().is_some() {
            break;
        }
        // Member 1 answers, and asks for nothing itself.
        lab.pass(5, &[3], |_| true);
    }
    assert!(lab.node(3).leads().is_some());
    assert_eq!(lab.recorded(3, 3), address(3));
    lab.pass(500, &[3], |_| true);
    assert_eq!(lab.recorded(3, 3), NEW);
    assert_eq!(lab.recorded(1, 3), NEW);
}

#[test]
fn a_leader_that_was_not_told_leaves_the_address_as_it_is() {
    let mut lab = Lab::led_by_1(3);
    lab.kill(3);
    lab.move_to(3, NEW);
    lab.start(3);
    lab.pass(2_000, &[1, 2, 3], |_| true);
    for one in [1, 2] {
        assert_eq!(lab.recorded(one, 3), address(3));
        assert_eq!(lab.node(one).calls_from(PeerId(3)), Some(NEW));
    }
    assert_eq!(lab.node(1).group().unwrap().generation, 0);
}

#[test]
fn a_leader_that_was_not_told_takes_it_from_one_who_was() {
    let mut lab = Lab::led_by_1(3);
    lab.kill(3);
    lab.move_to(3, NEW);
    lab.start(3);
    lab.name(2, 3, NEW);
    lab.restart(2);
    lab.pass(1_000, &[1, 2, 3], |_| true);
    assert!(lab.holds_lease(1));
    assert_eq!(lab.recorded(1, 3), NEW);
    lab.pass(200, &[1, 2, 3], |_| true);
    assert_eq!(lab.recorded(3, 3), NEW);
    // What is late, or said by an earlier disk, moves it nowhere.
    let called = |incarnation: u8, address: &str| Envelope {
        group: lab.node(1).group().map(|group| group.id),
        from: PeerId(2),
        incarnation: Incarnation([incarnation; 16]),
        to: PeerId(1),
        body: Body::Called {
            member: PeerId(3),
            address: address.to_owned(),
        },
    };
    for late in [called(1, &address(3)), called(99, &address(3))] {
        lab.deliver(late);
        lab.pass(100, &[1, 2, 3], |_| true);
        assert_eq!(lab.recorded(1, 3), NEW);
    }
}

#[test]
fn a_whole_group_that_was_moved_is_found_where_all_were_told_that_it_is() {
    let mut lab = Lab::led_by_1(3);
    lab.propose(1, "a", 1);
    lab.run(|_| true);
    let to = |id: u32| format!("{NEW}-{id}");
    for id in 1..=3 {
        lab.kill(id);
        for other in 1..=3 {
            lab.name(id, other, &to(other));
        }
        lab.move_to(id, &to(id));
    }
    for id in 1..=3 {
        lab.start(id);
    }
    lab.pass(8_000, &[1, 2, 3], |_| true);
    for (one, of) in [(1, 1), (1, 2), (1, 3), (2, 1), (3, 2)] {
        assert_eq!(lab.recorded(one, of), to(of));
    }
    assert_eq!(lab.node(1).group().unwrap().generation, 3);
    assert_eq!(lab.commands(2), ["a"]);
}

#[test]
fn who_is_no_member_says_nothing_of_where_one_is() {
    let mut lab = Lab::led_by_1(3);
    let group = lab.node(1).group().map(|group| group.id);
    let says = |from: u32, incarnation: u8| Envelope {
        group,
        from: PeerId(from),
        incarnation: Incarnation([incarnation; 16]),
        to: PeerId(1),
        body: Body::Moved {
            address: NEW.to_owned(),
        },
    };
    // An earlier disk, and a number that the group does not have.
    for (from, incarnation) in [(3, 99), (4, 1)] {
        lab.deliver(says(from, incarnation));
        assert_eq!(lab.node(1).calls_from(PeerId(from)), None);
    }
    lab.deliver(says(3, 1));
    assert_eq!(lab.node(1).calls_from(PeerId(3)), Some(NEW));
    lab.pass(100, &[1, 2, 3], among(&[1, 2, 3]));
    assert_eq!(lab.recorded(1, 3), address(3));
}
