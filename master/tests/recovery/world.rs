//! A crashed master's log, backups that hold it and may lie, and a recovery master that is stepped.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ramkeep_master::recovery::{Ask, Driven, Recoveries, RecoveryId, Replayer};
use ramkeep_master::store::{Store, StoreConfig};
use ramkeep_wire::backup::{BackupRequest, BackupResponse, ReplicaInfo};
use ramkeep_wire::certificate::{CertificateKey, Claim};
use ramkeep_wire::coordinator::{Roles, ServerEntry, ServerList, ServerState};
use ramkeep_wire::data::{RejectRules, Status};
use ramkeep_wire::order::{LastReport, LogEnd, LostTablet, OrderReply, Recovery, TabletGrant};
use ramkeep_wire::{
    BootId, ClusterId, KeyHash, ListVersion, LogPosition, Micros, ReplicationEpoch, SegmentId,
    ServerId, TableId,
};

pub(crate) const DEAD: ServerId = ServerId(1);
pub(crate) const ME: ServerId = ServerId(2);
pub(crate) const TABLE: TableId = TableId(1);
const VALUE: usize = 200;
/// Served by the recovery master before.
const OTHER: TableId = TableId(9);
pub(crate) const OBJECTS: u64 = 100;
const CLUSTER: ClusterId = ClusterId([1; 16]);
const KEY: CertificateKey = CertificateKey([5; 32]);
const EPOCH: ReplicationEpoch = ReplicationEpoch(3);
const SEGMENT: u32 = 4_096;

pub(crate) fn whole() -> TabletGrant {
    TabletGrant {
        table: TABLE,
        first: KeyHash(0),
        last: KeyHash(u64::MAX),
    }
}

fn store(me: ServerId) -> Store {
    store_of(me, 80, SEGMENT)
}

fn store_of(me: ServerId, segments: u64, segment_size: u32) -> Store {
    Store::new(StoreConfig {
        cluster: CLUSTER,
        master: me,
        key: Some(KEY),
        memory: segments * u64::from(segment_size),
        segment_size,
        first_segment: SegmentId(1),
    })
    .unwrap()
}

/// Everything appended becomes durable.
pub(crate) fn make_durable(store: &Store) {
    let mut writer = store.writer();
    let log = writer.log_mut();
    if let Some(previous) = log.previous_head() {
        log.predecessor_closed(previous);
    }
    let head = log.head();
    let length = log.info(head).unwrap().length;
    log.set_durable(head, length);
}

pub(crate) fn key(number: u64) -> Vec<u8> {
    format!("key {number}").into_bytes()
}

pub(crate) type Copy = (ReplicaInfo, Vec<u8>);

/// Replicas of the crashed master's log, oldest first, and the order to recover it. The last is the
/// head, longer than the end that was decided.
pub(crate) fn crashed() -> (Vec<Copy>, Recovery) {
    crashed_after(1)
}

/// The same, each object written so many times.
pub(crate) fn crashed_after(times: u32) -> (Vec<Copy>, Recovery) {
    let source = store_of(DEAD, 80, SEGMENT * times);
    source.take_tablets(&[whole()]).unwrap();
    let (guard, tablets) = (source.pin(), source.tablets());
    let write = |number: u64| {
        make_durable(&source);
        let key = key(number);
        let owned = tablets.owned(TABLE, &key).unwrap();
        let value = [number as u8; VALUE];
        let written = source
            .writer()
            .write(&guard, owned, &value, RejectRules::default());
        assert_eq!(written.status, Status::Ok);
    };
    for _ in 0..times {
        (0..OBJECTS).for_each(write);
    }
    make_durable(&source);
    let (segment, length) = {
        let writer = source.writer();
        let head = writer.log().head();
        (head, writer.log().info(head).unwrap().length)
    };
    let certificate = source.writer().log_mut().certify(segment, EPOCH).1;
    let end = LogEnd {
        segment,
        length,
        epoch: EPOCH,
        certificate,
    };
    let stats = source.stats();
    let last = LastReport {
        reserved: stats.reserved,
        objects: stats.objects,
    };
    // Not durable everywhere: it does not count.
    write(OBJECTS);
    let mut writer = source.writer();
    let log = writer.log_mut();
    assert_eq!(log.head(), segment, "the end is in the head");
    let ids: Vec<_> = log.segments().collect();
    let copies = ids.into_iter().map(|id| {
        let info = log.info(id).unwrap();
        let certificate = info.sealed.unwrap_or_else(|| log.certify(id, EPOCH).1);
        let replica = ReplicaInfo {
            master: DEAD,
            segment: id,
            kind: info.kind,
            epoch: EPOCH,
            length: info.length,
            closed: info.sealed.is_some(),
            certificate,
            boot: BootId([1; 16]),
            inherited: false,
        };
        (
            replica,
            log.bytes(&guard, id, 0..info.length).unwrap().to_vec(),
        )
    });
    let copies: Vec<_> = copies.collect();
    assert!(copies.len() > 4, "several segments");
    let order = Recovery {
        ended: ramkeep_wire::EndedClients::default(),
        master: DEAD,
        key: KEY,
        end,
        attempt: 1,
        tablets: vec![LostTablet {
            range: whole(),
            takeover: LogPosition::ZERO,
        }],
        given_up: None,
        last: Some(last),
    };
    (copies, order)
}

