//! What the coordinator's leader tells a server. Every order carries the ballot; a server refuses
//! an order with a lower ballot than it has seen. Orders are repeated until they are confirmed, so
//! carrying out one again must change nothing.

use serde::{Deserialize, Serialize};

use crate::certificate::{Certificate, CertificateKey};
use crate::clients::EndedClients;
use crate::coordinator::{BackupStats, MasterStats, ServerList};
use crate::hash::KeyHash;
use crate::ids::{
    Ballot, ListVersion, LogPosition, ReplicationEpoch, SegmentId, ServerId, TableId,
};
use crate::tries::TryId;

/// A tablet that a master is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TabletGrant {
    /// The table.
    pub table: TableId,
    /// First hash.
    pub first: KeyHash,
    /// Last hash, inclusive.
    pub last: KeyHash,
}

/// Where a crashed master's log ends: decided once, before anything of it is replayed (SAFETY 18).
/// Any replica of the segment that is at least as long has these bytes at its front.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEnd {
    /// The last head that counts. Its digest names every other segment.
    pub segment: SegmentId,
    /// Bytes of it that count.
    pub length: u32,
    /// The replication epoch that the certificate names. 0: the segment is closed, since one of its
    /// backups had closed it already, or since an operator has given up what came after.
    pub epoch: ReplicationEpoch,
    /// Proves those bytes, as of an open head, or of a closed segment.
    pub certificate: Certificate,
}

impl LogEnd {
    /// Nothing is left of the log, and an operator has accepted that.
    pub const NOTHING: Self = Self {
        segment: SegmentId(0),
        length: 0,
        epoch: ReplicationEpoch(0),
        certificate: Certificate::NONE,
    };

    /// Whether it is that of a closed segment.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.epoch == ReplicationEpoch(0)
    }
}

/// A tablet that is to be recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostTablet {
    /// The tablet.
    pub range: TabletGrant,
    /// Where the crashed owner's log stood when it took the tablet over: earlier entries for it
    /// don't count (SAFETY 20).
    pub takeover: LogPosition,
}

/// A tablet that this server has recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveredTablet {
    /// The tablet.
    pub range: TabletGrant,
    /// Where this server's log stood when the replay of it began.
    pub takeover: LogPosition,
}

/// One partition of a crashed master's tablets, for one recovery master. All of it but
/// [`ended`](Self::ended) and [`last`](Self::last) is the same whenever an order names the same [`TryId`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// Whose log is replayed.
    pub master: ServerId,
    /// Proves its segments; handed to its recovery masters only (SAFETY 16).
    pub key: CertificateKey,
    /// Where the log ends.
    pub end: LogEnd,
    /// Grows whenever a partition is given to another, or again.
    pub attempt: u32,
    /// What to recover.
    pub tablets: Vec<LostTablet>,
    /// If an operator has accepted a loss: the segments that may be missing. What came after the end
    /// may be lost, too.
    pub given_up: Option<Vec<SegmentId>>,
    /// Client leases that have ended, a page with each order, round after round. The crashed master may
    /// have forgotten what these clients did, so that nothing of theirs may run any more: the try is not
    /// done before it has heard a whole round. Knowledge beside the try: it grows, and a try goes on
    /// whatever is learned meanwhile.
    pub ended: EndedClients,
    /// What the crashed master last reported, if the leader heard it. Knowledge, too.
    pub last: Option<LastReport>,
}

impl Recovery {
    /// The name of this try.
    #[must_use]
    pub fn id(&self) -> TryId {
        TryId {
            master: self.master,
            attempt: self.attempt,
        }
    }
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Say that you are alive.
    Probe,
    /// Serve these tablets from now on: of whatever tables, at most
    /// [`MAX_TABLETS_PER_ORDER`](crate::limits::MAX_TABLETS_PER_ORDER).
    TakeTablets(Vec<TabletGrant>),
    /// Serve nothing of these tables from now on: at most
    /// [`MAX_TABLETS_PER_ORDER`](crate::limits::MAX_TABLETS_PER_ORDER).
    DropTables(Vec<TableId>),
    /// The server list has changed.
    UpdateServers(ServerList),
    /// Replay these tablets of a crashed master. Repeated to ask how far it is, and to tell what was
    /// learned meanwhile: a try begins once, and fails once.
    Recover(Recovery),
    /// Serve these tablets from now on, with what was replayed of them; bounded as `TakeTablets`. One is not
    /// taken if the replay that began there is not known any more: an empty tablet in its place would be a
    /// hole.
    TakeRecovered(Vec<RecoveredTablet>),
}

/// An order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Under which ballot.
    pub ballot: Ballot,
    /// What to do.
    pub command: Command,
}

/// The server's answer to an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OrderReply {
    /// Done (again).
    Done,
    /// To `TakeTablets` and `TakeRecovered`: where the log stood at takeover, for each tablet in the order of
    /// the grants. None: this one can't be taken; the others are.
    Taken(Vec<Option<LogPosition>>),
    /// Can't be done yet; the coordinator asks again.
    NotReady,
    /// A higher ballot was seen.
    StaleBallot(Ballot),
    /// To `Recover`: under way.
    Recovering {
        /// Segments replayed.
        segments: u32,
        /// Segments in all; 0 while that is not known.
        of: u32,
        /// Bytes replayed.
        bytes: u64,
    },
    /// To `Recover`: replayed, and durable on all backups. Where the log stood when the replay
    /// began, in the order of the tablets: what `TakeTablets` takes them over at.
    Recovered(Vec<LogPosition>),
    /// To `Recover`: it can't be done here, or not with the backups that are there. A try that has
    /// begun stays failed; another one may succeed.
    CannotRecover(String),
    /// To `Recover`: no copy that is there proves what the log's digest says of these segments. All
    /// others were proved. The try has failed.
    CannotProve {
        /// In order, as many of them as can be given up: at most
        /// [`MAX_GIVEN_UP`](crate::limits::MAX_GIVEN_UP).
        segments: Vec<SegmentId>,
        /// For people.
        why: String,
    },
    /// To `Recover`: there is no memory for what counts of the log. Nothing was appended; the try has failed.
    NoRoom {
        /// Bytes that it takes, in log and index.
        needs: u64,
        /// Bytes that are to be had.
        room: u64,
    },
}

/// What a crashed master last reported of its log: not more than a few hundred milliseconds before its death.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastReport {
    /// Bytes of the tombstones that its objects may need.
    pub reserved: u64,
    /// Its objects.
    pub objects: u64,
}

/// How a server is, for a person who asks it directly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Who.
    pub server: ServerId,
    /// The server list it has.
    pub list: ListVersion,
    /// Of its master.
    pub master: Option<MasterStats>,
    /// Of its backup.
    pub backup: Option<BackupStats>,
    /// Tablets it serves.
    pub tablets: Vec<TabletGrant>,
}
