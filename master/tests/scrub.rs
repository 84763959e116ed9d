//! What backups hold of a living master is read back and proved, and replaced where it is not right.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, VecDeque};

use ramkeep_master::core::{CHUNK, Master, MasterConfig, Sink};
use ramkeep_wire::backup::{BackupRequest, BackupResponse, ReplicaInfo};
use ramkeep_wire::certificate::CertificateKey;
use ramkeep_wire::coordinator::{
    DamagedReplica, Roles, ServerEntry, ServerList, ServerState, Settings,
};
use ramkeep_wire::data::{RejectRules, Status};
use ramkeep_wire::order::{Command, Order, TabletGrant};
use ramkeep_wire::replicate::{Replicate, ReplicateAck, ReplicateStatus, flags};
use ramkeep_wire::{
    Ballot, BootId, ClusterId, KeyHash, ListVersion, Micros, SegmentId, ServerId, TableId,
};

const ME: ServerId = ServerId(1);
const TABLE: TableId = TableId(1);
/// More than one request.
const SEGMENT: u32 = 1 << 20;
/// Closed, before the head.
const CLOSED: u64 = 3;

type Held = BTreeMap<(ServerId, SegmentId), (ReplicaInfo, Vec<u8>)>;

/// A master with honest backups; frees come in the order in which they were sent.
struct World {
    master: Master,
    held: Held,
    freed: Vec<(ServerId, SegmentId)>,
    now: u64,
}

#[derive(Default)]
struct Sent {
    acks: VecDeque<(ServerId, ReplicateAck)>,
    held: Held,
    freed: Vec<(ServerId, SegmentId)>,
}

impl Sink for Sent {
    fn replicate(&mut self, to: ServerId, message: &Replicate<'_>) {
        let name = (to, message.segment);
        let info = ReplicaInfo {
            master: ME,
            segment: message.segment,
            kind: message.kind,
            epoch: message.epoch,
            length: 0,
            closed: false,
            certificate: message.certificate,
            boot: BootId([1; 16]),
            inherited: false,
        };
        let (info, bytes) = self.held.entry(name).or_insert((info, Vec::new()));
        let known = bytes.len();
        let offset = message.offset as usize;
        assert!(offset <= known, "no gap");
        let repeated = known.min(message.length as usize) - offset;
        let status = if bytes[offset..offset + repeated] == message.bytes[..repeated] {
            ReplicateStatus::Done
        } else {
            ReplicateStatus::Refused
        };
        bytes.extend_from_slice(&message.bytes[repeated..]);
        if message.has(flags::COMPLETE) {
            (info.length, info.epoch) = (message.length, message.epoch);
            info.certificate = message.certificate;
            info.closed |= message.has(flags::CLOSED);
        }
        let ack = ReplicateAck {
            segment: message.segment,
            epoch: message.epoch,
            length: message.length,
            status,
            flags: message.flags & (flags::COMPLETE | flags::CLOSED),
            lease_us: 0,
        };
        self.acks.push_back((to, ack));
    }

    fn free(&mut self, to: ServerId, segments: Vec<SegmentId>) {
        for segment in segments {
            self.held.remove(&(to, segment));
            self.freed.push((to, segment));
        }
    }
}

impl World {
    /// With that many backups, two copies of each segment, and some segments that are closed.
    fn new(backups: u64) -> Self {
        let master = Master::new(MasterConfig {
            me: ME,
            cluster: ClusterId([1; 16]),
            key: CertificateKey([1; 32]),
            settings: Settings {
                replicas: 2,
                lease_us: 200_000,
                backup_wait_us: 2_000_000,
                heartbeat_us: 100_000,
                suspect_us: 500_000,
                segment_size: SEGMENT,
            },
            memory: 64 << 20,
            seed: 1,
        })
        .unwrap();
        let mut world = Self {
            master,
            held: Held::new(),
            freed: Vec::new(),
            now: 1,
        };
        world.list(1, backups, None);
        (2..2 + backups).for_each(|id| world.master.link_up(ServerId(id)));
        world.settle();
        let range = TabletGrant {
            table: TABLE,
            first: KeyHash(0),
            last: KeyHash(u64::MAX),
        };
        world.master.store().take_tablets(&[range]).unwrap();
        let mut number = 0_u64;
        while world.master.store().writer().log().head() <= SegmentId(CLOSED) {
            world.write(number);
            number += 1;
            world.settle();
        }
        world.settle();
        world
    }

    fn list(&self, version: u64, backups: u64, crashed: Option<u64>) {
        let entry = |id| ServerEntry {
            server: ServerId(id),
            roles: Roles::BOTH,
            addresses: Vec::new(),
            state: if Some(id) == crashed {
                ServerState::Crashed
            } else {
                ServerState::Up
            },
            replaces: None,
            recovered: false,
        };
        let list = ServerList {
            version: ListVersion(version),
            servers: (1..2 + backups).map(entry).collect(),
        };
        self.master.handle_order(Order {
            ballot: Ballot::default(),
            command: Command::UpdateServers(list),
        });
    }

    fn write(&self, number: u64) {
        let store = self.master.store();
        let (guard, tablets) = (store.pin(), store.tablets());
        let key = number.to_le_bytes();
        let owned = tablets.owned(TABLE, &key).unwrap();
        let value = vec![number as u8; 100_000];
        let rules = RejectRules::default();
        let written = store.writer().write(&guard, owned, &value, rules);
        assert_eq!(written.status, Status::Ok);
    }

