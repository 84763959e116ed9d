//! Handshakes by their bytes.

use proptest::prelude::*;
use ramkeep_wire::envelope::PROTOCOL_VERSION;
use ramkeep_wire::hello::{Proof, SharedKey, Welcome};
use ramkeep_wire::{PeerId, ServerId};
use serde::Serialize;

use super::*;

const OURS: ClusterId = ClusterId([1; 16]);
const OTHER: ClusterId = ClusterId([2; 16]);
const UNKNOWN: ClusterId = ClusterId([0; 16]);

fn server(id: u64) -> Party {
    Party::server(ServerId(id))
}

fn coordinator(id: u32) -> Party {
    Party::coordinator(PeerId(id))
}

fn process(party: Party, cluster: ClusterId, key: Option<u8>) -> Identity {
    Identity::new(key.map(|seed| SharedKey([seed; 32])))
        .with_party(party)
        .with_cluster(cluster)
}

fn caller() -> Identity {
    process(server(3), OURS, Some(1))
}

fn listener() -> Identity {
    process(server(7), OURS, Some(1))
}

fn connect(identity: &Identity, to: Party) -> (Handshake, Vec<u8>) {
    let mut out = Vec::new();
    let handshake = Handshake::connect(identity, false, to, [3; 16], &mut out).unwrap();
    (handshake, out)
}

fn accept(identity: &Identity) -> Handshake {
    let mut out = Vec::new();
    let handshake = Handshake::accept(identity, false, [4; 16], &mut out).unwrap();
    assert!(out.is_empty(), "who accepts is spoken to first");
    handshake
}

type Outcome = Result<Opened, HelloError>;

/// Both sides by turns, until both are through or one has given up: what each came to.
fn shake(connecting: &Identity, to: Party, accepting: &Identity) -> [Outcome; 2] {
    let (handshake, hello) = connect(connecting, to);
    let mut sides = [handshake, accept(accepting)];
    let mut outcomes = [None, None];
    let (mut bytes, mut turn) = (hello, 1);
    while !bytes.is_empty() {
        let mut out = Vec::new();
        if outcomes[turn].is_none() {
            outcomes[turn] = sides[turn].handle(&bytes, &mut out).transpose();
        } else {
            assert_eq!(kind(&bytes), Kind::Refusal, "only a refusal comes too late");
        }
        (bytes, turn) = (out, 1 - turn);
    }
    outcomes.map(|outcome| outcome.expect("a handshake ends"))
}

fn kind(bytes: &[u8]) -> Kind {
    envelope::parse(bytes).unwrap().unwrap().0.header.kind
}

fn enveloped<T: Serialize>(kind: Kind, from: Party, to: Party, message: &T) -> Vec<u8> {
    let mut out = Vec::new();
    append(&mut out, kind, from, to, message);
    out
}

fn refusal_in(out: &[u8]) -> Refusal {
    let (envelope, len) = envelope::parse(out).unwrap().unwrap();
    assert_eq!((envelope.header.kind, len), (Kind::Refusal, out.len()));
    postcards::decode(envelope.payload).unwrap()
}

/// What a side refuses `bytes` with; the peer is told the same.
fn refused(handshake: &mut Handshake, bytes: &[u8]) -> Refusal {
    let mut out = Vec::new();
    let Err(HelloError::Refuse(refusal)) = handshake.handle(bytes, &mut out) else {
        panic!("should be refused")
    };
    assert_eq!(refusal_in(&out), refusal);
    refusal
}

#[test]
fn both_sides_know_each_other_in_the_end() {
    for to in [server(7), Party::NONE] {
        let [connected, accepted] = shake(&caller(), to, &listener());
        let opened = Opened {
            peer: server(7),
            local: server(3),
            cluster: OURS,
            rest: Vec::new(),
        };
        assert_eq!(connected, Ok(opened.clone()));
        let swapped = Opened {
            peer: server(3),
            local: server(7),
            ..opened
        };
        assert_eq!(accepted, Ok(swapped));
    }
}

#[test]
fn who_asks_a_coordinator_need_not_know_its_cluster_and_is_told_it() {
    for from in [Party::NONE, coordinator(2)] {
        for (connecting, accepting) in [(UNKNOWN, OURS), (OURS, UNKNOWN), (UNKNOWN, UNKNOWN)] {
            let [connected, accepted] = shake(
                &process(from, connecting, Some(1)),
                Party::NONE,
                &process(coordinator(1), accepting, Some(1)),
            );
            let told = (connected.unwrap().cluster, accepted.unwrap().cluster);
            assert_eq!(told, (accepting, connecting), "as the other side says");
        }
    }
}

