//! The acceptor: promises, and what was accepted in each slot.
//!
//! # Invariants
//! 1. No part is taken in a ballot below the promised one.
//! 2. A slot known as decided is not accepted again: what its record says is what was decided.
//! 3. While a grant runs, no ballot of another peer is promised.

use std::collections::BTreeMap;

use super::disk::Deferred;
use super::{Grant, Node, Role};
use crate::message::{Body, Reported};
use crate::mutants::{self, Mutant};
use crate::record::Record;
use crate::types::{Ballot, Entry, PeerId, Slot, Time};

/// An entry as accepted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Accepted {
    pub(super) ballot: Ballot,
    pub(super) entry: Entry,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Acceptor {
    pub(super) promised: Ballot,
    pub(super) log: BTreeMap<Slot, Accepted>,
    /// Slots up to here are not in the log any more.
    pub(super) trimmed: Slot,
}

impl Acceptor {
    /// From which slot the log is kept when a snapshot has everything up to `saved`.
    pub(super) fn kept_from(&self, saved: Slot, kept_bytes: usize) -> Slot {
        let mut from = saved.next();
        let mut bytes = 0;
        for (slot, accepted) in self.log.range(..=saved).rev() {
            bytes += accepted.entry.size();
            if bytes > kept_bytes || slot.next() != from {
                break;
            }
            from = *slot;
        }
        from
    }

    /// Forgets what a durable snapshot up to `saved` has, but for a bounded rest.
    pub(super) fn trim(&mut self, saved: Slot, kept_bytes: usize) {
        let from = self.kept_from(saved, kept_bytes);
        self.log = self.log.split_off(&from);
        self.trimmed = self.trimmed.max(Slot(from.0 - 1));
    }

    /// One page of what was accepted from `from` on, and where the next begins.
    fn report(&self, from: Slot, page_bytes: usize) -> (Vec<Reported>, Option<Slot>) {
        let (mut page, mut bytes) = (Vec::new(), 0);
        for (slot, accepted) in self.log.range(from..) {
            bytes += accepted.entry.size();
            if bytes > page_bytes && !page.is_empty() {
                return (page, Some(*slot));
            }
            page.push(Reported {
                slot: *slot,
                ballot: accepted.ballot,
                entry: accepted.entry.clone(),
            });
        }
        (page, None)
    }
}

impl Node {
    /// Whether a grant to another than `peer` still runs.
    pub(super) fn granted_to_other(&self, peer: PeerId) -> bool {
        let grant = self.grant.filter(|grant| self.now < grant.until);
        grant.is_some_and(|grant| grant.to != Some(peer))
            && !mutants::active(Mutant::PromiseInGrant)
    }

    pub(super) fn prepare(&mut self, from: PeerId, ballot: Ballot, slot: Slot) {
        self.highest = self.highest.max(ballot);
        let promised = self.acceptor.promised;
        if ballot < promised {
            return self.send(from, Body::Nack { ballot, promised });
        }
        if ballot > promised {
            if self.granted_to_other(from) || self.leads_with_quorum() {
                // It asks again when it was not answered.
                return;
            }
            self.promise_ballot(ballot);
            self.follow(None);
        }
        let (accepted, next) = self.acceptor.report(slot, self.sizes.page_bytes);
        let body = Body::Promise {
            ballot,
            from: slot,
            accepted,
            next,
            trimmed: self.acceptor.trimmed,
        };
        let envelope = self.envelope(from, body);
        self.after_disk(Deferred::Send(envelope));
    }

    pub(super) fn promise_ballot(&mut self, ballot: Ballot) {
        assert!(ballot > self.acceptor.promised, "promises only rise");
        self.acceptor.promised = ballot;
        self.highest = self.highest.max(ballot);
        self.record(Record::Promised(ballot));
        self.disk.promised = self.seq_of_all();
    }

    /// Takes note of an established leader. Whether it counts.
    fn hear_leader(&mut self, from: PeerId, ballot: Ballot) -> bool {
        self.highest = self.highest.max(ballot);
        let promised = self.acceptor.promised;
        if ballot < promised && !mutants::active(Mutant::AcceptLower) {
            self.send(from, Body::Nack { ballot, promised });
            return false;
        }
        if let Role::Leading(leader) = &self.role
            && leader.ballot >= ballot
        {
            return false;
        }
        self.follow(Some(from));
        self.grant = Some(Grant {
            to: Some(from),
            until: self.now + self.setup.timing.grant(),
        });
        true
    }

    pub(super) fn accept(
        &mut self,
        from: PeerId,
        ballot: Ballot,
        (first, entries): (Slot, Vec<Entry>),
        commit: Slot,
        stamp: Time,
    ) {
        if !self.hear_leader(from, ballot) {
            return;
        }
        if ballot > self.acceptor.promised {
            self.promise_ballot(ballot);
        }
        let mut slot = first;
        for entry in entries {
            if slot.0 > self.learning.decided.0 + self.sizes.ahead {
                break;
            }
            self.take(slot, ballot, entry);
            slot = slot.next();
        }
        self.learn_commit(from, ballot, commit);
        self.stats.accepts_answered += 1;
        if slot > first {
            let body = Body::Accepted {
                ballot,
                first,
                last: Slot(slot.0 - 1),
                stamp,
                decided: self.told_decided(),
            };
            let envelope = self.envelope(from, body);
            self.after_disk(Deferred::Send(envelope));
        }
    }

    /// Accepts an entry, unless its slot is known as decided or it is there already.
    pub(super) fn take(&mut self, slot: Slot, ballot: Ballot, entry: Entry) {
        let there = self.acceptor.log.get(&slot);
        if slot <= self.learning.decided || there.is_some_and(|there| there.ballot == ballot) {
            return;
        }
        self.record(Record::Accepted {
            slot,
            ballot,
            entry: entry.clone(),
        });
        self.acceptor.log.insert(slot, Accepted { ballot, entry });
    }

    pub(super) fn heartbeat(&mut self, from: PeerId, ballot: Ballot, commit: Slot, stamp: Time) {
        if !self.is_member() {
            // A grant of one who is no member counts for nothing: it only learns.
            self.leader = Some(from);
            return self.learn_commit(from, ballot, commit);
        }
        if !self.hear_leader(from, ballot) {
            return;
        }
        if ballot > self.acceptor.promised {
            // A grant without a promise would give way to a late message of a lower ballot, and
            // to a restart.
            self.promise_ballot(ballot);
        }
        self.learn_commit(from, ballot, commit);
        let body = Body::HeartbeatAck {
            ballot,
            stamp,
            decided: self.told_decided(),
        };
        let envelope = self.envelope(from, body);
        self.after_promise(envelope);
    }
}
