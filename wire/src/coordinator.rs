//! What is asked of the coordinator, and its answers. Postcard; every answer carries the ballot.

use serde::{Deserialize, Serialize};

use crate::certificate::CertificateKey;
use crate::clients::EndedClients;
use crate::hash::KeyHash;
use crate::ids::{
    Ballot, BootId, ClientId, ClusterId, ListVersion, LogPosition, MapVersion, PeerId,
    ReplicationEpoch, SegmentId, ServerId, TableId,
};
use crate::tries::HeldTry;

/// What a server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roles {
    /// Owns tablets.
    pub master: bool,
    /// Holds replicas.
    pub backup: bool,
}

impl Roles {
    /// Owns tablets and holds replicas.
    pub const BOTH: Self = Self {
        master: true,
        backup: true,
    };
}

/// A wish to join the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enlist {
    /// Fresh random bytes of this process: a retry gets the same ServerId.
    pub nonce: [u8; 16],
    /// What it will do.
    pub roles: Roles,
    /// Where it listens: `host:port` or `unix:/path`. The first is for clients.
    pub addresses: Vec<String>,
    /// The ServerId that its frame directory belonged to; decided crashed by this (SAFETY 6).
    pub replaces: Option<ServerId>,
    /// The boot of its machine.
    pub boot: BootId,
    /// Frames it offers as a backup.
    pub frames: u32,
    /// Bytes it has for its log and index as a master.
    pub memory: u64,
}

impl Enlist {
    /// A server in both roles that begins anew and offers neither frames nor memory.
    #[must_use]
    pub fn server(nonce: [u8; 16], address: impl Into<String>) -> Self {
        Self {
            nonce,
            roles: Roles::BOTH,
            addresses: vec![address.into()],
            replaces: None,
            boot: BootId([0; 16]),
            frames: 0,
            memory: 0,
        }
    }
}

/// Constants of a cluster, chosen when its first coordinator starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Backup copies of each segment.
    pub replicas: u8,
    /// Length of a master lease (SAFETY 7).
    pub lease_us: u32,
    /// How long an operation waits for enough backups before it is refused.
    pub backup_wait_us: u32,
    /// How often servers report.
    pub heartbeat_us: u32,
    /// Silence after which a server is asked whether it is alive.
    pub suspect_us: u32,
    /// Bytes of a segment.
    pub segment_size: u32,
}

/// State of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServerState {
    /// Enlisted, its master has no head open on its backups yet.
    Joining,
    /// In service.
    Up,
    /// Decided dead.
    Crashed,
}

/// A server in the server list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerEntry {
    /// Who.
    pub server: ServerId,
    /// What it does.
    pub roles: Roles,
    /// Where it listens.
    pub addresses: Vec<String>,
    /// How it is.
    pub state: ServerState,
    /// Whose frames it took over by restarting with their directory.
    pub replaces: Option<ServerId>,
    /// Crashed, and nothing of it is needed any more: its replicas are freed wherever they are.
    pub recovered: bool,
}

/// The server list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerList {
    /// Grows with every change.
    pub version: ListVersion,
    /// All servers that have not been forgotten, by id.
    pub servers: Vec<ServerEntry>,
}

/// State of a tablet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TabletState {
    /// Given to its owner, who has not confirmed yet.
    Assigning,
    /// Served by its owner.
    Normal,
    /// Its owner crashed; not served.
    Down,
    /// Being dropped; complete when the owner has confirmed.
    Dropping,
    /// Its owner crashed; a recovery master replays it.
    Recovering,
}

/// A contiguous range of key hashes of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tablet {
    /// The table.
    pub table: TableId,
    /// First hash.
    pub first: KeyHash,
    /// Last hash, inclusive.
    pub last: KeyHash,
    /// The master that owns it.
    pub owner: ServerId,
    /// The owner's log position when it took the tablet over; its earlier entries for the range
    /// don't count (SAFETY 20).
    pub takeover: LogPosition,
    /// How it is.
    pub state: TabletState,
}

/// A table with its tablets, in order of hashes, covering all of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Its id.
    pub table: TableId,
    /// Its name.
    pub name: String,
    /// Its tablets.
    pub tablets: Vec<Tablet>,
}

