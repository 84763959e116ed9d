//! Bytes that are no envelopes, at every point of a connection: the peer is refused or
//! disconnected, nothing damaged is answered, and the server goes on serving.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::Write;
use std::net::Shutdown;
use std::sync::LazyLock;

use common::{PATIENCE, Raw, Server, enveloped, hello};
use proptest::prelude::*;
use ramkeep_rpc::{Caller, PollMode};
use ramkeep_wire::envelope::{HEADER_LEN, Header, Kind, PROTOCOL_VERSION};
use ramkeep_wire::hello::{Proof, Refusal};
use ramkeep_wire::limits::{MAX_HELLO, MAX_PAYLOAD};
use ramkeep_wire::{Party, ServerId, envelope, postcards};

static SERVER: LazyLock<Server> = LazyLock::new(|| Server::start(PollMode::Adaptive));

fn still_serves() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let caller = Caller::new(SERVER.link(PollMode::Adaptive).await);
        let answer = caller.call(Kind::Order, b"well?", PATIENCE).await;
        assert_eq!(answer.unwrap(), b"well?");
    });
}

/// Writes, ends the sending side, and returns all that came back.
fn exchange(mut raw: Raw, bytes: &[u8]) -> Vec<(Header, Vec<u8>)> {
    // A server that has refused already may reset the connection under the rest.
    let _ = raw.0.write_all(bytes);
    let _ = raw.0.shutdown(Shutdown::Write);
    raw.receive_all()
}

fn refusal_in(answers: &[(Header, Vec<u8>)]) -> Option<Refusal> {
    let (header, payload) = answers.last()?;
    (header.kind == Kind::Refusal).then(|| postcards::decode(payload).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_before_the_handshake_close_the_connection(
        bytes in prop::collection::vec(any::<u8>(), 1..3_000)
    ) {
        let answers = exchange(Raw::silent(&SERVER.address), &bytes);
        prop_assert!(answers.len() <= 1);
        prop_assert!(answers.iter().all(|(header, _)| header.kind == Kind::Refusal));
        still_serves();
    }

    #[test]
    fn random_bytes_after_the_handshake_close_the_connection(
        bytes in prop::collection::vec(any::<u8>(), 4..3_000)
    ) {
        prop_assume!(bytes[..4] != envelope::MAGIC.to_le_bytes());
        let answers = exchange(Raw::open(&SERVER.address), &bytes);
        prop_assert!(matches!(refusal_in(&answers), Some(Refusal::Malformed(_))));
        prop_assert_eq!(answers.len(), 1);
        still_serves();
    }

    #[test]
    fn a_damaged_envelope_is_never_answered(
        before in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..5),
        payload in prop::collection::vec(any::<u8>(), 1..2_000),
        at in any::<prop::sample::Index>(),
        flip in 1_u8..,
    ) {
        let mut bytes: Vec<u8> = Vec::new();
        for intact in &before {
            bytes.extend(enveloped(Kind::Order, intact));
        }
        let start = bytes.len();
        bytes.extend(enveloped(Kind::Order, &payload));
        let damaged = start + at.index(bytes.len() - start);
        bytes[damaged] ^= flip;

        let answers = exchange(Raw::open(&SERVER.address), &bytes);
        let replies = answers.iter().filter(|(header, _)| header.kind == Kind::OrderReply);
        let replies: Vec<&Vec<u8>> = replies.map(|(_, payload)| payload).collect();
        prop_assert!(replies.into_iter().eq(before.iter()));
        // A length damaged to a larger one makes an envelope that never ends: no refusal then.
        let longer = (start + 8..start + 12).contains(&damaged);
        prop_assert!(longer || refusal_in(&answers).is_some());
        still_serves();
    }

    #[test]
    fn a_truncated_envelope_is_not_answered(
        payload in prop::collection::vec(any::<u8>(), 0..2_000),
        cut in any::<prop::sample::Index>(),
    ) {
        let whole = enveloped(Kind::Order, &payload);
        let bytes = &whole[..cut.index(whole.len())];
        prop_assert!(exchange(Raw::open(&SERVER.address), bytes).is_empty());
        still_serves();
    }
}

