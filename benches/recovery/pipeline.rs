//! The whole of a recovery in one thread: segments are fetched from backups, proved, replayed, and
//! replicated to two backups, until all is durable there.
//!
//! These are the cores that servers run. What they say to each other is encoded, copied and decoded;
//! sockets, threads and the first touch of memory are not in it.
//!
//! # Invariants
//! 1. A run counts only if the recovery master says that all is durable, and has every object.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use ramkeep_backup::{Backup, Frames, Geometry, MappedStore};
use ramkeep_master::core::{Master, MasterConfig, Sink};
use ramkeep_master::recovery::{Driven, RecoveryId, Replayer};
use ramkeep_memory::SharedFile;
use ramkeep_wire::backup::{BackupRequest, BackupResponse};
use ramkeep_wire::certificate::CertificateKey;
use ramkeep_wire::coordinator::{
    Answer, Request, Response, Roles, ServerEntry, ServerList, ServerState, Settings,
};
use ramkeep_wire::data::{RejectRules, Status};
use ramkeep_wire::limits::SEGMENT_SIZE;
use ramkeep_wire::order::{Command, LogEnd, LostTablet, Order, OrderReply, Recovery};
use ramkeep_wire::replicate::{Replicate, ReplicateAck};
use ramkeep_wire::{
    Ballot, BootId, EndedClients, ListVersion, LogPosition, Micros, Party, SegmentId, ServerId,
    postcards,
};

use super::{CLUSTER, CpuTime, DEAD, DEAD_KEY, TABLE, VALUE, key_of, whole};

const BACKUPS: [ServerId; 2] = [ServerId(1_001), ServerId(1_002)];
const ROUNDS: u64 = 3;
const BOOT: BootId = BootId([1; 16]);
const LEASE_US: u32 = 200_000;
/// When the dead still writes, and when no lease of it is left.
const BEFORE: Micros = Micros(1_000_000);
const AFTER: Micros = Micros(60_000_000);
/// Bytes appended by a replay after which they go to the backups, as in servers.
const SEND_AFTER: u32 = 128 << 10;
/// Bytes of log and index that an object takes, at most.
const MEMORY_OF_OBJECT: u64 = 320;
const SPARE_MEMORY: u64 = 256 << 20;
const SPARE_FRAMES: u32 = 24;

/// Prints what recovering so many objects takes.
pub(crate) fn report(objects: u64) {
    println!(
        "\nthe whole recovery, k = {}, memory there before",
        BACKUPS.len()
    );
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut cluster = Cluster::new(directory.path(), objects);
    let bytes = cluster.load(objects);
    let end = cluster.crash();
    for round in 0..ROUNDS {
        let me = ServerId(DEAD.0 + 1 + round);
        let spent = cluster.recover(me, end, objects);
        spent.print(bytes, objects);
        cluster.free(me);
    }
}

/// The core's time, by what it went into.
#[derive(Default)]
struct Spent {
    /// Backups answering, and the answers being gathered.
    fetching: Duration,
    /// Certificates, checksums, index and log.
    replaying: Duration,
    /// Certifying what was appended, sending it, and the backups taking it in.
    replicating: Duration,
}

impl Spent {
    fn print(&self, bytes: u64, objects: u64) {
        let seconds = |part: Duration| part.as_secs_f64();
        let all = seconds(self.fetching + self.replaying + self.replicating);
        let share = |part| 100.0 * seconds(part) / all;
        println!(
            "{:32} {:6.0} MB/s {:6.2} million objects/s: fetch {:.0} %, prove and replay {:.0} %, replicate {:.0} %",
            "fetch, prove, replay, replicate",
            bytes as f64 / all / 1e6,
            objects as f64 / all / 1e6,
            share(self.fetching),
            share(self.replaying),
            share(self.replicating),
        );
    }
}

/// Runs `work`, and adds the time it takes.
fn timed<T>(part: &mut Duration, work: impl FnOnce() -> T) -> T {
    let begin = CpuTime::now();
    let result = work();
    *part += begin.elapsed();
    result
}

/// The backups and what is on its way to them.
struct Cluster {
    backups: BTreeMap<ServerId, Backup<MappedStore>>,
    mail: Mail,
    memory: u64,
}

/// Messages to backups, encoded.
#[derive(Default)]
struct Mail {
    bytes: Vec<u8>,
    messages: Vec<(ServerId, Range<usize>)>,
}

impl Sink for Mail {
    fn replicate(&mut self, to: ServerId, message: &Replicate<'_>) {
        let start = self.bytes.len();
        message.write(&mut self.bytes);
        self.messages.push((to, start..self.bytes.len()));
    }

