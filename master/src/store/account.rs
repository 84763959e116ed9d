//! The account of a master's memory: what may be used, what counts, what removals will need.
//!
//! # Invariants
//! 1. Segments, index and what is kept for replays together stay within the budget.
//! 2. The room that can still be appended to, less what may be lost at the ends of segments, is at
//!    least what the tombstones of all live objects take and what is promised to replays: removing always
//!    works, down to empty, and a replay that was admitted finds its memory.
//!
//! Room that may be lost: a group that does not fit leaves the rest of a segment unused. After the
//! last write of a client only tombstones and what is promised are appended, so that is less than the
//! longest of them per segment.

use ramkeep_wire::entry::tombstone_len;

use super::log::Log;

/// The most that one insert adds to the index: two splits, their overflow buckets, and one more.
const INDEX_GROWTH: u64 = 4 << 10;

/// What a group of entries does to the log, for [`Account::admits`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Demand {
    /// Bytes to append.
    pub(super) group: usize,
    /// The length of a key that had no object before.
    pub(super) new_key: Option<usize>,
}

/// What a replay will append, or may still append, once it is admitted (SAFETY 26).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Need {
    /// Bytes of entries, and of the tombstones that their objects may need one day.
    pub(super) bytes: u64,
    /// The longest of those entries.
    pub(super) longest: usize,
    /// Bytes beside the log: in the index, and kept until the end.
    pub(super) beside: u64,
}

impl Need {
    /// All of it, for people and for who looks for a master that has the room.
    pub(crate) fn total(&self) -> u64 {
        self.bytes + self.beside
    }
}

/// Figures of one master's memory. Bytes, unless said otherwise.
#[derive(Clone, Copy, Debug)]
pub(super) struct Account {
    budget: u64,
    /// Tombstones of all live objects.
    pub(super) reserved: u64,
    /// Entries of all live objects.
    pub(super) live: u64,
    /// How many objects are alive.
    pub(super) objects: u64,
    /// Keys and values of all live objects.
    pub(super) payload: u64,
    /// What is kept for a while beside log and index: tombstones that a replay remembers.
    pub(super) kept: u64,
    /// The longest tombstone that any object so far may need.
    longest_tombstone: usize,
    /// What all replays that are admitted may still take.
    pub(super) promised: Need,
}

impl Account {
    pub(super) fn new(budget: u64) -> Self {
        Self {
            budget,
            reserved: 0,
            live: 0,
            objects: 0,
            payload: 0,
            kept: 0,
            longest_tombstone: 0,
            promised: Need::default(),
        }
    }

    pub(super) fn budget(&self) -> u64 {
        self.budget
    }

    /// Segments that the log may have beside an index of `index_bytes`.
    #[inline]
    pub(super) fn segments(&self, log: &Log, index_bytes: u64) -> usize {
        let left = self
            .budget
            .saturating_sub(index_bytes + INDEX_GROWTH + self.kept);
        let affordable = left / log.segment_size() as u64;
        log.max_segments().min(affordable as usize)
    }

    /// Whether the demand can be met so that afterwards all tombstones still have their room.
    #[inline]
    pub(super) fn admits(&self, log: &Log, index_bytes: u64, demand: Demand) -> bool {
        let tombstone = demand.new_key.map_or(0, tombstone_len);
        let promised = &self.promised;
        let longest = self.longest_tombstone.max(tombstone).max(promised.longest);
        let segments = self.segments(log, index_bytes + promised.beside);
        let Some(spare) = segments.checked_sub(log.segment_count()) else {
            return false;
        };
        // Of each segment: what can surely be used for tombstones.
        let per_segment = log.fresh_room(segments).saturating_sub(longest);
        let (room, spare) = match log.room().checked_sub(demand.group) {
            Some(left) => (left.saturating_sub(longest), spare),
            None if spare == 0 => return false,
            None => (per_segment.saturating_sub(demand.group), spare - 1),
        };
        (room + spare * per_segment) as u64 >= self.reserved + tombstone as u64 + promised.bytes
    }

    /// Bytes that could be promised, if none of the entries is longer than `longest`.
    pub(super) fn room(&self, log: &Log, index_bytes: u64, longest: usize) -> u64 {
        let longest = longest
            .max(self.longest_tombstone)
            .max(self.promised.longest);
        let segments = self.segments(log, index_bytes + self.promised.beside);
        let Some(spare) = segments.checked_sub(log.segment_count()) else {
            return 0;
        };
        let per_segment = log.fresh_room(segments).saturating_sub(longest);
        let room = (log.room().saturating_sub(longest) + spare * per_segment) as u64;
        room.saturating_sub(self.reserved + self.promised.bytes)
    }

    /// Whether all tombstones of live objects have their room.
    pub(super) fn is_sound(&self, log: &Log, index_bytes: u64) -> bool {
        let nothing = Demand {
            group: 0,
            new_key: None,
        };
        self.admits(log, index_bytes, nothing)
    }

    /// An object came to be.
    #[inline]
    pub(super) fn added(&mut self, key: usize, value: usize, entry: usize) {
        let tombstone = tombstone_len(key);
        self.longest_tombstone = self.longest_tombstone.max(tombstone);
        self.reserved += tombstone as u64;
        self.live += entry as u64;
        self.payload += (key + value) as u64;
        self.objects += 1;
    }

    /// An object is no more.
    #[inline]
    pub(super) fn removed(&mut self, key: usize, value: usize, entry: usize) {
        self.reserved -= tombstone_len(key) as u64;
        self.live -= entry as u64;
        self.payload -= (key + value) as u64;
        self.objects -= 1;
    }
}