#[test]
fn an_oversized_envelope_is_refused_by_its_header() {
    let mut bytes = enveloped(Kind::Order, b"");
    bytes[8..12].copy_from_slice(&(MAX_PAYLOAD as u32 + 1).to_le_bytes());
    let mut raw = Raw::open(&SERVER.address);
    // Only the header's front is sent: the refusal does not wait for the payload.
    raw.0.write_all(&bytes[..12]).unwrap();
    assert!(matches!(raw.refusal(), Some(Refusal::Malformed(_))));
    still_serves();
}

#[test]
fn a_hello_over_its_limit_is_refused_by_its_header() {
    let bytes = enveloped(Kind::Hello, &vec![0; MAX_HELLO]);
    let mut raw = Raw::silent(&SERVER.address);
    raw.0.write_all(&bytes[..HEADER_LEN]).unwrap();
    assert!(matches!(raw.refusal(), Some(Refusal::Malformed(_))));
    still_serves();
}

#[test]
fn another_protocol_version_is_told_ours() {
    let mut bytes = enveloped(Kind::Hello, &postcards::encode(&hello(Party::NONE)));
    bytes[4] ^= 0xff;
    let answers = exchange(Raw::silent(&SERVER.address), &bytes);
    assert_eq!(
        refusal_in(&answers),
        Some(Refusal::Version(PROTOCOL_VERSION))
    );
}

#[test]
fn requests_before_the_proof_are_refused() {
    let mut bytes = enveloped(Kind::Hello, &postcards::encode(&hello(Party::NONE)));
    bytes.extend(enveloped(Kind::Order, b"now"));
    let answers = exchange(Raw::silent(&SERVER.address), &bytes);
    assert!(matches!(refusal_in(&answers), Some(Refusal::Malformed(_))));
    assert!(answers.iter().all(|(h, _)| h.kind != Kind::OrderReply));
}

#[test]
fn a_kind_that_is_not_served_is_refused() {
    for kind in [Kind::DataRequest, Kind::Hello, Kind::OrderReply] {
        let answers = exchange(Raw::open(&SERVER.address), &enveloped(kind, b""));
        assert!(matches!(refusal_in(&answers), Some(Refusal::Malformed(_))));
    }
    still_serves();
}

#[test]
fn envelopes_for_another_server_or_from_another_peer_are_refused() {
    let another = Party::server(ServerId(8));
    let mut bytes = Vec::new();
    let header = Header::new(Kind::Order, 1, another, Party::NONE);
    envelope::append(&mut bytes, header, b"");
    let answers = exchange(Raw::open(&SERVER.address), &bytes);
    let ours = Party::server(ServerId(7));
    assert_eq!(refusal_in(&answers), Some(Refusal::Party(ours)));

    bytes.clear();
    let header = Header::new(Kind::Order, 1, ours, another);
    envelope::append(&mut bytes, header, b"");
    let answers = exchange(Raw::open(&SERVER.address), &bytes);
    assert!(matches!(refusal_in(&answers), Some(Refusal::Malformed(_))));
    still_serves();
}

#[test]
fn a_request_right_behind_the_proof_is_answered() {
    let mut raw = Raw::silent(&SERVER.address);
    let hello = hello(Party::NONE);
    raw.0
        .write_all(&enveloped(Kind::Hello, &postcards::encode(&hello)))
        .unwrap();
    assert_eq!(raw.receive().unwrap().0.kind, Kind::Welcome);
    let mut bytes = enveloped(Kind::Proof, &postcards::encode(&Proof { mac: [0; 32] }));
    bytes.extend(enveloped(Kind::Order, b"at once"));
    raw.0.write_all(&bytes).unwrap();
    assert_eq!(raw.receive().unwrap().1, b"at once");
}
