//! A coordinator's disk: what is on it for good, and what was handed out to it and is not.
//!
//! # Invariants
//! 1. A kill keeps all that was reported as synced, and of the rest what was handed out first: of a
//!    torn tail a prefix, of a snapshot all or nothing.
//! 2. What waits together is synced together, in order.

use std::collections::VecDeque;

use paxos::{Record, Snapshot, Stored};

use crate::rng::Rng;

/// What a coordinator wants on its disk, not yet there for good.
#[derive(Clone, Debug)]
struct Job {
    seq: u64,
    snapshot: Option<Snapshot>,
    records: Vec<Record>,
}

/// A coordinator's disk.
#[derive(Clone, Debug)]
pub struct CoordinatorDisk {
    /// Of this disk: another when it was wiped.
    pub incarnation: [u8; 16],
    synced: Stored,
    jobs: VecDeque<Job>,
}

impl CoordinatorDisk {
    /// A disk that was never used.
    #[must_use]
    pub fn new(incarnation: [u8; 16]) -> Self {
        Self {
            incarnation,
            synced: Stored::default(),
            jobs: VecDeque::new(),
        }
    }

    /// What it holds for good.
    #[must_use]
    pub fn stored(&self) -> Stored {
        self.synced.clone()
    }

    /// Whether everything handed out is on it for good.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.jobs.is_empty()
    }

    /// The last that was handed out and is not synced.
    #[must_use]
    pub fn unsynced(&self) -> Option<u64> {
        self.jobs.back().map(|job| job.seq)
    }

    pub(super) fn hand_out(&mut self, seq: u64, snapshot: Option<Snapshot>, records: Vec<Record>) {
        self.jobs.push_back(Job {
            seq,
            snapshot,
            records,
        });
    }

    /// Everything up to `seq` is there for good.
    pub(super) fn sync(&mut self, seq: u64) {
        while self.jobs.front().is_some_and(|job| job.seq <= seq) {
            if let Some(job) = self.jobs.pop_front() {
                self.take(job.snapshot, job.records);
            }
        }
    }

    fn take(&mut self, snapshot: Option<Snapshot>, records: Vec<Record>) {
        match snapshot {
            Some(_) => self.synced = Stored { snapshot, records },
            None => self.synced.records.extend(records),
        }
    }

    /// What a kill leaves.
    pub fn crash(&mut self, rng: &mut Rng) {
        let steps = |job: &Job| match job.snapshot {
            Some(_) => 1,
            None => job.records.len(),
        };
        let mut kept = rng.index(self.jobs.iter().map(steps).sum::<usize>() + 1);
        for mut job in std::mem::take(&mut self.jobs) {
            let whole = steps(&job);
            if job.snapshot.is_none() {
                job.records.truncate(kept);
            } else if kept == 0 {
                return;
            }
            self.take(job.snapshot, job.records);
            if kept < whole {
                return;
            }
            kept -= whole;
        }
    }
}

#[cfg(test)]
mod tests {
    use paxos::Slot;

    use super::*;

    fn disk() -> CoordinatorDisk {
        let mut disk = CoordinatorDisk::new([1; 16]);
        let record = |slot| Record::Decided(Slot(slot));
        disk.hand_out(1, None, vec![record(1), record(2)]);
        disk.hand_out(2, None, vec![record(3)]);
        disk
    }

    #[test]
    fn a_kill_keeps_what_was_synced_and_a_prefix_of_the_rest() {
        let mut rng = Rng::new(1);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..100 {
            let mut disk = disk();
            disk.sync(1);
            disk.crash(&mut rng);
            let records = disk.stored().records;
            assert!(records.len() >= 2 && disk.is_synced());
            seen.insert(records.len());
        }
        assert_eq!(Vec::from_iter(seen), [2, 3]);
    }

    #[test]
    fn a_torn_tail_keeps_its_first_records() {
        let mut rng = Rng::new(1);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..100 {
            let mut disk = disk();
            disk.crash(&mut rng);
            let records = disk.stored().records;
            let first: Vec<Record> = (1..=3).map(|slot| Record::Decided(Slot(slot))).collect();
            assert_eq!(records, first[..records.len()]);
            seen.insert(records.len());
        }
        assert_eq!(Vec::from_iter(seen), [0, 1, 2, 3]);
    }
}
