//! The connections that a conversation makes, played by the test.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is its failure")]

use std::time::Duration;

use ramkeep_control::peers::PATIENCE;
use ramkeep_control::{Asking, Sequencing};
use ramkeep_rpc::Identity;
use ramkeep_rpc::wires::{WireEnd, WireId, WireOutput};
use ramkeep_wire::coordinator::{Answer, Request, Response};
use ramkeep_wire::envelope::{self, Envelope, Header, Kind};
use ramkeep_wire::{Ballot, ClusterId, ListVersion, Micros, Party, PeerId, postcards};

const NOW: Micros = Micros(1_000_000);
const CLUSTER: ClusterId = ClusterId([1; 16]);
const ME: Party = Party::NONE;
const REQUEST: Request = Request::Servers {
    known: ListVersion(0),
};

fn asking(addresses: &[&str]) -> Asking<u8> {
    let addresses = addresses
        .iter()
        .map(|&address| address.to_owned())
        .collect();
    Asking::new(3, Identity::new(None), addresses, Sequencing::AsGiven)
}

fn outputs(asking: &mut Asking<u8>) -> Vec<WireOutput> {
    std::iter::from_fn(|| asking.poll_output()).collect()
}

/// The one wire that is to be made, and where.
fn connects(asking: &mut Asking<u8>) -> (WireId, String) {
    let outputs = outputs(asking);
    let Some(WireOutput::Connect {
        wire, addresses, ..
    }) = outputs.last()
    else {
        panic!("{outputs:?}");
    };
    (*wire, addresses.join(","))
}

/// The correlation of the one request that is to be sent.
fn sends(asking: &mut Asking<u8>, on: WireId) -> u64 {
    let outputs = outputs(asking);
    let [WireOutput::Send { wire, bytes }] = &outputs[..] else {
        panic!("{outputs:?}");
    };
    assert_eq!(*wire, on);
    let (envelope, _) = envelope::parse(bytes).unwrap().unwrap();
    assert_eq!(envelope.header.kind, Kind::CoordinatorRequest);
    assert_eq!(
        postcards::decode::<Request>(envelope.payload).unwrap(),
        REQUEST
    );
    envelope.header.correlation
}

fn answer(asking: &mut Asking<u8>, wire: WireId, kind: Kind, correlation: u64) -> bool {
    let peer = PeerId(1);
    let response = Response {
        ballot: Ballot { round: 1, peer },
        answer: Answer::Servers(None),
        group: None,
    };
    let header = Header::new(kind, correlation, ME, Party::coordinator(peer));
    let payload = postcards::encode(&response);
    let envelope = Envelope {
        header,
        payload: &payload,
    };
    asking.handle_received(NOW, wire, &envelope)
}

/// Asks, over a wire that is up.
fn asked(asking: &mut Asking<u8>) -> (WireId, u64) {
    asking.ask(NOW, 7, REQUEST, None).unwrap();
    let (wire, _) = connects(asking);
    assert!(asking.handle_up(NOW, wire, (ME, Party::coordinator(PeerId(1))), CLUSTER));
    let correlation = sends(asking, wire);
    (wire, correlation)
}

#[test]
fn a_wire_is_made_for_what_is_asked_and_kept_for_the_next() {
    let mut asking = asking(&["a", "b"]);
    assert_eq!(outputs(&mut asking), []);
    let (wire, correlation) = asked(&mut asking);
    assert!(answer(
        &mut asking,
        wire,
        Kind::CoordinatorResponse,
        correlation
    ));
    let answered = asking.poll_answered().unwrap();
    assert_eq!((answered.owner, answered.sent), (7, NOW));
    assert_eq!(answered.outcome.unwrap().answer, Answer::Servers(None));
    asking.ask(NOW, 8, REQUEST, None).unwrap();
    sends(&mut asking, wire);
}

#[test]
fn what_is_no_answer_closes_its_wire_and_the_next_is_asked() {
    let mut asking = asking(&["a", "b"]);
    let (wire, correlation) = asked(&mut asking);
    assert!(answer(&mut asking, wire, Kind::Order, correlation));
    let outputs = outputs(&mut asking);
    assert_eq!(outputs[0], WireOutput::Close { wire });
    assert!(matches!(&outputs[1], WireOutput::Connect { addresses, .. } if addresses == &["b"]));
    assert!(!answer(
        &mut asking,
        wire,
        Kind::CoordinatorResponse,
        correlation
    ));
    assert!(asking.poll_answered().is_none());
}

#[test]
fn a_wire_that_is_not_up_in_time_is_given_up_and_made_anew() {
    let mut asking = asking(&["a"]);
    asking.ask(NOW, 7, REQUEST, None).unwrap();
    let (first, _) = connects(&mut asking);
    let mut now = NOW;
    while now < NOW + PATIENCE {
        assert_eq!(outputs(&mut asking), []);
        now = asking.next_timeout().unwrap();
        asking.handle_tick(now);
    }
    assert_eq!(now, NOW + PATIENCE);
    assert_eq!(outputs(&mut asking), [WireOutput::Close { wire: first }]);
    now = asking.next_timeout().unwrap();
    assert!(now > NOW + PATIENCE && now < NOW + PATIENCE + Duration::from_millis(10));
    asking.handle_tick(now);
    let (second, _) = connects(&mut asking);
    assert!(second > first);
    let late = WireEnd::Unclear("late".to_owned());
    assert!(
        !asking.handle_up(now, first, (ME, ME), CLUSTER) && !asking.handle_down(now, first, &late)
    );
    assert!(asking.handle_up(now, second, (ME, ME), CLUSTER));
    sends(&mut asking, second);
}

#[test]
fn the_end_of_a_wire_is_told_with_its_reason() {
    let mut asking = asking(&["a"]);
    let (wire, _) = asked(&mut asking);
    let end = WireEnd::Closed("reset".to_owned());
    assert!(asking.handle_down(NOW, wire, &end) && !asking.handle_down(NOW, wire, &end));
    let trouble = asking.conversation().trouble();
    assert_eq!(trouble, Some("coordinator a: reset"));
}

#[test]
fn somebody_else_asks_again_on_other_wires() {
    let mut asking = asking(&["a"]);
    let (wire, correlation) = asked(&mut asking);
    asking.reconnect(NOW);
    assert_eq!(asking.poll_output(), Some(WireOutput::Close { wire }));
    let (next, _) = connects(&mut asking);
    assert!(!answer(
        &mut asking,
        wire,
        Kind::CoordinatorResponse,
        correlation
    ));
    assert!(asking.handle_up(NOW, next, (ME, ME), CLUSTER));
    let again = sends(&mut asking, next);
    assert!(answer(&mut asking, next, Kind::CoordinatorResponse, again));
    assert!(asking.poll_answered().is_some());
}
