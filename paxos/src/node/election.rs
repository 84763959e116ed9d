//! Who leads: asking first whether a ballot would be promised, then for the promises.
//!
//! # Invariants
//! 1. A ballot is on this peer's disk before anybody hears of it: no life uses one twice.
//! 2. Nobody asks for promises while its own grant to another runs.
//!
//! Asking first (as Raft's pre-vote, Ongaro 2014, section 9.6) keeps a peer that was cut off from
//! raising ballots that would then unseat the leader.

use std::collections::BTreeSet;
use std::time::Duration;

use super::disk::Deferred;
use super::leader::{Leader, Report, quorum};
use super::{Action, Node, Role};
use crate::message::{Body, Reported};
use crate::mutants::{self, Mutant};
use crate::types::{Ballot, PeerId, Slot};

/// Whether a ballot would be promised.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Poll {
    ballot: Ballot,
    yes: BTreeSet<PeerId>,
    /// Who has decided most, and how much.
    ahead: (Slot, PeerId),
}

impl Node {
    /// Spread evenly over one to two election timeouts.
    fn election_patience(&mut self) -> Duration {
        let election = self.setup.timing.election;
        let micros = u64::try_from(election.as_micros()).unwrap_or(u64::MAX);
        election + Duration::from_micros(self.rng.below(micros))
    }

    pub(super) fn rest_before_election(&mut self) {
        let patience = self.election_patience();
        self.election_due = Some(self.now + patience);
        self.overslept = false;
    }

    /// Whether it did not run when the leader's silence had lasted long enough, by more than a
    /// heartbeat: what the leader has sent meanwhile may lie unread, so there is time to read it. Once.
    fn oversleeps(&mut self) -> bool {
        let heartbeat = self.setup.timing.heartbeat;
        let late = (self.election_due).is_some_and(|due| self.now.since(due) > heartbeat);
        let follows = matches!(self.role, Role::Follower) && self.leader.is_some();
        if !late || !follows || self.overslept {
            return false;
        }
        self.overslept = true;
        self.election_due = Some(self.now + heartbeat * 2);
        true
    }

    /// The leader is known to be gone: what is left of its lease is waited out, and a little more,
    /// not the same for all.
    pub(super) fn hasten_election(&mut self) {
        let lease_over = self.grant.map_or(self.now, |grant| grant.until);
        let spread = self.election_patience() / 4;
        let soon = lease_over.max(self.now) + spread.saturating_sub(self.setup.timing.election / 4);
        self.election_due = Some(self.election_due.map_or(soon, |due| due.min(soon)));
        self.overslept = true;
    }

    /// Becomes, or stays, one who follows.
    pub(super) fn follow(&mut self, leader: Option<PeerId>) {
        if let Role::Leading(old) = &mut self.role {
            let led = old.leads;
            let lost = old.lost();
            if led {
                self.actions.push_back(Action::Deposed);
            }
            let lost = lost.into_iter().map(|(token, maybe_decided)| Action::Lost {
                token,
                maybe_decided,
            });
            self.actions.extend(lost);
        }
        self.role = Role::Follower;
        self.leader = leader;
        self.rest_before_election();
    }

    pub(super) fn election_timeout(&mut self) {
        if self.election_due.is_none_or(|due| self.now < due) {
            return;
        }
        if !self.may_lead() || matches!(self.role, Role::Leading(_)) {
            self.election_due = None;
            if self.is_member() && matches!(self.role, Role::Follower) && !self.removed {
                // It may lead once it has learned who the others are.
                self.rest_before_election();
            }
            return;
        }
        if self.oversleeps() {
            return;
        }
        let me = self.setup.me;
        if let Some(grant) = self.grant.filter(|_| self.granted_to_other(me)) {
            self.election_due = Some(grant.until);
            return;
        }
        self.ask_to_lead();
    }

    /// Only a member that knows the group of its next slot.
    pub(super) fn may_lead(&self) -> bool {
        self.is_member() && self.group_is_reached() && !self.removed
    }

    fn next_ballot(&self) -> Ballot {
        let generation = self.group.as_ref().map_or(0, |group| group.generation);
        let floor = u64::from(generation) << 32;
        Ballot {
            round: (self.highest.round + 1).max(floor + 1),
            peer: self.setup.me,
        }
    }

    fn ask_to_lead(&mut self) {
        let ballot = self.next_ballot();
        self.stats.elections += 1;
        let changed = self
            .group
            .as_ref()
            .is_some_and(|group| group.generation > 0);
        if changed && matches!(self.role, Role::Asking(_)) {
            // Nobody has answered: they may know an older group, with another address of this peer.
            self.others()
                .into_iter()
                .for_each(|peer| self.tell_group(peer));
        }
        self.leader = None;
        self.role = Role::Asking(Poll {
            ballot,
            yes: BTreeSet::from([self.setup.me]),
            ahead: (self.learning.decided, self.setup.me),
        });
        self.rest_before_election();
        for peer in self.others() {
            self.send(peer, Body::PreVote { ballot });
        }
        self.count_poll();
    }

