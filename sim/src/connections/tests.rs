//! Toy processes over the simulated network: what each hears of its connections.

use std::collections::BTreeSet;
use std::time::Duration;

use ramkeep_rpc::Identity;
use ramkeep_rpc::hello::HANDSHAKE_DEADLINE;
use ramkeep_rpc::wires::{CallRules, Calls, WireEnd, WireRules};
use ramkeep_wire::envelope::{self, Kind};
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::{Micros, Party, postcards};

use super::Happening;
use super::toys::{OTHER, OURS, Toys, enveloped, ours, server};
use crate::network::{Direction, NetEvent, ProcessId};

const MOMENT: Duration = Duration::from_millis(50);

fn pair(seed: u64) -> (Toys, ProcessId, ProcessId) {
    let mut toys = Toys::new(seed);
    let (one, two) = (toys.add(1, ours(1)), toys.add(2, ours(2)));
    (toys, one, two)
}

fn closed(heard: &[Happening]) -> &str {
    match heard {
        [
            Happening::Down {
                end: WireEnd::Closed(why),
                ..
            },
        ] => why,
        other => panic!("expected an end, heard {other:?}"),
    }
}

#[test]
fn both_sides_hear_of_a_connection_and_of_what_comes_on_it() {
    let (mut toys, one, two) = pair(1);
    let wire = toys.connect(one, &[2], server(2));
    let up = Happening::Up {
        wire,
        local: server(1),
        peer: server(2),
        cluster: OURS,
    };
    assert_eq!(toys.heard(one), [up]);
    let [Happening::Accepted { inbound, peer, .. }] = toys.heard(two)[..] else {
        panic!("a connection was to be accepted")
    };
    assert_eq!(peer, server(1));

    let bytes = enveloped(Kind::Order, server(2), server(1));
    toys.send(one, wire, &bytes);
    assert_eq!(toys.heard(two), [Happening::Request { inbound, bytes }]);
    let bytes = enveloped(Kind::OrderReply, server(1), server(2));
    toys.send_inbound(two, inbound, &bytes);
    assert_eq!(toys.heard(one), [Happening::Received { wire, bytes }]);

    toys.with(one, |connections, context| connections.close(context, wire));
    toys.pass(MOMENT);
    assert_eq!(toys.heard(one), []);
    let peer = server(1);
    assert_eq!(toys.heard(two), [Happening::Gone { inbound, peer }]);
}

#[test]
fn addresses_are_tried_in_turn() {
    let (mut toys, one, two) = pair(1);
    toys.add(3, ours(3));
    // Nobody is at 9, another is at 3; the last address is tried first.
    let wire = toys.connect(one, &[2, 3, 9], server(2));
    assert!(matches!(toys.heard(one)[..], [Happening::Up { wire: up, .. }] if up == wire));
    assert_eq!(toys.heard(two).len(), 1);
    assert_eq!(toys.heard(ProcessId(3)), [], "a refused peer is no news");
    assert_eq!(toys.end(one, &[9, 3], server(2)), WireEnd::Nobody);
    assert!(matches!(toys.end(one, &[], server(2)), WireEnd::Unclear(_)));
}

#[test]
fn who_is_at_an_address_decides_how_a_wire_ends() {
    let (mut toys, one, two) = pair(1);
    toys.add(3, Identity::new(None).with_cluster(OURS));
    let stranger = Identity::new(None)
        .with_cluster(OTHER)
        .with_party(server(2));
    toys.add(4, stranger);
    // An older life of the one that is looked for.
    assert_eq!(toys.end(one, &[2], server(5)), WireEnd::Nobody);
    // One that has no id yet may be about to learn it.
    let nameless = WireEnd::Refused(Refusal::Party(Party::NONE));
    assert_eq!(toys.end(one, &[3], server(5)), nameless);
    let other = WireEnd::Refused(Refusal::Cluster(OTHER));
    assert_eq!(toys.end(one, &[4], server(2)), other);
    assert_eq!(toys.heard(two), []);
    assert_eq!(toys.heard(ProcessId(4)), []);
}

