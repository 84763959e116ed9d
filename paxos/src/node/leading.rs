//! Leading: proposing, counting votes, deciding, and keeping the lease.

use super::acceptor::Accepted;
use super::disk::Deferred;
use super::leader::InFlight;
use super::{Action, Node, Role, Token};
use crate::limits::MAX_IN_FLIGHT;
use crate::message::Body;
use crate::mutants::{self, Mutant};
use crate::record::Record;
use crate::types::{Ballot, Entry, Group, PeerId, Slot, Time};

impl Node {
    /// Proposes what may be proposed.
    pub(super) fn flush_proposals(&mut self) {
        let mut slots = Vec::new();
        while let Some((slot, entry, tokens)) = self.next_proposal() {
            self.vote_for(slot, &entry, tokens);
            slots.push(slot);
        }
        let Some(ballot) = self.own_ballot().filter(|_| !slots.is_empty()) else {
            return;
        };
        for (first, entries) in self.runs(slots.into_iter()) {
            let body = Body::Accept {
                ballot,
                first,
                entries,
                commit: self.learning.decided,
                stamp: self.now,
            };
            for peer in self.others() {
                self.stats.accepts_sent += 1;
                self.send(peer, body.clone());
            }
        }
    }

    fn own_ballot(&self) -> Option<Ballot> {
        match &self.role {
            Role::Leading(leader) => Some(leader.ballot),
            _ => None,
        }
    }

    fn next_proposal(&mut self) -> Option<(Slot, Entry, Vec<Token>)> {
        let group = self.group.as_ref()?;
        let Role::Leading(leader) = &mut self.role else {
            return None;
        };
        let blocked = leader.barrier.is_some() && !mutants::active(Mutant::SkipBarrier);
        let prepared = leader.prepared(group)
            || (mutants::active(Mutant::SkipPrepareOfNewGroup)
                && self.groups.values().any(|before| leader.prepared(before)));
        let room = leader.in_flight.len() < MAX_IN_FLIGHT;
        if !leader.usable || !prepared || blocked || !room {
            return None;
        }
        let slot = leader.next;
        let highest = leader.reported.last_key_value().map(|(slot, _)| *slot);
        let mut tokens = Vec::new();
        let entry = if let Some(reported) = leader.reported.remove(&slot) {
            fitting(reported.entry, group)
        } else if highest.is_some_and(|highest| slot < highest) {
            if mutants::active(Mutant::SkipNoop) {
                leader.next = slot.next();
                return None;
            }
            Entry::Noop
        } else if leader.opening.is_none() {
            leader.opening = Some(slot);
            Entry::Noop
        } else if let Some((out, by)) = leader.change.take_if(|_| leader.leads) {
            Entry::Reconfigure(group.replace(out, by))
        } else {
            let (entry, own) = leader.batch()?;
            tokens = own;
            entry
        };
        if matches!(entry, Entry::Reconfigure(_)) {
            leader.barrier = Some(slot);
        }
        leader.next = slot.next();
        Some((slot, entry, tokens))
    }

    /// Accepts an entry of its own. The vote counts when the disk has it.
    fn vote_for(&mut self, slot: Slot, entry: &Entry, tokens: Vec<Token>) {
        let Role::Leading(leader) = &mut self.role else {
            return;
        };
        let ballot = leader.ballot;
        let votes = std::collections::BTreeSet::new();
        leader.in_flight.insert(slot, InFlight { votes, tokens });
        self.stats.slots_proposed += 1;
        self.record(Record::Accepted {
            slot,
            ballot,
            entry: entry.clone(),
        });
        let entry = entry.clone();
        self.acceptor.log.insert(slot, Accepted { ballot, entry });
        self.after_disk(Deferred::Vote(ballot, slot));
    }

    pub(super) fn vote_durable(&mut self, ballot: Ballot, slot: Slot) {
        self.accepted(self.setup.me, ballot, slot, slot);
    }

    /// A member has accepted these slots.
    pub(super) fn accepted(&mut self, from: PeerId, ballot: Ballot, first: Slot, last: Slot) {
        let Role::Leading(leader) = &mut self.role else {
            return;
        };
        if leader.ballot != ballot || first > last {
            return;
        }
        for (_, slot) in leader.in_flight.range_mut(first..=last) {
            slot.votes.insert(from);
        }
        self.decide();
    }

    fn decide(&mut self) {
        loop {
            let next = self.learning.decided.next();
            let (Role::Leading(leader), Some(group)) = (&mut self.role, &self.group) else {
                return;
            };
            let chosen = if mutants::active(Mutant::ApplyOutOfOrder) {
                let slots = leader.in_flight.keys();
                slots.copied().find(|slot| leader.is_chosen(*slot, group))
            } else {
                leader.is_chosen(next, group).then_some(next)
            };
            let Some(slot) = chosen else { return };
            let tokens = leader.in_flight.remove(&slot).map(|slot| slot.tokens);
            leader.barrier = leader.barrier.filter(|barrier| *barrier != slot);
            let tokens = tokens.unwrap_or_default();
            self.stats.commands_decided += tokens.len() as u64;
            self.apply(slot, tokens);
            self.opened(slot);
        }
    }

    /// The leader's first own slot is decided: whatever was decided before is known.
    fn opened(&mut self, slot: Slot) {
        let me = self.setup.me;
        if let Role::Leading(leader) = &mut self.role
            && !leader.leads
            && leader.opening.is_some_and(|opening| opening <= slot)
        {
            leader.leads = true;
            let ballot = leader.ballot;
            self.leader = Some(me);
            self.actions.push_back(Action::Leads(ballot));
        }
    }

