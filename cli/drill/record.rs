//! What is known of one object, and how a read of it is judged.
//!
//! # Invariants
//! 1. One task alone writes an object, one write at a time, with growing sequence numbers.
//! 2. A read returns at least what was acknowledged, or returned by another read, before it began,
//!    and at most what was attempted before it ended: with one writer that is linearizability.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// An object with one writer. Sequence 0: it was never written.
#[derive(Debug, Default)]
pub(super) struct Record {
    attempted: AtomicU64,
    acknowledged: AtomicU64,
    seen: AtomicU64,
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

    /// Judges a read that began when the floor was `floor` and found `sequence`.
    pub(super) fn judge(&self, floor: u64, sequence: u64) -> Verdict {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_is_judged_by_what_was_acknowledged_and_seen_before_it() {
        let record = Record::default();
        record.acknowledge(record.begin());
        let floor = record.floor();
        assert_eq!((floor, record.begin()), (1, 2));
        assert_eq!(record.judge(floor, 1), Verdict::Fine);
        assert_eq!(record.judge(floor, 2), Verdict::Fine, "it may have run");
        assert_eq!(record.judge(floor, 3), Verdict::Wrong);
        assert_eq!(record.judge(floor, 0), Verdict::Stale);
        assert_eq!(record.floor(), 2, "nobody may read 1 any more");
        assert_eq!(record.judge(record.floor(), 1), Verdict::Stale);
    }
}