#[test]
fn a_connect_that_is_swallowed_proves_nothing() {
    let (mut toys, one, two) = pair(1);
    let until = toys.now() + Duration::from_secs(1);
    toys.network
        .cut(&mut toys.events, one, two, Direction::Both, until);
    let wire = toys.connect(one, &[2], server(2));
    assert_eq!(toys.heard(one), []);
    toys.pass(Duration::from_millis(200));
    let unclear = WireEnd::Unclear("no answer".to_owned());
    let down = |wire| Happening::Down {
        wire,
        end: unclear.clone(),
    };
    assert_eq!(toys.heard(one), [down(wire)]);
    // Nor does a listener whose backlog is full.
    let until = toys.now() + Duration::from_secs(2);
    toys.network.heal(&mut toys.events);
    toys.network.fill_backlog(two, until);
    let wire = toys.connect(one, &[2], server(2));
    toys.pass(Duration::from_millis(200));
    assert_eq!(toys.heard(one), [down(wire)]);
}

#[test]
fn who_says_nothing_is_given_up() {
    let (mut toys, one, _) = pair(1);
    let silent = toys.add_raw(3);
    let connection = toys.raw_connect(silent, one);
    let wire = toys.connect(one, &[3], server(3));
    toys.pass(HANDSHAKE_DEADLINE - MOMENT * 2);
    assert_eq!(toys.heard(one), []);
    toys.pass(MOMENT * 3);
    let heard = toys.heard(one);
    assert!(
        matches!(&heard[..], [Happening::Down { wire: down, end: WireEnd::Unclear(_) }] if *down == wire),
        "{heard:?}"
    );
    assert!(toys.raw.contains(&NetEvent::Broken {
        connection,
        at: silent
    }));
    assert!(toys.network.connections_of(one).is_empty());
}

#[test]
fn a_handshake_that_breaks_off_proves_nothing() {
    let (mut toys, one, _) = pair(1);
    let abrupt = toys.add_raw(3);
    let wire = toys.connect(one, &[3], server(3));
    for connection in toys.network.connections_of(abrupt) {
        toys.network.close(&mut toys.events, connection, abrupt);
    }
    toys.pass(MOMENT);
    assert!(matches!(
        &toys.heard(one)[..],
        [Happening::Down { wire: down, end: WireEnd::Unclear(_) }] if *down == wire
    ));
}

#[test]
fn what_is_not_served_is_refused_and_both_hear_of_the_end() {
    let (mut toys, one, two) = pair(1);
    for kind in [Kind::DataRequest, Kind::Hello, Kind::OrderReply] {
        let (wire, inbound) = toys.joined(one, two);
        toys.send(one, wire, &enveloped(kind, server(2), server(1)));
        let peer = server(1);
        assert_eq!(toys.heard(two), [Happening::Gone { inbound, peer }]);
        let heard = toys.heard(one);
        assert!(closed(&heard).contains("not served"), "{heard:?}");
    }
}

#[test]
fn envelopes_for_or_from_others_end_the_connection_on_either_side() {
    let (mut toys, one, two) = pair(1);
    for (to, from) in [
        (server(9), server(1)),
        (server(2), server(9)),
        (server(2), Party::NONE),
    ] {
        let (wire, inbound) = toys.joined(one, two);
        toys.send(one, wire, &enveloped(Kind::Order, to, from));
        let peer = server(1);
        assert_eq!(toys.heard(two), [Happening::Gone { inbound, peer }]);
        assert!(closed(&toys.heard(one)).contains("refused"));
    }
    for (to, from) in [(server(9), server(2)), (server(1), server(9))] {
        let (_, inbound) = toys.joined(one, two);
        toys.send_inbound(two, inbound, &enveloped(Kind::OrderReply, to, from));
        assert!(closed(&toys.heard(one)).contains("cannot be read"));
        let peer = server(1);
        assert_eq!(toys.heard(two), [Happening::Gone { inbound, peer }]);
    }
}