/// What a backup holds, and how it behaves.
#[derive(Clone, Debug, Default)]
pub(crate) struct Backup {
    pub(crate) replicas: BTreeMap<SegmentId, Copy>,
    /// Until then leases may be held.
    pub(crate) not_before: Micros,
    pub(crate) is_silent: bool,
    /// Bytes of a response to a fetch at most.
    pub(crate) page: usize,
}

impl Backup {
    pub(crate) fn with<'c>(copies: impl IntoIterator<Item = &'c Copy>) -> Self {
        let named = copies
            .into_iter()
            .map(|copy| (copy.0.segment, copy.clone()));
        Self {
            replicas: named.collect(),
            page: 1_000,
            ..Self::default()
        }
    }

    fn answer(&self, now: Micros, request: &BackupRequest) -> Option<(BackupResponse, Vec<u8>)> {
        if self.is_silent {
            return None;
        }
        if now < self.not_before {
            let wait_us = self.not_before.0 - now.0;
            return Some((BackupResponse::NotYet { wait_us }, Vec::new()));
        }
        Some(match request {
            BackupRequest::Inventory { master, after } => {
                assert_eq!(*master, DEAD);
                let first = after.map_or(0, |after| after.0 + 1);
                let page = self
                    .replicas
                    .range(SegmentId(first)..)
                    .map(|(_, copy)| copy.0);
                (BackupResponse::Inventory(page.collect()), Vec::new())
            }
            BackupRequest::Fetch {
                segment,
                offset,
                length,
                ..
            } => match self.replicas.get(segment) {
                None => (BackupResponse::Unknown, Vec::new()),
                Some((replica, bytes)) => {
                    let start = (*offset as usize).min(bytes.len());
                    let end = bytes.len().min(start + (*length as usize).min(self.page));
                    let part = bytes[start..end].to_vec();
                    let (replica, length) = (*replica, part.len() as u32);
                    (BackupResponse::Bytes { replica, length }, part)
                }
            },
            BackupRequest::Free { .. } => panic!("recovery frees nothing"),
        })
    }
}

/// A recovery master and the backups.
pub(crate) struct World {
    pub(crate) store: Store,
    pub(crate) recoveries: Recoveries,
    pub(crate) backups: BTreeMap<ServerId, Backup>,
    pub(crate) now: Micros,
    /// What is appended becomes durable when the log rolls over only.
    pub(crate) is_durable_late: bool,
    pub(crate) most_in_flight: usize,
    replayers: Vec<(RecoveryId, Option<Replayer>)>,
    /// Requests whose answer is on its way.
    asked: VecDeque<Ask>,
}

impl World {
    pub(crate) fn new(backups: impl IntoIterator<Item = (u64, Backup)>) -> Self {
        Self {
            store: store(ME),
            recoveries: Recoveries::new(CLUSTER),
            backups: backups
                .into_iter()
                .map(|(id, backup)| (ServerId(id), backup))
                .collect(),
            now: Micros(1_000_000),
            is_durable_late: false,
            most_in_flight: 0,
            replayers: Vec::new(),
            asked: VecDeque::new(),
        }
    }

    /// One whose memory is used up to what the replay needs, and little more.
    pub(crate) fn tight(backups: impl IntoIterator<Item = (u64, Backup)>) -> Self {
        Self::with_room(14, backups)
    }

    /// One whose memory is used up to so many segments.
    pub(crate) fn with_room(
        segments: u64,
        backups: impl IntoIterator<Item = (u64, Backup)>,
    ) -> Self {
        let world = Self {
            store: store_of(ME, 42, SEGMENT),
            ..Self::new(backups)
        };
        let range = TabletGrant {
            table: OTHER,
            ..whole()
        };
        world.store.take_tablets(&[range]).unwrap();
        for number in 0.. {
            make_durable(&world.store);
            let stats = world.store.stats();
            if stats.memory - stats.used - stats.reserved < segments * u64::from(SEGMENT) {
                break;
            }
            assert_eq!(world.write_other(&key(number), 700), Status::Ok);
        }
        world
    }

    /// Writes what the recovery master serves itself.
    pub(crate) fn write_other(&self, key: &[u8], len: usize) -> Status {
        let (guard, tablets) = (self.store.pin(), self.store.tablets());
        let owned = tablets.owned(OTHER, key).unwrap();
        let value = vec![7; len];
        let mut writer = self.store.writer();
        writer
            .write(&guard, owned, &value, RejectRules::default())
            .status
    }