    fn free(&mut self, _: ServerId, _: Vec<SegmentId>) {
        unreachable!("no cleaner runs");
    }
}

impl Cluster {
    fn new(directory: &std::path::Path, objects: u64) -> Self {
        let memory = objects * MEMORY_OF_OBJECT + SPARE_MEMORY;
        // The log of the dead and that of the recovery master, and what is kept for recovery.
        let segments = objects * MEMORY_OF_OBJECT / SEGMENT_SIZE as u64;
        let frames = segments as u32 * 3 + SPARE_FRAMES;
        let geometry = Geometry::new(frames, SEGMENT_SIZE as u32).unwrap();
        let backups = BACKUPS.map(|server| {
            let path = directory.join(server.to_string());
            (server, backup(&path, geometry, server))
        });
        Self {
            backups: backups.into(),
            mail: Mail::default(),
            memory,
        }
    }

    /// A master whose head is open on the backups.
    fn master(&mut self, now: Micros, me: ServerId, key: CertificateKey) -> Master {
        let settings = Settings {
            replicas: BACKUPS.len() as u8,
            lease_us: LEASE_US,
            backup_wait_us: 2_000_000,
            heartbeat_us: 100_000,
            suspect_us: 500_000,
            segment_size: SEGMENT_SIZE as u32,
        };
        let config = MasterConfig {
            me,
            cluster: CLUSTER,
            key,
            settings,
            memory: self.memory,
            seed: 1,
        };
        let master = Master::new(config).unwrap();
        master.store().populate();
        tell(&master, Command::UpdateServers(list(me)));
        BACKUPS.iter().for_each(|backup| master.link_up(*backup));
        self.replicate(now, &master);
        master
    }

    /// Carries messages and acknowledgements until there are no more.
    fn replicate(&mut self, now: Micros, master: &Master) {
        loop {
            master.pump(now, &mut self.mail);
            let mut is_quiet = self.mail.messages.is_empty();
            for (to, range) in self.mail.messages.drain(..) {
                let message = Replicate::read(&self.mail.bytes[range]).unwrap();
                let backup = self.backups.get_mut(&to).unwrap();
                let ack = backup.handle_replicate(now, master.me(), &message);
                let ack = ReplicateAck::read(&ack.to_bytes()).unwrap();
                master.handle_ack(now, to, &ack);
            }
            self.mail.bytes.clear();
            while let Some(request) = master.poll_request() {
                assert!(matches!(request, Request::RecordEpoch { .. }));
                let response = Response::new(Ballot::default(), Answer::EpochRecorded);
                master.handle_answer(now, now, &request, Some(&response));
                is_quiet = false;
            }
            if is_quiet {
                return;
            }
        }
    }

    /// Writes the objects of the master that is to die, and says how many bytes its log has.
    fn load(&mut self, objects: u64) -> u64 {
        let master = self.master(BEFORE, DEAD, DEAD_KEY);
        let store = master.store();
        store.take_tablets(&[whole()]).unwrap();
        let (mut sent, mut unmeasured) = (LogPosition::ZERO, Duration::ZERO);
        for n in 0..objects {
            let (guard, tablets, key) = (store.pin(), store.tablets(), key_of(n));
            let owned = tablets.owned(TABLE, &key).unwrap();
            let written = store
                .writer()
                .write(&guard, owned, &VALUE, RejectRules::default());
            assert_eq!(written.status, Status::Ok);
            drop(guard);
            self.send(BEFORE, &master, &mut sent, &mut unmeasured);
        }
        self.replicate(BEFORE, &master);
        let writer = store.writer();
        let log = writer.log();
        let lengths = log
            .segments()
            .map(|id| u64::from(log.info(id).unwrap().length));
        lengths.sum()
    }

    /// Replicates if enough was appended since it was done last.
    fn send(&mut self, now: Micros, master: &Master, sent: &mut LogPosition, spent: &mut Duration) {
        let appended = master.store().writer().log().appended_position();
        let is_same = appended.segment() == sent.segment();
        if !is_same || appended.offset() - sent.offset() >= SEND_AFTER {
            *sent = appended;
            timed(spent, || self.replicate(now, master));
        }
    }

    /// Fences the dead, and says where its log ends.
    fn crash(&mut self) -> LogEnd {
        let request = BackupRequest::Inventory {
            master: DEAD,
            after: None,
        };
        for backup in self.backups.values_mut() {
            backup.fence(DEAD);
        }
        let backup = self.backups.get_mut(&BACKUPS[0]).unwrap();
        let asks = Party::server(DEAD);
        let answer = backup.handle_request(AFTER, asks, request).response;
        let BackupResponse::Inventory(replicas) = answer else {
            panic!("no inventory: {answer:?}");
        };
        let head = replicas.iter().find(|replica| !replica.closed).unwrap();
        LogEnd {
            segment: head.segment,
            length: head.length,
            epoch: head.epoch,
            certificate: head.certificate,
        }
    }

