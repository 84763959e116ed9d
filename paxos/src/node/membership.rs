//! Who the members are, how far each is, and how one is replaced.

use std::time::Duration;

use super::leader::quorum;
use super::{Node, Role};
use crate::limits::{MAX_ADDRESS, MAX_LEARNERS};
use crate::message::Body;
use crate::mutants::{self, Mutant};
use crate::types::{Group, Incarnation, Member, PeerId, Slot, Time};

/// One who learns without being a member.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Learner {
    pub(super) incarnation: Incarnation,
    pub(super) address: String,
    pub(super) decided: Slot,
    pub(super) heard: Time,
}

/// A member, as the leader knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Who and where.
    pub member: Member,
    /// Its last decided slot, once heard of.
    pub decided: Option<Slot>,
    /// How long nothing was heard of it; `None` if nothing ever was.
    pub silent: Option<Duration>,
}

/// One who learns, as the leader knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LearnerStatus {
    /// Its number.
    pub id: PeerId,
    /// Where it is.
    pub address: String,
    /// Its last decided slot.
    pub decided: Slot,
    /// How long nothing was heard of it.
    pub silent: Duration,
}

/// Why a member is not replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplaceError {
    /// Ask the leader.
    #[error("this peer does not lead")]
    NotLeader(Option<PeerId>),
    /// No such member.
    #[error("there is no member {0}")]
    NoMember(PeerId),
    /// The leader can't replace itself.
    #[error("member {0} leads; stop it first")]
    Leads(PeerId),
    /// Who is to come in has not been heard of.
    #[error("peer {0} has not asked to join")]
    NoLearner(PeerId),
    /// It has not learned enough yet.
    #[error("peer {0} is still {1} slots behind")]
    Behind(PeerId, u64),
    /// One change at a time.
    #[error("another member is being replaced")]
    Busy,
}

fn since(now: Time, then: Time) -> Duration {
    Duration::from_micros(now.0.saturating_sub(then.0))
}

impl Node {
    /// Puts `by`, who has asked to join, in the place of `out`. Takes effect when decided; done
    /// already is done. `out` may be stopped for good once [`Node::is_settled`] too.
    ///
    /// # Errors
    /// When it can't be, or not yet.
    pub fn replace(&mut self, now: Time, out: PeerId, by: PeerId) -> Result<(), ReplaceError> {
        self.now = self.now.max(now);
        let outcome = self.begin_replace(out, by);
        self.settle();
        outcome
    }

    fn begin_replace(&mut self, out: PeerId, by: PeerId) -> Result<(), ReplaceError> {
        let (Some(group), Some(_)) = (&self.group, self.leads()) else {
            return Err(ReplaceError::NotLeader(self.leader));
        };
        let done = group.member(by).is_some() && group.member(out).is_none();
        if done {
            return Ok(());
        }
        if out == self.setup.me {
            return Err(ReplaceError::Leads(out));
        }
        if group.member(out).is_none() {
            return Err(ReplaceError::NoMember(out));
        }
        if by != out && group.member(by).is_some() {
            return Err(ReplaceError::NoLearner(by));
        }
        let learner = self.learners.get(&by).ok_or(ReplaceError::NoLearner(by))?;
        let behind = self.learning.decided.0.saturating_sub(learner.decided.0);
        if behind > self.sizes.caught_up {
            return Err(ReplaceError::Behind(by, behind));
        }
        let member = Member {
            id: by,
            incarnation: learner.incarnation,
            address: learner.address.clone(),
        };
        self.begin_change(out, member)
    }

    pub(super) fn begin_change(&mut self, out: PeerId, by: Member) -> Result<(), ReplaceError> {
        let Role::Leading(leader) = &mut self.role else {
            return Err(ReplaceError::NotLeader(self.leader));
        };
        let wanted = Some((out, by));
        if leader.change == wanted {
            return Ok(());
        }
        let blocked = leader.barrier.is_some() && !mutants::active(Mutant::SkipBarrier);
        if leader.change.is_some() || blocked {
            return Err(ReplaceError::Busy);
        }
        leader.change = wanted;
        Ok(())
    }

    /// One who is no member learns. A member that lost its disk comes back as soon as it is near:
    /// it is known to be lost.
    pub(super) fn joins(
        &mut self,
        from: PeerId,
        incarnation: Incarnation,
        address: String,
        decided: Slot,
    ) {
        if address.len() > MAX_ADDRESS {
            return;
        }
        let Some(ballot) = self.leads() else {
            self.called(from, incarnation, address);
            return self.tell_group(from);
        };
        let learner = Learner {
            incarnation,
            address: address.clone(),
            decided,
            heard: self.now,
        };
        // One who became a member meanwhile is about to hear of it.
        if !self.is_member_of_group(from, incarnation) {
            self.learners.insert(from, learner);
            self.forget_learners();
        }
        let body = Body::Heartbeat {
            ballot,
            commit: self.learning.decided,
            stamp: self.now,
        };
        self.send(from, body);
        let member = self.group.as_ref().and_then(|group| group.member(from));
        let wiped = member.is_some_and(|member| member.incarnation != incarnation);
        let near = decided.0 + self.sizes.caught_up >= self.learning.decided.0;
        if wiped && near && from != self.setup.me {
            let by = Member {
                id: from,
                incarnation,
                address,
            };
            // If another change is under way it asks again.
            let _ = self.begin_change(from, by);
        }
    }

