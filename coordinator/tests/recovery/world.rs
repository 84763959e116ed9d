//! A coordinator with its disk, and servers that answer as masters and backups do.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use paxos::Stored;
use paxos::limits::Timing;
use ramkeep_coordinator::core::default_settings;
use ramkeep_coordinator::{Config, Coordinator, Output};
use ramkeep_wire::backup::{BackupRequest, BackupResponse, ReplicaInfo};
use ramkeep_wire::certificate::{Certificate, Certifier, Claim, SegmentKind};
use ramkeep_wire::coordinator::{
    Answer, BackupStats, ClusterStatus, Enlist, Heartbeat, MasterStats, RecoveryReport, Request,
    Roles, ServerList, ServerState, Tablet, TabletState,
};
use ramkeep_wire::entry::{DigestItem, NewEntry, SegmentHeader};
use ramkeep_wire::order::{Command, LogEnd, Order, OrderReply, Recovery};
use ramkeep_wire::{
    BootId, CertificateKey, ClusterId, ListVersion, LogPosition, Micros, Party, PeerId,
    ReplicationEpoch, SegmentId, ServerId, TableId, Version,
};

const ADDRESS: &str = "127.0.0.1:7100";
const BOOT: BootId = BootId([3; 16]);
/// What a backup still grants when it hears of a crash.
const GRANT_US: u64 = 100_000;
/// Polls that a replay takes.
const POLLS: u32 = 3;

fn config(seed: u8) -> Config {
    Config {
        peer: PeerId(1),
        incarnation: [9; 16],
        address: ADDRESS.into(),
        peers: vec![(PeerId(1), ADDRESS.into())],
        settings: default_settings(),
        timing: Timing::default(),
        entropy: [seed; 32],
    }
}

/// What a server does when it is to replay.
#[derive(Clone, Debug, Default)]
pub(crate) enum Behaviour {
    #[default]
    Recovers,
    Cannot(String),
    /// It goes on without end.
    Goes,
}

/// A server.
#[derive(Default)]
pub(crate) struct Fake {
    pub(crate) replicas: Vec<(ReplicaInfo, Vec<u8>)>,
    fenced: BTreeMap<ServerId, Micros>,
    list: ListVersion,
    pub(crate) behaviour: Behaviour,
    polls: BTreeMap<(ServerId, u32), u32>,
    /// All that it was ordered to replay.
    pub(crate) recoveries: Vec<Recovery>,
    pub(crate) free: u64,
    /// Bytes of its log that count.
    pub(crate) live: u64,
    /// Frames that it has.
    pub(crate) frames: u32,
    /// Its first head is not open yet.
    pub(crate) joins: bool,
}

pub(crate) struct World {
    pub(crate) core: Coordinator,
    pub(crate) now: Micros,
    disk: Stored,
    answers: BTreeMap<u64, Answer>,
    tokens: u64,
    pub(crate) servers: BTreeMap<ServerId, Fake>,
    /// Killed: what is sent there finds no process.
    killed: BTreeSet<ServerId>,
    /// Orders and questions on their way.
    mail: VecDeque<Output>,
    /// The end of each log that was ever decided.
    pub(crate) ends: BTreeMap<ServerId, LogEnd>,
    /// What backups held may be lost after that.
    pub(crate) loses_ends: bool,
    seed: u8,
}

impl World {
    pub(crate) fn new() -> Self {
        let now = Micros(5_000_000);
        let mut world = Self {
            core: Coordinator::new(now, config(1), Stored::default()).unwrap(),
            now,
            disk: Stored::default(),
            answers: BTreeMap::new(),
            tokens: 0,
            servers: BTreeMap::new(),
            killed: BTreeSet::new(),
            mail: VecDeque::new(),
            ends: BTreeMap::new(),
            loses_ends: false,
            seed: 1,
        };
        world.begin();
        world
    }

    /// The leader is killed, and another goes on from what is decided.
    pub(crate) fn another_leader(&mut self) {
        self.seed += 1;
        let config = config(self.seed);
        self.core = Coordinator::new(self.now, config, self.disk.clone()).unwrap();
        self.mail.clear();
        self.begin();
    }

    fn begin(&mut self) {
        self.pump();
        while !self.core.leads() {
            self.core.handle_tick(self.now);
            self.pump();
        }
    }

