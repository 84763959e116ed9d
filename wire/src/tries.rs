//! Tries of recovery masters: what names them, and what is said of them in reports.

use serde::{Deserialize, Serialize};

use crate::ids::{LogPosition, ServerId};

/// Names one try at one partition of a crashed master's tablets, for good: no other try, of whatever
/// partition, ever has the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TryId {
    /// Whose log is replayed.
    pub master: ServerId,
    /// Grows whenever a partition of it is given to another, or again.
    pub attempt: u32,
}

/// A try that a recovery master has, whatever came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldTry {
    /// Which.
    pub id: TryId,
    /// If all is replayed: where its recovery master's log stood when the replay began, which is what its
    /// tablets are taken over at.
    pub takeover: Option<LogPosition>,
}