    /// One who is no member asks, and must be found to be answered.
    pub(super) fn called(&mut self, from: PeerId, of: Incarnation, address: String) {
        if address.len() > MAX_ADDRESS {
            return;
        }
        self.callers.insert(from, (of, address));
        while self.callers.len() > MAX_LEARNERS {
            let other = self.callers.keys().find(|id| **id != from).copied();
            let Some(other) = other else { return };
            self.callers.remove(&other);
        }
    }

    fn forget_learners(&mut self) {
        while self.learners.len() > MAX_LEARNERS {
            let oldest = self
                .learners
                .iter()
                .min_by_key(|(_, learner)| learner.heard);
            let Some(id) = oldest.map(|(id, _)| *id) else {
                return;
            };
            self.learners.remove(&id);
        }
    }

    /// The group is another from here on.
    pub(super) fn regroup(&mut self, slot: Slot, group: Group) {
        let was_member = self.is_member();
        self.groups.insert(slot, group.clone());
        for member in &group.members {
            self.learners.remove(&member.id);
            self.callers.remove(&member.id);
            self.moved.remove(&member.id);
        }
        let generation = group.generation;
        self.newer.take_if(|newer| newer.generation <= generation);
        let known = self.group.as_ref().map(|group| group.generation);
        if known.is_none_or(|known| known <= group.generation) {
            self.forget_lost_disks(&group);
            self.group = Some(group);
        }
        if let Role::Leading(leader) = &mut self.role {
            // It was meant for the group before.
            leader.change = None;
        }
        if was_member && !self.is_member() {
            self.lose_place();
        } else if !was_member && self.is_member() {
            self.rest_before_election();
        }
        // Promises of the new members are missing perhaps.
        if matches!(&self.role, Role::Leading(leader) if leader.usable) {
            self.ask_promises();
        }
    }

    /// What a member promised and granted went with its disk.
    fn forget_lost_disks(&mut self, group: &Group) {
        if mutants::active(Mutant::SkipPrepareOfNewGroup) {
            return;
        }
        let (Role::Leading(leader), Some(old)) = (&mut self.role, &self.group) else {
            return;
        };
        for member in old.members.iter() {
            if !group.contains(member.id, member.incarnation) {
                leader.reports.remove(&member.id);
                leader.progress.remove(&member.id);
            }
        }
    }

    /// Whether the group known is the one of the next slot, not one still to be reached.
    pub(super) fn group_is_reached(&self) -> bool {
        let reached = self.groups.last_key_value().map(|(_, g)| g.generation);
        let known = self.group.as_ref().map(|group| group.generation);
        reached.is_some() && reached >= known
    }

    /// Whether most members have on their disks that they are the members, as this leader knows:
    /// only then may a peer that was replaced be stopped. Until then its vote may be needed to
    /// decide its replacement once more.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let (Role::Leading(leader), Some(group)) = (&self.role, &self.group) else {
            return false;
        };
        let Some((slot, _)) = self.groups.last_key_value() else {
            return false;
        };
        let knows = |id: PeerId| {
            let told = leader.progress.get(&id).map(|progress| progress.decided);
            let own = (id == self.setup.me).then(|| self.told_decided());
            told.or(own).is_some_and(|decided| decided >= *slot)
        };
        leader.leads && quorum(group, knows)
    }

    /// The members, as far as this leader knows.
    #[must_use]
    pub fn members(&self) -> Vec<MemberStatus> {
        let members = self.group.iter().flat_map(|group| &group.members);
        members.map(|member| self.member_status(member)).collect()
    }

    fn member_status(&self, member: &Member) -> MemberStatus {
        let progress = match &self.role {
            Role::Leading(leader) => leader.progress.get(&member.id),
            _ => None,
        };
        let own = member.id == self.setup.me;
        MemberStatus {
            member: member.clone(),
            decided: progress
                .map(|progress| progress.decided)
                .or(own.then_some(self.learning.decided)),
            silent: progress
                .map(|progress| since(self.now, progress.heard))
                .or(own.then_some(Duration::ZERO)),
        }
    }

    /// Those who learn without being members, as far as this leader knows.
    #[must_use]
    pub fn learners(&self) -> Vec<LearnerStatus> {
        let learners = self.learners.iter().map(|(id, learner)| LearnerStatus {
            id: *id,
            address: learner.address.clone(),
            decided: learner.decided,
            silent: since(self.now, learner.heard),
        });
        learners.collect()
    }
}
