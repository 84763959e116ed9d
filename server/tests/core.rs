//! The server's core, stepped: joining, orders, lists, reports, links, fetches, probes, and its end.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is its failure")]

mod stage;

use std::time::Duration;

use ramkeep_rpc::Batch;
use ramkeep_rpc::wires::WireEnd;
use ramkeep_server::core::{RECONNECT, Room, ServerEnd};
use ramkeep_wire::backup::{BackupRequest, BackupResponse};
use ramkeep_wire::certificate::{Certificate, CertificateKey};
use ramkeep_wire::coordinator::{Refused, Request, Roles, ServerState, Symptom};
use ramkeep_wire::envelope::{self, Header, Kind};
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::limits::{MAX_UNSENT, PROBE_INTERVAL};
use ramkeep_wire::order::{
    Command, LogEnd, LostTablet, OrderReply, Recovery, ServerStatus, TabletGrant,
};
use ramkeep_wire::replicate::{ReplicateAck, ReplicateStatus};
use ramkeep_wire::{
    ClusterId, EndedClients, KeyHash, ListVersion, LogPosition, Party, ReplicationEpoch, SegmentId,
    ServerId, TableId, postcards,
};

use stage::{BOTH, ME, ONLY_BACKUP, Stage, ballot, list};

use ServerState::{Crashed, Joining, Up};

const OTHER: ServerId = ServerId(2);
const DEAD: ServerId = ServerId(3);
const SECOND: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(10);

fn broken() -> WireEnd {
    WireEnd::Closed("it broke".to_owned())
}

#[test]
fn a_server_enlists_and_says_who_it_is_on_connections_made_anew() {
    let mut stage = Stage::new(BOTH, 0);
    stage.start();
    stage.run(TICK);
    let Some(Request::Enlist(enlist)) = stage.requests.first() else {
        panic!("{:?}", stage.requests);
    };
    assert_eq!((enlist.roles, enlist.frames), (BOTH, 16));
    assert_eq!(enlist.addresses, ["server-7"]);
    assert_eq!(stage.adopted, [ME]);
    let [first, second] = &stage.take_connects(Room::Control)[..] else {
        panic!("one connection before it knew itself, one after");
    };
    assert_eq!(stage.closed, [first.wire]);
    assert_ne!(first.wire, second.wire);
    let backup = stage.core.backup().unwrap().lock();
    assert_eq!(backup.server(), Some(ME));
}

#[test]
fn a_server_whose_coordinators_are_another_clusters_says_so_once_and_does_not_hurry() {
    let other = ClusterId([9; 16]);
    let mut stage = Stage::enlisted(BOTH, 0, list(1, &[]));
    stage.strangers = Some(other);
    let wires: Vec<_> = stage.take_connects(Room::Control);
    let wire = wires.last().unwrap().wire;
    stage.down(wire, &broken());
    stage.run(SECOND);
    stage.take_connects(Room::Control);
    stage.run(10 * SECOND);
    assert_eq!(stage.foreign, [other]);
    let attempts = stage.take_connects(Room::Control).len();
    assert!((5..=20).contains(&attempts), "{attempts}");
    assert!(stage.ends.is_empty(), "it waits for its own");
    stage.strangers = None;
    stage.requests.clear();
    stage.run(2 * SECOND);
    assert!(!stage.requests.is_empty(), "and goes on with them");
}

#[test]
fn until_it_is_enlisted_nothing_is_served() {
    let mut stage = Stage::new(BOTH, 0);
    for kind in [Kind::Probe, Kind::StatusRequest, Kind::Order] {
        let refused = stage.ask(kind, Party::NONE, &[]).unwrap_err();
        assert_eq!(refused, Refusal::Party(Party::NONE));
    }
}

#[test]
fn a_server_that_is_not_wanted_ends() {
    let mut stage = Stage::new(BOTH, 0);
    stage.refuses = Some(Refused::Invalid("no".to_owned()));
    stage.start();
    assert!(matches!(stage.ends[..], [ServerEnd::Refused(_)]));
    assert_eq!(stage.core.next_timeout(), None);

    let mut stage = Stage::new(ONLY_BACKUP, 0);
    let other = ClusterId([9; 16]);
    let backup = stage.core.backup().unwrap().clone();
    backup.lock().assign(other, ServerId(1), 0).unwrap();
    stage.start();
    assert!(matches!(stage.ends[..], [ServerEnd::Frames(_)]));
}

