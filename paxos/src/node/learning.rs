//! Learning what is decided: from the leader's commit index, in pages, or by a snapshot.
//!
//! # Invariants
//! 1. `decided` grows by one slot, or to the slot of a snapshot that is on the disk.
//! 2. A commit index decides only what was accepted under the ballot of the leader who says it.
//! 3. The log below the snapshot on the disk, and nothing above it, is trimmed.

use bytes::Bytes;

use super::acceptor::Accepted;
use super::{Action, Node, Role, Token};
use crate::message::Body;
use crate::mutants::{self, Mutant};
use crate::record::{Record, Snapshot};
use crate::types::{Ballot, Entry, Group, PeerId, Slot, Time};

/// Largest snapshot that is taken from another peer.
const MAX_SNAPSHOT: u64 = 1 << 30;

/// A snapshot on its way here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Partial {
    slot: Slot,
    total: u64,
    crc: u32,
    bytes: Vec<u8>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Learning {
    pub(super) decided: Slot,
    /// Known to be decided, though perhaps not here.
    pub(super) known: Slot,
    /// Whom to ask.
    source: Option<PeerId>,
    /// When to ask.
    fetch_due: Option<Time>,
    partial: Option<Partial>,
    /// Slot of the snapshot being saved, or saved.
    pub(super) saving: Slot,
    /// The last snapshot on the disk.
    pub(super) saved: Option<Snapshot>,
    saved_crc: u32,
}

impl Learning {
    pub(super) fn due(&self) -> Option<Time> {
        self.fetch_due
    }

    pub(super) fn keep(&mut self, snapshot: Snapshot) {
        self.saved_crc = crc32c::crc32c(&snapshot.state);
        self.saved = Some(snapshot);
    }

    pub(super) fn saved_slot(&self) -> Slot {
        let saved = self.saved.as_ref().map(|snapshot| snapshot.slot);
        saved.unwrap_or_default().max(self.saving)
    }
}

impl Node {
    /// The leader of `ballot` says that all slots up to `commit` are decided.
    pub(super) fn learn_commit(&mut self, from: PeerId, ballot: Ballot, commit: Slot) {
        self.learning.known = self.learning.known.max(commit);
        self.learning.source = Some(from);
        while self.learning.decided < commit {
            let next = self.learning.decided.next();
            let there = self.acceptor.log.get(&next);
            let fits = there.is_some_and(|accepted| {
                accepted.ballot == ballot || mutants::active(Mutant::CommitAnyBallot)
            });
            if !fits {
                break;
            }
            self.apply(next, Vec::new());
        }
        if self.learning.decided < self.learning.known && self.learning.fetch_due.is_none() {
            // What is missing may just be late.
            self.learning.fetch_due = Some(self.now + self.setup.timing.retry / 4);
        }
    }

    /// A slot is decided as it stands in the log.
    pub(super) fn apply(&mut self, slot: Slot, tokens: Vec<Token>) {
        let accepted = self.acceptor.log.get(&slot);
        let entry = accepted.map(|accepted| accepted.entry.clone());
        let entry = entry.expect("only what is in the log is decided");
        self.learning.decided = self.learning.decided.max(slot);
        let group = match &entry {
            Entry::Reconfigure(group) => Some(group.clone()),
            _ => None,
        };
        self.actions.push_back(Action::Apply {
            slot,
            entry,
            tokens,
        });
        if let Some(group) = group {
            self.record_regrouped(slot);
            self.regroup(slot, group);
        }
    }

    /// Asks `peer` for what is decided up to `known`.
    pub(super) fn fetch_from(&mut self, peer: PeerId, known: Slot) {
        self.learning.known = self.learning.known.max(known);
        self.learning.source = Some(peer);
        self.fetch();
    }

    fn fetch(&mut self) {
        let Some(peer) = self.learning.source else {
            return;
        };
        let partial = self.learning.partial.as_ref();
        let snapshot = partial.map(|partial| (partial.slot, partial.bytes.len() as u64));
        let from = self.learning.decided.next();
        self.learning.fetch_due = Some(self.now + self.setup.timing.retry);
        self.send(peer, Body::Learn { from, snapshot });
    }

    pub(super) fn learning_timeout(&mut self) {
        if self.learning.fetch_due.is_none_or(|due| self.now < due) {
            return;
        }
        let behind = self.learning.decided < self.learning.known;
        if !behind || matches!(self.role, Role::Leading(_)) {
            self.learning.fetch_due = None;
            return;
        }
        if self.leader.is_some_and(|leader| leader != self.setup.me) {
            self.learning.source = self.leader;
        } else {
            // Nobody leads: anybody may have it.
            let others = self.others();
            let at = self.rng.below(others.len() as u64) as usize;
            self.learning.source = others.get(at).copied().or(self.learning.source);
        }
        self.fetch();
    }

