//! Lines to other coordinators, driven by hand.

use std::time::Duration;

use paxos::{Body, Incarnation};
use ramkeep_rpc::wires::{WireEnd, WireId, WireOutput};
use ramkeep_wire::envelope::Kind;
use ramkeep_wire::{Micros, Party, PeerId, postcards};

use super::super::peers::{FORGET_AFTER, MAX_WAITING, PeerLines, RETRY};
use super::lab::parsed;

const NOW: Micros = Micros(1_000_000);
const ME: Party = Party(0);

fn message(to: u32, mark: u16) -> paxos::Envelope {
    let mut asker = [2; 16];
    asker[..2].copy_from_slice(&mark.to_le_bytes());
    paxos::Envelope {
        group: None,
        from: paxos::PeerId(1),
        incarnation: Incarnation([1; 16]),
        to: paxos::PeerId(to),
        body: Body::Fresh {
            asker: Incarnation(asker),
        },
    }
}

fn at(address: &str) -> Vec<String> {
    vec![address.to_owned()]
}

/// The wires that are to be made now.
fn connects(lines: &mut PeerLines) -> Vec<WireId> {
    let outputs = std::iter::from_fn(|| lines.poll_output());
    let connect = |output| match output {
        WireOutput::Connect { wire, .. } => Some(wire),
        _ => None,
    };
    outputs.filter_map(connect).collect()
}

fn nobody(lines: &mut PeerLines, now: Micros, wire: WireId) -> Option<PeerId> {
    lines.handle_down(now, wire, &WireEnd::Nobody)
}

#[test]
fn one_who_is_never_there_is_forgotten() {
    let mut lines = PeerLines::new();
    for to in 7..40 {
        lines.send(NOW, at("nowhere"), &message(to, 0));
    }
    let mut all = connects(&mut lines);
    assert_eq!(all.len(), 33);
    let mut now = NOW;
    while now <= NOW + FORGET_AFTER {
        assert_eq!(all.len(), 33, "each is tried until then");
        for wire in all {
            assert!(nobody(&mut lines, now, wire).is_some());
        }
        assert_eq!(lines.next_timeout(), Some(now + RETRY));
        now = now + RETRY;
        lines.handle_tick(now);
        all = connects(&mut lines);
    }
    for wire in all {
        nobody(&mut lines, now, wire);
    }
    assert_eq!(lines.next_timeout(), None);
    lines.handle_tick(now + FORGET_AFTER);
    assert_eq!(connects(&mut lines), []);
}

#[test]
fn one_to_whom_something_is_said_is_not_forgotten() {
    let mut lines = PeerLines::new();
    lines.send(NOW, at("nowhere"), &message(7, 0));
    let first = connects(&mut lines)[0];
    lines.send(NOW + FORGET_AFTER, at("nowhere"), &message(7, 1));
    nobody(&mut lines, NOW + FORGET_AFTER + RETRY, first);
    assert_eq!(connects(&mut lines).len(), 1);
}

#[test]
fn what_waits_for_a_connection_is_bounded() {
    let mut lines = PeerLines::new();
    for mark in 0..1_000 {
        lines.send(NOW, at("there"), &message(7, mark));
    }
    let wire = connects(&mut lines)[0];
    let peer = Party::coordinator(PeerId(7));
    assert!(lines.handle_up(wire, ME, peer));
    let sent: Vec<paxos::Envelope> = std::iter::from_fn(|| lines.poll_output())
        .map(|output| match output {
            WireOutput::Send { wire: on, bytes } if on == wire => {
                let envelope = parsed(&bytes);
                let header = envelope.header;
                assert_eq!((header.kind, header.to), (Kind::Group, peer));
                postcards::decode(envelope.payload).unwrap()
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(sent.len(), MAX_WAITING);
    assert_eq!(sent[0], message(7, 1_000 - 64), "in order");
    assert_eq!(sent[63], message(7, 999), "older ones went");
}

#[test]
fn a_line_rests_between_two_attempts_but_one_that_had_lasted_is_made_at_once() {
    let mut lines = PeerLines::new();
    lines.send(NOW, at("there"), &message(7, 0));
    let first = connects(&mut lines)[0];
    assert_eq!(nobody(&mut lines, NOW, first), Some(PeerId(7)));
    lines.send(NOW, at("there"), &message(7, 1));
    lines.handle_tick(NOW);
    assert_eq!(connects(&mut lines), []);

    let made = NOW + RETRY;
    lines.handle_tick(made);
    let second = connects(&mut lines)[0];
    assert!(lines.handle_up(second, ME, Party::coordinator(PeerId(7))));
    let reset = WireEnd::Closed("reset".into());
    assert_eq!(lines.handle_down(made + RETRY, second, &reset), None);
    let third = connects(&mut lines)[0];
    assert_ne!(second, third);

    // It breaks at once, again and again.
    assert!(lines.handle_up(third, ME, Party::coordinator(PeerId(7))));
    assert_eq!(lines.handle_down(made + RETRY, third, &reset), None);
    assert_eq!(connects(&mut lines), []);
    assert_eq!(lines.next_timeout(), Some(made + RETRY + RETRY));
}

#[test]
fn only_who_is_at_none_of_its_addresses_is_gone() {
    let mut lines = PeerLines::new();
    lines.send(NOW, at("there"), &message(7, 0));
    let wire = connects(&mut lines)[0];
    let unclear = WireEnd::Unclear("slow".into());
    assert_eq!(lines.handle_down(NOW, wire, &unclear), None);
    assert_eq!(nobody(&mut lines, NOW, wire), None, "of an older life");
}

#[test]
fn a_coordinator_at_another_address_gets_another_line() {
    let mut lines = PeerLines::new();
    let both = vec!["likely".to_owned(), "less so".to_owned()];
    lines.send(NOW, both.clone(), &message(7, 0));
    let connect = lines.poll_output();
    let Some(WireOutput::Connect {
        wire,
        addresses,
        to,
    }) = connect
    else {
        panic!("{connect:?}");
    };
    // A wire tries the last first.
    assert_eq!(addresses, ["less so", "likely"]);
    assert_eq!(to, Party::coordinator(PeerId(7)));
    lines.send(NOW, both, &message(7, 1));
    assert_eq!(lines.poll_output(), None);

    lines.send(NOW + Duration::from_millis(1), at("moved"), &message(7, 2));
    assert_eq!(lines.poll_output(), Some(WireOutput::Close { wire }));
    assert_eq!(connects(&mut lines).len(), 1);
    assert!(!lines.handle_up(wire, ME, to));

    lines.send(NOW, Vec::new(), &message(8, 0));
    assert_eq!(lines.poll_output(), None, "nobody knows where it is");
}
