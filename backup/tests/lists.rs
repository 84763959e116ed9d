//! What a backup does when a server list comes in.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is its failure")]

mod common;

use common::*;
use ramkeep_wire::coordinator::{Roles, ServerEntry, ServerList, ServerState};
use ramkeep_wire::replicate::ReplicateStatus::*;
use ramkeep_wire::*;

fn entry(server: ServerId, state: ServerState, recovered: bool) -> ServerEntry {
    ServerEntry {
        server,
        roles: Roles::BOTH,
        addresses: Vec::new(),
        state,
        replaces: None,
        recovered,
    }
}

fn list(servers: Vec<ServerEntry>) -> ServerList {
    ServerList {
        version: ListVersion(7),
        servers,
    }
}

/// A backup with an inherited replica and a new one of the master, and a new one of another.
fn with_replicas(other: ServerId) -> (Memory, Segment) {
    let mut running = backup(4);
    let mut segment = Segment::new(MASTER, 1);
    segment.grow(100);
    send(&mut running, &segment, 0, OPEN);
    let mut found = restart(running);
    for (master, id) in [(MASTER, 2), (other, 1)] {
        let mut fresh = Segment::new(master, id);
        fresh.grow(10);
        assert_eq!(send(&mut found, &fresh, 0, OPEN).status, Done);
    }
    (found, segment)
}

#[test]
fn a_crashed_masters_replicas_stay_until_the_list_says_recovered() {
    let other = ServerId(6);
    let (mut backup, segment) = with_replicas(other);
    let up = entry(other, ServerState::Up, false);
    let crashed = entry(MASTER, ServerState::Crashed, false);
    backup.take_list(&list(vec![crashed, up.clone()]));
    assert_eq!(backup.stats().used, 3);
    assert_eq!(send(&mut backup, &segment, 0, OPEN).status, Fenced);
    let recovered = list(vec![entry(MASTER, ServerState::Crashed, true), up]);
    for _ in 0..2 {
        backup.take_list(&recovered);
        let stats = backup.stats();
        assert_eq!((stats.used, stats.inherited), (1, 0), "the living one's");
    }
    assert_eq!(inventory(&mut backup, other).len(), 1);
}

#[test]
fn a_forgotten_masters_replicas_are_freed_and_a_later_ones_are_not() {
    let other = ServerId(6);
    let (mut backup, segment) = with_replicas(other);
    // The list is older than the other master, whose id is above all in it.
    backup.take_list(&list(vec![entry(ServerId(3), ServerState::Up, false)]));
    assert_eq!(backup.stats().used, 3);
    backup.take_list(&ServerList::default());
    assert_eq!(backup.stats().used, 3);
    backup.take_list(&list(vec![entry(other, ServerState::Up, false)]));
    assert_eq!(backup.stats().used, 1);
    assert_eq!(send(&mut backup, &segment, 0, OPEN).status, Fenced);
    assert_eq!(inventory(&mut backup, other).len(), 1);
}
