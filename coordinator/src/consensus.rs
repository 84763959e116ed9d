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
//! 4. A slot fits a journal record: no command is longer than `MAX_COMMAND`.
//! 5. A ballot is used by one start of one peer only: its round is above all in the journal.

use std::collections::VecDeque;

use ramkeep_wire::{Ballot, PeerId};
use serde::{Deserialize, Serialize};

use crate::command::Command;
use crate::limits::{MAX_BATCH, MAX_COMMAND, MAX_PROPOSALS, MAX_PROPOSED_BYTES};

/// What one slot holds: a batch of commands with the ballot of the leader who proposed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// Of the leader.
    pub ballot: Ballot,
    /// In the order in which they are applied.
    pub commands: Vec<Command>,
}

struct Proposal<T> {
    command: Command,
    origin: T,
    bytes: usize,
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
    waiting: VecDeque<Proposal<T>>,
    /// Of the commands that wait.
    waiting_bytes: usize,
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
            waiting_bytes: 0,
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

    /// Whether another command may be proposed on a request.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.waiting.len() < MAX_PROPOSALS && self.waiting_bytes < MAX_PROPOSED_BYTES
    }

    /// Whether a slot is on its way to the disk.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.under_way.is_some()
    }

    /// Proposes a command.
    ///
    /// # Panics
    /// When it is longer than `MAX_COMMAND`: whoever makes one judges what goes into it.
    pub fn propose(&mut self, command: Command, origin: T) {
        let bytes = ramkeep_wire::postcards::encode(&command).len();
        assert!(bytes <= MAX_COMMAND, "a command of {bytes} bytes");
        self.waiting_bytes += bytes;
        self.waiting.push_back(Proposal {
            command,
            origin,
            bytes,
        });
    }

    /// The next slot to persist: its index and bytes. Each is yielded once.
    pub fn poll_persist(&mut self) -> Option<(u64, Vec<u8>)> {
        if self.under_way.is_none() && !self.waiting.is_empty() {
            let count = self.waiting.len().min(MAX_BATCH);
            let batch = self.waiting.drain(..count).map(|proposal| {
                self.waiting_bytes -= proposal.bytes;
                (proposal.command, proposal.origin)
            });
            let (commands, origins) = batch.unzip();
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
    fn what_waits_is_bounded_in_bytes_and_in_number() {
        let longest = Command::CreateTable {
            name: "n".repeat(MAX_COMMAND - 8),
        };
        let mut group = Consensus::new(PeerId(1), Ballot::default(), 0);
        let mut count = 0;
        while group.has_room() {
            group.propose(longest.clone(), ());
            count += 1;
        }
        assert!(
            count <= MAX_PROPOSED_BYTES / (MAX_COMMAND - 8) + 1,
            "{count}"
        );
        group.poll_persist().unwrap();
        assert!(group.has_room(), "what waited is under way");

        let mut group = Consensus::new(PeerId(1), Ballot::default(), 0);
        for client in 0..MAX_PROPOSALS as u64 {
            assert!(group.has_room());
            group.propose(expire(client), ());
        }
        assert!(!group.has_room());
    }

    #[test]
    fn the_longest_batch_fits_a_record() {
        let mut group = Consensus::new(PeerId(1), Ballot::default(), 0);
        for _ in 0..=MAX_BATCH {
            let name = "n".repeat(MAX_COMMAND - 8);
            group.propose(Command::CreateTable { name }, ());
        }
        let (index, bytes) = group.poll_persist().unwrap();
        let mut record = Vec::new();
        crate::journal::append_record(&mut record, index, &bytes).unwrap();
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