#[test]
fn a_process_that_enlists_after_a_connection_was_made_is_heard_on_it() {
    let mut toys = Toys::new(1);
    let late = Identity::new(None).with_cluster(OURS);
    let (one, two) = (toys.add(1, ours(1)), toys.add(2, late.clone()));
    let (wire, inbound) = toys.joined(one, two);
    late.set_party(server(2));
    for to in [Party::NONE, server(2)] {
        let bytes = enveloped(Kind::Order, to, server(1));
        toys.send(one, wire, &bytes);
        assert_eq!(toys.heard(two), [Happening::Request { inbound, bytes }]);
    }
    let bytes = enveloped(Kind::OrderReply, server(1), Party::NONE);
    toys.send_inbound(two, inbound, &bytes);
    assert_eq!(toys.heard(one), [Happening::Received { wire, bytes }]);
}

#[test]
fn a_refusal_reaches_the_peer_before_the_close() {
    let (mut toys, one, two) = pair(1);
    let (_, inbound) = toys.joined(one, two);
    toys.with(two, |connections, context| {
        connections.refuse_inbound(context, inbound, &Refusal::Busy);
    });
    toys.pass(MOMENT);
    assert!(closed(&toys.heard(one)).contains("no more connections"));
    assert_eq!(toys.heard(two), []);

    let (_, _) = toys.joined(one, two);
    let (out, _) = toys.joined(two, one);
    toys.with(two, |connections, context| connections.stop(context));
    toys.pass(MOMENT);
    let (down, gone): (Vec<_>, Vec<_>) = (toys.heard(one).into_iter())
        .partition(|happening| matches!(happening, Happening::Down { .. }));
    assert!(closed(&down).contains("stopping"), "{down:?}");
    assert!(matches!(gone[..], [Happening::Gone { peer, .. }] if peer == server(2)));
    assert_eq!(toys.heard(two), []);
    toys.with(two, |connections, _| {
        assert_eq!(connections.connection(out), None);
    });
    assert!(toys.network.connections_of(two).is_empty());
}

#[test]
fn a_wire_that_is_closed_while_it_is_made_is_not_heard_of() {
    for moments in 0..8 {
        let (mut toys, one, two) = pair(moments);
        let addresses = vec!["2".to_owned()];
        let wire = toys.with(one, |connections, context| {
            connections.connect(context, addresses, server(2))
        });
        toys.pass(Duration::from_micros(60 * moments));
        let before = toys.heard(one);
        toys.with(one, |connections, context| connections.close(context, wire));
        toys.pass(MOMENT);
        assert_eq!(toys.heard(one), [], "after {before:?}");
        // Whoever accepted it hears that it is gone.
        let heard = toys.heard(two);
        assert!(matches!(
            &heard[..],
            [] | [Happening::Accepted { .. }, Happening::Gone { .. }]
        ));
        let nowhere = toys.with(one, |connections, context| {
            let wire = connections.connect(context, Vec::new(), server(2));
            connections.close(context, wire);
            connections.next_timeout()
        });
        assert_eq!(nowhere, None);
    }
}

#[test]
fn bytes_on_a_half_open_connection_are_swallowed_until_the_notice() {
    let (mut toys, one, two) = pair(1);
    let (wire, inbound) = toys.joined(one, two);
    let notice = toys.now() + Duration::from_secs(20);
    let connection = toys.with(one, |connections, _| connections.connection(wire).unwrap());
    toys.network
        .leave_half_open(&mut toys.events, connection, two, notice);
    toys.send(one, wire, &enveloped(Kind::Order, server(2), server(1)));
    let peer = server(1);
    assert_eq!(toys.heard(two), [Happening::Gone { inbound, peer }]);
    toys.pass(Duration::from_secs(19));
    assert_eq!(toys.heard(one), []);
    toys.pass(Duration::from_secs(1));
    closed(&toys.heard(one));
}

#[test]
fn a_process_that_serves_nothing_closes_what_connects() {
    let mut toys = Toys::new(1);
    let one = toys.add(1, ours(1));
    let client = toys.add(2, ours(2));
    toys.toys.get_mut(&client).unwrap().connections = super::Connections::new(ours(2), &[]);
    let end = toys.end(one, &[2], server(2));
    assert!(matches!(end, WireEnd::Unclear(_)));
    assert_eq!(toys.heard(client), []);
}