/// What clients route by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TabletMap {
    /// Grows with every change.
    pub version: MapVersion,
    /// All tables, by id.
    pub tables: Vec<Table>,
    /// Where the owners listen.
    pub servers: Vec<(ServerId, Vec<String>)>,
}

/// What a master reports of its memory. Bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MasterStats {
    /// What it may use.
    pub memory: u64,
    /// Segments and index in use.
    pub used: u64,
    /// Entries that count.
    pub live: u64,
    /// Kept free for tombstones.
    pub reserved: u64,
    /// In the index.
    pub index: u64,
    /// Objects alive.
    pub objects: u64,
    /// Keys and values of the objects alive.
    pub payload: u64,
    /// Segments of the log.
    pub segments: u32,
    /// Segments that lack a replica.
    pub under_replicated: u32,
    /// Bytes that could be replayed here: what is neither used, nor kept for tombstones, nor promised.
    pub room: u64,
}

impl MasterStats {
    /// Bytes in the index of a master for each object more.
    const INDEX_BYTES: u64 = 16;

    /// Memory that its objects take where they are replayed: their entries, the tombstones that they may need
    /// one day, and what the index grows by.
    #[must_use]
    pub fn takes(&self) -> u64 {
        self.live + self.reserved + self.objects * Self::INDEX_BYTES
    }
}

/// What a backup reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupStats {
    /// Frames it has.
    pub frames: u32,
    /// Frames that hold a replica.
    pub used: u32,
    /// Of those, inherited from before a restart.
    pub inherited: u32,
    /// Frames that were found torn or damaged when they were opened.
    pub damaged: u32,
    /// Of the free ones those that are not given out now: they are kept for recoveries.
    pub kept: u32,
}

/// A replica that is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DamagedReplica {
    /// Who holds it.
    pub backup: ServerId,
    /// Whose segment it is.
    pub master: ServerId,
    /// Which segment.
    pub segment: SegmentId,
}

/// A server's regular report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Who reports.
    pub server: ServerId,
    /// The server list it has.
    pub list: ListVersion,
    /// Its master has a head open on its backups (SAFETY 22), or it is a backup only.
    pub ready: bool,
    /// Below this segment and epoch no open replica of its log counts any more (SAFETY 13).
    pub floor: Option<(SegmentId, ReplicationEpoch)>,
    /// Of its master.
    pub master: Option<MasterStats>,
    /// Of its backup.
    pub backup: Option<BackupStats>,
    /// Replicas that it found damaged since it started, at most
    /// [`MAX_DAMAGED_REPORTED`](crate::limits::MAX_DAMAGED_REPORTED). Told again and again, so that a
    /// new leader knows them, too.
    pub damaged: Vec<DamagedReplica>,
    /// From which client on it wants to hear next whose leases have ended; none if it need not know.
    pub clients: Option<ClientId>,
    /// The tries at crashed masters' tablets that it has; at most
    /// [`MAX_TRIES_HELD`](crate::limits::MAX_TRIES_HELD).
    pub tries: Vec<HeldTry>,
    /// Resident memory of the process, bytes.
    pub resident: u64,
}

impl Heartbeat {
    /// The report of a server that is ready, has no server list yet and has nothing else to tell.
    #[must_use]
    pub fn of(server: ServerId) -> Self {
        Self {
            server,
            list: ListVersion(0),
            ready: true,
            floor: None,
            master: None,
            backup: None,
            damaged: Vec::new(),
            clients: None,
            tries: Vec::new(),
            resident: 0,
        }
    }
}

/// Makes a request run once however often it is sent, by the results that are kept with the
/// client's lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Once {
    /// Who asks; holds a client lease.
    pub client: ClientId,
    /// Which of its requests.
    pub sequence: u64,
    /// It has the results of all lower ones.
    pub acked: u64,
}

/// Why one server takes another for dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Symptom {
    /// It did not answer a probe in time.
    Silent,
    /// A connection with it closed.
    Closed,
    /// No process of this identity is at its addresses.
    Refused,
}

