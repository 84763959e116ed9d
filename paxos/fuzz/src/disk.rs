//! A peer's disk: what is written, what is synced, and what a crash leaves of the rest.
//!
//! # Invariants
//! 1. Writes become durable in order. A crash keeps a prefix of those that were not synced, and of
//!    the next one a prefix of its records; a snapshot it keeps or not.
//! 2. `view` says what `durable` says.

use std::collections::{BTreeMap, VecDeque};

use paxos::{Ballot, Record, Slot, Snapshot, Stored};

use crate::dice::Dice;
use crate::machine::digest;

/// What was handed out to be written.
#[derive(Clone, Debug)]
pub(crate) enum Write {
    Records(Vec<Record>),
    Snapshot(Snapshot, Vec<Record>),
}

/// What the durable records say.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    pub(crate) promised: Ballot,
    pub(crate) accepted: BTreeMap<Slot, (Ballot, u64)>,
    pub(crate) decided: Slot,
    pub(crate) snapshot: Slot,
    pub(crate) begun: bool,
}

impl View {
    fn record(&mut self, record: &Record) {
        self.begun = true;
        match record {
            Record::Group(_) => {}
            Record::Promised(ballot) => self.promised = self.promised.max(*ballot),
            Record::Accepted {
                slot,
                ballot,
                entry,
            } => {
                self.accepted.insert(*slot, (*ballot, digest(entry)));
            }
            Record::Decided(slot) => self.decided = self.decided.max(*slot),
        }
    }

    fn snapshot(&mut self, snapshot: &Snapshot, records: &[Record]) {
        *self = Self {
            snapshot: snapshot.slot,
            ..Self::default()
        };
        for record in records {
            self.record(record);
        }
    }

    /// The last slot that it says is decided.
    pub(crate) fn known(&self) -> Slot {
        self.decided.max(self.snapshot)
    }

    /// Whether it stands behind a vote for `slot` under `ballot`: it may have voted higher since.
    pub(crate) fn covers(&self, slot: Slot, ballot: Ballot) -> bool {
        let accepted = self.accepted.get(&slot);
        slot <= self.known() || accepted.is_some_and(|(under, _)| *under >= ballot)
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    durable: Stored,
    pub(crate) view: View,
    queue: VecDeque<(u64, Write)>,
    /// Votes that became durable and were not looked at yet: slot, ballot, digest of the entry.
    pub(crate) votes: Vec<(Slot, Ballot, u64)>,
}

impl Disk {
    pub(crate) fn write(&mut self, seq: u64, write: Write) {
        self.queue.push_back((seq, write));
    }

    pub(crate) fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Syncs the oldest writes; up to which.
    pub(crate) fn sync(&mut self, count: usize) -> Option<u64> {
        let mut last = None;
        for _ in 0..count {
            let Some((seq, write)) = self.queue.pop_front() else {
                break;
            };
            self.keep(write);
            last = Some(seq);
        }
        last
    }

    fn keep(&mut self, write: Write) {
        match write {
            Write::Records(records) => {
                for record in &records {
                    self.vote(record);
                    self.view.record(record);
                }
                self.durable.records.extend(records);
            }
            Write::Snapshot(snapshot, records) => {
                for record in &records {
                    self.vote(record);
                }
                self.view.snapshot(&snapshot, &records);
                self.durable.snapshot = Some(snapshot);
                self.durable.records = records;
            }
        }
    }

    fn vote(&mut self, record: &Record) {
        if let Record::Accepted {
            slot,
            ballot,
            entry,
        } = record
        {
            self.votes.push((*slot, *ballot, digest(entry)));
        }
    }

    /// Power is lost.
    pub(crate) fn crash(&mut self, dice: &mut Dice) {
        let whole = dice.below(self.queue.len() + 1);
        self.sync(whole);
        if let Some((_, Write::Records(mut records))) = self.queue.pop_front() {
            records.truncate(dice.below(records.len() + 1));
            self.keep(Write::Records(records));
        }
        self.queue.clear();
    }

    pub(crate) fn wipe(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn stored(&self) -> Stored {
        self.durable.clone()
    }
}
