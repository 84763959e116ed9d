//! One batch of a replay: entries are parsed and their memory is asked for before the writer's lock
//! is taken; under it they are looked up and appended.

use parking_lot::MutexGuard;
use ramkeep_memory::Guard;
use ramkeep_wire::data::Status;
use ramkeep_wire::entry::{self, Completion, Entry, NewEntry, object_in_memory, tombstone_len};
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::segment::VerifiedSegment;
use ramkeep_wire::{KeyHash, LogPosition, TableId, Version};

use super::calls;
use super::measure::Winners;
use super::registry::Phase;
use super::{Replay, ReplayError, Tombstones};
use crate::store::Store;
use crate::store::account::Demand;
use crate::store::answer::Refused;
use crate::store::tablets::{Owned, Tablets};
use crate::store::writer::{Writer, refusal};

/// Entries applied under one hold of the writer's lock.
const BATCH_ENTRIES: usize = 64;
/// A batch is closed when its entries have this many bytes.
const BATCH_BYTES: usize = 64 << 10;

/// An entry that counts here.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    offset: u32,
    len: u32,
    hash: KeyHash,
    is_object: bool,
}

/// Entries taken from a segment. Objects are applied first, so that the tombstone of an object that
/// was overwritten finds the newer one and need not be remembered.
#[derive(Debug, Default)]
pub(super) struct Batch {
    wanted: Vec<Wanted>,
    /// Versions of new keys must be at least this, after what was collected.
    safe: Version,
}

impl Batch {
    /// Collects what counts from `offset` on, and has completions noted; returns where to go on.
    fn collect(
        &mut self,
        store: &Store,
        (tablets, winners): (&Tablets, Option<&Winners>),
        segment: &VerifiedSegment<'_>,
        offset: usize,
        mut note: impl FnMut(&Completion, LogPosition),
    ) -> usize {
        let (id, contents) = (segment.claim().segment, segment.contents());
        self.wanted.clear();
        let mut bytes = 0;
        for (at, entry) in segment.entries_from(offset) {
            if self.wanted.len() >= BATCH_ENTRIES || bytes >= BATCH_BYTES {
                return at;
            }
            if let Entry::SafeVersion(version) = entry {
                self.safe = self.safe.max(version);
            }
            if let Entry::Completion(completion) = &entry {
                // A segment is shorter than 16 MiB.
                note(completion, LogPosition::new(id, at as u32));
            }
            if !matches!(entry, Entry::Object(_) | Entry::Tombstone(_)) {
                continue;
            }
            let Some((table, hash)) = entry.place() else {
                continue;
            };
            let Some(tablet) = tablets.tablet_of(table, hash) else {
                continue;
            };
            if let Entry::Tombstone(dead) = entry {
                self.safe = self.safe.max(dead.version.next());
            }
            // A segment is shorter than 16 MiB.
            let before = LogPosition::new(id, at as u32) < tablet.takeover;
            if before && !mutants::active(Mutant::ReplayIgnoresTakeover) {
                continue;
            }
            if winners.is_some_and(|winners| !winners.wins(&entry)) {
                continue;
            }
            store.index().prefetch(hash);
            let len = entry::entry_len(&contents[at..]).unwrap_or(0);
            bytes += len;
            self.wanted.push(Wanted {
                offset: at as u32,
                len: len as u32,
                hash,
                is_object: matches!(entry, Entry::Object(_)),
            });
        }
        contents.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.wanted.is_empty()
    }

    pub(super) fn safe(&self) -> Version {
        self.safe
    }
}

impl Replay {
    /// Collects what counts from `offset` on; returns where to go on.
    pub(super) fn collect(
        &mut self,
        store: &Store,
        segment: &VerifiedSegment<'_>,
        offset: usize,
    ) -> usize {
        let (tablets, calls) = (&self.tablets, &mut self.calls);
        let note = |completion: &_, at| calls::note(calls, tablets, completion, at);
        let counts = (tablets, self.winners.as_ref());
        self.batch.collect(store, counts, segment, offset, note)
    }

    /// Applies the batch; false if the log is rolling over. What was applied by then does no harm
    /// when it is applied again.
    pub(super) fn apply(&mut self, store: &Store, contents: &[u8]) -> Result<bool, ReplayError> {
        let guard = store.pin();
        let mut writer = store.writer();
        if !matches!(writer.replay_phase(self.id)?, Phase::Replaying(_)) {
            return Err(ReplayError::Ended);
        }
        let entries = store.entries(&guard);
        for wanted in &self.batch.wanted {
            entries.prefetch_likely(store.index(), wanted.hash);
        }
        let outcome = self.apply_under(&guard, &mut writer, contents);
        let kept = self.tombstones.bytes() + self.calls.len() as u64 * calls::CALL_BYTES;
        let fits = writer.set_kept(self.id, kept);
        MutexGuard::unlock_fair(writer);
        match outcome {
            Ok(()) if fits => Ok(true),
            Ok(()) => Err(ReplayError::OutOfMemory),
            Err(refused) => waits(refused).map(|()| false),
        }
    }