#[test]
fn an_order_of_an_older_ballot_is_refused() {
    for roles in [BOTH, ONLY_BACKUP] {
        let mut stage = Stage::enlisted(roles, 0, list(1, &[]));
        assert_eq!(stage.order(6, Command::Probe), OrderReply::Done);
        let stale = OrderReply::StaleBallot(ballot(6));
        assert_eq!(stage.order(5, Command::Probe), stale);
        // The leader that answers a report has another by now.
        stage.ballot = ballot(8);
        stage.run(SECOND);
        let stale = OrderReply::StaleBallot(ballot(8));
        assert_eq!(stage.order(7, Command::Probe), stale);
        assert_eq!(stage.order(8, Command::Probe), OrderReply::Done);
    }
}

#[test]
fn only_a_coordinator_gives_orders_and_without_a_master_there_is_none_to_replay() {
    let mut stage = Stage::enlisted(ONLY_BACKUP, 0, list(1, &[]));
    let refused = stage
        .ask(Kind::Order, Party::server(OTHER), &[])
        .unwrap_err();
    assert!(matches!(refused, Refusal::Malformed(_)));
    let refused = stage
        .ask(Kind::Replicate, Party::server(OTHER), &[])
        .unwrap_err();
    assert!(matches!(refused, Refusal::Malformed(_)));
    assert_eq!(
        stage.order(5, Command::TakeTablets(Vec::new())),
        OrderReply::NotReady
    );
    assert_eq!(
        stage.order(5, Command::DropTables(vec![TableId(1)])),
        OrderReply::Done
    );
    let reply = stage.order(5, Command::Recover(recovery()));
    assert!(matches!(reply, OrderReply::CannotRecover(_)), "{reply:?}");
}

#[test]
fn an_older_server_list_is_not_taken() {
    for roles in [BOTH, ONLY_BACKUP] {
        let mut stage = Stage::enlisted(roles, 0, list(5, &[]));
        stage.order(5, Command::UpdateServers(list(4, &[])));
        assert_eq!(status(&mut stage).list, ListVersion(5));
        stage.order(5, Command::UpdateServers(list(6, &[])));
        stage.list = list(6, &[]);
        assert_eq!(status(&mut stage).list, ListVersion(6));
        stage.take_reports();
        stage.run(SECOND);
        let reports = stage.take_reports();
        assert!(reports.iter().all(|report| report.list == ListVersion(6)));
    }
}

fn status(stage: &mut Stage) -> ServerStatus {
    let reply = stage.ask(Kind::StatusRequest, Party::NONE, &[]);
    postcards::decode(&reply.unwrap()).unwrap()
}

#[test]
fn what_does_not_fit_is_left_for_later() {
    let mut stage = Stage::enlisted(ONLY_BACKUP, 0, list(1, &[]));
    let header = Header::new(Kind::StatusRequest, 1, Party::NONE, Party::NONE);
    let mut bytes = Vec::new();
    envelope::append(&mut bytes, header, &[]);
    let bytes = bytes.repeat(4);
    let mut batch = Batch::new(&bytes);
    let mut out = vec![0; MAX_UNSENT];
    let now = stage.now;
    stage
        .core
        .handle_requests(now, &mut batch, &mut out)
        .unwrap();
    assert_eq!(batch.taken(), bytes.len() / 4, "the one that fills it");
    out.clear();
    stage
        .core
        .handle_requests(now, &mut batch, &mut out)
        .unwrap();
    assert_eq!(batch.taken(), bytes.len());
}

#[test]
fn the_backup_has_fenced_before_anybody_hears_that_a_list_is_known() {
    let has_fenced = |stage: &Stage| stage.core.backup().unwrap().lock().has_fenced(DEAD);
    let crashed = |version| list(version, &[(DEAD.0, Crashed)]);
    for roles in [BOTH, ONLY_BACKUP] {
        assert!(has_fenced(&Stage::enlisted(roles, 0, crashed(1))));
        // By an order.
        let mut stage = Stage::enlisted(roles, 0, list(1, &[]));
        assert!(!has_fenced(&stage));
        stage.order(5, Command::UpdateServers(crashed(2)));
        assert!(has_fenced(&stage));
        // By the answer to a report.
        let mut stage = Stage::enlisted(roles, 0, list(1, &[]));
        stage.list = crashed(2);
        stage.take_reports();
        while !has_fenced(&stage) {
            stage.run(Duration::from_millis(1));
            let mut reports = stage.take_reports().into_iter();
            assert!(reports.all(|report| report.list == ListVersion(1)));
        }
    }
}

