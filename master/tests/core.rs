//! The core between server list, connections and replication.
#![allow(clippy::unwrap_used)]

use ramkeep_master::core::{Master, MasterConfig, Sink};
use ramkeep_master::store::MasterLease;
use ramkeep_wire::certificate::CertificateKey;
use ramkeep_wire::coordinator::{
    Answer, Request, Response, Roles, ServerEntry, ServerList, ServerState, Settings,
};
use ramkeep_wire::limits::MAX_CLIENTS_NAMED;
use ramkeep_wire::order::{Command, Order};
use ramkeep_wire::replicate::{Replicate, ReplicateAck, ReplicateStatus};
use ramkeep_wire::{
    Ballot, ClientId, ClusterId, EndedClients, ListVersion, Micros, ReplicationEpoch, SegmentId,
    ServerId,
};

const ME: ServerId = ServerId(1);
const HEAD: SegmentId = SegmentId(1);

fn master() -> Master {
    master_with(2)
}

fn master_with(replicas: u8) -> Master {
    let settings = Settings {
        replicas,
        lease_us: 200_000,
        backup_wait_us: 2_000_000,
        heartbeat_us: 100_000,
        suspect_us: 500_000,
        segment_size: 1 << 20,
    };
    Master::new(MasterConfig {
        me: ME,
        cluster: ClusterId([1; 16]),
        key: CertificateKey([1; 32]),
        settings,
        memory: 64 << 20,
        seed: 1,
    })
    .unwrap()
}

fn told(master: &Master, version: u64, servers: &[(u64, ServerState)]) {
    let entry = |(id, state): &(u64, ServerState)| ServerEntry {
        server: ServerId(*id),
        roles: Roles::BOTH,
        addresses: vec![format!("127.0.0.1:{id}")],
        state: *state,
        replaces: None,
        recovered: false,
    };
    let list = ServerList {
        version: ListVersion(version),
        servers: servers.iter().map(entry).collect(),
    };
    master.handle_order(Order {
        ballot: Ballot::default(),
        command: Command::UpdateServers(list),
    });
}

#[derive(Default)]
struct Sent(Vec<ServerId>);

impl Sink for Sent {
    fn replicate(&mut self, to: ServerId, _: &Replicate<'_>) {
        self.0.push(to);
    }

    fn free(&mut self, _: ServerId, _: Vec<SegmentId>) {}
}

fn pump(master: &Master) -> Vec<ServerId> {
    let mut sent = Sent::default();
    master.pump(Micros(1), &mut sent);
    sent.0
}

use ServerState::{Crashed, Up};

#[test]
fn a_backup_decided_crashed_is_not_used_however_late_its_connection_comes() {
    let master = master();
    told(&master, 1, &[(1, Up), (2, Up), (3, Up), (4, Up)]);
    told(&master, 2, &[(1, Up), (2, Up), (3, Up), (4, Crashed)]);
    master.link_up(ServerId(2));
    master.link_up(ServerId(4));
    assert_eq!(pump(&master), [ServerId(2)]);
    master.link_up(ServerId(3));
    assert_eq!(pump(&master), [ServerId(3)]);
}

#[test]
fn a_backup_that_the_cluster_has_forgotten_has_crashed() {
    let master = master();
    told(&master, 1, &[(1, Up), (2, Up), (3, Up)]);
    master.link_up(ServerId(2));
    master.link_up(ServerId(3));
    pump(&master);
    assert_eq!(master.backups_of(HEAD).len(), 2);
    told(&master, 2, &[(1, Up), (3, Up)]);
    assert_eq!(master.backups_of(HEAD), [ServerId(3)]);
    pump(&master);
    assert_eq!(master.backups_of(HEAD), [ServerId(3)]);
}