#[test]
fn no_server_has_a_link_whose_cluster_one_side_does_not_know() {
    for (from, to) in [
        (Party::NONE, server(7)),
        (Party::NONE, Party::NONE),
        (coordinator(1), server(7)),
        (server(3), server(7)),
        (server(3), coordinator(1)),
    ] {
        for (connecting, accepting) in [(UNKNOWN, OURS), (OURS, UNKNOWN), (UNKNOWN, UNKNOWN)] {
            let [connected, accepted] = shake(
                &process(from, connecting, Some(1)),
                Party::NONE,
                &process(to, accepting, Some(1)),
            );
            let refusal = match accepting {
                UNKNOWN => Refusal::NoCluster,
                known => Refusal::Cluster(known),
            };
            assert_eq!(connected, Err(HelloError::Refused(refusal.clone())));
            assert_eq!(accepted, Err(HelloError::Refuse(refusal)));
        }
    }
}

#[test]
fn the_connecting_side_refuses_a_server_that_knows_no_cluster() {
    let (mut handshake, hello) = connect(&caller(), server(7));
    let (parsed, _) = envelope::parse(&hello).unwrap().unwrap();
    let hello: Hello = postcards::decode(parsed.payload).unwrap();
    let mut welcome = Welcome {
        cluster: UNKNOWN,
        party: server(7),
        nonce: [4; 16],
        mac: [0; 32],
    };
    let key = SharedKey([1; 32]);
    let side = ramkeep_wire::hello::Side::Accepting;
    welcome.mac = ramkeep_wire::hello::mac(Some(&key), side, &hello, &welcome);
    let bytes = enveloped(Kind::Welcome, server(7), server(3), &welcome);
    assert_eq!(refused(&mut handshake, &bytes), Refusal::Cluster(OURS));
}

#[test]
fn another_cluster_is_refused() {
    let stranger = process(server(3), OTHER, Some(1));
    let [connected, accepted] = shake(&stranger, Party::NONE, &listener());
    assert_eq!(
        connected,
        Err(HelloError::Refused(Refusal::Cluster(OURS))),
        "it is told whose this is"
    );
    assert_eq!(accepted, Err(HelloError::Refuse(Refusal::Cluster(OURS))));
}

#[test]
fn what_is_for_another_process_is_refused() {
    for to in [server(6), server(3), Party(9 << 62)] {
        let [connected, accepted] = shake(&caller(), to, &listener());
        let refusal = Refusal::Party(server(7));
        assert_eq!(connected, Err(HelloError::Refused(refusal.clone())));
        assert_eq!(accepted, Err(HelloError::Refuse(refusal)));
    }
    // One that has no id yet is nobody's server.
    let not_enlisted = process(Party::NONE, OURS, Some(1));
    let [connected, _] = shake(&caller(), server(7), &not_enlisted);
    let refusal = Refusal::Party(Party::NONE);
    assert_eq!(connected, Err(HelloError::Refused(refusal)));
}

#[test]
fn the_connecting_side_refuses_a_welcome_of_another_process() {
    let (mut handshake, hello) = connect(&caller(), server(7));
    let (parsed, _) = envelope::parse(&hello).unwrap().unwrap();
    let hello: Hello = postcards::decode(parsed.payload).unwrap();
    let mut welcome = Welcome {
        cluster: OURS,
        party: server(8),
        nonce: [4; 16],
        mac: [0; 32],
    };
    let key = SharedKey([1; 32]);
    let side = ramkeep_wire::hello::Side::Accepting;
    welcome.mac = ramkeep_wire::hello::mac(Some(&key), side, &hello, &welcome);
    let bytes = enveloped(Kind::Welcome, server(8), server(3), &welcome);
    assert_eq!(refused(&mut handshake, &bytes), Refusal::Party(server(8)));
}

#[test]
fn another_key_or_none_is_refused_by_the_side_that_sees_it_first() {
    for (ours, theirs) in [(Some(1), Some(2)), (Some(1), None), (None, Some(1))] {
        let connecting = process(server(3), OURS, theirs);
        let accepting = process(server(7), OURS, ours);
        let (mut out, mut back) = (Vec::new(), Vec::new());
        let mut one =
            Handshake::connect(&connecting, true, Party::NONE, [3; 16], &mut out).unwrap();
        let mut two = Handshake::accept(&accepting, true, [4; 16], &mut back).unwrap();
        two.handle(&out, &mut back).unwrap();
        assert_eq!(refused(&mut one, &back), Refusal::Key);
    }
}

