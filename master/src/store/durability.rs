//! What is durable: shared by the writer, who moves it on, and by readers, who show nothing past it.
//!
//! # Invariants
//! 1. A slot's durable length and the durable position only grow while the slot holds the same
//!    segment; a slot changes its segment only while no reader can see it.
//! 2. The durable position is in a head; everything before it in the log is durable.
//! 3. A [`Durable`] exists only for a position that was compared with what is durable and lay
//!    within it. Bytes of a reply go out only with one.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crossbeam_utils::CachePadded;
use ramkeep_memory::Slot;
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::{LogPosition, SegmentId};

/// Proof that what a reply shows is on all backups of its segment. Made in this module only.
#[derive(Clone, Copy, Debug)]
pub struct Durable(());

impl Durable {
    /// For an answer that tells nothing of any object: a refusal.
    #[inline]
    pub(super) fn of_nothing() -> Self {
        Self(())
    }

    /// The planted fault of acknowledging early.
    pub(super) fn planted() -> Self {
        assert!(
            mutants::active(Mutant::AckEarly),
            "only a planted fault acknowledges unproved"
        );
        Self(())
    }
}

#[derive(Debug, Default)]
struct SlotState {
    /// Which segment the slot holds.
    segment: AtomicU64,
    /// How many bytes of it are on all its backups.
    length: AtomicU32,
}

/// How much of each segment, and of the log, is on all backups. What changes with every write is
/// apart from what every read loads.
#[derive(Debug)]
pub struct Durability {
    slots: Box<[SlotState]>,
    /// A [`LogPosition`]: the log is durable up to here.
    position: CachePadded<AtomicU64>,
    /// Where the newest removal ends. Who finds nothing may be seeing that removal (SAFETY 2).
    last_removal: CachePadded<AtomicU64>,
}

impl Durability {
    pub(super) fn new(slots: usize) -> Self {
        Self {
            slots: (0..slots).map(|_| SlotState::default()).collect(),
            position: CachePadded::new(AtomicU64::new(0)),
            last_removal: CachePadded::new(AtomicU64::new(0)),
        }
    }

    /// The log is durable up to here.
    #[must_use]
    #[inline]
    pub fn position(&self) -> LogPosition {
        LogPosition(self.position.load(Ordering::Acquire))
    }

    /// Whether the log is durable up to `position`.
    #[must_use]
    #[inline]
    pub fn reached(&self, position: LogPosition) -> Option<Durable> {
        (position <= self.position()).then_some(Durable(()))
    }

    /// Whether an entry that ends at `end` of the segment in `slot` is durable; if not, the position
    /// to wait for. The caller holds a guard under which it read the entry.
    ///
    /// # Errors
    /// The position that must become durable first.
    #[inline]
    pub fn entry(&self, slot: Slot, end: u32) -> Result<Durable, LogPosition> {
        let state = &self.slots[slot.0 as usize];
        if end <= state.length.load(Ordering::Acquire) || mutants::active(Mutant::ShowNotDurable) {
            return Ok(Durable(()));
        }
        Err(LogPosition::new(
            SegmentId(state.segment.load(Ordering::Acquire)),
            end,
        ))
    }

    /// Whether an absence may be shown that was seen before this call; if not, the position to wait
    /// for.
    ///
    /// # Errors
    /// The position that must become durable first.
    #[inline]
    pub fn miss(&self) -> Result<Durable, LogPosition> {
        // The writer publishes a removal here before it takes the entry out of the index: who saw
        // the index without it sees the position too.
        let removal = LogPosition(self.last_removal.load(Ordering::Acquire));
        if mutants::active(Mutant::MissDoesNotWait) {
            return Ok(Durable(()));
        }
        self.reached(removal).ok_or(removal)
    }

    /// The segment that `slot` holds.
    #[inline]
    pub(super) fn segment_in(&self, slot: Slot) -> SegmentId {
        SegmentId(self.slots[slot.0 as usize].segment.load(Ordering::Relaxed))
    }

    /// `slot` holds `segment` from now on; nothing of it is durable.
    pub(super) fn opened(&self, slot: Slot, segment: SegmentId) {
        let state = &self.slots[slot.0 as usize];
        state.length.store(0, Ordering::Release);
        state.segment.store(segment.0, Ordering::Release);
    }

    /// The first `length` bytes of the head in `slot` are durable, and all of the log before.
    pub(super) fn head_is_durable(&self, slot: Slot, length: u32) {
        let state = &self.slots[slot.0 as usize];
        let position = LogPosition::new(SegmentId(state.segment.load(Ordering::Relaxed)), length);
        // The writer alone stores, so no update can be lost between load and store.
        if length > state.length.load(Ordering::Relaxed) {
            state.length.store(length, Ordering::Release);
        }
        if position > self.position() {
            self.position.store(position.0, Ordering::Release);
        }
    }

    /// A removal was appended that ends at `position`; called before the index shows it.
    pub(super) fn removed(&self, position: LogPosition) {
        self.last_removal.store(position.0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head_with(length: u32) -> Durability {
        let durability = Durability::new(2);
        durability.opened(Slot(1), SegmentId(7));
        durability.head_is_durable(Slot(1), length);
        durability
    }

    #[test]
    fn an_entry_is_durable_when_its_last_byte_is() {
        let durability = head_with(100);
        assert!(durability.entry(Slot(1), 100).is_ok());
        let wait = durability
            .entry(Slot(1), 101)
            .expect_err("past the durable length");
        assert_eq!(wait, LogPosition::new(SegmentId(7), 101));
        assert!(durability.reached(wait).is_none());
        durability.head_is_durable(Slot(1), 101);
        assert!(durability.reached(wait).is_some());
    }

    #[test]
    fn the_durable_position_never_goes_back() {
        let durability = head_with(100);
        durability.head_is_durable(Slot(1), 50);
        assert_eq!(durability.position(), LogPosition::new(SegmentId(7), 100));
        assert!(durability.entry(Slot(1), 100).is_ok());
    }

    #[test]
    fn a_miss_waits_for_the_newest_removal() {
        let durability = head_with(100);
        assert!(durability.miss().is_ok());
        let removal = LogPosition::new(SegmentId(7), 150);
        durability.removed(removal);
        assert_eq!(durability.miss().expect_err("not durable yet"), removal);
        durability.head_is_durable(Slot(1), 150);
        assert!(durability.miss().is_ok());
    }

    #[test]
    fn a_slot_with_a_new_segment_has_nothing_durable() {
        let durability = head_with(100);
        durability.opened(Slot(1), SegmentId(8));
        let wait = durability
            .entry(Slot(1), 10)
            .expect_err("nothing is durable");
        assert_eq!(wait, LogPosition::new(SegmentId(8), 10));
    }
}
