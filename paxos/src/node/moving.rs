//! Members that are not where the group has them: their directories were moved.
//!
//! # Invariants
//! 1. What a member says of its address changes nobody's calls by itself. Two processes may have the same
//!    disk, one of them cut off: where each of two members called another of them, both would count. So a
//!    member is called where the group has it, or else where this peer's own configuration has it.
//! 2. The group takes an address on once its member says it, and another member's configuration does too.

use super::Node;
use crate::limits::MAX_ADDRESS;
use crate::message::Body;
use crate::types::{Incarnation, Member, PeerId};

impl Node {
    /// Where this peer's configuration has another, or itself.
    fn named(&self, peer: PeerId) -> Option<&str> {
        let named = self.setup.peers.iter().find(|(id, _)| *id == peer);
        named.map(|(_, address)| address.as_str())
    }

    /// Where this member is reached by its own configuration, if the group has it elsewhere.
    #[must_use]
    pub fn has_moved_to(&self) -> Option<&str> {
        let setup = &self.setup;
        let member = self.group.as_ref()?.member(setup.me)?;
        let address = self.named(setup.me).unwrap_or(&setup.address);
        let own = member.incarnation == setup.incarnation;
        (own && member.address != address).then_some(address)
    }

    /// Where a member says that it is, if it is not called there.
    #[must_use]
    pub fn calls_from(&self, peer: PeerId) -> Option<&str> {
        let says = self.moved.get(&peer)?.as_str();
        (!self.addresses_of(peer).contains(&says)).then_some(says)
    }

    /// Says to the others where this member is. False: it is where the group has it.
    pub(super) fn tell_move(&mut self) -> bool {
        let Some(address) = self.has_moved_to().map(str::to_owned) else {
            return false;
        };
        for peer in self.others() {
            let address = address.clone();
            self.send(peer, Body::Moved { address });
        }
        true
    }

    /// A member says where it is.
    pub(super) fn hear_move(&mut self, from: PeerId, of: Incarnation, address: String) {
        let group = self.group.as_ref();
        let member = group.and_then(|group| group.member(from));
        let Some(member) = member.filter(|member| member.incarnation == of) else {
            return;
        };
        if address.len() > MAX_ADDRESS || member.address == address {
            return;
        }
        let told = self.named(from) == Some(address.as_str());
        self.moved.insert(from, address.clone());
        if !told {
            return;
        }
        match self.leader {
            _ if self.leads().is_some() => self.record_move(from, address),
            Some(leader) => {
                let member = from;
                self.send(leader, Body::Called { member, address });
            }
            None => {}
        }
    }

    /// A member's configuration has another, or this one, where that says that it is.
    pub(super) fn hear_called(
        &mut self,
        (from, of): (PeerId, Incarnation),
        member: PeerId,
        address: String,
    ) {
        let says = match member == self.setup.me {
            true => self.has_moved_to(),
            false => self.moved.get(&member).map(String::as_str),
        };
        if says == Some(address.as_str()) && self.is_member_of_group(from, of) {
            self.record_move(member, address);
        }
    }

    /// The group is to have a member at this address. If that can't be now, it is said again.
    fn record_move(&mut self, peer: PeerId, address: String) {
        let group = self.group.as_ref();
        let Some(member) = group.and_then(|group| group.member(peer)) else {
            return;
        };
        let moved = Member {
            address,
            ..member.clone()
        };
        if self.leads().is_some() {
            let _ = self.begin_change(peer, moved);
        }
    }
}
