//! The writer's side of the index: insert, replace, remove, and growth.
//!
//! # Invariants
//! 1. There is one writer per index, and changing takes `&mut` of it.
//! 2. Every store that a reader may meet is a Release store.
//! 3. An insert splits at most [`SPLITS_PER_INSERT`] buckets, so growing never pauses.

use std::sync::Arc;

use ramkeep_memory::Line;
use ramkeep_wire::KeyHash;

use super::overflow::{FreeOverflow, Overflow};
use super::place::{Growth, Place};
use super::reference::{REFERENCE_BITS, Reference};
use super::sync::{AtomicWord, Ordering};
use super::{BUCKET_BYTES, ENTRIES, Index, META};

/// The room the index may take, in tenths of a byte per entry: buckets split as long as that leaves
/// it below. Enough for chains of 1.2 buckets in the mean when a level is half split.
pub(super) const TENTHS_OF_BYTES_PER_ENTRY: u64 = if cfg!(loom) { 480 } else { 155 };
/// A split adds a bucket, worth four entries at the above; two per insert catch up quickly after
/// many overflow buckets came together.
const SPLITS_PER_INSERT: usize = 2;
/// Memory of an old level is given back in steps of this many buckets: 2 MiB.
const RELEASE_STEP: u64 = if cfg!(any(test, loom)) {
    2
} else {
    (2 << 20) / BUCKET_BYTES
};
/// Adds one to the version in a meta word.
const ONE_VERSION: u64 = 1 << 32;
const LINK_MASK: u64 = ONE_VERSION - 1;

/// The index has no bucket left for the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the index is full")]
pub struct IndexFull;

/// What the index asks of the log: a split needs the hashes of some entries anew.
pub trait EntryHashes {
    /// The key hash of the entry at `reference`, which is in the index now.
    fn hash_of(&self, reference: Reference) -> KeyHash;

    /// Announces that `hash_of` will be asked about `reference`. Only a hint.
    fn prefetch(&self, reference: Reference) {
        let _ = reference;
    }
}

impl<F: Fn(Reference) -> KeyHash> EntryHashes for F {
    fn hash_of(&self, reference: Reference) -> KeyHash {
        self(reference)
    }
}

/// The right to change an [`Index`]; there is one per index.
#[derive(Debug)]
pub struct IndexWriter {
    index: Arc<Index>,
    free: FreeOverflow,
    entries: u64,
    growth: Growth,
    /// Buckets of the level being split whose memory was given back.
    released: u64,
    /// Kept to save allocations: what a split has in its hands.
    scratch: Scratch,
}

#[derive(Debug, Default)]
struct Scratch {
    words: Vec<u64>,
    overflow: Vec<Overflow>,
}

/// A word in a chain, with what leads to it.
struct Found<'a> {
    first: &'a Line,
    word: &'a AtomicWord,
}

impl IndexWriter {
    pub(super) fn new(index: Arc<Index>) -> Self {
        let free = FreeOverflow::of(&index.overflow);
        let growth = Growth::of_word(index.growth.load(Ordering::Acquire));
        Self {
            index,
            free,
            entries: 0,
            growth,
            released: 0,
            scratch: Scratch::default(),
        }
    }

    /// The index that this writes to.
    #[must_use]
    pub fn index(&self) -> &Arc<Index> {
        &self.index
    }

    /// Adds an entry. The caller knows that its key has none yet; the index does not look.
    ///
    /// # Errors
    /// [`IndexFull`] if there is no bucket for it; nothing has changed then.
    pub fn insert(
        &mut self,
        hash: KeyHash,
        reference: Reference,
        hashes: &impl EntryHashes,
    ) -> Result<(), IndexFull> {
        let place = self.growth.place(hash);
        let word = place.tag(hash) << REFERENCE_BITS | reference.bits();
        self.add(place, word)?;
        self.entries += 1;
        for _ in 0..SPLITS_PER_INSERT {
            if !self.has_room_to_split() || !self.split_next(hashes) {
                break;
            }
        }
        self.publish_figures();
        Ok(())
    }

    /// Makes the word of `old` point to `new`, at once for all readers. False if `old` is not there.
    pub fn replace(&mut self, hash: KeyHash, old: Reference, new: Reference) -> bool {
        let place = self.growth.place(hash);
        let Some(found) = self.find(place, hash, old) else {
            return false;
        };
        found.word.store(
            place.tag(hash) << REFERENCE_BITS | new.bits(),
            Ordering::Release,
        );
        true
    }