/// One toy that asks the other over a table of calls.
struct Asking {
    toys: Toys,
    calls: Calls<u8, u64>,
    open: BTreeSet<u64>,
    answered: usize,
    lost: usize,
    late: usize,
}

const ASKS: ProcessId = ProcessId(1);
const ANSWERS: ProcessId = ProcessId(2);

impl Asking {
    fn new(seed: u64) -> Self {
        let wires = WireRules {
            rest: Duration::from_millis(5),
            max_waiting: 4,
        };
        let rules = CallRules {
            patience: Duration::from_millis(300),
            max_in_flight: 4,
        };
        Self {
            toys: pair(seed).0,
            calls: Calls::new(3, wires, rules),
            open: BTreeSet::new(),
            answered: 0,
            lost: 0,
            late: 0,
        }
    }

    fn now(&mut self) -> Micros {
        self.toys.with(ASKS, |_, context| context.now)
    }

    fn ask(&mut self, tag: u64) {
        let (now, to) = (self.now(), server(2));
        let payload = postcards::encode(&tag);
        let addresses = ["2".to_owned()];
        let began = (self.calls).call(now, &0, &addresses, to, Kind::Order, &payload, tag);
        if began.is_ok() {
            self.open.insert(tag);
        }
        while let Some(output) = self.calls.wires().poll_output() {
            self.toys.with(ASKS, |connections, context| {
                connections.perform(context, output);
            });
        }
    }

    fn answer(&mut self) {
        for happening in self.toys.heard(ANSWERS) {
            if let Happening::Request { inbound, bytes } = happening {
                let (request, _) = envelope::parse(&bytes).unwrap().unwrap();
                let mut out = Vec::new();
                let header = request.header.reply(Kind::OrderReply);
                envelope::append(&mut out, header, request.payload);
                self.toys.with(ANSWERS, |connections, context| {
                    connections.send_inbound(context, inbound, &out);
                });
            }
        }
    }

    fn ended(&mut self, tag: u64) {
        assert!(self.open.remove(&tag), "call {tag} ended twice");
    }

    fn hear(&mut self) {
        for happening in self.toys.heard(ASKS) {
            let now = self.now();
            match happening {
                Happening::Up {
                    wire, local, peer, ..
                } => {
                    self.calls.handle_up(wire, local, peer);
                }
                Happening::Received { wire, bytes } => {
                    let (envelope, _) = envelope::parse(&bytes).unwrap().unwrap();
                    if let Some((_, tag)) = self.calls.handle_received(wire, &envelope) {
                        assert_eq!(postcards::decode(envelope.payload), Ok(tag));
                        self.answered += 1;
                        self.ended(tag);
                    }
                }
                Happening::Down { wire, end } => {
                    let ended = self.calls.handle_down(now, wire, &end);
                    for tag in ended.into_iter().flat_map(|ended| ended.calls) {
                        self.lost += 1;
                        self.ended(tag);
                    }
                }
                other => panic!("nobody connects to it: {other:?}"),
            }
        }
        let now = self.now();
        for (_, tag) in self.calls.handle_tick(now) {
            self.late += 1;
            self.ended(tag);
        }
    }

    /// The network does something bad now and then.
    fn fault(&mut self, draw: u64) {
        let Toys {
            network, events, ..
        } = &mut self.toys;
        for connection in network.connections_between(ASKS, ANSWERS) {
            match draw % 23 {
                0 => network.sever(events, connection, (50, 2_000)),
                1 => {
                    let notice = events.now() + Duration::from_secs(1);
                    network.leave_half_open(events, connection, ANSWERS, notice);
                }
                _ => {}
            }
        }
    }
}

#[test]
fn calls_end_once_whatever_the_network_does() {
    let (mut answered, mut lost, mut late) = (0, 0, 0);
    for seed in 0..60 {
        let mut asking = Asking::new(seed);
        for round in 0..60 {
            asking.ask(round);
            asking.toys.pass(Duration::from_millis(20));
            asking.answer();
            asking.hear();
            asking.fault(seed * 7 + round);
        }
        answered += asking.answered;
        lost += asking.lost;
        late += asking.late;
    }
    assert!(
        answered > 500 && lost > 50 && late > 20,
        "{answered} {lost} {late}"
    );
}