    /// Somebody wants to learn.
    pub(super) fn learn(&mut self, from: PeerId, slot: Slot, progress: Option<(Slot, u64)>) {
        let decided = self.learning.decided;
        if slot > self.acceptor.trimmed {
            let entries = self.page_from(slot);
            let first = slot;
            return self.send(
                from,
                Body::Page {
                    first,
                    entries,
                    decided,
                },
            );
        }
        let Some(saved) = &self.learning.saved else {
            return;
        };
        let offset = match progress {
            Some((of, bytes)) if of == saved.slot && bytes <= saved.state.len() as u64 => bytes,
            _ => 0,
        };
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = saved
            .state
            .len()
            .min(start.saturating_add(self.sizes.page_bytes));
        let body = Body::SnapshotPage {
            slot: saved.slot,
            group: saved.group.clone(),
            total: saved.state.len() as u64,
            crc: self.learning.saved_crc,
            offset,
            bytes: saved.state.slice(start..end),
            decided,
        };
        self.send(from, body);
    }

    fn page_from(&self, first: Slot) -> Vec<(Ballot, Entry)> {
        let (mut entries, mut bytes) = (Vec::new(), 0);
        if first > self.learning.decided {
            return entries;
        }
        for (_, accepted) in self.acceptor.log.range(first..=self.learning.decided) {
            bytes += accepted.entry.size();
            if bytes > self.sizes.page_bytes && !entries.is_empty() {
                break;
            }
            entries.push((accepted.ballot, accepted.entry.clone()));
        }
        entries
    }

    pub(super) fn page(&mut self, from: PeerId, body: Body) {
        if matches!(self.role, Role::Leading(_)) {
            return;
        }
        let before = (self.learning.decided, self.partial_len());
        match body {
            Body::Page {
                first,
                entries,
                decided,
            } => {
                self.learning.known = self.learning.known.max(decided);
                self.take_page(first, entries);
            }
            Body::SnapshotPage {
                slot,
                group,
                total,
                crc,
                offset,
                bytes,
                decided,
            } => {
                self.learning.known = self.learning.known.max(decided);
                self.take_snapshot_page((slot, group), (total, crc), offset, &bytes);
            }
            _ => {}
        }
        let behind = self.learning.decided < self.learning.known;
        if behind && before != (self.learning.decided, self.partial_len()) {
            self.learning.source = Some(from);
            self.fetch();
        }
    }

    fn partial_len(&self) -> usize {
        let partial = self.learning.partial.as_ref();
        partial.map_or(0, |partial| partial.bytes.len())
    }

    fn take_page(&mut self, first: Slot, entries: Vec<(Ballot, Entry)>) {
        let mut slot = first;
        for (ballot, entry) in entries {
            if slot == self.learning.decided.next() {
                self.record(Record::Accepted {
                    slot,
                    ballot,
                    entry: entry.clone(),
                });
                self.acceptor.log.insert(slot, Accepted { ballot, entry });
                self.apply(slot, Vec::new());
            }
            slot = slot.next();
        }
    }

    fn take_snapshot_page(
        &mut self,
        (slot, group): (Slot, Group),
        (total, crc): (u64, u32),
        offset: u64,
        bytes: &[u8],
    ) {
        if slot <= self.learning.decided.max(self.learning.saving) || total > MAX_SNAPSHOT {
            return;
        }
        let fresh = || Partial {
            slot,
            total,
            crc,
            bytes: Vec::new(),
        };
        let mut partial = self.learning.partial.take().unwrap_or_else(fresh);
        if (partial.slot, partial.total, partial.crc) != (slot, total, crc) {
            partial = fresh();
        }
        let len = partial.bytes.len() as u64;
        if offset == len && len + bytes.len() as u64 <= total {
            partial.bytes.extend_from_slice(bytes);
        }
        if (partial.bytes.len() as u64) < total {
            self.learning.partial = Some(partial);
        } else if crc32c::crc32c(&partial.bytes) == crc {
            let state = Bytes::from(partial.bytes);
            let snapshot = Snapshot { slot, group, state };
            self.save(snapshot, true);
        }
    }

    /// A snapshot is on the disk: the state machine is set to it when it came from another peer,
    /// and what it has may be trimmed.
    pub(super) fn snapshot_durable(&mut self, snapshot: Snapshot, install: bool) {
        let slot = snapshot.slot;
        if install && slot > self.learning.decided {
            self.install(&snapshot);
        }
        self.acceptor.trim(slot, self.sizes.kept_bytes);
        if mutants::active(Mutant::TrimPastSnapshot) {
            let decided = self.learning.decided;
            self.acceptor.log = self.acceptor.log.split_off(&decided.next());
            self.acceptor.trimmed = decided;
        }
        let oldest = self
            .groups
            .range(..=slot)
            .next_back()
            .map(|(slot, _)| *slot);
        if let Some(oldest) = oldest {
            self.groups = self.groups.split_off(&oldest);
        }
        let saved = self.learning.saved.as_ref();
        if saved.is_none_or(|saved| saved.slot < slot) {
            self.learning.keep(snapshot);
        }
    }

    fn install(&mut self, snapshot: &Snapshot) {
        if matches!(self.role, Role::Leading(_)) {
            self.follow(None);
        }
        let slot = snapshot.slot;
        self.learning.decided = slot;
        self.acceptor.log = self.acceptor.log.split_off(&slot.next());
        self.acceptor.trimmed = slot;
        self.actions.push_back(Action::Restore(snapshot.clone()));
        self.regroup(slot, snapshot.group.clone());
        if self.learning.decided < self.learning.known {
            self.fetch();
        }
    }
}