    /// Takes an entry out. False if it is not there.
    pub fn remove(&mut self, hash: KeyHash, reference: Reference) -> bool {
        let place = self.growth.place(hash);
        let Some(found) = self.find(place, hash, reference) else {
            return false;
        };
        let (before_last, last) = self.last_two(found.first);
        let last_word = last.map_or(found.first, |last| self.index.overflow.line(last))[..ENTRIES]
            .iter()
            .rfind(|word| word.load(Ordering::Relaxed) != 0)
            .expect("the last bucket of a chain that holds an entry is not empty");
        // The last word fills the gap, so that gaps stay in the last bucket. It is in both words
        // until the version says that it moved.
        let moved = last_word.load(Ordering::Relaxed);
        if !std::ptr::eq(found.word, last_word) {
            found.word.store(moved, Ordering::Release);
        }
        let meta = &found.first[META];
        meta.store(
            meta.load(Ordering::Relaxed).wrapping_add(ONE_VERSION),
            Ordering::Release,
        );
        last_word.store(0, Ordering::Release);
        let emptied = last.filter(|&last| is_empty(self.index.overflow.line(last)));
        if let Some(last) = emptied {
            set_link(before_last, None);
            self.free.give_back(last);
        }
        self.entries -= 1;
        self.publish_figures();
        true
    }

    fn publish_figures(&self) {
        let index = &self.index;
        index.entries.store(self.entries, Ordering::Relaxed);
        index
            .overflow_in_use
            .store(self.free.in_use(), Ordering::Relaxed);
        index
            .overflow_touched
            .store(self.free.touched(), Ordering::Relaxed);
    }

    fn first_line(&self, place: Place) -> &Line {
        self.index.level(place.level).line(place.bucket as usize)
    }