    fn pump(&mut self) {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Persist { seq, records } => {
                    self.disk.records.extend(records);
                    self.core.handle_persisted(self.now, seq);
                }
                Output::Reply {
                    token, response, ..
                } => {
                    self.answers.insert(token, response.answer);
                }
                mail @ (Output::Order { .. } | Output::Ask { .. }) => self.mail.push_back(mail),
                other => panic!("{other:?}"),
            }
        }
        for (master, record) in self.core.state().recoveries().iter() {
            let end = *self.ends.entry(master).or_insert(record.end);
            let may_change = self.loses_ends;
            assert!(end == record.end || may_change, "another end of {master:?}");
        }
    }

    /// Everything on its way arrives, and is answered.
    fn deliver(&mut self) {
        while let Some(mail) = self.mail.pop_front() {
            match mail {
                Output::Order { server, order, .. } => self.order(server, &order),
                Output::Ask {
                    server,
                    token,
                    request,
                    ..
                } => {
                    let answer = self.asked(server, &request);
                    self.core
                        .handle_backup_answer(self.now, server, token, answer);
                }
                other => panic!("{other:?}"),
            }
            self.pump();
        }
    }

    fn order(&mut self, server: ServerId, order: &Order) {
        let now = self.now;
        if self.killed.contains(&server) {
            return self.core.handle_probe_failed(now, server, true);
        }
        let reply = match &order.command {
            Command::Recover(recovery) => self.recover(server, recovery),
            command => {
                let Some(fake) = self.servers.get_mut(&server) else {
                    return;
                };
                match command {
                    Command::TakeTablets(grants) => {
                        OrderReply::Taken(grants.iter().map(|_| LogPosition(9_000)).collect())
                    }
                    Command::TakeRecovered(recovered) => {
                        OrderReply::Taken(recovered.iter().map(|one| one.takeover).collect())
                    }
                    Command::UpdateServers(list) => {
                        fake.list = list.version;
                        let crashed = list.servers.iter();
                        for entry in crashed.filter(|entry| entry.state == ServerState::Crashed) {
                            let until = Micros(now.0 + GRANT_US);
                            fake.fenced.entry(entry.server).or_insert(until);
                            if entry.recovered {
                                fake.replicas
                                    .retain(|(info, _)| info.master != entry.server);
                            }
                        }
                        OrderReply::Done
                    }
                    _ => OrderReply::Done,
                }
            }
        };
        self.core
            .handle_order_reply(now, server, &order.command, reply);
    }

    fn recover(&mut self, server: ServerId, recovery: &Recovery) -> OrderReply {
        let holders = self.servers.iter().filter(|(id, fake)| {
            let mut replicas = fake.replicas.iter();
            !self.killed.contains(id) && replicas.any(|(info, _)| info.master == recovery.master)
        });
        let cannot = matches!(self.servers[&server].behaviour, Behaviour::Cannot(_));
        let nothing = recovery.end == LogEnd::NOTHING || cannot;
        assert!(
            nothing || holders.count() > 0,
            "its replicas are freed too early"
        );
        let state = self.core.state();
        assert_eq!(
            recovery.key,
            state.servers().by_id(recovery.master).unwrap().key
        );
        let fake = self.servers.get_mut(&server).unwrap();
        fake.recoveries.push(recovery.clone());
        let polls = fake.polls.entry((recovery.master, recovery.attempt));
        let polls = polls.and_modify(|polls| *polls += 1).or_insert(1);
        match &fake.behaviour {
            Behaviour::Cannot(why) => OrderReply::CannotRecover(why.clone()),
            Behaviour::Recovers if *polls > POLLS => {
                let position = |at| LogPosition(1_000 + at as u64);
                OrderReply::Recovered((0..recovery.tablets.len()).map(position).collect())
            }
            Behaviour::Recovers | Behaviour::Goes => OrderReply::Recovering {
                segments: *polls,
                of: POLLS,
                bytes: 0,
            },
        }
    }

    fn asked(
        &mut self,
        server: ServerId,
        request: &BackupRequest,
    ) -> Option<(BackupResponse, Vec<u8>)> {
        if self.killed.contains(&server) {
            return None;
        }
        let fake = self.servers.get(&server)?;
        let (BackupRequest::Inventory { master, .. } | BackupRequest::Fetch { master, .. }) =
            request
        else {
            panic!("{request:?}");
        };
        let Some(until) = fake.fenced.get(master) else {
            panic!("{server:?} is asked before it is known to refuse {master:?}");
        };
        if self.now < *until {
            let wait_us = until.0 - self.now.0;
            return Some((BackupResponse::NotYet { wait_us }, Vec::new()));
        }
        let own = fake
            .replicas
            .iter()
            .filter(|(info, _)| info.master == *master);
        match request {
            BackupRequest::Inventory { after, .. } => {
                let after = after.unwrap_or(SegmentId(0));
                let mut page: Vec<_> = own.map(|(info, _)| *info).collect();
                page.retain(|info| info.segment > after);
                page.sort_unstable_by_key(|info| info.segment);
                Some((BackupResponse::Inventory(page), Vec::new()))
            }
            BackupRequest::Fetch {
                segment,
                offset,
                length,
                ..
            } => {
                // In small pieces, as if it were large.
                let (info, bytes) = own.into_iter().find(|(info, _)| info.segment == *segment)?;
                let start = *offset as usize;
                let end = (start + (*length as usize).min(100)).min(bytes.len());
                let part = bytes[start..end].to_vec();
                let length = part.len() as u32;
                let replica = *info;
                Some((BackupResponse::Bytes { replica, length }, part))
            }
            BackupRequest::Free { .. } => None,
        }
    }

    pub(crate) fn answer(&mut self, request: Request) -> Answer {
        let token = self.ask(request);
        self.answers.remove(&token).expect("answered at once")
    }

    pub(crate) fn ask(&mut self, request: Request) -> u64 {
        self.tokens += 1;
        let token = self.tokens;
        self.core
            .handle_request(self.now, Party::NONE, token, request);
        self.pump();
        token
    }

    /// Time passes; those alive report, and what is sent arrives.
    pub(crate) fn run(&mut self, ms: u64) {
        for _ in 0..ms {
            self.now = Micros(self.now.0 + 1_000);
            if self.now.0.is_multiple_of(100_000) {
                let servers: Vec<_> = self.servers.keys().copied().collect();
                for server in servers {
                    self.beat(server);
                }
            }
            if self.core.next_timeout().is_some_and(|due| due <= self.now) {
                self.core.handle_tick(self.now);
                self.pump();
            }
            self.deliver();
        }
    }

    /// Runs until it is so.
    pub(crate) fn until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        for _ in 0..20_000 {
            if done(self) {
                return;
            }
            self.run(1);
        }
        panic!("it never came to this: {what}; {:?}", self.reports());
    }

    fn beat(&mut self, server: ServerId) {
        if self.killed.contains(&server) {
            return;
        }
        let fake = &self.servers[&server];
        let master = MasterStats {
            memory: fake.free,
            live: fake.live,
            ..MasterStats::default()
        };
        let report = Heartbeat {
            server,
            list: fake.list,
            ready: !fake.joins,
            floor: None,
            master: Some(master),
            backup: Some(BackupStats {
                frames: fake.frames,
                used: fake.replicas.len() as u32,
                inherited: 0,
                damaged: 0,
            }),
            damaged: Vec::new(),
            resident: 0,
        };
        self.answer(Request::Heartbeat(report));
    }

    pub(crate) fn enlist(&mut self, nonce: u8, replaces: Option<ServerId>) -> ServerId {
        let server = self.join_and_listen(nonce, replaces);
        self.beat(server);
        server
    }

    /// One whose first head is not open until it no longer `joins`.
    pub(crate) fn enlist_joining(&mut self, nonce: u8) -> ServerId {
        let server = self.join_and_listen(nonce, None);
        self.servers.get_mut(&server).unwrap().joins = true;
        self.beat(server);
        server
    }

    /// One that has not looked at the list that it joined with.
    pub(crate) fn enlist_unaware(&mut self, nonce: u8) -> ServerId {
        self.join(nonce, None).0
    }

    fn join_and_listen(&mut self, nonce: u8, replaces: Option<ServerId>) -> ServerId {
        let (server, list) = self.join(nonce, replaces);
        let order = Order {
            ballot: self.core.ballot(),
            command: Command::UpdateServers(list),
        };
        self.order(server, &order);
        self.pump();
        server
    }

    fn join(&mut self, nonce: u8, replaces: Option<ServerId>) -> (ServerId, ServerList) {
        let request = Request::Enlist(Enlist {
            nonce: [nonce; 16],
            roles: Roles {
                master: true,
                backup: true,
            },
            addresses: vec![format!("127.0.0.1:{}", 7_110 + u16::from(nonce))],
            replaces,
            boot: BOOT,
            frames: 8,
            memory: 1 << 30,
        });
        let Answer::Enlisted { server, list, .. } = self.answer(request) else {
            panic!("refused");
        };
        let fake = Fake {
            free: 1 << 30,
            frames: 1_000,
            ..Fake::default()
        };
        self.servers.insert(server, fake);
        (server, list)
    }

    pub(crate) fn kill(&mut self, server: ServerId) {
        self.killed.insert(server);
        self.core.handle_link_down(self.now, server);
        self.pump();
    }

    pub(crate) fn create(&mut self, name: &str) -> TableId {
        let token = self.ask(Request::CreateTable {
            name: name.into(),
            once: None,
        });
        self.run(2);
        match self.answers.remove(&token) {
            Some(Answer::Table(table)) => table.table,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn status(&mut self) -> ClusterStatus {
        match self.answer(Request::Status) {
            Answer::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn reports(&mut self) -> Vec<RecoveryReport> {
        self.status().recoveries
    }

    pub(crate) fn tablets(&self, table: TableId) -> Vec<Tablet> {
        let record = self.core.state().table(table);
        record.map_or(Vec::new(), |record| record.table.tablets.clone())
    }

    pub(crate) fn all_served(&self) -> bool {
        let mut tables = self.core.state().tables().iter();
        tables.all(|record| {
            let mut tablets = record.table.tablets.iter();
            tablets.all(|t| t.state == TabletState::Normal && !self.killed.contains(&t.owner))
        })
    }

    pub(crate) fn is_recovered(&self, server: ServerId) -> bool {
        let found = self.core.state().servers().by_id(server);
        found.is_some_and(|server| server.recovered)
    }

    pub(crate) fn holds(&self, backup: ServerId, master: ServerId) -> usize {
        let replicas = self.servers[&backup].replicas.iter();
        replicas.filter(|(info, _)| info.master == master).count()
    }

    /// Gives `backups` replicas of a log of `master`: a closed segment and an open head after it.
    pub(crate) fn store_log(&mut self, master: ServerId, backups: &[ServerId]) {
        let log = self.log_of(master);
        let closed = log.segment(5, &[]);
        let item = log.closed(5, &closed);
        let head = log.segment(6, &[item]);
        for backup in backups {
            let fake = self.servers.get_mut(backup).unwrap();
            let info = log.info(5, closed.len(), true, item.certificate);
            fake.replicas.push((info, closed.clone()));
            let claim = log.open(6, head.len());
            let info = log.info(6, head.len(), false, log.certify(&claim, &head));
            fake.replicas.push((info, head.clone()));
        }
    }

    fn log_of(&self, master: ServerId) -> Log {
        let state = self.core.state();
        Log {
            cluster: state.constants().unwrap().cluster,
            master,
            key: state.servers().by_id(master).unwrap().key,
        }
    }

    /// `backup` has the next entry of the log's head, which the others lack.
    pub(crate) fn store_more(&mut self, master: ServerId, backup: ServerId) {
        let log = self.log_of(master);
        let fake = self.servers.get_mut(&backup).unwrap();
        let own = |(info, _): &&mut (ReplicaInfo, Vec<u8>)| {
            info.master == master && info.segment == SegmentId(6)
        };
        let (info, bytes) = fake.replicas.iter_mut().find(own).unwrap();
        append(bytes, &NewEntry::SafeVersion(Version(8)));
        let claim = log.open(6, bytes.len());
        *info = log.info(6, bytes.len(), false, log.certify(&claim, bytes));
    }
}

fn append(bytes: &mut Vec<u8>, entry: &NewEntry<'_>) {
    let start = bytes.len();
    bytes.resize(start + entry.encoded_len(), 0);
    entry.write(&mut bytes[start..]);
}

struct Log {
    cluster: ClusterId,
    master: ServerId,
    key: CertificateKey,
}

impl Log {
    fn segment(&self, id: u64, named: &[DigestItem]) -> Vec<u8> {
        let mut items = named.to_vec();
        items.push(DigestItem {
            segment: SegmentId(id),
            length: 0,
            certificate: Certificate::NONE,
        });
        let header = SegmentHeader {
            kind: SegmentKind::Head,
            cluster: self.cluster,
            master: self.master,
            segment: SegmentId(id),
            size: 1 << 16,
        };
        let entries = [
            NewEntry::SegmentHeader(header),
            NewEntry::Digest(&items),
            NewEntry::SafeVersion(Version(7)),
        ];
        let mut bytes = Vec::new();
        for entry in entries {
            append(&mut bytes, &entry);
        }
        bytes
    }

    fn certify(&self, claim: &Claim, bytes: &[u8]) -> Certificate {
        let mut certifier = Certifier::new(&self.key);
        certifier.update(bytes);
        certifier.certify(claim)
    }

    fn open(&self, id: u64, length: usize) -> Claim {
        Claim {
            cluster: self.cluster,
            master: self.master,
            segment: SegmentId(id),
            kind: SegmentKind::Head,
            epoch: ReplicationEpoch(1),
            length: length as u32,
            closed: false,
        }
    }

    fn closed(&self, id: u64, bytes: &[u8]) -> DigestItem {
        let length = bytes.len() as u32;
        let segment = SegmentId(id);
        let claim = Claim::closed(
            self.cluster,
            self.master,
            segment,
            SegmentKind::Head,
            length,
        );
        DigestItem {
            segment,
            length,
            certificate: self.certify(&claim, bytes),
        }
    }

    fn info(&self, id: u64, length: usize, closed: bool, certificate: Certificate) -> ReplicaInfo {
        ReplicaInfo {
            master: self.master,
            segment: SegmentId(id),
            kind: SegmentKind::Head,
            epoch: ReplicationEpoch(1),
            length: length as u32,
            closed,
            certificate,
            boot: BOOT,
            inherited: false,
        }
    }
}
