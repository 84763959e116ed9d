//! How a group comes into being, and how one who has no group finds it.
//!
//! # Invariants
//! 1. A disk without a group takes exactly one, and takes part in nothing before it is on the disk.
//! 2. Only the peer with the lowest number founds one, only if it is told to, and only when all others have answered this
//!    very disk of its that they have none: while a wiped founder asks, whoever decided something
//!    with its former life knows.

use std::collections::BTreeMap;

use super::disk::Deferred;
use super::{Action, Node, Role};
use crate::message::Body;
use crate::record::Record;
use crate::types::{Group, GroupId, Incarnation, Member, PeerId, Slot, Time};

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Formation {
    /// When to ask again.
    pub(super) due: Option<Time>,
    /// Who has no group, with the incarnations of their disks.
    fresh: BTreeMap<PeerId, Incarnation>,
    /// Whom this peer told that it has no group.
    told: BTreeMap<PeerId, Incarnation>,
}

impl Node {
    pub(super) fn formation_timeout(&mut self) {
        if self.formation.due.is_none_or(|due| self.now < due) {
            return;
        }
        self.formation.due = Some(self.now + self.setup.timing.retry);
        if self.removed || (self.is_member() && !self.tell_move()) {
            self.formation.due = None;
        } else if self.is_member() {
            // Said again until the group has it.
        } else if self.group.is_some() {
            self.ask_to_join();
        } else {
            for peer in self.named_others() {
                self.ask_for_group(peer);
            }
            self.found();
        }
    }

    pub(super) fn ask_for_group(&mut self, peer: PeerId) {
        let address = self.setup.address.clone();
        self.send(peer, Body::Ask { address });
    }

    fn named_others(&self) -> Vec<PeerId> {
        let named = self.setup.peers.iter().map(|(id, _)| *id);
        named.filter(|id| *id != self.setup.me).collect()
    }

    fn ask_to_join(&mut self) {
        let body = Body::Join {
            address: self.setup.address.clone(),
            decided: self.learning.decided,
        };
        for peer in self.others() {
            self.send(peer, body.clone());
        }
    }

    /// Founds the group, if that is this peer's to do and all others have none.
    fn found(&mut self) {
        let me = self.setup.me;
        let is_founder = self.setup.peers.iter().map(|(id, _)| *id).min() == Some(me);
        let others = self.named_others();
        let all_fresh = others
            .iter()
            .all(|id| self.formation.fresh.contains_key(id));
        if !self.setup.founds || !is_founder || !all_fresh || self.group.is_some() {
            return;
        }
        let mut members = Vec::new();
        for (id, address) in &self.setup.peers {
            let other = self.formation.fresh.get(id).copied();
            members.push(Member {
                id: *id,
                incarnation: other.unwrap_or(self.setup.incarnation),
                address: address.clone(),
            });
        }
        members.sort_by_key(|member| member.id);
        let group = Group {
            id: GroupId(self.setup.seed),
            generation: 0,
            members,
        };
        if !group.is_valid() {
            return;
        }
        self.adopt(group.clone());
        for peer in others {
            let envelope = self.envelope(
                peer,
                Body::Grouped {
                    group: group.clone(),
                },
            );
            self.after_disk(Deferred::Send(envelope));
        }
        self.election_due = Some(self.now);
    }

    /// Takes a group on: as one of its members, or to join it.
    fn adopt(&mut self, group: Group) {
        self.record(Record::Group(group.clone()));
        if group.generation == 0 {
            self.groups.insert(Slot(0), group.clone());
        }
        self.group = Some(group);
        self.rest_before_election();
        self.formation.due = Some(self.now);
    }

    pub(super) fn formation_message(&mut self, from: PeerId, of: Incarnation, body: Body) {
        match body {
            Body::Ask { address } => {
                self.called(from, of, address);
                self.tell_group_or_fresh(from, of);
            }
            Body::Fresh { asker } if asker == self.setup.incarnation && self.group.is_none() => {
                self.formation.fresh.insert(from, of);
                self.found();
            }
            Body::Grouped { group } if group.is_valid() => self.hear_group(from, of, group),
            _ => {}
        }
    }

    fn tell_group_or_fresh(&mut self, to: PeerId, asker: Incarnation) {
        if self.group.is_some() {
            self.tell_group(to);
        } else {
            self.formation.told.insert(to, asker);
            self.send(to, Body::Fresh { asker });
        }
    }

    pub(super) fn tell_group(&mut self, to: PeerId) {
        if let Some(group) = self.group.clone() {
            let envelope = self.envelope(to, Body::Grouped { group });
            self.after_disk(Deferred::Send(envelope));
        }
    }

    fn hear_group(&mut self, from: PeerId, of: Incarnation, group: Group) {
        let Some(known) = &self.group else {
            if !self.is_from_lost_disk(from, of) {
                self.adopt(group);
            }
            return;
        };
        if known.id != group.id || known.generation == group.generation {
            return;
        }
        if known.generation > group.generation {
            // Perhaps it waits for members that are no more.
            return self.tell_group(from);
        }
        let stays = group.contains(self.setup.me, self.setup.incarnation);
        if !self.is_member() {
            self.group = Some(group);
            self.rest_before_election();
        } else if stays {
            // How the group came to be stands in slots that are missing here; where they are asked for, in it.
            self.newer = Some(group);
            self.fetch_from(from, self.learning.decided.next());
        } else {
            self.group = Some(group);
            self.lose_place();
        }
    }

    /// Whether this was said by a disk that its peer has lost since: one that founded a group
    /// nobody took part in, and whose next disk is about to found another.
    fn is_from_lost_disk(&self, from: PeerId, of: Incarnation) -> bool {
        let told = self.formation.told.get(&from);
        told.is_some_and(|asker| *asker != of)
    }

    /// This peer is in the group no more: another took its place, or an earlier disk of its own,
    /// by a message that was late. Then it asks to be taken in again.
    pub(super) fn lose_place(&mut self) {
        let group = self.group.as_ref();
        let named = group.is_some_and(|group| group.member(self.setup.me).is_some());
        if !named {
            return self.leave();
        }
        self.follow(None);
        self.election_due = None;
        self.formation.due = Some(self.now);
    }

    /// Another is in this peer's place.
    pub(super) fn leave(&mut self) {
        if !self.removed {
            self.removed = true;
            if matches!(self.role, Role::Leading(_)) {
                // Nobody else knows yet, and nobody may ask this peer once it is stopped.
                for peer in self.others() {
                    self.learn(peer, self.learning.decided, None);
                }
            }
            self.follow(None);
            self.election_due = None;
            self.actions.push_back(Action::Removed);
        }
    }
}
