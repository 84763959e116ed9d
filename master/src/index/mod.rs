//! The index: from key hash to reference, read by many without locks, changed by one writer.
//!
//! A bucket is a cache line: seven words of (16-bit tag, 48-bit reference), 0 when empty, and a meta
//! word of (32-bit version, link to an overflow bucket). Buckets follow the high bits of the hash,
//! so a range of hashes is a range of buckets. The index grows bucket by bucket, as it is written to.
//!
//! How readers keep up with the writer: they load the growth state, walk the bucket's chain, and
//! when they found nothing, look again whether the state still gives the same place and the first
//! bucket still has the same version. If not, words may have moved past them, and they start over.
//! What they do find is checked by the caller against the key, so a word met by straying into
//! another chain does no harm.
//!
//! # Invariants
//! 1. Every entry in the index is in exactly one word of the chain of its hash's place, except that
//!    a word about to move is for a moment in both words.
//! 2. A word leaves or changes its place in a chain only with a new version of the chain's first
//!    bucket, stored before the old word is zeroed; a chain is replaced only with a new state,
//!    stored before any of its overflow buckets is reused or its memory released.
//! 3. Only the last bucket of a chain has empty words, and an overflow bucket is never all empty.
//! 4. Each level has its own reservation, never unmapped: a reader who strays reads zeros.

mod overflow;
mod place;
mod reference;
mod sync;
mod writer;

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
mod tests;

use std::io;
use std::ops::RangeInclusive;
use std::sync::{Arc, OnceLock};

use ramkeep_memory::{AtomicArray, Line, WORDS_PER_LINE};
use ramkeep_wire::KeyHash;

use overflow::{Overflow, OverflowBuckets};
use place::{Growth, MAX_LEVEL, Place};
pub use reference::{OFFSET_BITS, REFERENCE_BITS, Reference, SLOT_BITS};
use sync::{AtomicWord, Figure, Ordering, pause};
pub use writer::{EntryHashes, IndexFull, IndexWriter};

/// Bytes that an index grows by, at most, when so many entries come.
#[must_use]
pub fn bytes_for(entries: u64) -> u64 {
    let tenths = entries * writer::TENTHS_OF_BYTES_PER_ENTRY;
    // What chains of overflow buckets take beyond that for a while.
    tenths.div_ceil(10) + tenths / 160
}

/// Words of a bucket that hold references.
const ENTRIES: usize = WORDS_PER_LINE - 1;
/// Bytes of a bucket.
const BUCKET_BYTES: u64 = 64;
/// Bytes that [`Index::populate_ahead`] keeps resident ahead of growth, a quarter of a second's worth
/// at two million inserts a second.
const POPULATE_AHEAD: u64 = 8 << 20;
/// The word of a bucket that holds version and link.
const META: usize = ENTRIES;
/// The level an index starts with; small where tests want to see it grow.
const FIRST_LEVEL: u32 = if cfg!(loom) {
    0
} else if cfg!(test) {
    1
} else {
    10
};

/// The index as readers have it. Made together with its one [`IndexWriter`].
#[derive(Debug)]
pub struct Index {
    /// A [`Growth`] as a word.
    growth: AtomicWord,
    /// The buckets of each level, reserved when the index grows into it.
    levels: [OnceLock<AtomicArray>; MAX_LEVEL as usize + 1],
    overflow: OverflowBuckets,
    max_level: u32,
    entries: Figure,
    overflow_in_use: Figure,
    /// Overflow buckets that were ever used.
    overflow_touched: Figure,
}

impl Index {
    /// An empty index that may grow to `max_buckets` buckets (rounded up to a power of two), and as
    /// many overflow buckets. Only address space is taken for them.
    ///
    /// # Errors
    /// The system's, if it refuses the address space; invalid input if there are 2^32 or more.
    pub fn new(max_buckets: usize) -> io::Result<(Arc<Self>, IndexWriter)> {
        let max_buckets = max_buckets.max(1 << FIRST_LEVEL);
        let first = OnceLock::from(AtomicArray::new(1 << FIRST_LEVEL)?);
        let mut levels = [const { OnceLock::new() }; MAX_LEVEL as usize + 1];
        levels[FIRST_LEVEL as usize] = first;
        let index = Arc::new(Self {
            growth: AtomicWord::new(
                Growth {
                    level: FIRST_LEVEL,
                    split: 0,
                }
                .word(),
            ),
            levels,
            overflow: OverflowBuckets::new(max_buckets)?,
            max_level: max_buckets.next_power_of_two().ilog2(),
            entries: Figure::new(0),
            overflow_in_use: Figure::new(0),
            overflow_touched: Figure::new(0),
        });
        Ok((Arc::clone(&index), IndexWriter::new(index)))
    }

    /// The reference of an entry with this hash for which `matches` says yes.
    ///
    /// `matches` is asked about references whose tag fits, perhaps repeatedly, and about some of
    /// other keys. The caller holds a guard of the segment memory since before the call, so that
    /// they can be read.
    #[inline]
    pub fn lookup(
        &self,
        hash: KeyHash,
        mut matches: impl FnMut(Reference) -> bool,
    ) -> Option<Reference> {
        loop {
            let chain = self.chain(hash);
            let tag = chain.place.tag(hash);
            let found = self.walk(&chain, |word| {
                if word >> REFERENCE_BITS != tag {
                    return None;
                }
                Reference::of_word(word).filter(|&reference| matches(reference))
            });
            if found.is_some() || self.unchanged(&chain, hash) {
                return found;
            }
            pause();
        }
    }

