//! What connections do to messages: order, loss with the connection, late bytes.

use super::*;
use ramkeep_wire::Party;
use ramkeep_wire::envelope::{Header, Kind};

const A: ProcessId = ProcessId(1);
const B: ProcessId = ProcessId(2);

fn message(number: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let header = Header::new(Kind::DataRequest, number, Party::NONE, Party::NONE);
    envelope::append(&mut out, header, b"payload");
    out
}

fn correlation(bytes: &[u8]) -> u64 {
    envelope::parse(bytes)
        .unwrap()
        .unwrap()
        .0
        .header
        .correlation
}

struct Wire {
    network: Network,
    events: Events<NetEvent>,
}

impl Wire {
    fn new(seed: u64) -> Self {
        Self {
            network: Network::new(Rng::new(seed), Delays::default()),
            events: Events::default(),
        }
    }

    fn connect(&mut self) -> ConnectionId {
        self.network.connect(&mut self.events, A, Some(B))
    }

    fn send(&mut self, connection: ConnectionId, from: ProcessId, number: u64) {
        self.network
            .send(&mut self.events, connection, from, &message(number));
    }

    fn next(&mut self) -> Option<NetEvent> {
        loop {
            let event = self.events.pop()?;
            if let Some(late) = self.network.postponed(self.events.now(), &event) {
                self.events.at(late, event);
            } else if self.network.happens(&event) {
                return Some(event);
            }
        }
    }

    fn delivered_to(&mut self, to: ProcessId) -> Vec<u64> {
        let mut seen = Vec::new();
        while let Some(event) = self.next() {
            if let NetEvent::Deliver { at, bytes, .. } = &event
                && *at == to
            {
                seen.push(correlation(bytes));
            }
        }
        seen
    }
}

#[test]
fn a_connection_keeps_its_order() {
    for seed in 0..20 {
        let mut wire = Wire::new(seed);
        let connection = wire.connect();
        for number in 0..50 {
            wire.send(connection, A, number);
        }
        assert_eq!(wire.delivered_to(B), (0..50).collect::<Vec<_>>());
    }
}

#[test]
fn a_break_loses_a_suffix_and_tells_both_ends() {
    let (mut lost, mut kept) = (false, false);
    for seed in 0..50 {
        let mut wire = Wire::new(seed);
        let connection = wire.connect();
        for number in 0..10 {
            wire.send(connection, A, number);
        }
        wire.network
            .sever(&mut wire.events, connection, (10_000, 10_000));
        wire.send(connection, A, 99);
        let mut told = Vec::new();
        let mut seen = Vec::new();
        while let Some(event) = wire.next() {
            match event {
                NetEvent::Deliver { bytes, .. } => seen.push(correlation(&bytes)),
                NetEvent::Broken { at, .. } => told.push(at),
                _ => {}
            }
        }
        told.sort();
        assert_eq!(told, [A, B]);
        assert_eq!(seen, (0..seen.len() as u64).collect::<Vec<_>>());
        lost |= seen.len() < 10;
        kept |= !seen.is_empty();
    }
    assert!(lost && kept);
}

#[test]
fn bytes_of_an_old_connection_can_come_after_those_of_a_new_one() {
    let reordered = (0..200).any(|seed| {
        let mut wire = Wire::new(seed);
        let old = wire.connect();
        wire.send(old, A, 1);
        wire.network.sever(&mut wire.events, old, (0, 20_000));
        let new = wire.connect();
        wire.send(new, A, 2);
        wire.delivered_to(B) == [2, 1]
    });
    assert!(reordered);
}