    fn find(&self, place: Place, hash: KeyHash, reference: Reference) -> Option<Found<'_>> {
        let sought = place.tag(hash) << REFERENCE_BITS | reference.bits();
        let first = self.first_line(place);
        let mut line = first;
        loop {
            let is_sought = |word: &&AtomicWord| word.load(Ordering::Relaxed) == sought;
            if let Some(word) = line[..ENTRIES].iter().find(is_sought) {
                return Some(Found { first, word });
            }
            line = self.index.overflow.line(linked(line)?);
        }
    }

    /// The last bucket of a chain, if it is an overflow bucket, and the bucket before it.
    fn last_two<'a>(&'a self, first: &'a Line) -> (&'a Line, Option<Overflow>) {
        let (mut before, mut last) = (first, linked(first));
        while let Some(overflow) = last {
            let line = self.index.overflow.line(overflow);
            let Some(next) = linked(line) else { break };
            (before, last) = (line, Some(next));
        }
        (before, last)
    }

    /// Puts a word into the first gap of a chain, adding an overflow bucket if there is none.
    fn add(&mut self, place: Place, word: u64) -> Result<(), IndexFull> {
        let index = Arc::clone(&self.index);
        let mut line = index.level(place.level).line(place.bucket as usize);
        while let Some(overflow) = linked(line) {
            line = index.overflow.line(overflow);
        }
        let is_gap = |word: &&AtomicWord| word.load(Ordering::Relaxed) == 0;
        if let Some(gap) = line[..ENTRIES].iter().find(is_gap) {
            gap.store(word, Ordering::Release);
            return Ok(());
        }
        let overflow = self.free.take().ok_or(IndexFull)?;
        fill(index.overflow.line(overflow), &[word], None);
        set_link(line, Some(overflow));
        Ok(())
    }

    fn has_room_to_split(&self) -> bool {
        let with_another = self.growth.buckets() + self.free.in_use() + 1;
        with_another * BUCKET_BYTES * 10 <= self.entries * TENTHS_OF_BYTES_PER_ENTRY
    }

    /// Replaces the next bucket in line by two of the next level. False if the index cannot grow.
    fn split_next(&mut self, hashes: &impl EntryHashes) -> bool {
        let growth = self.growth;
        let place = Place {
            level: growth.level,
            bucket: growth.split,
        };
        if growth.level == self.index.max_level || !self.index.reserve_level(growth.level + 1) {
            return false;
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        self.gather(place, &mut scratch);
        // Two chains never take more overflow buckets than the one they come from.
        let enough = self.free.left() >= scratch.overflow.len();
        if enough {
            self.distribute(place, &mut scratch.words, hashes);
            self.growth = growth.next();
            self.index
                .growth
                .store(self.growth.word(), Ordering::Release);
            scratch
                .overflow
                .drain(..)
                .for_each(|overflow| self.free.give_back(overflow));
            self.release_behind(growth);
        }
        self.scratch = scratch;
        enough
    }

    /// Collects the words of a chain, and its overflow buckets.
    fn gather(&self, place: Place, scratch: &mut Scratch) {
        scratch.words.clear();
        scratch.overflow.clear();
        let mut line = self.first_line(place);
        loop {
            let words = line[..ENTRIES]
                .iter()
                .map(|word| word.load(Ordering::Relaxed));
            scratch.words.extend(words.filter(|&word| word != 0));
            let Some(overflow) = linked(line) else { break };
            scratch.overflow.push(overflow);
            line = self.index.overflow.line(overflow);
        }
    }

    /// Writes the words of `place` to the two buckets that replace it, not yet seen by readers.
    fn distribute(&mut self, place: Place, words: &mut [u64], hashes: &impl EntryHashes) {
        // Partitioned in place: the first bucket's words, then the second's.
        let mut firsts = 0;
        for at in 0..words.len() {
            if !place.goes_to_second(words[at]) {
                words.swap(firsts, at);
                firsts += 1;
            }
        }
        let [first, second] = place.children();
        if !place.split_keeps_tags() {
            let references = words.iter().copied().filter_map(Reference::of_word);
            references.for_each(|reference| hashes.prefetch(reference));
            words[..firsts]
                .iter_mut()
                .for_each(|word| *word = retag(first, *word, hashes));
            words[firsts..]
                .iter_mut()
                .for_each(|word| *word = retag(second, *word, hashes));
        }
        self.write_chain(first, &words[..firsts]);
        self.write_chain(second, &words[firsts..]);
    }

    /// Writes a bucket that readers do not know yet, with as many overflow buckets as it takes.
    fn write_chain(&mut self, place: Place, words: &[u64]) {
        let mut chunks = words.chunks(ENTRIES);
        let first = chunks.next().unwrap_or(&[]);
        let mut next = None;
        // From the end, so that each links to one that is complete.
        for chunk in chunks.rev() {
            let overflow = self.free.take().expect("counted before the split");
            fill(self.index.overflow.line(overflow), chunk, next);
            next = Some(overflow);
        }
        fill(self.first_line(place), first, next);
    }

    /// Gives memory of split buckets back, in steps.
    fn release_behind(&mut self, before: Growth) {
        let done = before.split + 1;
        let level_done = self.growth.level != before.level;
        if done - self.released >= RELEASE_STEP || level_done {
            let old = self.index.level(before.level);
            old.release(self.released as usize..done as usize);
            self.released = if level_done { 0 } else { done };
        }
    }
}

/// The overflow bucket that follows a bucket. The writer's own stores need no ordering to it.
fn linked(line: &Line) -> Option<Overflow> {
    Overflow::linked(line[META].load(Ordering::Relaxed))
}

/// Changes the link of a bucket, and leaves its version.
fn set_link(line: &Line, next: Option<Overflow>) {
    let version = line[META].load(Ordering::Relaxed) & !LINK_MASK;
    line[META].store(version | Overflow::link(next), Ordering::Release);
}

fn is_empty(line: &Line) -> bool {
    line[..ENTRIES]
        .iter()
        .all(|word| word.load(Ordering::Relaxed) == 0)
}

/// Sets every word of a bucket: `words`, then empty ones, then the link.
fn fill(line: &Line, words: &[u64], next: Option<Overflow>) {
    for (at, word) in line[..ENTRIES].iter().enumerate() {
        word.store(words.get(at).copied().unwrap_or(0), Ordering::Release);
    }
    line[META].store(Overflow::link(next), Ordering::Release);
}

fn retag(place: Place, word: u64, hashes: &impl EntryHashes) -> u64 {
    let reference = Reference::of_word(word).expect("gathered words are not empty");
    let hash = hashes.hash_of(reference);
    let (first, last) = place.hashes();
    assert!(
        first <= hash && hash <= last,
        "the log says {hash:?} for an entry of {place:?}"
    );
    place.tag(hash) << REFERENCE_BITS | reference.bits()
}
