//! Wires and calls, driven by hand.

use std::time::Duration;

use ramkeep_wire::envelope::{self, Envelope, Header, Kind};
use ramkeep_wire::{Micros, Party, ServerId};

use super::*;

const NOW: Micros = Micros(1_000_000);
const ME: Party = Party::NONE;
const REST: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(1);

fn rules() -> WireRules {
    WireRules {
        rest: REST,
        max_waiting: 3,
    }
}

fn to(id: u64) -> (Vec<String>, Party) {
    (vec![format!("server-{id}")], Party::server(ServerId(id)))
}

fn connect(wires: &mut Wires<u64>, id: u64) -> WireId {
    let (addresses, party) = to(id);
    assert!(wires.ensure(NOW, &id, &addresses, party));
    let wire = wires.wire(&id).unwrap();
    let wanted = WireOutput::Connect {
        wire,
        addresses,
        to: party,
    };
    assert_eq!(wires.poll_output(), Some(wanted));
    wire
}

fn correlations(wires: &mut Wires<u64>) -> Vec<u64> {
    let mut found = Vec::new();
    while let Some(output) = wires.poll_output() {
        if let WireOutput::Send { bytes, .. } = output {
            let (envelope, len) = envelope::parse(&bytes).unwrap().unwrap();
            assert_eq!(len, bytes.len());
            found.push(envelope.header.correlation);
        }
    }
    found
}

#[test]
fn what_waits_leaves_in_order_and_the_oldest_is_lost_first() {
    let mut wires = Wires::new(1, rules());
    let wire = connect(&mut wires, 7);
    for number in 1..=5 {
        assert!(wires.send(&7, Kind::Probe, number, &[]));
    }
    assert_eq!(correlations(&mut wires), [] as [u64; 0]);
    assert_eq!(wires.handle_up(wire, ME, to(7).1), Some(7));
    assert!(wires.send(&7, Kind::Probe, 6, &[]));
    assert_eq!(correlations(&mut wires), [3, 4, 5, 6]);
}

#[test]
fn one_of_an_older_life_is_not_looked_at() {
    let mut wires = Wires::new(1, rules());
    let old = connect(&mut wires, 7);
    wires.handle_up(old, ME, to(7).1);
    // It listens elsewhere now.
    let moved = vec!["elsewhere".to_owned()];
    assert!(wires.ensure(NOW, &7, &moved, to(7).1));
    let new = wires.wire(&7).unwrap();
    assert!(new.number > old.number);
    assert_eq!(wires.poll_output(), Some(WireOutput::Close { wire: old }));
    assert_eq!(wires.handle_down(NOW, old), None);
    assert_eq!(wires.handle_up(old, ME, to(7).1), None);
    assert_eq!((wires.key(old), wires.key(new)), (None, Some(&7)));
    assert!(!wires.is_up(&7));
}

#[test]
fn after_an_end_a_key_rests() {
    let mut wires = Wires::new(1, rules());
    let wire = connect(&mut wires, 7);
    wires.send(&7, Kind::Probe, 1, &[]);
    assert_eq!(wires.handle_down(NOW, wire), Some((7, false)));
    assert!(!wires.send(&7, Kind::Probe, 2, &[]));
    let (addresses, party) = to(7);
    assert!(!wires.ensure(NOW, &7, &addresses, party));
    assert_eq!(wires.next_due(), Some(NOW + REST));
    assert!(wires.ensure(NOW + REST, &7, &addresses, party));
    let next = wires.wire(&7).unwrap();
    wires.handle_up(next, ME, party);
    assert_eq!(correlations(&mut wires), [] as [u64; 0], "it was lost");
    assert_eq!(wires.handle_down(NOW, next), Some((7, true)));
}

fn answer(kind: Kind, correlation: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    envelope::append(&mut bytes, Header::new(kind, correlation, ME, ME), b"x");
    bytes
}

fn calls() -> Calls<u64, &'static str> {
    let rules_of_calls = CallRules {
        patience: PATIENCE,
        max_in_flight: 2,
    };
    Calls::new(2, rules(), rules_of_calls)
}

fn call(calls: &mut Calls<u64, &'static str>, id: u64, tag: &'static str) -> bool {
    let (addresses, party) = to(id);
    let began = calls.call(NOW, &id, &addresses, party, Kind::Order, &[], tag);
    began.is_ok()
}

fn received<'a>(bytes: &'a [u8]) -> Envelope<'a> {
    envelope::parse(bytes).unwrap().unwrap().0
}

#[test]
fn a_call_ends_once_answered_late_or_with_its_wire() {
    let mut calls = calls();
    assert!(call(&mut calls, 7, "first") && call(&mut calls, 7, "second"));
    assert!(!call(&mut calls, 7, "one too many"));
    let wire = calls.wires().wire(&7).unwrap();
    calls.handle_up(wire, ME, to(7).1);
    let (wrong, right) = (answer(Kind::ProbeReply, 1), answer(Kind::OrderReply, 1));
    assert_eq!(calls.handle_received(wire, &received(&wrong)), None);
    let found = calls.handle_received(wire, &received(&right));
    assert_eq!(found, Some((7, "first")));
    assert_eq!(calls.handle_received(wire, &received(&right)), None);
    assert!(call(&mut calls, 7, "third"));
    assert_eq!(calls.handle_tick(NOW), []);
    assert_eq!(calls.next_timeout(), Some(NOW + PATIENCE));
    let end = WireEnd::Closed("reset".to_owned());
    let ended = calls.handle_down(NOW, wire, &end).unwrap();
    assert_eq!((ended.was_up, ended.lost), (true, CallLost::Closed));
    assert_eq!(ended.calls, ["second", "third"]);
    assert!(calls.is_idle() && calls.handle_tick(NOW + PATIENCE).is_empty());
}

#[test]
fn an_answer_on_another_wire_is_none() {
    let mut calls = calls();
    assert!(call(&mut calls, 7, "to seven") && call(&mut calls, 8, "to eight"));
    let eight = calls.wires().wire(&8).unwrap();
    calls.handle_up(eight, ME, to(8).1);
    let bytes = answer(Kind::OrderReply, 1);
    assert_eq!(calls.handle_received(eight, &received(&bytes)), None);
    let late = calls.handle_tick(NOW + PATIENCE);
    assert_eq!(late, [(7, "to seven"), (8, "to eight")]);
}