/// What is asked of the coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Join the cluster.
    Enlist(Enlist),
    /// Report and stay in the cluster.
    Heartbeat(Heartbeat),
    /// Record a head's new set of backups before anything is acknowledged on it.
    RecordEpoch {
        /// Whose head.
        master: ServerId,
        /// Which segment.
        segment: SegmentId,
        /// Higher than any tried before for this segment.
        epoch: ReplicationEpoch,
        /// The backups from now on.
        backups: Vec<ServerId>,
    },
    /// A server seems to be dead. The leader verifies that itself.
    Suspect {
        /// Who.
        server: ServerId,
        /// Who says so.
        by: ServerId,
        /// Why.
        symptom: Symptom,
    },
    /// Take a client lease. A retry with the same nonce gets the same.
    OpenClientLease {
        /// Fresh random bytes.
        nonce: [u8; 16],
    },
    /// Keep a client lease.
    RenewClientLease {
        /// Whose.
        client: ClientId,
    },
    /// Make a table, or find the one of that name.
    CreateTable {
        /// Its name.
        name: String,
        /// Runs once.
        once: Option<Once>,
    },
    /// Remove a table and all that is in it. Answered when every owner has confirmed.
    DropTable {
        /// Its name.
        name: String,
        /// Runs once.
        once: Option<Once>,
    },
    /// The tables and tablets, unless the asker has them already.
    Map {
        /// The version that the asker has.
        known: MapVersion,
    },
    /// The server list, unless the asker has it already.
    Servers {
        /// The version that the asker has.
        known: ListVersion,
    },
    /// How the cluster is.
    Status,
    /// Give a client lease back; the results kept with it go.
    CloseClientLease {
        /// Whose.
        client: ClientId,
    },
    /// Put another coordinator, which has asked to join, in the place of one that is lost.
    ReplaceCoordinator {
        /// Who is lost.
        lost: PeerId,
        /// Who takes its place.
        by: PeerId,
    },
    /// What this coordinator has counted. Answered by any, whether it leads or not.
    Counters,
    /// Give up what is missing of a crashed master's log, so that the rest is served. Refused unless
    /// it is just what is missing.
    AcceptLoss(AcceptedLoss),
}

/// Why the coordinator refuses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refused {
    /// Ask the leader.
    #[error("this coordinator does not lead{}", because(why.as_deref()))]
    NotLeader {
        /// Where the leader is, if known.
        leader: Option<String>,
        /// Where all coordinators are, as far as this one knows.
        coordinators: Vec<String>,
        /// Why nobody leads, and what leads out, if this one knows that nobody can.
        why: Option<String>,
    },
    /// No such table.
    #[error("no table of that name")]
    NoSuchTable,
    /// Empty or over its limit.
    #[error("a table's name has 1 to {} bytes", crate::limits::MAX_TABLE_NAME)]
    TableName,
    /// A limit of the cluster is reached.
    #[error("limit reached: {0}")]
    Limit(String),
    /// No master is ready to own a tablet.
    #[error("no master is ready")]
    NoMaster,
    /// This ServerId was decided crashed: the process must stop and may enlist anew.
    #[error("this server was decided crashed")]
    Crashed,
    /// No such server or client.
    #[error("not known here")]
    Unknown,
    /// A replication epoch that is not higher than the recorded one.
    #[error("replication epoch is not above the recorded one")]
    Epoch,
    /// The request makes no sense.
    #[error("invalid request: {0}")]
    Invalid(String),
    /// The server whose directory this one has still runs: this one has a copy.
    #[error(
        "its directory is that of {server}, which runs at {address}: a copy of a directory is no server \
         of its own. Stop that one first, or start this one with an empty directory"
    )]
    Claimed {
        /// Who runs.
        server: ServerId,
        /// Where.
        address: String,
    },
}

fn because(why: Option<&str>) -> String {
    why.map(|why| format!(": {why}")).unwrap_or_default()
}

/// A server as `status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerReport {
    /// As in the server list.
    pub entry: ServerEntry,
    /// Its last report, if it is up.
    pub heartbeat: Option<Heartbeat>,
    /// How often this leader took it for dead, while it lives.
    pub suspected: SuspicionCounts,
}

