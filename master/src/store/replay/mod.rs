//! Replay: a crashed master's entries, from segments that were proved, into this master's log.
//!
//! # Invariants
//! 1. Of a key the entry with the highest version wins, of an object and a tombstone of one version
//!    the tombstone: the result does not depend on the order of segments, nor on repeats.
//! 2. What an earlier attempt or stay left in the index is swept before the first entry is taken in,
//!    and the log's position is noted then. Whatever stands before it in the log does not count in a
//!    later recovery (SAFETY 20).
//! 3. Every object of its own that a replay supersedes gets a tombstone that names this log's
//!    segment (SAFETY 21).
//! 4. Versions of new keys will be above every version seen removed, and at least every safe version
//!    of the dead master's log.
//! 5. What a replay was admitted for is there for it, whatever else is written meanwhile (SAFETY 26).
//! 6. The writer's lock is held for one batch, or a few buckets, at a time.
//!
//! Nothing of it is seen by clients: its ranges are no tablets of this master's until they are taken.
//!
//! Completions of its ranges are kept beside the log until the end: most turn out to be over, by what
//! their clients said later. The rest is appended, and known to the store, before it is finished.

mod apply;
mod calls;
mod measure;
mod registry;
mod tombstones;

use ramkeep_wire::limits::{MAX_SEGMENTS_PER_LOG, SEGMENT_SIZE};
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::order::{LostTablet, TabletGrant};
use ramkeep_wire::segment::VerifiedSegment;
use ramkeep_wire::{LogPosition, Version};

use super::Store;
use super::completions::Completions;
use super::tablets::Tablets;
use apply::Batch;
use measure::Winners;
use registry::Phase;
pub use registry::{ReplayId, Replays};
use tombstones::Tombstones;

/// Buckets swept under one hold of the writer's lock.
const PURGE_BUCKETS: usize = 256;

/// More versions than the segments of a log can have used of one key.
const LOST_VERSIONS: u64 = 1 << 40;
const _: () = assert!((MAX_SEGMENTS_PER_LOG * SEGMENT_SIZE) as u64 <= LOST_VERSIONS);

/// Why a replay can't go on. Its entries are swept once it is abandoned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// There is no memory for what is replayed, with room for the removal of all of it: something was
    /// appended before that was found out.
    #[error("there is no memory left for it")]
    OutOfMemory,
    /// The same, found out before anything was appended.
    #[error("it needs {needs} bytes of memory, and {room} are to be had")]
    NoRoom {
        /// Bytes that it takes.
        needs: u64,
        /// Bytes that could be promised.
        room: u64,
    },
    /// An object does not fit in a segment of this master.
    #[error("an object does not fit in a segment")]
    TooLarge,
    /// A range is served here.
    #[error("{:?} to {:?} of {:?} overlaps a tablet that is served here", .0.first, .0.last, .0.table)]
    Served(TabletGrant),
    /// A range is empty, or overlaps another.
    #[error("the tablets to recover overlap or are empty")]
    Ranges,
    /// Another replay has begun over its ranges, or their table was dropped.
    #[error("it was given up")]
    Ended,
}

/// How a step went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Go on at this offset.
    At(usize),
    /// The log is rolling over; go on at this offset in a while.
    Wait(usize),
    /// The segment is replayed.
    Done,
}

/// All that was replayed is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Where the log stood when the replay began: the takeover of all its tablets.
    pub takeover: LogPosition,
    /// What must be durable before it may be said that the tablets are recovered.
    pub end: LogPosition,
}

/// One attempt at some tablets of one crashed master.
#[derive(Debug)]
pub struct Replay {
    id: ReplayId,
    /// The tablets with the crashed master's takeovers.
    tablets: Tablets,
    tombstones: Tombstones,
    /// Versions of new keys must be at least this.
    safe: Version,
    /// And so much more, for those that are lost.
    skipped: u64,
    batch: Batch,
    /// What clients may still ask for again.
    calls: Completions,
    /// What wins of each key, if that was found out first: nothing else is replayed then.
    winners: Option<Winners>,
}