#[test]
fn a_cut_in_one_direction_holds_only_that_direction_back() {
    let mut wire = Wire::new(1);
    let connection = wire.connect();
    while wire.next().is_some() {}
    wire.network
        .cut(&mut wire.events, A, B, Direction::OneWay, Micros(1_000_000));
    wire.send(connection, A, 1);
    wire.send(connection, B, 2);
    let mut seen = Vec::new();
    while let Some(event) = wire.next() {
        if let NetEvent::Deliver { bytes, .. } = event {
            seen.push((correlation(&bytes), wire.events.now() > Micros(1_000_000)));
        }
    }
    assert_eq!(seen, [(2, false), (1, true)]);
}

#[test]
fn nobody_listening_fails_the_connect() {
    let mut wire = Wire::new(1);
    wire.network.connect(&mut wire.events, A, None);
    assert_eq!(
        wire.next().and_then(|event| unmade(&event)),
        Some(Unmade::PortRefuses)
    );
}

fn unmade(event: &NetEvent) -> Option<Unmade> {
    match event {
        NetEvent::Failed { at: A, why, .. } => Some(*why),
        _ => None,
    }
}

#[test]
fn a_full_backlog_answers_no_connect_until_it_is_served() {
    let mut wire = Wire::new(1);
    wire.network.fill_backlog(B, Micros(300_000));
    wire.connect();
    assert_eq!(
        wire.next().and_then(|event| unmade(&event)),
        Some(Unmade::NoAnswer)
    );
    assert_eq!(wire.next(), None, "the process hears nothing of it");
    wire.network.connect(&mut wire.events, B, Some(A));
    let events: Vec<_> = std::iter::from_fn(|| wire.next()).collect();
    assert!(matches!(events[0], NetEvent::Accepted { at: A, .. }));
    assert!(matches!(events[1], NetEvent::Opened { at: B, .. }));
    wire.events.at(
        Micros(300_000),
        NetEvent::Broken {
            connection: ConnectionId(99),
            at: A,
        },
    );
    assert_eq!(wire.next(), None);
    let served = wire.connect();
    let accepted = NetEvent::Accepted {
        connection: served,
        at: B,
    };
    assert_eq!(wire.next(), Some(accepted));
}

#[test]
fn a_connect_that_a_cut_swallows_is_not_answered() {
    let mut wire = Wire::new(1);
    wire.network
        .cut(&mut wire.events, A, B, Direction::Both, Micros(1_000_000));
    wire.connect();
    assert_eq!(
        wire.next().and_then(|event| unmade(&event)),
        Some(Unmade::NoAnswer)
    );
    assert_eq!(wire.events.now(), Micros(0) + CONNECT_TIMEOUT);
}

#[test]
fn the_other_end_of_a_half_open_connection_learns_of_it_late() {
    for seed in 0..20 {
        let mut wire = Wire::new(seed);
        let connection = wire.connect();
        while wire.next().is_some() {}
        let (now, notice) = (
            wire.events.now(),
            wire.events.now() + Duration::from_secs(30),
        );
        for number in 0..3 {
            wire.send(connection, A, number);
            wire.send(connection, B, number);
        }
        wire.network
            .leave_half_open(&mut wire.events, connection, B, notice);
        let mut heard = Vec::new();
        while let Some(event) = wire.next() {
            heard.push((wire.events.now(), event));
            wire.send(connection, A, 9);
        }
        let broken = |at| NetEvent::Broken { connection, at };
        assert_eq!(heard, [(now, broken(B)), (notice, broken(A))]);
        assert!(wire.network.connections_of(A).is_empty());
    }
}

#[test]
fn mending_tells_of_a_half_open_connection() {
    let mut wire = Wire::new(1);
    let connection = wire.connect();
    while wire.next().is_some() {}
    let never = Micros(u64::MAX);
    wire.network
        .leave_half_open(&mut wire.events, connection, A, never);
    wire.network.heal(&mut wire.events);
    let told = std::iter::from_fn(|| wire.next()).take(2);
    let told = told.map(|event| event.at());
    assert_eq!(told.collect::<Vec<_>>(), [A, B]);
    assert!(wire.events.now() < Micros(1_000_000));
}
