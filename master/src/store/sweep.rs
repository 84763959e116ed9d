//! Sweeping dropped tables out of the index, a few buckets at a time.
//!
//! Nobody can ask for objects of a table that has no tablet here, and table ids are never reused;
//! so what is left of a dropped table only takes up room. It leaves no tombstones: recovery
//! replays nothing of tables that are not in the tablet map.

use std::collections::BTreeSet;

use ramkeep_memory::Guard;
use ramkeep_wire::{KeyHash, TableId, key_hash};

use super::entries::{Entries, Found};
use super::writer::Writer;
use crate::index::{EntryHashes, Reference};

/// Tables to be swept, and how far that has come.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    tables: BTreeSet<TableId>,
    /// Everything below is swept, of the tables that were there when it began.
    at: KeyHash,
    /// Kept to save allocations.
    bucket: Vec<Reference>,
}

impl Sweep {
    pub(super) fn add(&mut self, table: TableId) {
        self.tables.insert(table);
        self.at = KeyHash(0);
    }

    pub(super) fn is_pending(&self, table: TableId) -> bool {
        self.tables.contains(&table)
    }
}

impl Writer {
    /// Sweeps at most `buckets` buckets of the index; true if there is more to do.
    pub fn sweep(&mut self, guard: &Guard, buckets: usize) -> bool {
        for _ in 0..buckets {
            if self.sweep.tables.is_empty() {
                return false;
            }
            self.sweep_bucket(guard);
        }
        !self.sweep.tables.is_empty()
    }

    fn sweep_bucket(&mut self, guard: &Guard) {
        let mut bucket = std::mem::take(&mut self.sweep.bucket);
        let hashes = self.index.index().bucket_at(self.sweep.at, &mut bucket);
        let memory = self.log.memory().clone();
        let entries = Entries {
            memory: &memory,
            guard,
        };
        bucket
            .iter()
            .for_each(|reference| entries.prefetch(*reference));
        for &reference in &bucket {
            let object = entries
                .object(reference)
                .expect("the index refers to objects in the log");
            if self.sweep.tables.contains(&object.table) {
                self.forget(&Found { object, reference });
            }
        }
        self.sweep.bucket = bucket;
        match hashes.end().0.checked_add(1) {
            Some(next) => self.sweep.at = KeyHash(next),
            None => self.sweep.tables.clear(),
        }
    }

    /// Takes an object out of index and account; the log keeps it as a dead entry.
    fn forget(&mut self, found: &Found<'_>) {
        let object = &found.object;
        let removed = self
            .index
            .remove(key_hash(object.table, object.key), found.reference);
        assert!(removed, "the index lost the object that was found in it");
        *self.log.live_mut(found.reference) -= found.len() as u64;
        self.account
            .removed(object.key.len(), object.value.len(), found.len());
    }
}