    pub(crate) fn list(&self) -> ServerList {
        let entry = |server, state| ServerEntry {
            server,
            roles: Roles::BOTH,
            addresses: Vec::new(),
            state,
            replaces: None,
            recovered: false,
        };
        let living = self
            .backups
            .keys()
            .map(|server| entry(*server, ServerState::Up));
        ServerList {
            version: ListVersion(1),
            servers: std::iter::once(entry(DEAD, ServerState::Crashed))
                .chain(living)
                .collect(),
        }
    }

    pub(crate) fn order(&mut self, order: &Recovery) -> OrderReply {
        let list = self.list();
        self.recoveries
            .handle_order(&self.store, order.clone(), &list)
    }

    /// How many replays were begun.
    pub(crate) fn begun(&self) -> usize {
        self.replayers.len()
    }

    /// Drives everything until nothing moves without time passing.
    pub(crate) fn settle(&mut self) {
        self.drive(usize::MAX);
    }

    /// Drives everything, but not far.
    pub(crate) fn settle_a_little(&mut self) {
        self.drive(8);
    }

    fn drive(&mut self, turns: usize) {
        for _ in 0..turns {
            let mut moved = false;
            while let Some((id, replayer)) = self.recoveries.poll_started() {
                self.replayers.push((id, Some(replayer)));
            }
            while let Some(ask) = self.recoveries.poll_ask(self.now) {
                self.asked.push_back(ask);
            }
            self.most_in_flight = self.most_in_flight.max(self.asked.len());
            if let Some(ask) = self.asked.pop_front() {
                let backup = self.backups.get(&ask.to);
                let answer = backup.and_then(|backup| backup.answer(self.now, &ask.request));
                let answer = answer
                    .as_ref()
                    .map(|(response, bytes)| (response.clone(), &bytes[..]));
                self.recoveries.handle_answer(self.now, ask.id, answer);
                moved = true;
            }
            for at in 0..self.replayers.len() {
                moved |= self.step(at);
            }
            if !moved {
                return;
            }
        }
    }

    fn step(&mut self, at: usize) -> bool {
        let (id, Some(replayer)) = &mut self.replayers[at] else {
            return false;
        };
        match replayer.drive(*id, &self.store, || &mut self.recoveries) {
            Driven::Worked | Driven::Told => {}
            Driven::WaitsForBackups => make_durable(&self.store),
            Driven::WaitsForSegments => return false,
            Driven::Ended => self.replayers[at].1 = None,
            Driven::Finished(_) => {
                self.replayers[at].1 = None;
                if !self.is_durable_late {
                    make_durable(&self.store);
                }
            }
        }
        true
    }

    /// Gives the order until it is done or refused, for ten seconds at most.
    pub(crate) fn recover(&mut self, order: &Recovery) -> OrderReply {
        for _ in 0..1_000 {
            let reply = self.order(order);
            if !matches!(reply, OrderReply::Recovering { .. }) {
                return reply;
            }
            self.settle();
            self.now = Micros(self.now.0 + 10_000);
        }
        panic!("it takes for ever");
    }

    /// The reason why it can't be done.
    pub(crate) fn fail(&mut self, order: &Recovery) -> String {
        match self.recover(order) {
            OrderReply::CannotRecover(why) | OrderReply::CannotProve { why, .. } => why,
            other => panic!("it was not refused: {other:?}"),
        }
    }

    /// Where its log ends.
    pub(crate) fn appended(&self) -> LogPosition {
        self.store.writer().log().appended_position()
    }

    /// Recovers, takes the tablets, and finds all objects that count.
    pub(crate) fn succeed(&mut self, order: &Recovery) {
        let reply = self.recover(order);
        let OrderReply::Recovered(positions) = reply else {
            panic!("it was not recovered: {reply:?}");
        };
        assert_eq!(self.store.take_tablets(&[whole()]), Ok(positions));
        let (guard, tablets) = (self.store.pin(), self.store.tablets());
        for number in 0..=OBJECTS {
            let key = key(number);
            let found = self
                .store
                .read(&guard, tablets.owned(TABLE, &key).unwrap())
                .object;
            let value = found.map(|object| object.value.to_vec());
            let expected = (number < OBJECTS).then(|| vec![number as u8; VALUE]);
            assert_eq!(value, expected, "object {number}");
        }
    }

    /// Who was found to hold a damaged copy of which segment.
    pub(crate) fn bad(&self) -> BTreeSet<(ServerId, SegmentId)> {
        let bad = self.recoveries.bad_replicas();
        bad.into_iter()
            .map(|bad| (bad.backup, bad.segment))
            .collect()
    }
}

/// What proves a claim that is not the log's.
pub(crate) fn forged(copy: &Copy, contents: Vec<u8>) -> Copy {
    let key = CertificateKey([9; 32]);
    let (mut replica, _) = copy.clone();
    replica.length = contents.len() as u32;
    let claim = Claim::closed(CLUSTER, DEAD, replica.segment, replica.kind, replica.length);
    let mut certifier = ramkeep_wire::certificate::Certifier::new(&key);
    certifier.update(&contents);
    replica.certificate = certifier.certify(&claim);
    (replica, contents)
}
