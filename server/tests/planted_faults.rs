//! The checks bite: with a fault planted, what the other files assert does not hold.
#![cfg(feature = "mutants")]
#![allow(clippy::unwrap_used, reason = "a failed step of a test is its failure")]

mod stage;

use std::time::Duration;

use ramkeep_rpc::wires::WireEnd;
use ramkeep_server::core::Room;
use ramkeep_wire::certificate::{Certificate, CertificateKey};
use ramkeep_wire::coordinator::ServerState;
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::order::{Command, LogEnd, LostTablet, OrderReply, Recovery, TabletGrant};
use ramkeep_wire::{
    EndedClients, KeyHash, LogPosition, Party, ReplicationEpoch, SegmentId, ServerId, TableId,
};

use stage::{BOTH, ME, ONLY_BACKUP, Stage, list};

use ServerState::{Crashed, Up};

const OTHER: ServerId = ServerId(2);
const DEAD: ServerId = ServerId(3);

/// What `story` says with `mutant` planted, and without.
fn with_and_without(mutant: Mutant, story: fn() -> bool) -> (bool, bool) {
    let without = story();
    let before = mutants::plant(Some(mutant));
    let with = story();
    mutants::plant(before);
    (with, without)
}

#[test]
fn an_order_under_an_old_ballot_is_carried_out() {
    fn obeys() -> bool {
        let obeys = |roles| {
            let mut stage = Stage::enlisted(roles, 0, list(1, &[]));
            stage.order(6, Command::Probe);
            stage.order(5, Command::Probe) == OrderReply::Done
        };
        obeys(BOTH) && obeys(ONLY_BACKUP)
    }
    let found = with_and_without(Mutant::ObeyOldBallots, obeys);
    assert_eq!(found, (true, false));
}

#[test]
fn a_link_of_an_older_life_is_kept() {
    fn takes_the_place_of_the_next() -> bool {
        let mut stage = Stage::enlisted(BOTH, 1, list(1, &[(OTHER.0, Up)]));
        let asked = stage.take_connects(Room::Links).remove(0);
        stage.up(asked.wire, asked.to);
        stage.down(asked.wire, &WireEnd::Closed(String::new()));
        stage.run(Duration::from_millis(100));
        let asked = stage.take_connects(Room::Links).remove(0);
        stage.up(asked.wire, asked.to);
        stage.carriers[1].sent.lock().is_empty()
    }
    let found = with_and_without(Mutant::KeepOldLink, takes_the_place_of_the_next);
    assert_eq!(found, (true, false));
}

#[test]
fn a_list_is_known_before_the_backup_has_fenced() {
    fn is_late() -> bool {
        let mut stage = Stage::enlisted(ONLY_BACKUP, 0, list(1, &[]));
        let crashed = list(2, &[(DEAD.0, Crashed)]);
        let reply = stage.order(5, Command::UpdateServers(crashed));
        assert_eq!(reply, OrderReply::Done);
        !stage.core.backup().unwrap().lock().has_fenced(DEAD)
    }
    let found = with_and_without(Mutant::KnowBeforeFencing, is_late);
    assert_eq!(found, (true, false));
}

/// Whether a recovery asks nobody for so long after what it had asked was lost.
fn waits(time: Duration) -> bool {
    let servers = [(OTHER.0, Up), (DEAD.0, Crashed)];
    let mut stage = Stage::enlisted(BOTH, 0, list(1, &servers));
    stage.order(5, Command::Recover(recovery()));
    stage.run(Duration::from_millis(10));
    let asked = stage.take_connects(Room::Fetches).remove(0);
    stage.down(asked.wire, &WireEnd::Nobody);
    stage.run(time);
    stage.take_connects(Room::Fetches).is_empty()
}

#[test]
fn a_recovery_waits_for_a_fetch_that_was_lost() {
    let found = with_and_without(Mutant::ForgetLostFetch, || waits(Duration::from_secs(10)));
    assert_eq!(found, (true, false));
}

#[test]
fn who_called_over_a_wire_that_has_ended_waits_as_long_as_for_an_answer() {
    let found = with_and_without(Mutant::ForgetLostCalls, || {
        waits(Duration::from_millis(500))
    });
    assert_eq!(found, (true, false));
}

fn recovery() -> Recovery {
    let range = TabletGrant {
        table: TableId(1),
        first: KeyHash(0),
        last: KeyHash(u64::MAX),
    };
    Recovery {
        ended: EndedClients::default(),
        master: DEAD,
        key: CertificateKey([4; 32]),
        end: LogEnd {
            segment: SegmentId(9),
            length: 100,
            epoch: ReplicationEpoch(1),
            certificate: Certificate::NONE,
        },
        attempt: 1,
        tablets: vec![LostTablet {
            range,
            takeover: LogPosition::ZERO,
        }],
        given_up: None,
        last: None,
    }
}

#[test]
fn a_server_goes_on_after_it_was_decided_crashed() {
    fn goes_on() -> bool {
        let mut stage = Stage::enlisted(BOTH, 0, list(1, &[]));
        stage.order(5, Command::UpdateServers(list(2, &[(ME.0, Crashed)])));
        stage.requests.clear();
        stage.run(Duration::from_secs(1));
        stage.ends.is_empty() && !stage.requests.is_empty()
    }
    let found = with_and_without(Mutant::OutliveTheDecision, goes_on);
    assert_eq!(found, (true, false));
}

#[test]
fn a_broken_wire_to_a_backup_is_kept() {
    fn is_kept() -> bool {
        let mut stage = Stage::enlisted(BOTH, 1, list(1, &[(OTHER.0, Up)]));
        let asked = stage.take_connects(Room::Links).remove(0);
        stage.up(asked.wire, Party::server(OTHER));
        stage.down(asked.wire, &WireEnd::Closed(String::new()));
        stage.run(Duration::from_secs(1));
        stage.take_connects(Room::Links).is_empty()
    }
    let found = with_and_without(Mutant::KeepBrokenWire, is_kept);
    assert_eq!(found, (true, false));
}
