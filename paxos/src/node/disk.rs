//! Persist before send: what leaves only when the disk has what it depends on.

use std::collections::VecDeque;

use super::{Action, Node};
use crate::message::Envelope;
use crate::mutants::{self, Mutant};
use crate::record::{Record, Snapshot};
use crate::types::{Ballot, Slot};

/// What waits for the disk.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Deferred {
    /// A message that promises what the records say.
    Send(Envelope),
    /// Prepare messages of this ballot may leave, and this peer's own promise counts.
    Ballot(Ballot),
    /// This leader's own vote.
    Vote(Ballot, Slot),
    /// A snapshot; whether the state machine is set to it.
    Snapshot(Snapshot, bool),
}

/// What was written and what is durable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Disk {
    /// Sequence of the last `Persist` or `SaveSnapshot`.
    written: u64,
    /// Up to which they are durable.
    pub(super) durable: u64,
    /// Records of this input.
    pending: Vec<Record>,
    /// The last `Decided` written.
    decided: Slot,
    /// With which sequence the promise was written.
    pub(super) promised: u64,
    /// With which it was written that the last change of the group is decided.
    pub(super) regrouped: u64,
    deferred: VecDeque<(u64, Deferred)>,
}

impl Node {
    pub(super) fn record(&mut self, record: Record) {
        self.disk.pending.push(record);
    }

    /// A change of the group is known for good only when the disk has it: those who decided it may
    /// be gone then.
    pub(super) fn record_regrouped(&mut self, slot: Slot) {
        self.disk.decided = slot;
        self.record(Record::Decided(slot));
        self.disk.regrouped = self.seq_of_all();
    }

    /// The last decided slot as it is told to a leader: a change of the group not before the disk
    /// has it.
    pub(super) fn told_decided(&self) -> Slot {
        let changed = self.groups.last_key_value().map(|(slot, _)| *slot);
        match changed {
            Some(slot) if self.disk.regrouped > self.disk.durable => {
                self.learning.decided.min(Slot(slot.0.saturating_sub(1)))
            }
            _ => self.learning.decided,
        }
    }

    /// Forgets what loading would have written again.
    pub(super) fn nothing_to_write(&mut self) {
        self.disk.pending.clear();
        self.disk.regrouped = 0;
    }

    /// Keeps `deferred` until all records so far are durable.
    pub(super) fn after_disk(&mut self, deferred: Deferred) {
        let fault = match &deferred {
            Deferred::Send(_) => Some(Mutant::AnswerBeforeDisk),
            Deferred::Ballot(_) => Some(Mutant::BallotBeforeDisk),
            Deferred::Vote(..) => Some(Mutant::VoteBeforeDisk),
            Deferred::Snapshot(..) => None,
        };
        let skip = fault.is_some_and(mutants::active);
        if skip {
            return self.disk.deferred.push_front((0, deferred));
        }
        let seq = self.seq_of_all();
        self.disk.deferred.push_back((seq, deferred));
    }

    /// Sends what depends on the promise only: at once, usually, however slow the disk is.
    pub(super) fn after_promise(&mut self, envelope: Envelope) {
        if self.disk.promised <= self.disk.durable {
            self.actions.push_back(Action::Send(envelope));
        } else {
            self.after_disk(Deferred::Send(envelope));
        }
    }

    pub(super) fn seq_of_all(&self) -> u64 {
        self.disk.written + u64::from(!self.disk.pending.is_empty())
    }

    /// Hands the records of this input out. What is decided is written beside others only: it can
    /// be learned again.
    pub(super) fn flush_records(&mut self) {
        if self.disk.pending.is_empty() {
            return;
        }
        if self.disk.decided < self.learning.decided {
            self.disk.decided = self.learning.decided;
            self.disk.pending.push(Record::Decided(self.disk.decided));
        }
        self.disk.written += 1;
        self.stats.persists += 1;
        let records = std::mem::take(&mut self.disk.pending);
        let seq = self.disk.written;
        self.actions.push_back(Action::Persist { seq, records });
    }

    /// Has a snapshot saved; `install` sets the state machine to it then.
    pub(super) fn save(&mut self, snapshot: Snapshot, install: bool) {
        self.flush_records();
        self.learning.saving = self.learning.saving.max(snapshot.slot);
        self.disk.written += 1;
        self.stats.snapshots += 1;
        let from = if install {
            // What was accepted below was perhaps never decided.
            snapshot.slot.next()
        } else {
            self.acceptor
                .kept_from(snapshot.slot, self.sizes.kept_bytes)
        };
        let retained = self.retained(&snapshot, from);
        self.actions.push_back(Action::SaveSnapshot {
            seq: self.disk.written,
            snapshot: snapshot.clone(),
            records: retained,
        });
        self.after_disk(Deferred::Snapshot(snapshot, install));
    }

    /// All records that count beside `snapshot`, with the entries from slot `from` on.
    fn retained(&self, snapshot: &Snapshot, from: Slot) -> Vec<Record> {
        let mut records = vec![Record::Promised(self.acceptor.promised)];
        for (slot, accepted) in self.acceptor.log.range(from..) {
            records.push(Record::Accepted {
                slot: *slot,
                ballot: accepted.ballot,
                entry: accepted.entry.clone(),
            });
        }
        let decided = self.learning.decided.max(snapshot.slot);
        records.push(Record::Decided(decided));
        records
    }

    /// Carries out what waited and waits no longer. Whether there was anything.
    pub(super) fn release(&mut self) -> bool {
        let mut any = false;
        while let Some(deferred) = self.released() {
            any = true;
            match deferred {
                Deferred::Send(envelope) => self.actions.push_back(Action::Send(envelope)),
                Deferred::Ballot(ballot) => self.ballot_durable(ballot),
                Deferred::Vote(ballot, slot) => self.vote_durable(ballot, slot),
                Deferred::Snapshot(snapshot, install) => self.snapshot_durable(snapshot, install),
            }
        }
        any
    }

    /// The next that waits no longer: later ones never wait for less.
    fn released(&mut self) -> Option<Deferred> {
        let durable = self.disk.durable;
        let first = self.disk.deferred.front()?;
        if first.0 > durable {
            return None;
        }
        self.disk.deferred.pop_front().map(|(_, deferred)| deferred)
    }
}
