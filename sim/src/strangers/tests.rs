//! What strangers come to at processes that speak by the rules, and at one that does not.

use std::time::Duration;

use ramkeep_rpc::Identity;
use ramkeep_rpc::wires::WireEnd;
use ramkeep_wire::hello::{Refusal, SharedKey};
use ramkeep_wire::{ClientId, Party, PeerId};

use super::{Manner, StrangerConfig, StrangerNode};
use crate::connections::Happening;
use crate::connections::toys::{OTHER, OURS, Toys, ours, server};
use crate::network::ProcessId;
use crate::node::delivered;

const VICTIM: ProcessId = ProcessId(1);
const STRANGER: ProcessId = ProcessId(9);

fn client() -> Identity {
    Identity::new(None)
        .with_cluster(OURS)
        .with_party(Party::client(ClientId(9)))
}

fn config(identity: Identity, manner: Manner) -> StrangerConfig {
    StrangerConfig {
        number: STRANGER.0,
        identity,
        manner,
        visits: vec![VICTIM.0.to_string()],
        rest: Duration::from_millis(20),
    }
}

/// Visits for some time: the stranger, and what the visited heard.
fn visited(victim: Identity, stranger: StrangerConfig) -> (StrangerNode, Vec<Happening>) {
    let mut toys = Toys::new(7);
    toys.add(VICTIM.0, victim);
    toys.add_stranger(stranger);
    toys.pass(Duration::from_secs(20));
    let heard = toys.heard(VICTIM);
    let node = toys.strangers.remove(&STRANGER).unwrap();
    (node, heard)
}

#[test]
fn strangers_are_sent_away_before_a_process_hears_of_them() {
    let other = Identity::new(None)
        .with_cluster(OTHER)
        .with_party(server(5));
    let strangers = [
        (other, Manner::Hello),
        (client(), Manner::ForAnother(server(4))),
        (client(), Manner::NoHello),
        (client(), Manner::Silent),
    ];
    for (identity, manner) in strangers {
        let (node, heard) = visited(ours(1), config(identity, manner));
        assert_eq!(node.wrongs, [] as [String; 0]);
        let few = if manner == Manner::Silent { 5 } else { 100 };
        assert!(node.ended.0 > few, "{manner:?} {:?}", node.ended);
        assert_eq!(node.ended.0, node.ended.1, "{manner:?}");
        assert_eq!(heard, [], "{manner:?}");
    }
}

#[test]
fn who_is_let_in_and_misbehaves_is_put_out_without_a_request() {
    let strangers = [
        Manner::AsAnother(server(5)),
        Manner::ToAnother(server(4)),
        Manner::WrongKinds,
    ];
    for manner in strangers {
        let (node, heard) = visited(ours(1), config(client(), manner));
        assert_eq!(node.wrongs, [] as [String; 0]);
        assert!(node.ended.0 > 100 && node.ended.0 == node.ended.1);
        let requests = heard.iter().any(|h| matches!(h, Happening::Request { .. }));
        assert!(!requests && heard.len() as u64 / 2 >= node.ended.0);
    }
    // What a process serves it is to judge itself.
    let (_, heard) = visited(ours(1), config(client(), Manner::Garbage));
    assert!(heard.iter().any(|h| matches!(h, Happening::Request { .. })));
}

#[test]
fn another_key_shows_to_both_sides() {
    let keyed = |seed| {
        Identity::new(Some(SharedKey([seed; 32])))
            .with_cluster(OURS)
            .with_party(server(1))
    };
    let (node, heard) = visited(keyed(1), config(keyed(2), Manner::Hello));
    assert_eq!(node.wrongs, [] as [String; 0]);
    assert!(node.ended.1 > 100);
    assert_eq!(heard, []);
}

#[test]
fn of_those_who_know_no_cluster_yet_only_coordinators_let_others_in() {
    let other = || Identity::new(None).with_cluster(OTHER);
    let coordinator = Identity::new(None).with_party(Party::coordinator(PeerId(1)));
    let (node, heard) = visited(coordinator, config(other(), Manner::Hello));
    assert_eq!(node.wrongs, [] as [String; 0]);
    assert_eq!(node.ended.1, 0);
    assert!(!heard.is_empty());
    let (node, heard) = visited(Identity::new(None), config(other(), Manner::Hello));
    assert_eq!(node.wrongs, [] as [String; 0]);
    assert!(node.ended.0 > 100 && node.ended.0 == node.ended.1);
    assert_eq!(heard, []);
}

#[test]
fn a_stranger_at_an_address_is_not_taken_for_the_one_looked_for() {
    let older = ours(3);
    let other = Identity::new(None)
        .with_cluster(OTHER)
        .with_party(server(4));
    let ends = [
        (older, WireEnd::Nobody),
        (other, WireEnd::Refused(Refusal::Cluster(OTHER))),
    ];
    for (identity, expected) in ends {
        let mut toys = Toys::new(3);
        toys.add(VICTIM.0, ours(1));
        let mut config = config(identity, Manner::WrongKinds);
        config.visits.clear();
        toys.add_stranger(config);
        assert_eq!(toys.end(VICTIM, &[STRANGER.0], server(4)), expected);
        assert_eq!(toys.strangers[&STRANGER].requests, 0);
    }
}

#[test]
fn answers_of_wrong_kinds_reach_who_asked_for_whoever_is_there() {
    use crate::connections::toys::enveloped;
    use ramkeep_wire::envelope::Kind;
    let mut toys = Toys::new(3);
    toys.add(VICTIM.0, ours(1));
    let mut config = config(ours(3), Manner::WrongKinds);
    config.visits.clear();
    toys.add_stranger(config);
    let wire = toys.connect(VICTIM, &[STRANGER.0], Party::NONE);
    let up = toys.heard(VICTIM);
    assert!(matches!(up[..], [Happening::Up { peer, .. }] if peer == server(3)));
    toys.send(VICTIM, wire, &enveloped(Kind::Order, server(3), server(1)));
    let [Happening::Received { bytes, .. }] = &toys.heard(VICTIM)[..] else {
        panic!("it answers")
    };
    assert_eq!(delivered(bytes).header.kind, Kind::Probe);
    assert_eq!(toys.strangers[&STRANGER].requests, 1);
}

#[cfg(feature = "mutants")]
#[test]
fn strangers_find_planted_faults() {
    use ramkeep_wire::mutants::{self, Mutant};
    let other = Identity::new(None).with_cluster(OTHER);
    for (mutant, identity, manner) in [
        (Mutant::HelloAnyCluster, other, Manner::Hello),
        (
            Mutant::IgnoreServerId,
            client(),
            Manner::ForAnother(server(4)),
        ),
    ] {
        mutants::plant(Some(mutant));
        let (node, _) = visited(ours(1), config(identity, manner));
        mutants::plant(None);
        assert!(!node.wrongs.is_empty(), "{mutant:?}");
    }
}