/// How often a leader had to do with the suspicion that a server is dead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuspicionCounts {
    /// Reports by other servers.
    pub reports: u64,
    /// Suspicions, each verified until it was cleared.
    pub suspicions: u64,
    /// Probes that verified them.
    pub probes: u64,
}

impl SuspicionCounts {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            reports: self.reports + other.reports,
            suspicions: self.suspicions + other.suspicions,
            probes: self.probes + other.probes,
        }
    }
}

/// A coordinator as the leader sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoordinatorReport {
    /// Who.
    pub peer: PeerId,
    /// Where.
    pub address: String,
    /// Whether it is a member of the group; else it only learns.
    pub member: bool,
    /// Its last decided slot, if it was heard of.
    pub decided: Option<u64>,
    /// For how long nothing was heard of it; `None` if nothing ever was.
    pub silent_us: Option<u64>,
}

/// What is missing of a crashed master's log, and who may have it: what an operator has to name, all
/// of it and nothing else, to give it up (SAFETY 19).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// Crashed backups whose frames have not come back, in order. They may hold what is missing, and
    /// without the tail one of them may not have refused the master: who accepts asserts that they
    /// are dead.
    pub dead: Vec<ServerId>,
    /// Segments that are missing, in order.
    pub segments: Vec<SegmentId>,
    /// Where the log ended can't be proved: what was written last is lost.
    pub tail: bool,
}

/// A loss that an operator has accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptedLoss {
    /// Of whose log.
    pub master: ServerId,
    /// What.
    pub loss: Loss,
}

/// When a recovery got how far: microseconds from when the leader began to see to it, which is when
/// the crash was decided unless leaders changed. A step that was taken again counts the last time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryMoments {
    /// Every living backup refuses the master and has shown what it holds.
    pub fenced_us: Option<u64>,
    /// The end of the log is known, and all that its digest names is there.
    pub end_us: Option<u64>,
    /// The end and the partitions are decided.
    pub planned_us: Option<u64>,
    /// The last partition is replayed and durable.
    pub replayed_us: Option<u64>,
    /// The last partition's new owner is decided.
    pub committed_us: Option<u64>,
}

/// How a recovery is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryReport {
    /// Whose.
    pub master: ServerId,
    /// What it waits for or does, for people: `backups answer`, `server-3 replays: 12 of 40
    /// segments`, or why it can't go on: `segment-5 is missing ...`.
    pub phase: String,
    /// Why the tablets stay down, if they do.
    pub stuck: bool,
    /// Tablets still to be recovered.
    pub tablets: u32,
    /// Since the leader began to see to it, microseconds.
    pub since_us: u64,
    /// What it can't go on without.
    pub missing: Option<Loss>,
    /// What came when.
    pub moments: RecoveryMoments,
}

/// What a coordinator has counted since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupCounters {
    /// Slots, each a batch of commands, that it proposed.
    pub slots: u64,
    /// Commands of its own that were decided.
    pub commands: u64,
    /// Accept messages sent, one to each other member for a batch.
    pub accepts_sent: u64,
    /// Accept messages sent again.
    pub accepts_resent: u64,
    /// Accept messages taken from a leader.
    pub accepts_taken: u64,
    /// Writes given to its journal.
    pub writes: u64,
    /// Syncs of its journal: writes that wait together share one.
    pub syncs: u64,
    /// Heartbeats sent.
    pub heartbeats: u64,
    /// How often it asked to lead.
    pub elections: u64,
}

/// How the cluster is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// Which cluster.
    pub cluster: ClusterId,
    /// Its constants.
    pub settings: Settings,
    /// Who leads.
    pub leader: PeerId,
    /// The last slot that the coordinators decided.
    pub decided: u64,
    /// The coordinators: members first, by id.
    pub coordinators: Vec<CoordinatorReport>,
    /// The servers.
    pub servers: Vec<ServerReport>,
    /// The tables with their tablets.
    pub tables: Vec<Table>,
    /// Recoveries under way.
    pub recoveries: Vec<RecoveryReport>,
    /// The losses that operators have accepted, the oldest first.
    pub losses: Vec<AcceptedLoss>,
    /// The last ones that this leader saw to the end, the newest last.
    pub recovered: Vec<RecoveryReport>,
    /// Replicas that were found damaged, as far as this leader knows, the last found last.
    pub damaged: Vec<DamagedReplica>,
    /// What is lacking, or would be should a server die.
    pub shortages: Vec<Shortage>,
}