#[test]
fn a_server_decided_crashed_ends_and_does_nothing_more() {
    let told: [fn(&mut Stage); 3] = [
        |stage| drop(stage.order(5, Command::UpdateServers(list(2, &[(ME.0, Crashed)])))),
        |stage| stage.list = list(2, &[(ME.0, Crashed)]),
        |stage| stage.refuses = Some(Refused::Crashed),
    ];
    for (roles, tell) in [BOTH, ONLY_BACKUP]
        .into_iter()
        .flat_map(|r| told.map(|t| (r, t)))
    {
        let mut stage = Stage::enlisted(roles, 0, list(1, &[(OTHER.0, Up)]));
        tell(&mut stage);
        stage.run(SECOND);
        assert!(matches!(stage.ends[..], [ServerEnd::Crashed]));
        assert!(stage.core.master().is_none_or(|master| master.is_fenced()));
        stage.requests.clear();
        stage.connects.clear();
        stage.refuses = None;
        stage.run(SECOND);
        assert_eq!((stage.requests.len(), stage.connects.len()), (0, 0));
        let refused = stage.ask(Kind::Probe, Party::server(OTHER), &[]);
        assert_eq!(refused, Err(Refusal::Stopping));
    }
}

#[test]
fn a_master_that_a_backup_has_fenced_ends() {
    let mut stage = Stage::enlisted(BOTH, 1, list(1, &[(OTHER.0, Up)]));
    let wire = stage.take_connects(Room::Links)[0].wire;
    stage.up(wire, Party::server(OTHER));
    let link = stage.links().remove(0);
    let ack = ReplicateAck {
        segment: SegmentId(1),
        epoch: ReplicationEpoch(1),
        length: 0,
        status: ReplicateStatus::Fenced,
        flags: 0,
        lease_us: 0,
    };
    let header = Header::new(
        Kind::ReplicateAck,
        link.number(),
        Party::server(ME),
        Party::NONE,
    );
    let mut bytes = Vec::new();
    envelope::append(&mut bytes, header, &ack.to_bytes());
    stage.acknowledge(&link, &bytes);
    stage.run(TICK);
    assert!(matches!(stage.ends[..], [ServerEnd::Crashed]));
}

#[test]
fn reports_are_made_at_the_clusters_pace_or_as_the_lease_needs_them() {
    let with_backups = Roles {
        backup: false,
        ..BOTH
    };
    for (roles, replicas, wanted) in [(ONLY_BACKUP, 2, 10), (with_backups, 2, 10), (BOTH, 0, 20)] {
        let mut stage = Stage::enlisted(roles, replicas, list(1, &[]));
        stage.core.set_resident(4_711);
        stage.take_reports();
        stage.run(SECOND);
        let reports = stage.take_reports();
        assert!(reports.len().abs_diff(wanted) <= 1, "{}", reports.len());
        for report in reports {
            assert_eq!(report.server, ME);
            assert_eq!(report.resident, 4_711);
            assert_eq!(report.master.is_some(), roles.master);
            assert_eq!(report.backup.is_some(), roles.backup);
        }
    }
}

#[test]
fn a_master_keeps_one_connection_to_every_living_backup() {
    let servers = [(ME.0, Up), (OTHER.0, Up), (DEAD.0, Crashed), (4, Joining)];
    let mut stage = Stage::enlisted(BOTH, 2, list(1, &servers));
    let asked = stage.take_connects(Room::Links);
    let to: Vec<Party> = asked.iter().map(|asked| asked.to).collect();
    assert_eq!(to, [OTHER, ServerId(4)].map(Party::server));
    stage.run(SECOND);
    assert!(stage.take_connects(Room::Links).is_empty());
    asked
        .iter()
        .for_each(|asked| stage.up(asked.wire, asked.to));
    assert_eq!(stage.links().len(), 2);
    // One breaks, and is made again after a rest, under a higher number.
    let first = stage.links().remove(0);
    stage.down(asked[0].wire, &broken());
    assert!(*first.carrier.is_closed.lock());
    stage.run(RECONNECT - TICK);
    assert!(stage.take_connects(Room::Links).is_empty());
    stage.run(TICK * 3);
    let again = stage.take_connects(Room::Links).remove(0);
    stage.up(again.wire, again.to);
    assert!(again.wire.number > asked[1].wire.number);
    // What is heard of the one before is not taken for the present one's.
    stage.down(asked[0].wire, &broken());
    stage.up(asked[0].wire, asked[0].to);
    let numbers: Vec<u64> = stage.links().iter().map(|link| link.number()).collect();
    assert_eq!(numbers, [asked[1].wire.number, again.wire.number]);
    // The dead are let go.
    stage.list = list(2, &[(ME.0, Up), (OTHER.0, Crashed), (4, Up)]);
    stage.run(SECOND);
    assert_eq!(stage.links().len(), 1);
    assert!(stage.closed.contains(&again.wire));
    assert!(*stage.carriers[2].is_closed.lock());
}