    /// Replication until nothing moves.
    fn settle(&mut self) {
        loop {
            self.now += 100;
            let mut sent = Sent {
                held: std::mem::take(&mut self.held),
                ..Sent::default()
            };
            self.master.pump(Micros(self.now), &mut sent);
            self.held = sent.held;
            self.freed.extend(sent.freed);
            if sent.acks.is_empty() {
                return;
            }
            for (from, ack) in sent.acks {
                self.master.handle_ack(Micros(self.now), from, &ack);
            }
        }
    }

    /// Answers one request, if there is one; whether a damaged replica was found.
    fn scrub(&mut self) -> Option<bool> {
        let ask = self.master.poll_scrub()?;
        let BackupRequest::Fetch {
            master,
            segment,
            offset,
            length,
        } = ask.request
        else {
            panic!("{ask:?}")
        };
        assert!(master == ME && length <= CHUNK);
        let found = self.held.get(&(ask.to, segment));
        let Some((replica, bytes)) = found else {
            let answer = (BackupResponse::Unknown, &[][..]);
            return Some(self.master.handle_scrubbed(Some(&answer)));
        };
        let part = &bytes[offset as usize..(offset + length) as usize];
        let (replica, length) = (*replica, part.len() as u32);
        let answer = (BackupResponse::Bytes { replica, length }, part);
        Some(self.master.handle_scrubbed(Some(&answer)))
    }

    /// Reads everything back a few times.
    fn scrub_all(&mut self) -> usize {
        let mut found = 0;
        for _ in 0..200 {
            found += usize::from(self.scrub() == Some(true));
            self.settle();
        }
        found
    }

    /// A closed replica of the oldest segment.
    fn oldest(&self) -> (ServerId, SegmentId) {
        let closed = self.held.iter().filter(|(_, (info, _))| info.closed);
        let names = closed.map(|((backup, segment), _)| (*segment, *backup));
        let (segment, backup) = names.min().unwrap();
        (backup, segment)
    }

    fn damage(&mut self, name: (ServerId, SegmentId)) {
        let bytes = &mut self.held.get_mut(&name).unwrap().1;
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
    }

    fn copies(&self, segment: SegmentId) -> Vec<ServerId> {
        let of = self.held.iter().filter(|((_, id), _)| *id == segment);
        of.filter(|(_, (info, _))| info.closed)
            .map(|((backup, _), _)| *backup)
            .collect()
    }
}

#[test]
fn what_is_right_is_read_back_and_left_alone() {
    let mut world = World::new(3);
    let before = world.held.clone();
    assert_eq!(world.scrub_all(), 0);
    assert!(world.held == before && world.freed.is_empty());
    assert!(world.master.heartbeat().damaged.is_empty());
}

#[test]
fn a_damaged_replica_is_reported_and_made_anew_elsewhere() {
    let mut world = World::new(3);
    let (backup, segment) = world.oldest();
    world.damage((backup, segment));
    assert_eq!(world.scrub_all(), 1);
    let damaged = DamagedReplica {
        backup,
        master: ME,
        segment,
    };
    assert_eq!(world.master.heartbeat().damaged, [damaged]);
    let copies = world.copies(segment);
    assert!(copies.len() == 2 && !copies.contains(&backup), "{copies:?}");
    assert_eq!(world.master.stats().under_replicated, 0);
    assert!(world.freed.contains(&(backup, segment)));
}

#[test]
fn where_there_is_no_other_backup_it_is_freed_and_made_anew_there() {
    let mut world = World::new(2);
    let (backup, segment) = world.oldest();
    let right = world.held[&(backup, segment)].1.clone();
    world.damage((backup, segment));
    assert_eq!(world.scrub_all(), 1);
    assert_eq!(world.copies(segment).len(), 2);
    assert!(world.held[&(backup, segment)].1 == right);
    assert_eq!(world.master.stats().under_replicated, 0);
}

#[test]
fn a_replica_that_its_backup_does_not_know_any_more_is_made_anew() {
    let mut world = World::new(3);
    let (backup, segment) = world.oldest();
    world.held.remove(&(backup, segment));
    assert_eq!(world.scrub_all(), 1);
    assert_eq!(world.copies(segment).len(), 2);
}

#[test]
fn a_replica_is_called_damaged_only_after_it_was_read_twice() {
    let mut world = World::new(3);
    let name = world.oldest();
    world.damage(name);
    let reads_it = |world: &World| {
        let ask = world.master.poll_scrub().unwrap();
        let fetch = |segment| BackupRequest::Fetch {
            master: ME,
            segment,
            offset: 0,
            length: CHUNK,
        };
        (ask.to, ask.request) == (name.0, fetch(name.1))
    };
    while !reads_it(&world) {
        assert_eq!(world.scrub(), Some(false));
    }
    assert_eq!(world.scrub(), Some(false));
    while !reads_it(&world) {
        assert_eq!(world.scrub(), Some(false));
    }
    // The second time it is as it should be.
    world.damage(name);
    assert_eq!(world.scrub_all(), 0);
    assert!(world.freed.is_empty());
}

#[test]
fn a_backup_that_does_not_answer_does_not_keep_others_from_being_read() {
    let world = World::new(3);
    let silent = world.master.poll_scrub().unwrap().to;
    assert!(!world.master.handle_scrubbed(None));
    assert_ne!(world.master.poll_scrub().unwrap().to, silent);
}

#[test]
fn a_recovery_that_does_not_end_holds_up_reading_back_for_a_while_only() {
    let mut world = World::new(4);
    assert!(world.scrub().is_some());
    world.list(2, 4, Some(5));
    assert_eq!(world.scrub(), None);
    world.now += 6_000_000;
    world.settle();
    assert!(world.scrub().is_some());
}