/// What is short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShortageKind {
    /// Memory of masters.
    Memory,
    /// Frames of backups.
    Frames,
    /// Servers with backups.
    Backups,
}

/// Something that the cluster lacks, or would lack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shortage {
    /// What of.
    pub kind: ShortageKind,
    /// Whose log waits for it, or who would have to die for it to be lacking.
    pub server: ServerId,
    /// It is lacking already.
    pub is_now: bool,
    /// For people: how much is needed, how much there is, and what would end it.
    pub text: String,
}

/// The coordinator's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// To `Enlist`.
    Enlisted {
        /// The new identity.
        server: ServerId,
        /// The cluster.
        cluster: ClusterId,
        /// Proves the new master's replicas; kept to itself (SAFETY 16).
        key: CertificateKey,
        /// The cluster's constants.
        settings: Settings,
        /// The server list.
        list: ServerList,
    },
    /// To `Heartbeat`.
    Heard {
        /// The server list if it is newer than the one reported.
        list: Option<ServerList>,
        /// To a master without backups (k = 0): the master lease, microseconds (SAFETY 7). The
        /// master counts it from when it sent the report, the coordinator from when it came. 0: none.
        lease_us: u32,
        /// Client leases that have ended, from where on the report asked; the first ones if there are no
        /// more.
        ended: EndedClients,
        /// Of the tries that it has, as it reported them, those that nobody will ever take over.
        over: Vec<HeldTry>,
    },
    /// To `RecordEpoch`: recorded; acknowledgements may go on.
    EpochRecorded,
    /// To `Suspect`, `RenewClientLease`, `CloseClientLease` and, once it is decided,
    /// `ReplaceCoordinator` and `AcceptLoss`.
    Noted,
    /// To `OpenClientLease`.
    ClientLease {
        /// The client's id.
        client: ClientId,
        /// How long without renewal.
        lease_us: u64,
    },
    /// To `CreateTable`.
    Table(Table),
    /// To `DropTable`.
    Dropped,
    /// To `Map`: `None` when the asker has the newest.
    Map(Option<TabletMap>),
    /// To `Servers`: `None` when the asker has the newest.
    Servers(Option<ServerList>),
    /// To `Status`.
    Status(Box<ClusterStatus>),
    /// To `Counters`.
    Counters(GroupCounters),
    /// No.
    Refused(Refused),
}

/// Who the coordinators are, as their leader says. It takes the place of what was known before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupFacts {
    /// Grows with each change of the members.
    pub generation: u32,
    /// Where the members may be reached; at most
    /// [`MAX_COORDINATORS`](crate::limits::MAX_COORDINATORS).
    pub coordinators: Vec<String>,
}

/// An answer with the ballot under which it was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// The leader's ballot.
    pub ballot: Ballot,
    /// What it says.
    pub answer: Answer,
    /// From a leader: who the coordinators are, unless it has said just that on this connection.
    pub group: Option<GroupFacts>,
}

impl Response {
    /// An answer that says nothing of the group.
    #[must_use]
    pub fn new(ballot: Ballot, answer: Answer) -> Self {
        let group = None;
        Self {
            ballot,
            answer,
            group,
        }
    }

    /// An encoded answer that says nothing of the group, with what it is to say: that stands last.
    ///
    /// # Panics
    /// If it says something of the group.
    #[must_use]
    pub fn telling(encoded: &[u8], facts: &GroupFacts) -> Vec<u8> {
        let rest = encoded.strip_suffix(&crate::postcards::encode(&None::<GroupFacts>)[..]);
        let mut told = rest.expect("it says nothing of the group").to_vec();
        told.extend(crate::postcards::encode(&Some(facts)));
        told
    }
}