fn whole() -> TabletGrant {
    TabletGrant {
        table: TableId(1),
        first: KeyHash(0),
        last: KeyHash(u64::MAX),
    }
}

/// An order to replay a log of which nothing but its end is known.
fn recovery() -> Recovery {
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
            range: whole(),
            takeover: LogPosition::ZERO,
        }],
        given_up: None,
        last: None,
    }
}

/// A recovery is under way, for which another server is asked.
fn recovering() -> Stage {
    let servers = [(OTHER.0, Up), (DEAD.0, Crashed)];
    let mut stage = Stage::enlisted(BOTH, 0, list(1, &servers));
    let reply = stage.order(5, Command::Recover(recovery()));
    assert!(matches!(reply, OrderReply::Recovering { .. }), "{reply:?}");
    stage.run(TICK);
    stage
}

#[test]
fn a_recovery_asks_over_connections_of_its_own_and_is_told_what_is_lost() {
    let ends = [
        WireEnd::Nobody,
        broken(),
        WireEnd::Unclear("slow".to_owned()),
    ];
    for end in ends {
        let mut stage = recovering();
        let asked = stage.take_connects(Room::Fetches);
        assert_eq!(asked.len(), 1);
        assert_eq!(asked[0].to, Party::server(OTHER));
        stage.down(asked[0].wire, &end);
        stage.run(SECOND);
        assert!(!stage.take_connects(Room::Fetches).is_empty());
    }
    // It hangs: the connection is given up, and made again.
    let mut stage = recovering();
    let asked = stage.take_connects(Room::Fetches).remove(0);
    stage.up(asked.wire, asked.to);
    let request = stage.sent.iter().find(|sent| sent.wire == asked.wire);
    let request: BackupRequest = postcards::decode(&request.unwrap().payload).unwrap();
    let after = None;
    assert_eq!(
        request,
        BackupRequest::Inventory {
            master: DEAD,
            after
        }
    );
    stage.run(SECOND * 2);
    assert!(stage.closed.contains(&asked.wire));
    assert!(!stage.take_connects(Room::Fetches).is_empty());
}

#[test]
fn answers_that_make_no_sense_end_the_connection() {
    let mut stage = recovering();
    let asked = stage.take_connects(Room::Fetches).remove(0);
    stage.up(asked.wire, asked.to);
    let sent = stage.sent.pop_back().unwrap();
    stage.receive(asked.wire, sent.header.reply(Kind::BackupResponse), b"?");
    assert!(stage.closed.contains(&asked.wire));
    stage.run(SECOND);
    assert!(!stage.take_connects(Room::Fetches).is_empty());
}

#[test]
fn connections_for_recoveries_go_with_the_last_of_them() {
    let mut stage = recovering();
    let asked = stage.take_connects(Room::Fetches).remove(0);
    stage.up(asked.wire, asked.to);
    let mut over = list(2, &[(OTHER.0, Up), (DEAD.0, Crashed)]);
    over.servers[1].recovered = true;
    stage.order(5, Command::UpdateServers(over));
    stage.run(TICK);
    assert!(stage.closed.contains(&asked.wire));
}

#[test]
fn what_its_own_backup_holds_is_answered_by_a_call() {
    let servers = [(ME.0, Up), (DEAD.0, Crashed)];
    let mut stage = Stage::enlisted(BOTH, 0, list(1, &servers));
    let reply = stage.order(5, Command::Recover(recovery()));
    assert!(matches!(reply, OrderReply::Recovering { .. }), "{reply:?}");
    stage.run(SECOND);
    assert!(stage.take_connects(Room::Fetches).is_empty());
    // It has said that it has nothing: there is nobody else.
    let reply = stage.order(5, Command::Recover(recovery()));
    assert!(matches!(reply, OrderReply::CannotProve { .. }), "{reply:?}");
}

