//! Sweeping out of the index what nobody owns, a few buckets at a time: what dropped tables left, and
//! ranges whose recovery was given up or is about to begin anew.
//!
//! Nobody can ask for objects outside of this master's tablets; so these only take up room. They
//! leave no tombstones: recovery replays nothing of tables that are not in the tablet map, nor of
//! what stood in the log before a tablet was taken over.
//!
//! # Invariants
//! 1. What is to be swept never overlaps a tablet that is owned or replayed into: a table is dropped
//!    with all its tablets, and a replay begins when its ranges are swept.

use std::collections::BTreeSet;

use ramkeep_memory::Guard;
use ramkeep_wire::order::TabletGrant;
use ramkeep_wire::{KeyHash, TableId, key_hash};

use super::entries::{Entries, Found};
use super::tablets::overlap;
use super::writer::Writer;
use crate::index::{EntryHashes, Reference};

/// Tables and ranges to be swept, and how far that has come.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    tables: BTreeSet<TableId>,
    /// Everything below is swept, of the tables that were there when it began.
    at: KeyHash,
    /// What is left of each range. The last is swept first.
    ranges: Vec<TabletGrant>,
    /// Kept to save allocations.
    bucket: Vec<Reference>,
}

impl Sweep {
    pub(super) fn add(&mut self, table: TableId) {
        self.tables.insert(table);
        self.at = KeyHash(0);
    }

    pub(super) fn add_range(&mut self, range: TabletGrant) {
        self.ranges.push(range);
    }

    /// Whether something in this range is still to be swept.
    pub(super) fn is_pending(&self, range: &TabletGrant) -> bool {
        self.tables.contains(&range.table) || self.ranges.iter().any(|left| overlap(left, range))
    }

    fn is_empty(&self) -> bool {
        self.tables.is_empty() && self.ranges.is_empty()
    }
}

impl Writer {
    /// Sweeps at most `buckets` buckets of the index; true if there is more to do.
    pub fn sweep(&mut self, guard: &Guard, buckets: usize) -> bool {
        for _ in 0..buckets {
            if self.sweep.is_empty() {
                return false;
            }
            self.sweep_next(guard);
        }
        !self.sweep.is_empty()
    }

    fn sweep_next(&mut self, guard: &Guard) {
        let Some(range) = self.sweep.ranges.pop() else {
            let end = self.sweep_bucket(guard, self.sweep.at, None);
            match end.0.checked_add(1) {
                Some(next) => self.sweep.at = KeyHash(next),
                None => self.sweep.tables.clear(),
            }
            return;
        };
        let end = self.sweep_bucket(guard, range.first, Some(range));
        if end < range.last {
            self.sweep.ranges.push(TabletGrant {
                first: KeyHash(end.0 + 1),
                ..range
            });
        }
    }

    /// Sweeps the bucket of `at` of what is in `range`, or of dropped tables; returns its last hash.
    fn sweep_bucket(&mut self, guard: &Guard, at: KeyHash, range: Option<TabletGrant>) -> KeyHash {
        let mut bucket = std::mem::take(&mut self.sweep.bucket);
        let hashes = self.index.index().bucket_at(at, &mut bucket);
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
            let hash = key_hash(object.table, object.key);
            let is_swept = match range {
                Some(range) => {
                    range.table == object.table && (range.first..=range.last).contains(&hash)
                }
                None => self.sweep.tables.contains(&object.table),
            };
            if is_swept {
                self.forget(hash, &Found { object, reference });
            }
        }
        self.sweep.bucket = bucket;
        *hashes.end()
    }

    /// Takes an object out of index and account; the log keeps it as a dead entry.
    fn forget(&mut self, hash: KeyHash, found: &Found<'_>) {
        let object = &found.object;
        let removed = self.index.remove(hash, found.reference);
        assert!(removed, "the index lost the object that was found in it");
        *self.log.live_mut(found.reference) -= found.len() as u64;
        self.account
            .removed(object.key.len(), object.value.len(), found.len());
    }
}