#[test]
fn a_proof_without_the_key_is_refused() {
    let mut handshake = accept(&listener());
    let (_, hello) = connect(&caller(), server(7));
    let mut out = Vec::new();
    assert_eq!(handshake.handle(&hello, &mut out), Ok(None));
    assert_eq!(kind(&out), Kind::Welcome);
    let proof = Proof { mac: [0; 32] };
    let bytes = enveloped(Kind::Proof, server(3), server(7), &proof);
    assert_eq!(refused(&mut handshake, &bytes), Refusal::Key);
}

#[test]
fn without_a_key_only_this_machine_is_talked_to() {
    let identity = process(server(3), OURS, None);
    let mut out = Vec::new();
    let error = Handshake::connect(&identity, false, Party::NONE, [3; 16], &mut out);
    assert_eq!(error.err(), Some(HelloError::KeyNeeded));
    assert_eq!(refusal_in(&out), Refusal::Key);
    out.clear();
    let error = Handshake::accept(&identity, false, [3; 16], &mut out);
    assert_eq!(error.err(), Some(HelloError::KeyNeeded));
    assert_eq!(refusal_in(&out), Refusal::Key);
}

#[test]
fn a_hello_unlike_its_header_is_refused() {
    let hello = Hello {
        cluster: OURS,
        from: server(3),
        to: server(7),
        nonce: [3; 16],
    };
    for (from, to) in [(server(3), Party::NONE), (server(4), server(7))] {
        let bytes = enveloped(Kind::Hello, from, to, &hello);
        let refusal = refused(&mut accept(&listener()), &bytes);
        assert!(matches!(refusal, Refusal::Malformed(_)));
    }
}

#[test]
fn each_state_refuses_every_other_kind_of_envelope() {
    for other in Kind::ALL {
        let states: [(Kind, fn() -> Handshake); 3] = [
            (Kind::Hello, || accept(&listener())),
            (Kind::Welcome, || connect(&caller(), server(7)).0),
            (Kind::Proof, || {
                let mut handshake = accept(&listener());
                let (_, hello) = connect(&caller(), server(7));
                handshake.handle(&hello, &mut Vec::new()).unwrap();
                handshake
            }),
        ];
        for (expected, make) in states {
            if *other != expected {
                let bytes = enveloped(*other, server(3), server(7), &());
                let refusal = refused(&mut make(), &bytes);
                assert!(matches!(refusal, Refusal::Malformed(_)), "{other:?}");
            }
        }
    }
}

#[test]
fn a_refusal_is_taken_as_one_in_each_state() {
    let (connecting, hello) = connect(&caller(), server(7));
    let mut awaits_proof = accept(&listener());
    awaits_proof.handle(&hello, &mut Vec::new()).unwrap();
    for mut handshake in [connecting, accept(&listener()), awaits_proof] {
        let bytes = refusal_envelope(&Refusal::Busy, server(7), Party::NONE);
        let mut out = Vec::new();
        let told = handshake.handle(&bytes, &mut out);
        assert_eq!(told, Err(HelloError::Refused(Refusal::Busy)));
        assert!(out.is_empty(), "a refusal is not answered");
    }
}

#[test]
fn an_envelope_over_the_limit_is_refused_by_its_header() {
    let bytes = enveloped(Kind::Hello, server(3), server(7), &vec![1_u8; MAX_HELLO]);
    let mut handshake = accept(&listener());
    let mut out = Vec::new();
    assert_eq!(
        handshake.handle(&bytes[..HEADER_LEN - 1], &mut out),
        Ok(None)
    );
    let refusal = refused(&mut handshake, &bytes[HEADER_LEN - 1..HEADER_LEN]);
    assert!(matches!(refusal, Refusal::Malformed(_)));
}

#[test]
fn what_is_no_envelope_is_refused() {
    let (_, hello) = connect(&caller(), server(7));
    let mut version = hello.clone();
    version[4] ^= 0xff;
    let refusal = refused(&mut accept(&listener()), &version[..6]);
    assert_eq!(refusal, Refusal::Version(PROTOCOL_VERSION));
    for at in [0, 8, 20, HEADER_LEN] {
        let mut damaged = hello.clone();
        damaged[at] ^= 1;
        damaged.extend([0; 8]);
        let refusal = refused(&mut accept(&listener()), &damaged);
        assert!(matches!(refusal, Refusal::Malformed(_)), "byte {at}");
    }
}