/// The symptoms that the leader was told of.
fn symptoms(stage: &mut Stage) -> Vec<Symptom> {
    let requests = std::mem::take(&mut stage.requests);
    let told = requests.into_iter().filter_map(|request| match request {
        Request::Suspect {
            server: OTHER,
            by: ME,
            symptom,
        } => Some(symptom),
        Request::Suspect { .. } => panic!("{request:?}"),
        _ => None,
    });
    told.collect()
}

/// Runs until somebody is probed over a new connection.
fn probed(stage: &mut Stage) -> stage::Asked {
    for _ in 0..1_000 {
        if let Some(asked) = stage.take_connects(Room::Probes).pop() {
            assert_eq!(asked.to, Party::server(OTHER));
            return asked;
        }
        stage.run(Duration::from_millis(1));
    }
    panic!("nobody is probed");
}

#[test]
fn what_a_probe_meets_is_told_as_the_symptom_that_it_is() {
    let mut stage = Stage::enlisted(ONLY_BACKUP, 0, list(1, &[(OTHER.0, Up)]));
    let asked = probed(&mut stage);
    stage.down(asked.wire, &WireEnd::Nobody);
    stage.run(TICK);
    assert_eq!(symptoms(&mut stage), [Symptom::Refused]);
    // What proves nothing is noticed by the time that passes.
    let asked = probed(&mut stage);
    stage.down(asked.wire, &WireEnd::Unclear("slow".to_owned()));
    stage.run(TICK);
    assert_eq!(symptoms(&mut stage), []);
    stage.run(PROBE_INTERVAL / 2);
    assert_eq!(symptoms(&mut stage), [Symptom::Silent]);
    let asked = probed(&mut stage);
    stage.up(asked.wire, asked.to);
    stage.down(asked.wire, &broken());
    stage.run(TICK);
    assert_eq!(symptoms(&mut stage), [Symptom::Closed]);
    // Who answers is not told of, and probed again on the same connection.
    let asked = probed(&mut stage);
    stage.sent.clear();
    stage.up(asked.wire, asked.to);
    for _ in 0..100 {
        stage.run(TICK);
        while let Some(sent) = stage.sent.pop_front() {
            assert_eq!(sent.wire, asked.wire);
            stage.receive(sent.wire, sent.header.reply(Kind::ProbeReply), &[]);
        }
    }
    assert_eq!(symptoms(&mut stage), []);
    assert!(stage.take_connects(Room::Probes).is_empty());
}

#[test]
fn one_that_hangs_is_probed_by_one_probe_at_a_time() {
    let mut stage = Stage::enlisted(ONLY_BACKUP, 0, list(1, &[(OTHER.0, Up)]));
    let asked = probed(&mut stage);
    stage.up(asked.wire, asked.to);
    stage.run(SECOND / 2);
    assert_eq!(stage.sent.len(), 1);
    let told = symptoms(&mut stage);
    assert!(told.len() > 2 && told.iter().all(|one| *one == Symptom::Silent));
}

#[test]
fn a_lost_link_to_a_backup_is_told_at_once() {
    let mut stage = Stage::enlisted(BOTH, 1, list(1, &[(OTHER.0, Up)]));
    let asked = stage.take_connects(Room::Links).remove(0);
    stage.up(asked.wire, asked.to);
    stage.requests.clear();
    stage.down(asked.wire, &broken());
    stage.run(TICK);
    assert_eq!(symptoms(&mut stage), [Symptom::Closed]);
}

#[test]
fn what_a_backup_answers_reaches_the_recovery() {
    let mut stage = recovering();
    let asked = stage.take_connects(Room::Fetches).remove(0);
    stage.up(asked.wire, asked.to);
    let sent = stage.sent.pop_back().unwrap();
    let nothing = postcards::encode(&BackupResponse::Inventory(Vec::new()));
    stage.receive(
        asked.wire,
        sent.header.reply(Kind::BackupResponse),
        &nothing,
    );
    stage.run(TICK);
    let reply = stage.order(5, Command::Recover(recovery()));
    assert!(matches!(reply, OrderReply::CannotProve { .. }), "{reply:?}");
}
