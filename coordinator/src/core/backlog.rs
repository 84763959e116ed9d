//! What was given to the disk and is not on it yet.
//!
//! # Invariants
//! 1. It is bounded: a peer whose disk is too far behind takes no part in the group, as one that is
//!    cut off, and takes no requests that would need the disk.

use std::collections::VecDeque;

use paxos::Record;

use crate::limits::{MAX_UNWRITTEN_BYTES, MAX_UNWRITTEN_JOBS};

/// The jobs of the disk, oldest first.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    jobs: VecDeque<(u64, usize)>,
    bytes: usize,
}

impl Backlog {
    /// Records go to the disk.
    pub(super) fn add(&mut self, seq: u64, records: &[Record]) {
        let bytes = records.iter().map(Record::size).sum();
        self.bytes += bytes;
        self.jobs.push_back((seq, bytes));
    }

    /// The disk has everything up to `seq`.
    pub(super) fn done(&mut self, seq: u64) {
        while let Some((_, bytes)) = self.jobs.pop_front_if(|(job, _)| *job <= seq) {
            self.bytes -= bytes;
        }
    }

    /// Whether the disk is too far behind.
    pub(super) fn is_full(&self) -> bool {
        self.bytes > MAX_UNWRITTEN_BYTES || self.jobs.len() > MAX_UNWRITTEN_JOBS
    }
}
