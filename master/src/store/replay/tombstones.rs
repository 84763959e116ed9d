//! Removals that a replay has met and whose key it has not seen with a higher version: an object
//! that they kill may still come.

use std::collections::BTreeMap;

use ramkeep_wire::{KeyHash, TableId, Version};

use crate::store::tablets::Owned;

/// What one takes beside its key: its place in the map, and what an allocator adds.
const DEAD_BYTES: u64 = 128;

/// A key of which everything up to a version is dead.
#[derive(Debug)]
struct Dead {
    table: TableId,
    version: Version,
    key: Box<[u8]>,
}

impl Dead {
    fn is_of(&self, owned: Owned<'_>) -> bool {
        self.table == owned.table() && *self.key == *owned.key()
    }

    fn bytes(&self) -> u64 {
        DEAD_BYTES + self.key.len() as u64
    }
}

/// Remembered removals, by key hash; more than one only for keys that share theirs.
#[derive(Debug, Default)]
pub(super) struct Tombstones {
    dead: BTreeMap<KeyHash, Vec<Dead>>,
    bytes: u64,
}

impl Tombstones {
    /// Bytes that they take.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The version up to which the key is dead.
    #[inline]
    pub(super) fn of(&self, owned: Owned<'_>) -> Option<Version> {
        if self.dead.is_empty() {
            return None;
        }
        let dead = self.dead.get(&owned.hash())?;
        Some(dead.iter().find(|dead| dead.is_of(owned))?.version)
    }

    /// Everything of the key up to `version` is dead.
    pub(super) fn remember(&mut self, owned: Owned<'_>, version: Version) {
        let same = self.dead.entry(owned.hash()).or_default();
        if let Some(known) = same.iter_mut().find(|dead| dead.is_of(owned)) {
            known.version = known.version.max(version);
            return;
        }
        let dead = Dead {
            table: owned.table(),
            version,
            key: owned.key().into(),
        };
        self.bytes += dead.bytes();
        same.push(dead);
    }

    /// The key was seen with a higher version, which says as much.
    pub(super) fn forget(&mut self, owned: Owned<'_>) {
        let Some(same) = self.dead.get_mut(&owned.hash()) else {
            return;
        };
        if let Some(at) = same.iter().position(|dead| dead.is_of(owned)) {
            self.bytes -= same.swap_remove(at).bytes();
        }
        if same.is_empty() {
            self.dead.remove(&owned.hash());
        }
    }
}
