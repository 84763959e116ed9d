//! Commands: the inputs of the replicated state machine.
//!
//! # Invariants
//! 1. A command carries everything that its outcome depends on beside the state: random bytes are
//!    drawn by the proposer, time never appears.
//! 2. A command applied twice leaves what once leaves: enlistments and client leases are recognised
//!    by their nonce, replication epochs and floors by their order, and what a client asks for
//!    ([`Once`]) by the results that are kept with its lease.
//! 3. A command on behalf of a server decided crashed is refused (SAFETY 4).
//! 4. A recovery's commands name the try they are about: those of one given up are refused.
//!
//! Variants are only ever appended: their order is in every journal.

use ramkeep_wire::certificate::CertificateKey;
use ramkeep_wire::coordinator::{AcceptedLoss, Enlist, Once, Refused, Settings};
use ramkeep_wire::order::{LogEnd, TabletGrant};
use ramkeep_wire::{
    Ballot, ClientId, ClusterId, LogPosition, ReplicationEpoch, SegmentId, ServerId, TableId,
};
use serde::{Deserialize, Serialize};

/// An input of the state machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// A cluster comes into being: the first command of every journal.
    Bootstrap {
        /// Random.
        cluster: ClusterId,
        /// Its constants.
        settings: Settings,
    },
    /// A coordinator leads under this ballot; orders carry it.
    Lead {
        /// Above every earlier one.
        ballot: Ballot,
    },
    /// A server joins; the one it replaces is decided crashed.
    Enlist {
        /// What it said.
        request: Enlist,
        /// Random: its certificate key, unless its nonce is known already.
        key: CertificateKey,
    },
    /// A server is dead.
    DeclareCrashed {
        /// Which.
        server: ServerId,
    },
    /// A crashed server can neither read nor write any more.
    Fenced {
        /// Which.
        server: ServerId,
    },
    /// A server's first head is open on its backups (SAFETY 22), or it is a backup only.
    ServerReady {
        /// Which.
        server: ServerId,
    },
    /// Make a table and give its tablets to the masters that are ready.
    CreateTable {
        /// Its name.
        name: String,
        /// Runs once.
        once: Option<Once>,
    },
    /// An owner serves tablets that it was given.
    TabletsTaken {
        /// The owner.
        owner: ServerId,
        /// The tablets, with its log position when it took each.
        taken: Vec<(TabletGrant, LogPosition)>,
    },
    /// Begin to drop a table.
    DropTable {
        /// Its name.
        name: String,
        /// Runs once.
        once: Option<Once>,
    },
    /// An owner serves nothing of a dropped table any more. In old journals: [`Command::TablesDropped`] has
    /// taken its place.
    TableDropped {
        /// The table.
        table: TableId,
        /// The owner.
        owner: ServerId,
    },
    /// The backups of a head from now on.
    RecordEpoch {
        /// Whose head.
        master: ServerId,
        /// Which segment.
        segment: SegmentId,
        /// Above the recorded one.
        epoch: ReplicationEpoch,
        /// The backups.
        backups: Vec<ServerId>,
    },
    /// Open replicas below this never count any more (SAFETY 13).
    RaiseFloor {
        /// Whose log.
        master: ServerId,
        /// Segment of the floor.
        segment: SegmentId,
        /// Its replication epoch.
        epoch: ReplicationEpoch,
    },
    /// A client takes a lease. Renewals are the leader's own business: it measures silence, and a
    /// new leader starts to measure afresh, so only the end of a lease is a command.
    OpenClientLease {
        /// Recognises a retry.
        nonce: [u8; 16],
    },
    /// A client's lease is over.
    ExpireClientLease {
        /// Whose.
        client: ClientId,
    },
    /// Where a crashed master's log ends, and who replays what of it. The end is decided once; a
    /// master with very many tablets is planned in several commands with the same end.
    PlanRecovery {
        /// Who crashed.
        master: ServerId,
        /// Where its log ends.
        end: LogEnd,
        /// The partitions with their recovery masters. Their ranges tile whole tablets that are
        /// down.
        parts: Vec<(Vec<TabletGrant>, ServerId)>,
    },
    /// Another recovery master for a partition, or the same once more.
    AssignRecovery {
        /// Who crashed.
        master: ServerId,
        /// The try that is given up.
        attempt: u32,
        /// Who tries next.
        by: ServerId,
    },
    /// A partition is replayed, and durable: its recovery master owns it.
    PartitionRecovered {
        /// Who crashed.
        master: ServerId,
        /// The try that succeeded.
        attempt: u32,
        /// Its recovery master.
        by: ServerId,
        /// The tablets, with where its log stood when the replay began.
        taken: Vec<(TabletGrant, LogPosition)>,
    },
    /// An operator gives up what is missing of a crashed master's log.
    AcceptLoss(AcceptedLoss),
    /// A plan is given up, since nobody holds the end any more that it has, and another can be proved.
    GiveUpPlan {
        /// Who crashed.
        master: ServerId,
        /// The end that is lost.
        end: LogEnd,
    },
    /// A partition that does not fit where it was to be replayed: its tablets are planned anew.
    GiveBackPartition {
        /// Who crashed.
        master: ServerId,
        /// The try that is given up.
        attempt: u32,
    },
    /// An owner serves nothing of these dropped tables any more.
    TablesDropped {
        /// The owner.
        owner: ServerId,
        /// The tables, at most as many as one order drops.
        tables: Vec<TableId>,
    },
}

/// What a command did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Applied {
    /// As it says.
    Done,
    /// The server has this id (from now on or since an earlier try).
    Server(ServerId),
    /// The table has this id.
    Table(TableId),
    /// The client has this id.
    Client(ClientId),
}

/// What came of a command.
pub type Outcome = Result<Applied, Refused>;
