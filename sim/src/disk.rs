//! A coordinator's disk: what is on it for good, and what was handed out to it and is not. The files are
//! data: they may be copied, come back as they once were, or be lost.
//!
//! # Invariants
//! 1. A kill keeps all that was reported as synced, and of the rest what was handed out first: of a
//!    torn tail a prefix, of a snapshot all or nothing.
//! 2. What waits together is synced together, in order.

use std::collections::VecDeque;
use std::time::Duration;

use paxos::{Record, Snapshot, Stored};
use ramkeep_coordinator::DiskJob;

use crate::rng::Rng;

/// A coordinator's disk.
#[derive(Clone, Debug)]
pub struct CoordinatorDisk {
    /// Of this disk: another when it was wiped.
    pub incarnation: [u8; 16],
    /// How long a sync takes, microseconds, at least and at most.
    takes: (u64, u64),
    synced: Stored,
    /// What it held when the last snapshot took the place of that.
    before: Option<Box<Stored>>,
    /// What is not there for good yet.
    jobs: VecDeque<DiskJob>,
    /// A sync up to here is under way.
    syncing: Option<u64>,
    /// Syncs take so many times as long.
    slow: u64,
}

impl CoordinatorDisk {
    /// A disk that was never used. A sync of it takes so many microseconds, at least and at most.
    #[must_use]
    pub fn new(incarnation: [u8; 16], takes: (u64, u64)) -> Self {
        Self {
            incarnation,
            takes,
            synced: Stored::default(),
            before: None,
            jobs: VecDeque::new(),
            syncing: None,
            slow: 1,
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

    /// Whether it holds a snapshot.
    #[must_use]
    pub fn has_snapshot(&self) -> bool {
        self.synced.snapshot.is_some()
    }

    /// From now on a sync takes so many times as long.
    pub fn slow_down(&mut self, factor: u64) {
        self.slow = factor;
    }

    /// The disk is as it should be: the sync that is under way, and how long it takes yet.
    pub fn mend(&mut self, rng: &mut Rng) -> Option<(u64, Duration)> {
        self.slow = 1;
        self.syncing.map(|seq| (seq, self.delay(rng)))
    }

    fn delay(&self, rng: &mut Rng) -> Duration {
        let (least, most) = self.takes;
        rng.micros(least * self.slow..most * self.slow + 1)
    }

    /// Takes what is to be there for good.
    pub fn hand_out(&mut self, job: DiskJob) {
        self.jobs.push_back(job);
    }

    /// Begins a sync of all that waits, unless one is under way or nothing waits: which, and how long
    /// it takes.
    pub fn begin_sync(&mut self, rng: &mut Rng) -> Option<(u64, Duration)> {
        if self.syncing.is_some() {
            return None;
        }
        self.syncing = self.jobs.back().map(|job| job.seq);
        self.syncing.map(|seq| (seq, self.delay(rng)))
    }

    /// A sync is over: everything up to `seq` is there for good. False: it was none.
    pub fn sync(&mut self, seq: u64) -> bool {
        if self.syncing != Some(seq) {
            return false;
        }
        self.syncing = None;
        while let Some(job) = self.jobs.pop_front_if(|job| job.seq <= seq) {
            self.take(job.snapshot, job.records);
        }
        true
    }

    /// What a copy of the files holds that is made while its process runs.
    #[must_use]
    pub fn copied(&self, rng: &mut Rng) -> Self {
        let mut copy = self.clone();
        copy.crash(rng);
        copy
    }

    /// The files are again as they once were, since the snapshot before the last at the earliest.
    pub fn roll_back(&mut self, rng: &mut Rng) {
        self.jobs.clear();
        if rng.percent(50)
            && let Some(before) = self.before.take()
        {
            self.synced = *before;
        }
        let kept = rng.index(self.synced.records.len() + 1);
        self.synced.records.truncate(kept);
    }

    /// All files are lost.
    pub fn lose(&mut self, incarnation: [u8; 16]) {
        *self = Self::new(incarnation, self.takes);
    }

    fn take(&mut self, snapshot: Option<Snapshot>, records: Vec<Record>) {
        match snapshot {
            Some(_) => {
                let now = Stored { snapshot, records };
                self.before = Some(Box::new(std::mem::replace(&mut self.synced, now)));
            }
            None => self.synced.records.extend(records),
        }
    }

    /// What a kill leaves.
    pub fn crash(&mut self, rng: &mut Rng) {
        (self.syncing, self.slow) = (None, 1);
        let steps = |job: &DiskJob| match job.snapshot {
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

    fn record(slot: u64) -> Record {
        Record::Decided(Slot(slot))
    }

    fn job(seq: u64, snapshot: Option<Snapshot>, records: Vec<Record>) -> DiskJob {
        DiskJob {
            seq,
            snapshot,
            records,
        }
    }

    fn disk() -> CoordinatorDisk {
        let mut disk = CoordinatorDisk::new([1; 16], (5, 5));
        disk.hand_out(job(1, None, vec![record(1), record(2)]));
        let rng = &mut Rng::new(1);
        let takes = Duration::from_micros(5);
        assert_eq!(disk.begin_sync(rng), Some((1, takes)));
        disk.hand_out(job(2, None, vec![record(3)]));
        assert_eq!(disk.begin_sync(rng), None);
        disk
    }

    #[test]
    fn a_kill_keeps_what_was_synced_and_a_prefix_of_the_rest() {
        let mut rng = Rng::new(1);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..100 {
            let mut disk = disk();
            assert!(disk.sync(1) && !disk.sync(1));
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
            let first: Vec<Record> = (1..=3).map(record).collect();
            assert_eq!(records, first[..records.len()]);
            seen.insert(records.len());
        }
        assert_eq!(Vec::from_iter(seen), [0, 1, 2, 3]);
    }
}
