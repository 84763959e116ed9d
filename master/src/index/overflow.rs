//! Overflow buckets: their memory, which readers follow, and the writer's list of free ones.
//!
//! A link to overflow bucket n is stored as n + 1, so that 0 means none.

use std::io;

use ramkeep_memory::{AtomicArray, Line};

/// The number of an overflow bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Overflow(u32);

impl Overflow {
    /// The overflow bucket that a bucket's meta word names.
    #[inline]
    pub(super) fn linked(meta: u64) -> Option<Self> {
        (meta as u32).checked_sub(1).map(Self)
    }

    /// The low half of a meta word that names `next`.
    pub(super) fn link(next: Option<Self>) -> u64 {
        next.map_or(0, |Self(number)| u64::from(number) + 1)
    }
}

/// The memory of all overflow buckets.
#[derive(Debug)]
pub(super) struct OverflowBuckets(AtomicArray);

impl OverflowBuckets {
    pub(super) fn new(buckets: usize) -> io::Result<Self> {
        if u32::try_from(buckets).is_err() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "too many buckets",
            ));
        }
        Ok(Self(AtomicArray::new(buckets)?))
    }

    #[inline]
    pub(super) fn line(&self, bucket: Overflow) -> &Line {
        self.0.line(bucket.0 as usize)
    }

    pub(super) fn populate(&self, buckets: std::ops::Range<u64>) {
        self.0
            .populate(buckets.start as usize..buckets.end as usize);
    }
}

/// Which overflow buckets are free. Readers may still look at free ones: they find out afterwards.
#[derive(Debug)]
pub(super) struct FreeOverflow {
    reusable: Vec<u32>,
    fresh: u32,
    capacity: u32,
}

impl FreeOverflow {
    pub(super) fn of(buckets: &OverflowBuckets) -> Self {
        Self {
            reusable: Vec::new(),
            fresh: 0,
            capacity: buckets.0.lines() as u32,
        }
    }

    pub(super) fn take(&mut self) -> Option<Overflow> {
        if let Some(number) = self.reusable.pop() {
            return Some(Overflow(number));
        }
        let number = self.fresh;
        (number < self.capacity).then(|| {
            self.fresh += 1;
            Overflow(number)
        })
    }

    pub(super) fn give_back(&mut self, bucket: Overflow) {
        debug_assert!(bucket.0 < self.fresh, "a bucket that was never taken");
        self.reusable.push(bucket.0);
    }

    /// Buckets that `take` can still give.
    pub(super) fn left(&self) -> usize {
        self.reusable.len() + (self.capacity - self.fresh) as usize
    }

    /// Buckets that were ever taken.
    pub(super) fn touched(&self) -> u64 {
        u64::from(self.fresh)
    }

    pub(super) fn in_use(&self) -> u64 {
        u64::from(self.fresh) - self.reusable.len() as u64
    }
}
