//! What a peer has on its disk.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::types::{Ballot, Entry, Group, Slot};

/// A record of the journal. Their order counts. Variants are only ever appended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Record {
    /// The group that this peer was founded with, or found.
    Group(Group),
    /// No lower ballot is taken part in.
    Promised(Ballot),
    /// An entry was accepted.
    Accepted {
        /// In which slot.
        slot: Slot,
        /// Under which ballot.
        ballot: Ballot,
        /// What.
        entry: Entry,
    },
    /// All slots up to here are decided as accepted by the records before.
    Decided(Slot),
}

impl Record {
    /// About how many bytes it takes in a journal.
    #[must_use]
    pub fn size(&self) -> usize {
        const OVERHEAD: usize = 64;
        match self {
            Self::Accepted { entry, .. } => entry.size() + OVERHEAD,
            Self::Group(_) | Self::Promised(_) | Self::Decided(_) => OVERHEAD,
        }
    }
}

/// The state after a slot.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Snapshot {
    /// The last slot in it.
    pub slot: Slot,
    /// Who the members are after that slot.
    pub group: Group,
    /// The state. Means nothing here.
    pub state: Bytes,
}

/// All that a peer has on its disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Stored {
    /// The last snapshot saved.
    pub snapshot: Option<Snapshot>,
    /// The records that were persisted with it and since.
    pub records: Vec<Record>,
}
