//! What the coordinator's leader tells a server. Every order carries the ballot; a server refuses
//! an order with a lower ballot than it has seen. Orders are repeated until they are confirmed, so
//! carrying out one again must change nothing.

use serde::{Deserialize, Serialize};

use crate::coordinator::{BackupStats, MasterStats, ServerList};
use crate::hash::KeyHash;
use crate::ids::{Ballot, ListVersion, LogPosition, ServerId, TableId};

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

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Say that you are alive.
    Probe,
    /// Serve these tablets from now on.
    TakeTablets(Vec<TabletGrant>),
    /// Serve nothing of this table from now on.
    DropTable(TableId),
    /// The server list has changed.
    UpdateServers(ServerList),
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
    /// To `TakeTablets`: where the log stood at takeover, in the order of the grants.
    Taken(Vec<LogPosition>),
    /// Can't be done yet; the coordinator asks again.
    NotReady,
    /// A higher ballot was seen.
    StaleBallot(Ballot),
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
