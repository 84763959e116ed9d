//! Segment memory: one mapping cut into equal slots, each appended to by one owner.
//!
//! # Invariants
//! 1. A slot is on the free list, or exactly one [`Appender`] or [`Closed`] for it exists, or it is
//!    retired (freed, waiting for guards), or its token was dropped (it stays as it is for good).
//! 2. Bytes below a slot's `written` do not change until the slot is back on the free list.
//! 3. A retired slot returns to the free list only when no guard made before it was retired lives;
//!    guards made after that are refused its bytes.

#![allow(unsafe_code)]

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crossbeam_epoch::Collector;

use crate::guard::{Guard, pin_epoch};
use crate::mapping::Mapping;

/// `Slot::retired` of a slot that is not retired.
const NOT_RETIRED: u64 = u64::MAX;

/// Attempts `claim` makes to finish reclaiming retired slots before it gives up: an epoch passes
/// with each, and garbage is two epochs old when it is dropped.
const RECLAIM_ROUNDS: usize = 4;

/// The number of a slot in its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

/// A slot lacks the room for an append. Nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{needed} bytes do not fit in the {left} that are left in the segment")]
pub struct Full {
    /// Bytes asked for.
    pub needed: usize,
    /// Bytes that are left.
    pub left: usize,
}

/// Alone in its cache line, so that appends to one slot do not disturb readers of its neighbours.
#[derive(Debug)]
#[repr(align(64))]
struct SlotState {
    /// Bytes that are published. Grows while the slot has an appender.
    written: AtomicU32,
    /// The number of this slot's retirement, or [`NOT_RETIRED`].
    retired: AtomicU64,
}

#[derive(Debug)]
struct FreeList {
    /// Freed slots, reused before fresh ones because their pages are resident already.
    reusable: Vec<u32>,
    /// Slots from here on were never claimed.
    fresh: u32,
    /// Retired slots that guards still hold back.
    held_back: u32,
}

#[derive(Debug)]
struct Inner {
    mapping: Mapping,
    slot_size: usize,
    slots: Box<[SlotState]>,
    free: Mutex<FreeList>,
    collector: Collector,
    /// Retirements so far; changed under `free`'s lock.
    retirements: AtomicU64,
}

/// A fixed number of equal slots of memory. Clones share the same memory.
#[derive(Clone, Debug)]
pub struct SegmentMemory {
    inner: Arc<Inner>,
}