    /// All references in the bucket of `hash`, put into `references` (emptied before), and the range
    /// of hashes that the bucket covers.
    ///
    /// Every entry that is there throughout the call is among them once, in no particular order. A scan goes on with the
    /// hash after the range: growth only cuts ranges into smaller ones, so it neither misses nor
    /// repeats what stays.
    pub fn bucket_at(
        &self,
        hash: KeyHash,
        references: &mut Vec<Reference>,
    ) -> RangeInclusive<KeyHash> {
        loop {
            references.clear();
            let chain = self.chain(hash);
            self.walk(&chain, |word| {
                references.extend(Reference::of_word(word));
                None::<()>
            });
            if self.unchanged(&chain, hash) {
                // A word on the move was met in both its places, perhaps.
                references.sort_unstable();
                references.dedup();
                let (first, last) = chain.place.hashes();
                return first..=last;
            }
            pause();
        }
    }

    /// Asks the processor for the bucket of `hash`. Only a hint.
    #[inline]
    pub fn prefetch(&self, hash: KeyHash) {
        let place = Growth::of_word(self.growth.load(Ordering::Acquire)).place(hash);
        self.level(place.level).prefetch(place.bucket as usize);
    }

    /// Makes the memory that the index grows into next resident: a quarter of what it takes, 8 MiB
    /// at most. It may take milliseconds, which writers are spared; cheap when it was done before.
    /// For a thread that nobody waits for, ten times a second or so.
    pub fn populate_ahead(&self) {
        let growth = Growth::of_word(self.growth.load(Ordering::Acquire));
        let ahead = (self.bytes() / 4).min(POPULATE_AHEAD) / BUCKET_BYTES;
        let (level, next) = (growth.level + 1, 2 * growth.split);
        self.populate(level, next..next + ahead);
        self.populate(level + 1, 0..(next + ahead).saturating_sub(1 << level));
        let overflow = self.overflow_touched.load(Ordering::Relaxed);
        self.overflow.populate(overflow..overflow + ahead / 8);
    }

    fn populate(&self, level: u32, buckets: std::ops::Range<u64>) {
        if level <= self.max_level && !buckets.is_empty() && self.reserve_level(level) {
            self.level(level)
                .populate(buckets.start as usize..buckets.end as usize);
        }
    }

    /// Makes sure that the buckets of `level` are reserved. Without address space for them the index
    /// goes on with longer chains.
    fn reserve_level(&self, level: u32) -> bool {
        let reservation = &self.levels[level as usize];
        if reservation.get().is_none() {
            let Ok(buckets) = AtomicArray::new(1 << level) else {
                return false;
            };
            // Another thread may have been faster; then its reservation is the one.
            let _mine = reservation.set(buckets);
        }
        true
    }

    /// Entries in the index.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the buckets in use, overflow buckets included.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let buckets = Growth::of_word(self.growth.load(Ordering::Acquire)).buckets();
        (buckets + self.overflow_in_use.load(Ordering::Relaxed)) * BUCKET_BYTES
    }

    fn level(&self, level: u32) -> &AtomicArray {
        // Acquiring the state that names a level makes its reservation visible.
        self.levels[level as usize]
            .get()
            .expect("a level is reserved before the state names it")
    }

    #[inline]
    fn chain(&self, hash: KeyHash) -> Chain<'_> {
        let place = Growth::of_word(self.growth.load(Ordering::Acquire)).place(hash);
        let first = self.level(place.level).line(place.bucket as usize);
        // Before any other word of the chain: it tells later whether they stood still.
        let meta = first[META].load(Ordering::Acquire);
        Chain { place, first, meta }
    }

    /// Goes through the words of a chain until `visit` gives something.
    #[inline]
    fn walk<R>(&self, chain: &Chain<'_>, mut visit: impl FnMut(u64) -> Option<R>) -> Option<R> {
        let (mut line, mut meta) = (chain.first, chain.meta);
        loop {
            for word in &line[..ENTRIES] {
                let found = visit(word.load(Ordering::Acquire));
                if found.is_some() {
                    return found;
                }
            }
            line = self.overflow.line(Overflow::linked(meta)?);
            meta = line[META].load(Ordering::Acquire);
        }
    }

    /// Whether no word of the chain can have moved since `chain` was made. The loads in between
    /// were Acquire, so this is not done before them; and every store that hides a word from a
    /// reader is a Release store that comes after one of those seen here (invariant 2).
    #[inline]
    fn unchanged(&self, chain: &Chain<'_>, hash: KeyHash) -> bool {
        let growth = Growth::of_word(self.growth.load(Ordering::Acquire));
        growth.place(hash) == chain.place && chain.first[META].load(Ordering::Acquire) == chain.meta
    }
}

/// A bucket and its overflow buckets, as they were when a walk began.
struct Chain<'a> {
    place: Place,
    first: &'a Line,
    meta: u64,
}