#[test]
fn an_acknowledgement_of_a_replaced_connection_is_not_heard() {
    let master = master();
    told(&master, 1, &[(1, Up), (2, Up), (3, Up)]);
    master.link_up(ServerId(2));
    master.link_up(ServerId(3));
    pump(&master);
    let fenced = ReplicateAck {
        segment: HEAD,
        epoch: ReplicationEpoch(1),
        length: 0,
        status: ReplicateStatus::Fenced,
        flags: 0,
        lease_us: 0,
    };
    master.handle_ack_if(Micros(2), ServerId(2), &fenced, || false);
    assert!(!master.is_fenced());
    master.handle_ack_if(Micros(2), ServerId(2), &fenced, || true);
    assert!(master.is_fenced());
    let lease = master.lease(Micros(2));
    assert_eq!(lease, MasterLease::Gone, "it answers nothing more");
}

#[test]
fn nothing_is_answered_before_all_backups_have_granted() {
    let master = master();
    told(&master, 1, &[(1, Up), (2, Up), (3, Up)]);
    master.link_up(ServerId(2));
    master.link_up(ServerId(3));
    assert_eq!(pump(&master).len(), 2);
    let granted = ReplicateAck {
        segment: HEAD,
        epoch: ReplicationEpoch(1),
        length: 0,
        status: ReplicateStatus::Done,
        flags: 0,
        lease_us: 200_000,
    };
    for backup in [2, 3] {
        assert_ne!(master.lease(Micros(3)), MasterLease::Held);
        master.handle_ack(Micros(3), ServerId(backup), &granted);
        pump(&master);
    }
    // From when it was sent: at 1.
    assert_eq!(master.lease(Micros(200_000)), MasterLease::Held);
    assert_eq!(master.lease(Micros(200_001)), MasterLease::Lost);
    assert_eq!(master.lease(Micros(400_001)), MasterLease::Gone);
}

#[test]
fn a_master_asks_for_one_page_of_ended_clients_after_the_other() {
    let master = master();
    let many = 3 * MAX_CLIENTS_NAMED as u64;
    let mut asked = Vec::new();
    for _ in 0..8 {
        let report = master.heartbeat();
        let from = report.clients.expect("a master wants to know");
        asked.push(from.0);
        let living = (from.0.max(1)..=many).map(ClientId);
        let heard = Response {
            ballot: Ballot::default(),
            group: None,
            answer: Answer::Heard {
                list: None,
                lease_us: 0,
                ended: EndedClients::page(from, living, ClientId(many + 1)),
                over: Vec::new(),
            },
        };
        let report = Request::Heartbeat(report);
        master.handle_answer(Micros(1), Micros(1), &report, Some(&heard));
    }
    let page = MAX_CLIENTS_NAMED as u64;
    let round = [0, page + 1, 2 * page + 1];
    assert_eq!(asked[..6], [round, round].concat());
    assert_eq!(asked[6..], round[..2]);
}

#[test]
fn without_backups_the_coordinator_grants_the_lease_from_when_it_was_asked() {
    let master = master_with(0);
    let report = Request::Heartbeat(master.heartbeat());
    let heard = |lease_us| Response {
        ballot: Ballot::default(),
        group: None,
        answer: Answer::Heard {
            list: None,
            lease_us,
            ended: EndedClients::default(),
            over: Vec::new(),
        },
    };
    assert_eq!(master.lease(Micros(0)), MasterLease::Gone);
    let heard = heard(200_000);
    master.handle_answer(Micros(150_000), Micros(100_000), &report, Some(&heard));
    assert_eq!(master.lease(Micros(299_999)), MasterLease::Held);
    assert_eq!(master.lease(Micros(300_000)), MasterLease::Lost);
    // Writes that come meanwhile are refused before they do anything.
    master.handle_tick(Micros(300_000));
    assert!(master.store().write_refusal().is_some());
    master.handle_answer(Micros(320_000), Micros(310_000), &report, Some(&heard));
    assert_eq!(master.lease(Micros(509_999)), MasterLease::Held);
    master.handle_tick(Micros(320_000));
    assert!(master.store().write_refusal().is_none());
}