impl SegmentMemory {
    /// Reserves `slots` slots of `slot_size` bytes. They take up memory as they are written to.
    ///
    /// # Errors
    /// The system's, if it refuses the address space; invalid input if a slot would be empty or of
    /// 4 GiB or more.
    pub fn new(slots: u32, slot_size: usize) -> io::Result<Self> {
        let total = slot_size.checked_mul(slots as usize);
        let (Some(total), true) = (total, slot_size > 0 && u32::try_from(slot_size).is_ok()) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "impossible slot size",
            ));
        };
        let new_slot = || SlotState {
            written: AtomicU32::new(0),
            retired: AtomicU64::new(NOT_RETIRED),
        };
        Ok(Self {
            inner: Arc::new(Inner {
                mapping: Mapping::reserve(total, true)?,
                slot_size,
                slots: (0..slots).map(|_| new_slot()).collect(),
                free: Mutex::new(FreeList {
                    reusable: Vec::new(),
                    fresh: 0,
                    held_back: 0,
                }),
                collector: Collector::new(),
                retirements: AtomicU64::new(0),
            }),
        })
    }

    /// Bytes of one slot.
    #[must_use]
    pub fn slot_size(&self) -> usize {
        self.inner.slot_size
    }

    /// Slots altogether.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.inner.slots.len()
    }

    /// Slots that can be claimed now, or as soon as the guards that hold them back are gone.
    #[must_use]
    pub fn free_slots(&self) -> usize {
        let free = self.inner.lock_free();
        free.reusable.len() + free.held_back as usize + self.slots() - free.fresh as usize
    }

    /// Slots that were ever claimed: a bound on what the memory makes resident.
    #[must_use]
    pub fn touched_slots(&self) -> usize {
        self.inner.lock_free().fresh as usize
    }

    /// Takes an empty slot, or none if all are in use or held back by guards.
    ///
    /// The calling thread must not hold a guard of its own when it wants slots back that it freed
    /// while holding it.
    #[must_use]
    pub fn claim(&self) -> Option<Appender> {
        for _ in 0..RECLAIM_ROUNDS {
            let mut free = self.inner.lock_free();
            if let Some(slot) = self.inner.take_free(&mut free) {
                return Some(Appender {
                    memory: Arc::clone(&self.inner),
                    slot,
                    written: 0,
                });
            }
            if free.held_back == 0 {
                return None;
            }
            drop(free);
            pin_epoch(&self.inner.collector).flush();
        }
        None
    }

    /// Frees a slot: it is claimable again once every guard made before now is gone (and perhaps
    /// one made shortly after). Guards made before read it to their end; later ones are refused it.
    pub fn free(&self, slot: impl Into<Closed>) {
        let closed = slot.into();
        assert!(
            Arc::ptr_eq(&closed.memory, &self.inner),
            "slot freed in another memory"
        );
        closed.memory.retire(closed.slot);
    }

    /// Makes the next slot that was never claimed resident, and says whether there is one. It may
    /// take tens of milliseconds, which the slot's appender is spared; calls for one slot are cheap
    /// after the first. For a thread that nobody waits for.
    pub fn populate_next(&self) -> bool {
        let fresh = self.inner.lock_free().fresh as usize;
        let start = fresh * self.inner.slot_size;
        let exists = fresh < self.slots();
        if exists {
            // Claimed meanwhile, the slot is none the worse for it: contents stay.
            self.inner
                .mapping
                .populate(start..start + self.inner.slot_size);
        }
        exists
    }

    /// Makes all slots resident, as [`populate_next`](Self::populate_next) does with one.
    pub fn populate_all(&self) {
        let (len, step) = (self.inner.mapping.len(), self.inner.slot_size);
        // Slot by slot: the system lets no other thread of the process map anything meanwhile.
        for start in (0..len).step_by(step) {
            self.inner.mapping.populate(start..(start + step).min(len));
            std::thread::yield_now();
        }
    }

    /// Gives the memory of freed slots back to the system.
    pub fn trim(&self) {
        let free = self.inner.lock_free();
        for &slot in &free.reusable {
            let start = slot as usize * self.inner.slot_size;
            // SAFETY: a slot on the free list has no appender and no reader (invariants 1 and 3),
            // and none can appear while its lock is held here.
            unsafe {
                self.inner
                    .mapping
                    .release(start..start + self.inner.slot_size)
            };
        }
    }

    /// A guard under which this memory can be read.
    #[must_use]
    pub fn pin(&self) -> Guard {
        // SeqCst, after the epoch is pinned, against the SeqCst store in `retire`: a guard that
        // does not see a retirement was pinned before it was deferred, so it holds it back.
        Guard::pin(&self.inner.collector, || {
            self.inner.retirements.load(Ordering::SeqCst)
        })
    }

    /// The bytes `range` of a slot, if they are all written.
    ///
    /// `None` also when the slot does not exist or was freed before the guard was made: whoever
    /// took a reference to the slot before then looks it up again.
    ///
    /// # Panics
    /// If the guard is another memory's.
    #[must_use]
    pub fn slice<'g>(
        &'g self,
        guard: &'g Guard,
        slot: Slot,
        range: Range<usize>,
    ) -> Option<&'g [u8]> {
        assert!(
            guard.belongs_to(&self.inner.collector),
            "guard of another memory"
        );
        let written = self.inner.readable(guard, slot)?;
        if range.start > range.end || range.end > written {
            return None;
        }
        let start = slot.0 as usize * self.inner.slot_size + range.start;
        // SAFETY: the slot exists and `range` is below its published length, so the bytes lie in
        // the mapping, are initialised, and were written before the Release store whose value
        // `readable` acquired. They do not change while `guard` lives (invariants 2 and 3, upheld
        // by `Appender` and `retire`), and `'g` ends with both the guard and this memory.
        Some(unsafe {
            std::slice::from_raw_parts(self.inner.mapping.base().add(start), range.len())
        })
    }

    /// All written bytes of a slot from `offset` on: for reading an entry whose length is in its
    /// own bytes, with one check. `None` as for [`slice`](Self::slice).
    ///
    /// # Panics
    /// If the guard is another memory's.
    #[must_use]
    #[inline]
    pub fn tail<'g>(&'g self, guard: &'g Guard, slot: Slot, offset: usize) -> Option<&'g [u8]> {
        assert!(
            guard.belongs_to(&self.inner.collector),
            "guard of another memory"
        );
        let len = self.inner.readable(guard, slot)?.checked_sub(offset)?;
        let start = slot.0 as usize * self.inner.slot_size + offset;
        // SAFETY: as in `slice`, for the range from `offset` to the published length.
        Some(unsafe { std::slice::from_raw_parts(self.inner.mapping.base().add(start), len) })
    }

    /// How many bytes of a slot a guard may read, 0 for a slot it is refused.
    #[must_use]
    pub fn written(&self, guard: &Guard, slot: Slot) -> usize {
        assert!(
            guard.belongs_to(&self.inner.collector),
            "guard of another memory"
        );
        self.inner.readable(guard, slot).unwrap_or(0)
    }

    /// Asks the processor to fetch the cache line at an offset of a slot. Only a hint.
    #[inline]
    pub fn prefetch(&self, slot: Slot, offset: usize) {
        let at = (slot.0 as usize)
            .wrapping_mul(self.inner.slot_size)
            .wrapping_add(offset);
        if at < self.inner.mapping.len() {
            crate::mapping::prefetch(self.inner.mapping.base().wrapping_add(at));
        }
    }
}

