//! References: where an entry is in memory, in 48 bits.

use std::fmt;

use ramkeep_memory::Slot;

/// Bits of the offset inside a segment.
pub const OFFSET_BITS: u32 = 23;
/// Bits of the slot number.
pub const SLOT_BITS: u32 = 25;
/// Bits of a reference.
pub const REFERENCE_BITS: u32 = OFFSET_BITS + SLOT_BITS;

const _: () = assert!(REFERENCE_BITS == 48);
const _: () = assert!(1 << OFFSET_BITS == ramkeep_wire::limits::SEGMENT_SIZE);

/// Where an entry is in memory: the slot of its segment and the offset in it.
///
/// The offset is never 0, because a segment starts with its header; so no reference is all zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference(u64);

impl Reference {
    /// The entry at `offset` of `slot`.
    ///
    /// # Panics
    /// If the offset is 0 or does not fit, or the slot does not: nothing holds entries there.
    #[must_use]
    #[inline]
    pub fn new(slot: Slot, offset: usize) -> Self {
        assert!(
            offset != 0 && offset < 1 << OFFSET_BITS,
            "no entry is at offset {offset}"
        );
        assert!(slot.0 < 1 << SLOT_BITS, "no segment is in slot {}", slot.0);
        Self(u64::from(slot.0) << OFFSET_BITS | offset as u64)
    }

    /// The slot of its segment.
    #[must_use]
    #[inline]
    pub fn slot(self) -> Slot {
        Slot((self.0 >> OFFSET_BITS) as u32)
    }

    /// The offset in its segment.
    #[must_use]
    #[inline]
    pub fn offset(self) -> usize {
        (self.0 & ((1 << OFFSET_BITS) - 1)) as usize
    }

    pub(super) fn bits(self) -> u64 {
        self.0
    }

    /// The reference in the low bits of an index word; none if the word is empty.
    #[inline]
    pub(super) fn of_word(word: u64) -> Option<Self> {
        (word != 0).then_some(Self(word & ((1 << REFERENCE_BITS) - 1)))
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.slot().0, self.offset())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_gives_back_what_it_was_made_of() {
        for (slot, offset) in [(0, 1), (3, 77), ((1 << 25) - 1, (1 << 23) - 1)] {
            let reference = Reference::new(Slot(slot), offset);
            assert_eq!((reference.slot(), reference.offset()), (Slot(slot), offset));
            assert!(reference.bits() != 0 && reference.bits() < 1 << 48);
        }
    }

    #[test]
    #[should_panic(expected = "no entry is at offset 0")]
    fn offset_zero_is_refused() {
        let _ = Reference::new(Slot(1), 0);
    }
}