    /// The planted fault: leads on promises alone.
    pub(super) fn open_early(&mut self) {
        let (Role::Leading(leader), Some(group)) = (&mut self.role, &self.group) else {
            return;
        };
        if mutants::active(Mutant::SkipOpening) && !leader.leads && leader.prepared(group) {
            leader.leads = true;
            let ballot = leader.ballot;
            self.leader = Some(self.setup.me);
            self.actions.push_back(Action::Leads(ballot));
        }
    }

    /// A member grants the lease, as of when what it answers was sent.
    pub(super) fn granted(&mut self, from: PeerId, ballot: Ballot, stamp: Time, decided: Slot) {
        let now = self.now;
        let Role::Leading(leader) = &mut self.role else {
            return;
        };
        if leader.ballot != ballot || stamp > now {
            return;
        }
        let since = if mutants::active(Mutant::LeaseFromReceipt) {
            now
        } else {
            stamp
        };
        let progress = leader.progress.entry(from).or_default();
        progress.granted = progress.granted.max(Some(since));
        progress.decided = progress.decided.max(decided);
        progress.heard = now;
    }

    pub(super) fn leading_due(&self) -> Option<Time> {
        match &self.role {
            Role::Leading(leader) => Some(leader.heartbeat_due.min(leader.retry_due)),
            _ => None,
        }
    }

    pub(super) fn leading_timeout(&mut self) {
        let (now, timing) = (self.now, self.setup.timing);
        self.note_sleep();
        let Role::Leading(leader) = &mut self.role else {
            return;
        };
        let beat = now >= leader.heartbeat_due;
        let retry = now >= leader.retry_due;
        if beat {
            leader.heartbeat_due = now + timing.heartbeat;
        }
        if retry {
            leader.retry_due = now + timing.retry;
        }
        if self.is_alone() {
            // Nobody answers: others may decide without it, and can't while it holds its ballot.
            return self.follow(None);
        }
        if beat {
            self.beat();
        }
        if retry {
            self.ask_again();
        }
    }

    /// While it did not run it could hear nobody: that is no silence of the others. Its lease runs
    /// out all the same.
    fn note_sleep(&mut self) {
        let (Role::Leading(leader), Some(group)) = (&mut self.role, &self.group) else {
            return;
        };
        let timing = &self.setup.timing;
        let late = self.now.since(leader.heartbeat_due);
        if late > timing.heartbeat {
            let lease = leader.lease_until(group, self.setup.me, timing.lease);
            leader.since = leader.since.max(lease) + late;
        }
    }

    /// Whether no quorum has been heard for so long that another may lead.
    fn is_alone(&self) -> bool {
        let (Role::Leading(leader), Some(group)) = (&self.role, &self.group) else {
            return false;
        };
        let timing = &self.setup.timing;
        let lease = leader.lease_until(group, self.setup.me, timing.lease);
        let patience = timing.election * 2;
        self.now >= lease.max(leader.since) + patience
    }

    fn beat(&mut self) {
        let Role::Leading(leader) = &self.role else {
            return;
        };
        let usable = self
            .group
            .as_ref()
            .is_some_and(|group| leader.prepared(group));
        if !usable {
            return;
        }
        let body = Body::Heartbeat {
            ballot: leader.ballot,
            commit: self.learning.decided,
            stamp: self.now,
        };
        for peer in self.others() {
            self.stats.heartbeats += 1;
            self.send(peer, body.clone());
        }
    }

    /// Sends again what was not answered.
    fn ask_again(&mut self) {
        let others = self.others();
        let (Role::Leading(leader), Some(group)) = (&self.role, &self.group) else {
            return;
        };
        if !leader.usable {
            return;
        }
        if !leader.prepared(group) {
            return self.ask_promises();
        }
        let ballot = leader.ballot;
        let mut again = Vec::new();
        for peer in others {
            let missing = leader.in_flight.iter();
            let missing = missing.filter(|(_, slot)| !slot.votes.contains(&peer));
            let runs = self.runs(missing.map(|(slot, _)| *slot));
            again.extend(runs.into_iter().map(|run| (peer, run)));
        }
        for (peer, (first, entries)) in again {
            self.stats.accepts_resent += 1;
            let body = Body::Accept {
                ballot,
                first,
                entries,
                commit: self.learning.decided,
                stamp: self.now,
            };
            self.send(peer, body);
        }
    }

    /// Cuts slots into runs that follow each other and fit a message.
    fn runs(&self, slots: impl Iterator<Item = Slot>) -> Vec<(Slot, Vec<Entry>)> {
        let mut runs: Vec<(Slot, Vec<Entry>)> = Vec::new();
        let mut bytes = 0;
        for slot in slots {
            let Some(accepted) = self.acceptor.log.get(&slot) else {
                continue;
            };
            let entry = accepted.entry.clone();
            bytes += entry.size();
            match runs.last_mut() {
                Some((first, run))
                    if first.0 + run.len() as u64 == slot.0 && bytes <= self.sizes.page_bytes =>
                {
                    run.push(entry);
                }
                _ => {
                    bytes = entry.size();
                    runs.push((slot, vec![entry]));
                }
            }
        }
        runs
    }
}

/// What was reported, unless it changes another group than this one: whoever proposed that did not
/// know of a change in a slot below, so it was never decided. Adopted, it would bring back members
/// that have been replaced.
fn fitting(entry: Entry, group: &Group) -> Entry {
    match entry {
        Entry::Reconfigure(next) if next.generation != group.generation + 1 => Entry::Noop,
        entry => entry,
    }
}