impl Inner {
    fn lock_free(&self) -> MutexGuard<'_, FreeList> {
        // Nothing under this lock can panic half way.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_free(&self, free: &mut FreeList) -> Option<u32> {
        free.reusable.pop().or_else(|| {
            let fresh = free.fresh;
            ((fresh as usize) < self.slots.len()).then(|| {
                free.fresh += 1;
                fresh
            })
        })
    }

    /// The published length of a slot that `guard` may read.
    #[inline]
    fn readable(&self, guard: &Guard, slot: Slot) -> Option<usize> {
        let state = self.slots.get(slot.0 as usize)?;
        // In this order: who sees the end of a retirement also sees the length reset before it.
        if state.retired.load(Ordering::Acquire) <= guard.retirements() {
            return None;
        }
        Some(state.written.load(Ordering::Acquire) as usize)
    }

    fn retire(self: &Arc<Self>, slot: u32) {
        let epoch = pin_epoch(&self.collector);
        {
            let mut free = self.lock_free();
            free.held_back += 1;
            let number = self.retirements.load(Ordering::Relaxed) + 1;
            self.slots[slot as usize]
                .retired
                .store(number, Ordering::Release);
            self.retirements.store(number, Ordering::SeqCst);
        }
        let memory: Weak<Self> = Arc::downgrade(self);
        epoch.defer(move || {
            if let Some(memory) = memory.upgrade() {
                memory.reclaim(slot);
            }
        });
        // Not left in this thread's bag, where it would wait for the thread's next frees.
        epoch.flush();
    }

    /// Runs when no guard made before the slot's retirement lives.
    fn reclaim(&self, slot: u32) {
        let state = &self.slots[slot as usize];
        state.written.store(0, Ordering::Relaxed);
        state.retired.store(NOT_RETIRED, Ordering::Release);
        let mut free = self.lock_free();
        free.held_back -= 1;
        free.reusable.push(slot);
    }
}

/// The one right to append to a slot. Dropping it leaves the slot readable, and in use for good.
#[derive(Debug)]
#[must_use = "a slot whose appender is dropped is in use for good"]
pub struct Appender {
    memory: Arc<Inner>,
    slot: u32,
    /// What the slot's `written` says, which only this appender changes.
    written: usize,
}

impl Appender {
    /// Which slot this is.
    #[must_use]
    pub fn slot(&self) -> Slot {
        Slot(self.slot)
    }

    /// Bytes appended so far.
    #[must_use]
    pub fn written(&self) -> usize {
        self.written
    }

    /// Bytes that can still be appended.
    #[must_use]
    pub fn left(&self) -> usize {
        self.memory.slot_size - self.written
    }

    /// Appends `len` bytes: `fill` gets exactly those bytes to write (they may hold anything
    /// before), and when it returns, they are published to readers at once.
    ///
    /// # Errors
    /// [`Full`] if they do not fit; then `fill` is not called.
    pub fn append_with<R>(
        &mut self,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> R,
    ) -> Result<R, Full> {
        let left = self.left();
        if len > left {
            return Err(Full { needed: len, left });
        }
        let start = self.slot as usize * self.memory.slot_size + self.written;
        // SAFETY: the bytes lie in this slot, hence in the mapping, and are initialised (anonymous
        // memory is zeroed; a reused slot holds old bytes). They are above `written`, so no reader
        // has them, and this is the slot's only token (invariant 1) borrowed mutably.
        let bytes =
            unsafe { std::slice::from_raw_parts_mut(self.memory.mapping.base().add(start), len) };
        let result = fill(bytes);
        self.written += len;
        let state = &self.memory.slots[self.slot as usize];
        // Fits: `slot_size` was checked to be below 4 GiB.
        state.written.store(self.written as u32, Ordering::Release);
        Ok(result)
    }

    /// Appends a copy of `bytes`.
    ///
    /// # Errors
    /// [`Full`] if they do not fit.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), Full> {
        self.append_with(bytes.len(), |buffer| buffer.copy_from_slice(bytes))
    }

    /// Gives up the right to append.
    pub fn close(self) -> Closed {
        Closed {
            memory: self.memory,
            slot: self.slot,
            written: self.written,
        }
    }
}

/// A slot that only can be read and freed. Dropping it leaves the slot readable, in use for good.
#[derive(Debug)]
#[must_use = "a slot whose token is dropped is in use for good"]
pub struct Closed {
    memory: Arc<Inner>,
    slot: u32,
    written: usize,
}

impl Closed {
    /// Which slot this is.
    #[must_use]
    pub fn slot(&self) -> Slot {
        Slot(self.slot)
    }

    /// Bytes that were appended.
    #[must_use]
    pub fn written(&self) -> usize {
        self.written
    }
}

impl From<Appender> for Closed {
    fn from(appender: Appender) -> Self {
        appender.close()
    }
}
