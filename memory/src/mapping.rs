//! One anonymous private mapping: where its bytes are, and how its pages go back to the system.
//!
//! # Invariants
//! 1. The base is page aligned; `base .. base + len` stays mapped, readable and writable until drop.
//! 2. Every byte is initialised from the start: the system hands out zeroed pages.

#![allow(unsafe_code)]

use std::io;
use std::ops::Range;

use memmap2::{MmapOptions, MmapRaw, UncheckedAdvice};

/// Pages are given back in units of this; larger system pages only make a release fail and fall
/// back to writing zeros.
pub(crate) const PAGE: usize = 4096;

/// A reservation of zeroed memory that takes up room only where it is touched.
#[derive(Debug)]
pub(crate) struct Mapping {
    raw: MmapRaw,
    len: usize,
}

impl Mapping {
    /// Reserves `len` bytes of address space (at least one page), asking for huge pages if wanted.
    pub(crate) fn reserve(len: usize, huge_pages: bool) -> io::Result<Self> {
        let map = MmapOptions::new()
            .len(len.max(PAGE))
            .no_reserve_swap()
            .map_anon()?;
        #[cfg(target_os = "linux")]
        if huge_pages {
            // Only a hint: a system without transparent huge pages refuses it and works as well.
            let _refused = map.advise(memmap2::Advice::HugePage);
        }
        #[cfg(not(target_os = "linux"))]
        let _ = huge_pages;
        Ok(Self {
            raw: MmapRaw::from(map),
            len,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The first byte. Reading or writing through it is the caller's unsafe business.
    pub(crate) fn base(&self) -> *mut u8 {
        self.raw.as_mut_ptr()
    }

    /// Makes the pages of `range` resident, as far as the system can; contents stay. What was not
    /// populated costs a fault at its first touch: milliseconds for a huge page in a virtual machine.
    pub(crate) fn populate(&self, range: Range<usize>) {
        debug_assert!(range.end <= self.len, "populate past the end of a mapping");
        #[cfg(target_os = "linux")]
        if range.start < range.end {
            let start = range.start / PAGE * PAGE;
            let advice = memmap2::Advice::PopulateWrite;
            let _unsupported = self.raw.advise_range(advice, start, range.end - start);
        }
    }

    /// Gives the whole pages inside `range` back to the system; they read as zero afterwards.
    /// Returns the part of `range` that was given back, empty if none was.
    ///
    /// # Safety
    /// No `&[u8]` or `&mut [u8]` into `range` may live: its bytes change to zero under it.
    /// References to atomics may live; to them this is a relaxed store of zero.
    pub(crate) unsafe fn release(&self, range: Range<usize>) -> Range<usize> {
        debug_assert!(range.end <= self.len, "release past the end of a mapping");
        let start = range.start.next_multiple_of(PAGE);
        let end = range.end.min(self.len) / PAGE * PAGE;
        if start >= end {
            return range.start..range.start;
        }
        // SAFETY: the pages lie inside this anonymous private mapping (invariant 1), so dropping
        // them makes them zero and nothing else; that nobody borrows them as plain bytes is the
        // caller's promise.
        let done = unsafe {
            self.raw
                .unchecked_advise_range(UncheckedAdvice::DontNeed, start, end - start)
        };
        if done.is_ok() {
            start..end
        } else {
            range.start..range.start
        }
    }
}

/// Asks the processor for the cache line at `address`, which need not be valid.
#[inline]
pub(crate) fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing and never faults, whatever the address; x86_64 always
        // has the instruction.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
