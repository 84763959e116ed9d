//! Where a key hash belongs: the growth state, bucket places, and the tags in index words.
//!
//! Linear hashing that keeps the order of hashes. At level L there are 2^L buckets, bucket b for the
//! hashes whose top L bits are b. The first `split` of them have been replaced by two each: bucket
//! b by 2b and 2b+1 of level L+1. When all are, the level is L+1 and `split` is 0 again.
//!
//! # Invariants
//! 1. The state only grows: in level, and in `split` within a level. So a place, once split, is gone
//!    for good, and a place that is the same in two states was the same in between.
//! 2. A tag's bits below those that all entries of a bucket share are at least 13, so that at most
//!    one of a thousand other entries of a bucket looks like the one sought.

use ramkeep_wire::KeyHash;

use super::reference::REFERENCE_BITS;

/// Bits of a tag, which stands above the reference in a word.
const TAG_BITS: u32 = 64 - REFERENCE_BITS;
/// The tag is taken anew from the hash when this many levels have passed; in between a split
/// moves whole words, and needs to read no key from the log.
const LEVELS_PER_TAG: u32 = 4;
/// The last level, far beyond any memory.
pub(super) const MAX_LEVEL: u32 = 40;

const _: () = assert!(MAX_LEVEL + TAG_BITS <= 64);
const _: () = assert!(TAG_BITS - (LEVELS_PER_TAG - 1) >= 13);

/// How far the index has grown: one word, so that readers load it at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Growth {
    pub(super) level: u32,
    pub(super) split: u64,
}

/// A bucket: its number at a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) level: u32,
    pub(super) bucket: u64,
}

impl Growth {
    const SPLIT_BITS: u32 = 56;

    #[inline]
    pub(super) fn of_word(word: u64) -> Self {
        let level = (word >> Self::SPLIT_BITS) as u32;
        Self {
            level,
            split: word & ((1 << Self::SPLIT_BITS) - 1),
        }
    }

    pub(super) fn word(self) -> u64 {
        u64::from(self.level) << Self::SPLIT_BITS | self.split
    }

    /// The state after one more split.
    pub(super) fn next(self) -> Self {
        let split = self.split + 1;
        if split == 1 << self.level {
            Self {
                level: self.level + 1,
                split: 0,
            }
        } else {
            Self { split, ..self }
        }
    }

    /// Buckets in use, without overflow buckets.
    pub(super) fn buckets(self) -> u64 {
        (1 << self.level) + self.split
    }

    /// The bucket of `hash`.
    #[inline]
    pub(super) fn place(self, hash: KeyHash) -> Place {
        let bucket = top_bits(hash, self.level);
        if bucket < self.split {
            let level = self.level + 1;
            Place {
                level,
                bucket: top_bits(hash, level),
            }
        } else {
            Place {
                level: self.level,
                bucket,
            }
        }
    }
}

impl Place {
    /// The first and the last hash that belong here.
    pub(super) fn hashes(self) -> (KeyHash, KeyHash) {
        let below = u64::MAX.checked_shr(self.level).unwrap_or(0);
        let first = if self.level == 0 {
            0
        } else {
            self.bucket << (64 - self.level)
        };
        (KeyHash(first), KeyHash(first | below))
    }

    /// The tag of `hash` in a word of this bucket.
    #[inline]
    pub(super) fn tag(self, hash: KeyHash) -> u64 {
        hash.0 << tag_base(self.level) >> REFERENCE_BITS
    }

    /// Whether words can move to the next level as they are.
    pub(super) fn split_keeps_tags(self) -> bool {
        tag_base(self.level) == tag_base(self.level + 1)
    }

    /// Whether a word of this bucket belongs to the second of the two that replace it.
    pub(super) fn goes_to_second(self, word: u64) -> bool {
        word << (self.level - tag_base(self.level)) >> 63 == 1
    }

    /// The two that replace this bucket.
    pub(super) fn children(self) -> [Self; 2] {
        let (level, bucket) = (self.level + 1, self.bucket * 2);
        [
            Self { level, bucket },
            Self {
                level,
                bucket: bucket + 1,
            },
        ]
    }
}

/// How many top bits of the hash the tags of a level leave out.
#[inline]
fn tag_base(level: u32) -> u32 {
    level / LEVELS_PER_TAG * LEVELS_PER_TAG
}

/// The top `bits` bits; none for 0.
#[inline]
fn top_bits(hash: KeyHash, bits: u32) -> u64 {
    hash.0 >> 1 >> (63 - bits)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn splitting_walks_through_every_bucket_of_every_level() {
        let mut growth = Growth { level: 0, split: 0 };
        for buckets in 1..1000 {
            assert_eq!(growth.buckets(), buckets);
            assert_eq!(Growth::of_word(growth.word()), growth);
            assert!(growth.next().word() > growth.word());
            growth = growth.next();
        }
    }

    proptest! {
        #[test]
        fn a_place_covers_its_hashes_and_its_tags_tell_where_they_split(
            hash: u64, level in 0..MAX_LEVEL, split: u64,
        ) {
            let hash = KeyHash(hash);
            let growth = Growth { level, split: split & ((1 << level) - 1) };
            let place = growth.place(hash);
            let (first, last) = place.hashes();
            prop_assert!(first <= hash && hash <= last);
            prop_assert_eq!(growth.place(first), place);
            prop_assert_eq!(growth.place(last), place);
            prop_assert!(place.tag(hash) < 1 << TAG_BITS);
            let word = place.tag(hash) << REFERENCE_BITS | 1;
            let child = place.children()[usize::from(place.goes_to_second(word))];
            let (first, last) = child.hashes();
            prop_assert!(first <= hash && hash <= last);
            if place.split_keeps_tags() {
                prop_assert_eq!(place.tag(hash), child.tag(hash));
            }
        }
    }
}
