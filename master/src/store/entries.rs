//! Entries in segment memory, read through their references under a guard.

use ramkeep_memory::{Guard, SegmentMemory};
use ramkeep_wire::entry::{Object, object_in_memory, object_len};
use ramkeep_wire::{KeyHash, key_hash};

use super::tablets::Owned;
use crate::index::{EntryHashes, Index, Reference};

/// Lines of an object fetched ahead: header, a short key and the start of the value.
const PREFETCHED_LINES: usize = 3;
const LINE: usize = 64;

/// Segment memory with a guard under which it may be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entries<'g> {
    pub(super) memory: &'g SegmentMemory,
    pub(super) guard: &'g Guard,
}

/// An object with its place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found<'g> {
    pub(super) object: Object<'g>,
    pub(super) reference: Reference,
}

impl Found<'_> {
    /// Bytes of its entry.
    #[inline]
    pub(super) fn len(&self) -> usize {
        let object = &self.object;
        object_len(
            object.key.len(),
            object.value.len(),
            object.expiry.is_some(),
        )
    }

    /// Where it ends in its segment.
    #[inline]
    pub(super) fn end(&self) -> u32 {
        // An entry ends within its segment, which is shorter than 16 MiB.
        (self.reference.offset() + self.len()) as u32
    }
}

impl<'g> Entries<'g> {
    /// The object at `reference`; none if another entry stands there or the guard came too late.
    #[inline]
    pub(super) fn object(self, reference: Reference) -> Option<Object<'g>> {
        let bytes = self
            .memory
            .tail(self.guard, reference.slot(), reference.offset())?;
        object_in_memory(bytes)
    }

    /// The object of a key.
    #[inline]
    pub(super) fn find(self, index: &Index, owned: Owned<'_>) -> Option<Found<'g>> {
        let mut found = None;
        let reference = index.lookup(owned.hash(), |reference| {
            found = self
                .object(reference)
                .filter(|object| object.table == owned.table() && object.key == owned.key());
            found.is_some()
        })?;
        found.map(|object| Found { object, reference })
    }

    /// Asks for the object that the index most likely gives for `hash`. Only a hint.
    #[inline]
    pub(super) fn prefetch_likely(self, index: &Index, hash: KeyHash) {
        let _ = index.lookup(hash, |reference| {
            self.prefetch(reference);
            true
        });
    }
}

impl EntryHashes for Entries<'_> {
    fn hash_of(&self, reference: Reference) -> KeyHash {
        let object = self
            .object(reference)
            .expect("the index refers to objects in the log");
        key_hash(object.table, object.key)
    }

    #[inline]
    fn prefetch(&self, reference: Reference) {
        for line in 0..PREFETCHED_LINES {
            self.memory
                .prefetch(reference.slot(), reference.offset() + line * LINE);
        }
    }
}
