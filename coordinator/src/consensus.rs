//! Where a command becomes decided. The seam where Paxos goes.
//!
//! For now a group of one: a command is decided once this peer's own disk has it. Multi-Paxos
//! replaces [`Consensus`] behind the same calls: `propose` becomes an accept sent to the group,
//! `poll_persist` also yields promises and accepts to persist, `handle_persisted` counts as this
//! peer's own vote, and decided slots may come from another leader, then without an origin. The
//! state machine and everything that follows from it stay as they are.
//!
//! # Invariants
//! 1. A command is decided only after `handle_persisted` of the slot that holds it.
//! 2. Slots are decided in order, without gaps, each once.
//! 3. One slot is under way at a time; what is proposed meanwhile goes into the next one together.
//! 4. A ballot is used by one start of one peer only: its round is above all in the journal.

use std::collections::VecDeque;

use ramkeep_wire::{Ballot, PeerId};
use serde::{Deserialize, Serialize};

use crate::command::Command;
use crate::limits::{MAX_BATCH, MAX_PROPOSALS};

/// What one slot holds: a batch of commands with the ballot of the leader who proposed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// Of the leader.
    pub ballot: Ballot,
    /// In the order in which they are applied.
    pub commands: Vec<Command>,
}

struct UnderWay<T> {
    index: u64,
    slot: Slot,
    origins: Vec<T>,
    handed_out: bool,
}

/// Turns proposed commands into decided ones. `T` says where a command came from.
pub struct Consensus<T> {
    ballot: Ballot,
    decided: u64,
    waiting: VecDeque<(Command, T)>,
    under_way: Option<UnderWay<T>>,
}

/// A slot that is decided, and where its commands came from.
#[derive(Debug)]
pub struct Decided<T> {
    /// Which slot.
    pub index: u64,
    /// The commands with their origins.
    pub commands: Vec<(Command, T)>,
}

impl<T> Consensus<T> {
    /// A start of `peer`, whose journal ends with slot `decided` and knows of `highest`.
    #[must_use]
    pub fn new(peer: PeerId, highest: Ballot, decided: u64) -> Self {
        Self {
            ballot: Ballot {
                round: highest.round + 1,
                peer,
            },
            decided,
            waiting: VecDeque::new(),
            under_way: None,
        }
    }

    /// The ballot of this start.
    #[must_use]
    pub fn ballot(&self) -> Ballot {
        self.ballot
    }

    /// The last decided slot.
    #[must_use]
    pub fn decided(&self) -> u64 {
        self.decided
    }

    /// Whether another command may be proposed now.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.waiting.len() < MAX_PROPOSALS
    }

    /// Whether a slot is on its way to the disk.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.under_way.is_some()
    }

    /// Proposes a command.
    pub fn propose(&mut self, command: Command, origin: T) {
        self.waiting.push_back((command, origin));
    }

    /// The next slot to persist: its index and bytes. Each is yielded once.
    pub fn poll_persist(&mut self) -> Option<(u64, Vec<u8>)> {
        if self.under_way.is_none() && !self.waiting.is_empty() {
            let count = self.waiting.len().min(MAX_BATCH);
            let (commands, origins) = self.waiting.drain(..count).unzip();
            self.under_way = Some(UnderWay {
                index: self.decided + 1,
                slot: Slot {
                    ballot: self.ballot,
                    commands,
                },
                origins,
                handed_out: false,
            });
        }
        let slot = self.under_way.as_mut().filter(|slot| !slot.handed_out)?;
        slot.handed_out = true;
        Some((slot.index, ramkeep_wire::postcards::encode(&slot.slot)))
    }

    /// Everything up to slot `up_to` is on the disk for good. The slot decided by it, if any.
    pub fn handle_persisted(&mut self, up_to: u64) -> Option<Decided<T>> {
        let slot = self
            .under_way
            .take_if(|slot| slot.handed_out && slot.index <= up_to)?;
        self.decided = slot.index;
        Some(Decided {
            index: slot.index,
            commands: slot.slot.commands.into_iter().zip(slot.origins).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expire(client: u64) -> Command {
        Command::ExpireClientLease {
            client: ramkeep_wire::ClientId(client),
        }
    }

    #[test]
    fn nothing_is_decided_before_it_is_persisted() {
        let mut group = Consensus::new(PeerId(1), Ballot::default(), 0);
        group.propose(expire(1), 'a');
        assert!(group.handle_persisted(1).is_none(), "not even handed out");
        assert_eq!(group.poll_persist().map(|(index, _)| index), Some(1));
        assert!(group.handle_persisted(0).is_none());
        let decided = group.handle_persisted(1).unwrap();
        assert_eq!(decided.commands, [(expire(1), 'a')]);
        assert!(group.handle_persisted(1).is_none(), "once only");
    }

    #[test]
    fn proposals_during_a_persist_share_the_next_one() {
        let mut group = Consensus::new(PeerId(1), Ballot::default(), 4);
        group.propose(expire(1), ());
        assert_eq!(group.poll_persist().unwrap().0, 5);
        group.propose(expire(2), ());
        group.propose(expire(3), ());
        assert!(group.poll_persist().is_none());
        group.handle_persisted(5).unwrap();
        let (index, bytes) = group.poll_persist().unwrap();
        let slot: Slot = ramkeep_wire::postcards::decode(&bytes).unwrap();
        assert_eq!((index, slot.commands), (6, vec![expire(2), expire(3)]));
    }
}