    fn apply_under(
        &mut self,
        guard: &Guard,
        writer: &mut Writer,
        contents: &[u8],
    ) -> Result<(), Refused> {
        let (tablets, tombstones) = (&self.tablets, &mut self.tombstones);
        let bytes = |wanted: &Wanted| {
            let (at, len) = (wanted.offset as usize, wanted.len as usize);
            &contents[at..at + len]
        };
        let owned = |table: TableId, key, hash| {
            tablets
                .owned_at(table, key, hash)
                .expect("only entries of the tablets were collected")
        };
        for wanted in self.batch.wanted.iter().filter(|wanted| wanted.is_object) {
            let entry = bytes(wanted);
            let object = object_in_memory(entry).expect("it was parsed as an object");
            let owned = owned(object.table, object.key, wanted.hash);
            let takes = entry.len() + tombstone_len(object.key.len());
            writer.spend(self.id, takes as u64, |writer| {
                writer.replay_object(
                    guard,
                    owned,
                    entry,
                    object.version,
                    object.value.len(),
                    tombstones,
                )
            })?;
        }
        for wanted in self.batch.wanted.iter().filter(|wanted| !wanted.is_object) {
            let Ok((Entry::Tombstone(dead), _)) = entry::read_again(bytes(wanted)) else {
                continue;
            };
            let owned = owned(dead.table, dead.key, wanted.hash);
            writer.replay_tombstone(guard, owned, dead.version, tombstones)?;
        }
        Ok(())
    }
}

impl Writer {
    /// Whether it was appended: nothing wins over it.
    #[inline]
    fn replay_object(
        &mut self,
        guard: &Guard,
        owned: Owned<'_>,
        entry: &[u8],
        version: Version,
        value: usize,
        tombstones: &mut Tombstones,
    ) -> Result<bool, Refused> {
        let dead = tombstones.of(owned);
        if dead.is_some_and(|dead| dead >= version) {
            return Ok(false);
        }
        let current = self.current(guard, owned);
        if current.is_some_and(|current| current.version >= version) {
            return Ok(false);
        }
        self.place(
            guard,
            owned,
            NewEntry::Verbatim(entry),
            value,
            current,
            None,
        )?;
        if dead.is_some() {
            tombstones.forget(owned);
        }
        Ok(true)
    }

    fn replay_tombstone(
        &mut self,
        guard: &Guard,
        owned: Owned<'_>,
        version: Version,
        tombstones: &mut Tombstones,
    ) -> Result<(), Refused> {
        if mutants::active(Mutant::ReplayForgetsTombstones) {
            return Ok(());
        }
        match self.current(guard, owned) {
            Some(newer) if newer.version > version => return Ok(()),
            Some(dead) => {
                if !mutants::active(Mutant::ReplayLeavesNoTombstone) {
                    self.append_tombstone(owned, &dead)?;
                }
                self.take_out(owned, &dead);
            }
            None => {}
        }
        tombstones.remember(owned, version);
        Ok(())
    }
}

/// Makes the safe version at least `safe` and appends it; `None` if the log is rolling over.
pub(super) fn append_safe_version(
    writer: &mut Writer,
    safe: Version,
) -> Result<Option<LogPosition>, ReplayError> {
    writer.log.raise_safe_version(safe);
    let entry = NewEntry::SafeVersion(writer.log.safe_version());
    let index_bytes = writer.index.index().bytes();
    let demand = Demand {
        group: entry.encoded_len(),
        new_key: None,
    };
    if !writer.account.admits(&writer.log, index_bytes, demand) {
        return Err(ReplayError::OutOfMemory);
    }
    let segments = writer.account.segments(&writer.log, index_bytes);
    match writer.log.append(&[entry], segments) {
        Ok(appended) => Ok(Some(appended.end)),
        Err(error) => waits(refusal(error)).map(|()| None),
    }
}

/// Whether a refusal passes by itself.
#[cold]
pub(super) fn waits(Refused(status): Refused) -> Result<(), ReplayError> {
    match status {
        Status::RetryLater => Ok(()),
        Status::TooLarge => Err(ReplayError::TooLarge),
        _ => Err(ReplayError::OutOfMemory),
    }
}
