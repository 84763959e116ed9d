//! A reservation of atomic words that costs memory only where it was touched.
//!
//! Used through cache lines of eight words. Under `--cfg loom` the same API stands on loom's atomics,
//! so that what is built on it can be modelled.
//!
//! # Invariants
//! 1. Every word is zero until it is stored to, and after it was released.
//! 2. Line `i` is the 64-byte aligned words `8 i .. 8 i + 8`.

#![allow(unsafe_code)]

use std::io;
use std::ops::Range;

#[cfg(loom)]
pub use loom::sync::atomic::AtomicU64 as AtomicWord;
#[cfg(not(loom))]
pub use std::sync::atomic::AtomicU64 as AtomicWord;

#[cfg(not(loom))]
use crate::mapping::Mapping;

/// Words in a cache line; few under loom, whose work grows with every word.
pub const WORDS_PER_LINE: usize = if cfg!(loom) { 3 } else { 8 };

/// One cache line of atomic words.
pub type Line = [AtomicWord; WORDS_PER_LINE];

/// A fixed number of cache lines of atomic words, zero at first.
#[derive(Debug)]
pub struct AtomicArray {
    #[cfg(not(loom))]
    mapping: Mapping,
    #[cfg(loom)]
    words: Vec<Line>,
    lines: usize,
}

impl AtomicArray {
    /// Lines altogether.
    #[must_use]
    pub fn lines(&self) -> usize {
        self.lines
    }

    /// The word `index`.
    ///
    /// # Panics
    /// If the array has no such word.
    #[must_use]
    #[inline]
    pub fn get(&self, index: usize) -> &AtomicWord {
        &self.line(index / WORDS_PER_LINE)[index % WORDS_PER_LINE]
    }
}

#[cfg(not(loom))]
impl AtomicArray {
    /// Reserves `lines` cache lines.
    ///
    /// # Errors
    /// The system's, if it refuses the address space.
    pub fn new(lines: usize) -> io::Result<Self> {
        let bytes = lines
            .checked_mul(size_of::<Line>())
            .filter(|&bytes| bytes < isize::MAX as usize);
        let Some(bytes) = bytes else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "impossible array size",
            ));
        };
        Ok(Self {
            mapping: Mapping::reserve(bytes, true)?,
            lines,
        })
    }

    /// The line `index`.
    ///
    /// # Panics
    /// If the array has no such line.
    #[must_use]
    #[inline]
    pub fn line(&self, index: usize) -> &Line {
        assert!(
            index < self.lines,
            "line {index} of an array of {}",
            self.lines
        );
        // SAFETY: the line lies in the mapping, which lives as long as `self`; the base is page
        // aligned, so lines are aligned to 64; the bytes are initialised (zeroed by the system) and
        // nothing but atomics ever refers to them: this module makes no other reference.
        unsafe { &*self.mapping.base().cast::<Line>().add(index) }
    }

    /// Asks the processor to fetch the line `index`. Only a hint; `index` may be anything.
    #[inline]
    pub fn prefetch(&self, index: usize) {
        crate::mapping::prefetch(
            self.mapping
                .base()
                .cast::<Line>()
                .wrapping_add(index)
                .cast(),
        );
    }

    /// Makes the lines of `range` resident ahead of their use, as far as they exist. Only a hint;
    /// it may take milliseconds, which whoever touches them first is spared.
    pub fn populate(&self, range: Range<usize>) {
        let (start, end) = (range.start.min(self.lines), range.end.min(self.lines));
        self.mapping
            .populate(start * size_of::<Line>()..end * size_of::<Line>());
    }

    /// Sets the lines of `range` to zero, as by Release stores, and gives their pages back to the
    /// system where they are whole. (Taking a page away interrupts every processor that runs the
    /// process, which orders what was stored before for whoever finds the zeros.)
    ///
    /// # Panics
    /// If the array lacks some of the lines.
    pub fn release(&self, range: Range<usize>) {
        assert!(
            range.start <= range.end && range.end <= self.lines,
            "release past the end"
        );
        let line = size_of::<Line>();
        // SAFETY: only references to atomics into this mapping exist (see `line`).
        let released = unsafe { self.mapping.release(range.start * line..range.end * line) };
        // What is not in whole pages, or was not taken by the system.
        self.zero(range.start..released.start / line);
        self.zero(released.end / line..range.end);
    }
}

#[cfg(loom)]
impl AtomicArray {
    /// As without loom; the lines exist from the start.
    ///
    /// # Errors
    /// None.
    pub fn new(lines: usize) -> io::Result<Self> {
        let line = |_| std::array::from_fn(|_| AtomicWord::new(0));
        Ok(Self {
            words: (0..lines).map(line).collect(),
            lines,
        })
    }

    /// As without loom.
    #[must_use]
    pub fn line(&self, index: usize) -> &Line {
        &self.words[index]
    }

    /// As without loom: nothing.
    pub fn prefetch(&self, _index: usize) {}

    /// As without loom: nothing.
    pub fn populate(&self, _range: Range<usize>) {}

    /// As without loom, by stores.
    pub fn release(&self, range: Range<usize>) {
        assert!(
            range.start <= range.end && range.end <= self.lines,
            "release past the end"
        );
        self.zero(range);
    }
}

impl AtomicArray {
    fn zero(&self, lines: Range<usize>) {
        use std::sync::atomic::Ordering::Release;
        for line in lines {
            self.line(line)
                .iter()
                .for_each(|word| word.store(0, Release));
        }
    }
}