#[test]
fn a_process_that_enlists_meanwhile_is_judged_by_what_it_said() {
    let identity = process(Party::NONE, OURS, Some(1));
    let (mut connecting, hello) = connect(&identity, server(7));
    let enlists = process(Party::NONE, OURS, Some(1));
    let mut accepting = accept(&enlists);
    enlists.set_party(server(7));
    let mut welcome = Vec::new();
    accepting.handle(&hello, &mut welcome).unwrap();
    identity.set_party(server(3));
    let mut proof = Vec::new();
    let opened = connecting.handle(&welcome, &mut proof).unwrap().unwrap();
    assert_eq!((opened.peer, opened.local), (server(7), Party::NONE));
    enlists.set_party(server(9));
    let opened = accepting.handle(&proof, &mut Vec::new()).unwrap().unwrap();
    assert_eq!((opened.peer, opened.local), (Party::NONE, server(7)));
}

#[test]
#[should_panic(expected = "has ended")]
fn a_handshake_that_has_ended_takes_nothing_more() {
    let mut handshake = accept(&listener());
    let bytes = refusal_envelope(&Refusal::Busy, Party::NONE, Party::NONE);
    assert!(handshake.handle(&bytes, &mut Vec::new()).is_err());
    let _ = handshake.handle(&bytes, &mut Vec::new());
}

/// Both streams cut at every boundary: the outcome is the same, and what came after the proof is
/// given out.
#[test]
fn bytes_may_be_cut_anywhere() {
    let (_, hello) = connect(&caller(), server(7));
    let mut welcome = Vec::new();
    accept(&listener()).handle(&hello, &mut welcome).unwrap();
    let mut proof = Vec::new();
    let (mut connecting, _) = connect(&caller(), server(7));
    connecting.handle(&welcome, &mut proof).unwrap();
    proof.extend(b"a request");

    for cut in 0..=hello.len() {
        let mut accepting = accept(&listener());
        let mut out = Vec::new();
        accepting.handle(&hello[..cut], &mut out).unwrap();
        accepting.handle(&hello[cut..], &mut out).unwrap();
        assert_eq!(out, welcome);
    }
    for cut in 0..=welcome.len() {
        let (mut connecting, _) = connect(&caller(), server(7));
        let mut out = Vec::new();
        let first = connecting.handle(&welcome[..cut], &mut out).unwrap();
        assert_eq!(first.is_some(), cut == welcome.len());
        if first.is_none() {
            assert!(out.is_empty());
            connecting
                .handle(&welcome[cut..], &mut out)
                .unwrap()
                .unwrap();
        }
        assert_eq!(out, proof[..proof.len() - 9]);
    }
    let whole = proof.len() - 9;
    for cut in 0..=proof.len() {
        let mut accepting = accept(&listener());
        accepting.handle(&hello, &mut Vec::new()).unwrap();
        let mut out = Vec::new();
        let mut opened = accepting.handle(&proof[..cut], &mut out).unwrap();
        let rest = proof[whole..cut.max(whole)].to_vec();
        let expected = if cut < whole {
            opened = accepting.handle(&proof[cut..], &mut out).unwrap();
            b"a request".to_vec()
        } else {
            rest
        };
        assert_eq!(opened.unwrap().rest, expected, "cut at {cut}");
        assert!(out.is_empty());
    }
}

#[cfg(feature = "mutants")]
#[test]
fn a_planted_welcome_for_others_shows() {
    use ramkeep_wire::mutants::{Mutant, fails};
    assert!(fails(Mutant::HelloAnyCluster, another_cluster_is_refused));
    assert!(fails(
        Mutant::HelloUnknownCluster,
        no_server_has_a_link_whose_cluster_one_side_does_not_know
    ));
    assert!(fails(
        Mutant::IgnoreServerId,
        what_is_for_another_process_is_refused
    ));
}

proptest! {
    #[test]
    fn random_bytes_open_nothing(bytes in prop::collection::vec(any::<u8>(), 1..3_000)) {
        let mut handshake = accept(&listener());
        let mut out = Vec::new();
        let outcome = handshake.handle(&bytes, &mut out);
        prop_assert!(!matches!(outcome, Ok(Some(_))));
        prop_assert!(out.len() <= MAX_HELLO);
        prop_assert_eq!(outcome.is_err(), !out.is_empty());
    }

    #[test]
    fn a_damaged_welcome_opens_nothing(at in any::<prop::sample::Index>(), flip in 1_u8..) {
        let (mut connecting, hello) = connect(&caller(), server(7));
        let mut welcome = Vec::new();
        accept(&listener()).handle(&hello, &mut welcome).unwrap();
        let at = at.index(welcome.len());
        welcome[at] ^= flip;
        prop_assert!(!matches!(connecting.handle(&welcome, &mut Vec::new()), Ok(Some(_))));
    }
}