    pub(super) fn pre_vote(&mut self, from: PeerId, ballot: Ballot) {
        let yes = ballot > self.acceptor.promised
            && !self.granted_to_other(from)
            && !self.leads_with_quorum();
        let decided = self.learning.decided;
        self.send(
            from,
            Body::PreVoted {
                ballot,
                yes,
                decided,
            },
        );
        if ballot <= self.acceptor.promised {
            let promised = self.acceptor.promised;
            self.send(from, Body::Nack { ballot, promised });
        }
    }

    pub(super) fn pre_voted(&mut self, from: PeerId, ballot: Ballot, yes: bool, decided: Slot) {
        let Role::Asking(poll) = &mut self.role else {
            return;
        };
        if poll.ballot != ballot || !yes {
            return;
        }
        poll.yes.insert(from);
        poll.ahead = poll.ahead.max((decided, from));
        self.count_poll();
    }

    fn count_poll(&mut self) {
        let (Role::Asking(poll), Some(group)) = (&self.role, &self.group) else {
            return;
        };
        if !quorum(group, |id| poll.yes.contains(&id)) {
            return;
        }
        let (ahead, peer) = poll.ahead;
        if ahead.0 > self.learning.decided.0 + self.sizes.catch_up_first {
            self.role = Role::Follower;
            self.fetch_from(peer, ahead);
            self.rest_before_election();
        } else {
            self.stand();
        }
    }

    /// Promises itself a new ballot; the others are asked once the disk has it.
    pub(super) fn stand(&mut self) {
        self.follow(None);
        let ballot = self.next_ballot();
        self.promise_ballot(ballot);
        let leader = Leader::new(ballot, self.now, self.learning.decided.next());
        self.role = Role::Leading(Box::new(leader));
        self.election_due = None;
        self.after_disk(Deferred::Ballot(ballot));
    }

    pub(super) fn ballot_durable(&mut self, ballot: Ballot) {
        let me = self.setup.me;
        let report = self.own_report();
        if let Role::Leading(leader) = &mut self.role
            && leader.ballot == ballot
        {
            leader.usable = true;
            leader.reports.insert(me, Report::Whole);
            leader.merge(report);
            leader.retry_due = self.now + self.setup.timing.retry;
            self.ask_promises();
        }
    }

    fn own_report(&self) -> Vec<Reported> {
        let log = self.acceptor.log.range(self.learning.decided.next()..);
        let report = log.map(|(slot, accepted)| Reported {
            slot: *slot,
            ballot: accepted.ballot,
            entry: accepted.entry.clone(),
        });
        report.collect()
    }

    /// Asks all members whose report is not whole.
    pub(super) fn ask_promises(&mut self) {
        let from = self.learning.decided.next();
        let others = self.others();
        let Role::Leading(leader) = &self.role else {
            return;
        };
        let ballot = leader.ballot;
        let asked = others.into_iter().filter_map(|peer| {
            let from = match leader.reports.get(&peer) {
                None => from,
                Some(Report::Next(slot)) => *slot,
                Some(Report::Whole) => return None,
            };
            Some((peer, Body::Prepare { ballot, from }))
        });
        for (peer, body) in asked.collect::<Vec<_>>() {
            self.send(peer, body);
        }
    }

    pub(super) fn promise(
        &mut self,
        from: PeerId,
        ballot: Ballot,
        first: Slot,
        accepted: Vec<Reported>,
        (next, trimmed): (Option<Slot>, Slot),
    ) {
        let decided = self.learning.decided;
        let Role::Leading(leader) = &mut self.role else {
            return;
        };
        let expected = match leader.reports.get(&from) {
            None => first <= decided.next(),
            Some(Report::Next(slot)) => *slot == first,
            Some(Report::Whole) => false,
        };
        if leader.ballot != ballot || !expected {
            return;
        }
        if trimmed > decided {
            // What is decided there can't be reported any more, only learned.
            self.follow(None);
            return self.fetch_from(from, trimmed);
        }
        leader.merge(accepted);
        let report = next.map_or(Report::Whole, Report::Next);
        leader.reports.insert(from, report);
        self.open_early();
        if let Some(from_slot) = next {
            let body = Body::Prepare {
                ballot,
                from: from_slot,
            };
            self.send(from, body);
        }
    }

    pub(super) fn nack(&mut self, ballot: Ballot, promised: Ballot) {
        self.highest = self.highest.max(promised);
        match &self.role {
            _ if promised < ballot => {}
            Role::Asking(poll) if poll.ballot == ballot => self.ask_to_lead(),
            // Who promised more takes part again under a still higher ballot.
            Role::Leading(leader) if leader.ballot == ballot && self.leads_with_quorum() => {
                self.stand();
            }
            Role::Leading(leader) if leader.ballot == ballot => {
                self.follow(None);
                self.hasten_election();
            }
            _ => {}
        }
    }

    /// Whether this peer leads and its lease runs: then it has granted to itself.
    pub(super) fn leads_with_quorum(&self) -> bool {
        let lease = self.lease_until();
        lease.is_some_and(|until| self.now < until) && !mutants::active(Mutant::PromiseInGrant)
    }
}