    /// Recovers everything on a new master.
    fn recover(&mut self, me: ServerId, end: LogEnd, objects: u64) -> Spent {
        let master = self.master(AFTER, me, CertificateKey([me.0 as u8 + 10; 32]));
        let mut spent = Spent::default();
        let order = order(end);
        let reply = tell(&master, Command::Recover(order.clone()));
        assert!(matches!(reply, OrderReply::Recovering { .. }), "{reply:?}");
        let (id, replayer) = master.recoveries().poll_started().unwrap();
        self.replay(&master, id, replayer, &mut spent);
        timed(&mut spent.replicating, || self.replicate(AFTER, &master));
        let reply = tell(&master, Command::Recover(order));
        assert!(matches!(reply, OrderReply::Recovered(_)), "{reply:?}");
        assert_eq!(master.store().stats().objects, objects);
        spent
    }

    fn replay(
        &mut self,
        master: &Master,
        id: RecoveryId,
        mut replayer: Replayer,
        spent: &mut Spent,
    ) {
        let store = master.store();
        let mut sent = LogPosition::ZERO;
        loop {
            let drive = || replayer.drive(id, store, || master.recoveries());
            match timed(&mut spent.replaying, drive) {
                Driven::Worked | Driven::Told => {}
                Driven::WaitsForBackups => {
                    timed(&mut spent.replicating, || self.replicate(AFTER, master));
                }
                Driven::WaitsForSegments => {
                    let fetched = timed(&mut spent.fetching, || self.fetch(master));
                    assert!(fetched > 0, "no work, and nothing to fetch");
                }
                Driven::Finished(_) => return,
                Driven::Ended => panic!("it failed"),
            }
            self.send(AFTER, master, &mut sent, &mut spent.replicating);
        }
    }

    /// Has the backups answer all that is asked; says how much that was.
    fn fetch(&mut self, master: &Master) -> usize {
        let mut recoveries = master.recoveries();
        let mut count = 0;
        while let Some(ask) = recoveries.poll_ask(AFTER) {
            let backup = self.backups.get_mut(&ask.to).unwrap();
            let answer = backup.handle_request(AFTER, Party::server(master.me()), ask.request);
            let mut payload = postcards::encode(&answer.response);
            payload.extend_from_slice(answer.bytes);
            let answer = BackupResponse::read(&payload).unwrap();
            recoveries.handle_answer(AFTER, ask.id, Some(answer));
            count += 1;
        }
        count
    }

    fn free(&mut self, master: ServerId) {
        for backup in self.backups.values_mut() {
            backup.fence(master);
            backup.free_master(master);
        }
    }
}

/// A backup whose frames are all prepared.
fn backup(path: &std::path::Path, geometry: Geometry, server: ServerId) -> Backup<MappedStore> {
    let file = SharedFile::open(path, geometry.file_len()).unwrap();
    let mut store = MappedStore::new(&file, geometry).unwrap();
    Frames::format(&mut store, BOOT).unwrap();
    let mut backup = Backup::open(store, BOOT, Micros(0)).unwrap();
    backup.assign(CLUSTER, server, LEASE_US).unwrap();
    while let Some(mut spare) = backup.lend_spare(geometry.frames() as usize) {
        spare.prepare(|| ());
        assert!(spare.is_prepared(), "no memory for a frame");
        backup.give_back(spare);
    }
    backup
}

fn list(me: ServerId) -> ServerList {
    let entry = |server, state| ServerEntry {
        server,
        roles: Roles {
            master: true,
            backup: BACKUPS.contains(&server),
        },
        addresses: Vec::new(),
        state,
        replaces: None,
        recovered: false,
    };
    let dead = (me != DEAD).then(|| entry(DEAD, ServerState::Crashed));
    let living = [me].into_iter().chain(BACKUPS);
    let living = living.map(|server| entry(server, ServerState::Up));
    ServerList {
        version: ListVersion(1),
        servers: dead.into_iter().chain(living).collect(),
    }
}

fn tell(master: &Master, command: Command) -> OrderReply {
    let ballot = Ballot::default();
    master.handle_order(Order { ballot, command })
}

fn order(end: LogEnd) -> Recovery {
    Recovery {
        ended: EndedClients::default(),
        master: DEAD,
        key: DEAD_KEY,
        end,
        attempt: 1,
        tablets: vec![LostTablet {
            range: whole(),
            takeover: LogPosition::ZERO,
        }],
        given_up: None,
        last: None,
    }
}