impl Store {
    /// Begins a replay of these tablets. One under way over any of them is given up. Nothing is
    /// replayed before [`Replay::purge`] is done.
    ///
    /// # Errors
    /// If a tablet overlaps one that is served here, or another of the tablets.
    pub fn begin_replay(&self, lost: &[LostTablet]) -> Result<Replay, ReplayError> {
        let mut tablets = Tablets::default();
        let mut ranges = Vec::with_capacity(lost.len());
        for one in lost {
            let taken = tablets.take(one.range, one.takeover);
            if taken.is_err() || ranges.contains(&one.range) {
                return Err(ReplayError::Ranges);
            }
            ranges.push(one.range);
        }
        let mut writer = self.writer();
        let id = writer.register_replay(&ranges, &self.tablets())?;
        let calls = Completions::knowing(writer.completions.ended());
        drop(writer);
        Ok(Replay {
            id,
            tablets,
            tombstones: Tombstones::default(),
            safe: Version(1),
            skipped: 0,
            batch: Batch::default(),
            calls,
            winners: None,
        })
    }

    /// Ends a replay from outside: it appends nothing more, and what it appended is swept in time.
    /// Nothing happens if its tablets were taken.
    pub fn end_replay(&self, id: ReplayId) {
        self.writer().end_replay(id);
    }
}

impl Replay {
    /// Its name.
    #[must_use]
    pub fn id(&self) -> ReplayId {
        self.id
    }

    /// Some of the log was given up: versions of new keys will be above any that it can have used.
    pub fn skip_lost_versions(&mut self) {
        self.skipped = LOST_VERSIONS;
    }

    /// Sweeps some of what the index holds of its ranges; true if there is more to do. After that
    /// segments may come.
    ///
    /// # Errors
    /// If it was ended.
    pub fn purge(&mut self, store: &Store) -> Result<bool, ReplayError> {
        let guard = store.pin();
        let mut writer = store.writer();
        if writer.replay_phase(self.id)? != Phase::Purging {
            return Ok(false);
        }
        if writer.begin_replaying(self.id).is_some() {
            return Ok(false);
        }
        writer.sweep(&guard, PURGE_BUCKETS);
        let more = writer.begin_replaying(self.id).is_none();
        parking_lot::MutexGuard::unlock_fair(writer);
        Ok(more)
    }

    /// Replays a batch of the entries of a segment of the crashed master, from the one at `offset`
    /// on. Segments may come in any order, and more than once.
    ///
    /// # Errors
    /// See [`ReplayError`]; it is to be abandoned then.
    pub fn step(
        &mut self,
        store: &Store,
        segment: &VerifiedSegment<'_>,
        offset: usize,
    ) -> Result<Step, ReplayError> {
        let contents = segment.contents();
        let next = self.collect(store, segment, offset);
        self.safe = self.safe.max(self.batch.safe());
        if !self.batch.is_empty() && !self.apply(store, contents)? {
            return Ok(Step::Wait(offset));
        }
        Ok(if next < contents.len() {
            Step::At(next)
        } else {
            Step::Done
        })
    }

    /// All segments were replayed: appends the safe version. `None` if the log is rolling over; it
    /// is to be called again then.
    ///
    /// # Errors
    /// See [`ReplayError`].
    pub fn finish(&mut self, store: &Store) -> Result<Option<Finished>, ReplayError> {
        let mut writer = store.writer();
        let takeover = match writer.replay_phase(self.id)? {
            Phase::Purging => return Err(ReplayError::Ended),
            Phase::Replaying(takeover) | Phase::Finished(takeover) => takeover,
        };
        if !calls::append(&mut writer, self.id, &mut self.calls)? {
            return Ok(None);
        }
        let safe = match mutants::active(Mutant::ReplayForgetsSafeVersion) {
            true => Version(1),
            false => Version(self.safe.0.saturating_add(self.skipped)),
        };
        let Some(end) = apply::append_safe_version(&mut writer, safe)? else {
            return Ok(None);
        };
        self.tombstones = Tombstones::default();
        writer.set_kept(self.id, 0);
        writer.finish_replaying(self.id);
        Ok(Some(Finished { takeover, end }))
    }
}
