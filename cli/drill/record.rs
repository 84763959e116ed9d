//! What is known of one object, and how a read of it is judged.
//!
//! # Invariants
//! 1. One task alone writes an object, one write at a time, with growing sequence numbers.
//! 2. A read returns at least what was acknowledged, or returned by another read, before it began,
//!    and at most what was attempted before it ended: with one writer that is linearizability.
//! 3. Which writes of an object are removals follows from their sequence numbers, so that an absent
//!    one is judged, too.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// Of an object's writes, one in so many is a removal.
const REMOVAL_EVERY: u64 = 8;

/// Whether the write of this sequence number is a removal. Not of a counter.
pub(super) fn removes(sequence: u64) -> bool {
    sequence.is_multiple_of(REMOVAL_EVERY)
}

/// An object with one writer, or a counter with one incrementer, whose sequence number is its sum.
/// Sequence 0: it was never written.
#[derive(Debug, Default)]
pub(super) struct Record {
    attempted: AtomicU64,
    acknowledged: AtomicU64,
    seen: AtomicU64,
}

/// What a read returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The value that the write of this sequence number left.
    Written(u64),
    /// No object.
    Absent,
    /// A counter's value.
    Sum(u64),
    /// What nobody wrote.
    Foreign,
}

/// What a read shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// What it may.
    Fine,
    /// Something older than was acknowledged or seen before it began.
    Stale,
    /// What nobody wrote.
    Wrong,
}

impl Record {
    /// The sequence number of the write that begins now.
    pub(super) fn begin(&self) -> u64 {
        self.attempted.fetch_add(1, SeqCst) + 1
    }

    /// A write is acknowledged.
    pub(super) fn acknowledge(&self, sequence: u64) {
        self.acknowledged.fetch_max(sequence, SeqCst);
    }

    /// The highest sequence number that was acknowledged.
    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(SeqCst)
    }

    /// The highest sequence number that was attempted.
    pub(super) fn attempted(&self) -> u64 {
        self.attempted.load(SeqCst)
    }

    /// The least that a read may return that begins now.
    pub(super) fn floor(&self) -> u64 {
        self.acknowledged().max(self.seen.load(SeqCst))
    }

    /// Judges a read that began when the floor was `floor`.
    pub(super) fn judge(&self, floor: u64, found: Found) -> Verdict {
        let sequence = match found {
            Found::Written(sequence) if removes(sequence) => return Verdict::Wrong,
            Found::Written(sequence) | Found::Sum(sequence) => sequence,
            Found::Absent => self.removal(floor),
            Found::Foreign => return Verdict::Wrong,
        };
        if sequence > self.attempted() {
            return Verdict::Wrong;
        }
        self.seen.fetch_max(sequence, SeqCst);
        if sequence < floor {
            Verdict::Stale
        } else {
            Verdict::Fine
        }
    }

    /// The first removal that explains that there is nothing, or the last one there may have been.
    fn removal(&self, floor: u64) -> u64 {
        let next = floor.next_multiple_of(REMOVAL_EVERY);
        if next <= self.attempted() {
            next
        } else {
            floor / REMOVAL_EVERY * REMOVAL_EVERY
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Found::{Absent, Foreign, Sum, Written};

    fn written(times: u64) -> Record {
        let record = Record::default();
        (0..times).for_each(|_| record.acknowledge(record.begin()));
        record
    }

    #[test]
    fn a_read_is_judged_by_what_was_acknowledged_and_seen_before_it() {
        let record = written(1);
        let floor = record.floor();
        assert_eq!((floor, record.begin()), (1, 2));
        assert_eq!(record.judge(floor, Written(1)), Verdict::Fine);
        assert_eq!(
            record.judge(floor, Written(2)),
            Verdict::Fine,
            "it may have run"
        );
        assert_eq!(record.judge(floor, Written(3)), Verdict::Wrong);
        assert_eq!(record.judge(floor, Absent), Verdict::Stale);
        assert_eq!(record.judge(floor, Foreign), Verdict::Wrong);
        assert_eq!(record.floor(), 2, "nobody may read 1 any more");
        assert_eq!(record.judge(record.floor(), Written(1)), Verdict::Stale);
    }

    #[test]
    fn nothing_is_found_after_a_removal_alone() {
        let record = written(7);
        assert_eq!(record.judge(7, Absent), Verdict::Stale);
        assert!(removes(record.begin()));
        assert_eq!(record.judge(7, Absent), Verdict::Fine, "it may have run");
        assert_eq!(record.floor(), 8);
        assert_eq!(record.judge(8, Written(7)), Verdict::Stale);
        assert_eq!(
            record.judge(8, Written(8)),
            Verdict::Wrong,
            "it wrote nothing"
        );
        record.acknowledge(record.begin());
        assert_eq!(
            record.judge(record.floor(), Absent),
            Verdict::Stale,
            "9 is there"
        );
    }

    #[test]
    fn a_counter_has_no_removals() {
        let record = written(16);
        assert_eq!(record.judge(16, Sum(16)), Verdict::Fine);
        assert_eq!(record.judge(16, Sum(15)), Verdict::Stale);
        assert_eq!(record.judge(16, Sum(17)), Verdict::Wrong);
    }
}
