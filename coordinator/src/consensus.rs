//! Where a command becomes decided: the coordinator's side of `paxos`.
//!
//! # Invariants
//! 1. A command is decided in the same place of the same slot on every peer, and comes with its
//!    origin only where it was proposed.
//! 2. Every origin comes back once: with its decided command, or as lost.
//! 3. Requests leave room for what the leader proposes by itself.

use std::collections::BTreeMap;

use paxos::{Action, Entry, Node, ProposeError, ReplaceError, RestoreError, Setup, Stored};
use ramkeep_wire::{Ballot, Micros, PeerId, postcards};

use crate::command::Command;
use crate::limits::{MAX_COMMAND, MAX_PROPOSALS, MAX_PROPOSED_BYTES};

/// What must be done, or has happened.
#[derive(Debug)]
pub enum Event<T> {
    /// Send a message to a peer at this address, if it is known; may be lost.
    Send(Option<String>, paxos::Envelope),
    /// Put records into the journal for good.
    Persist(u64, Vec<paxos::Record>),
    /// Keep a snapshot for good, and a new journal with these records.
    SaveSnapshot(u64, paxos::Snapshot, Vec<paxos::Record>),
    /// The state is this from now on, as of a slot.
    Restore(u64, Vec<u8>),
    /// A slot is decided.
    Decided(Decided<T>),
    /// This peer leads.
    Leads(Ballot),
    /// This peer leads no more.
    Deposed,
    /// It is not known what became of a command.
    Lost(T),
    /// Another took this peer's place.
    Removed,
}

/// A slot that is decided.
#[derive(Debug)]
pub struct Decided<T> {
    /// Which.
    pub slot: u64,
    /// Bytes of its commands.
    pub bytes: usize,
    /// Whether the members are others from here on.
    pub regroups: bool,
    /// The commands, those proposed here with their origins.
    pub commands: Vec<(Command, Option<T>)>,
}

/// A decided command that this build can't read: another build proposed it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a command of slot {slot} is not readable by this build: {why}")]
pub struct Unreadable {
    /// In which slot.
    pub slot: u64,
    /// What is wrong.
    pub why: String,
}

/// Turns proposed commands into decided ones. `T` says where a command came from.
#[derive(Debug)]
pub struct Consensus<T> {
    node: Node,
    origins: BTreeMap<u64, (T, usize)>,
    /// Of the commands that are not decided.
    bytes: usize,
    next: u64,
}

/// The moment as `paxos` has it.
#[must_use]
pub fn time(now: Micros) -> paxos::Time {
    paxos::Time(now.0)
}

/// The peer as `paxos` has it.
#[must_use]
pub fn peer(peer: PeerId) -> paxos::PeerId {
    paxos::PeerId(peer.0)
}

fn ballot(ballot: paxos::Ballot) -> Ballot {
    Ballot {
        round: ballot.round,
        peer: PeerId(ballot.peer.0),
    }
}

impl<T> Consensus<T> {
    /// A peer that goes on from what its disk has.
    ///
    /// # Errors
    /// When that makes no sense.
    pub fn new(now: Micros, setup: Setup, stored: Stored) -> Result<Self, RestoreError> {
        Ok(Self {
            node: Node::new(time(now), setup, stored)?,
            origins: BTreeMap::new(),
            bytes: 0,
            next: 1,
        })
    }

    /// The peer of the group.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// For its inputs.
    pub fn node_mut(&mut self) -> &mut Node {
        &mut self.node
    }

    /// The ballot under which this peer leads, if it does.
    #[must_use]
    pub fn leads(&self) -> Option<Ballot> {
        self.node.leads().map(ballot)
    }

    /// Until when this leader may answer from its state.
    #[must_use]
    pub fn lease_until(&self) -> Micros {
        self.node
            .lease_until()
            .map_or(Micros(0), |until| Micros(until.0))
    }

    /// Whether another command may be proposed on a request.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.origins.len() < MAX_PROPOSALS && self.bytes < MAX_PROPOSED_BYTES
    }

    /// Proposes a command. The origin comes back when this peer does not lead, or too much waits.
    ///
    /// # Panics
    /// When it is longer than `MAX_COMMAND`: whoever makes one judges what goes into it.
    pub fn propose(&mut self, now: Micros, command: &Command, origin: T) -> Result<(), T> {
        let bytes = postcards::encode(command);
        let len = bytes.len();
        assert!(len <= MAX_COMMAND, "a command of {len} bytes");
        let token = self.next;
        self.next += 1;
        self.origins.insert(token, (origin, len));
        self.bytes += len;
        match self.node.propose(time(now), bytes.into(), token) {
            Ok(()) => Ok(()),
            Err(ProposeError::NotLeader(_) | ProposeError::Full | ProposeError::TooLong) => {
                self.take_origin(token).map_or(Ok(()), Err)
            }
        }
    }

    fn take_origin(&mut self, token: u64) -> Option<T> {
        let (origin, len) = self.origins.remove(&token)?;
        self.bytes -= len;
        Some(origin)
    }

    /// Puts one coordinator in the place of another.
    ///
    /// # Errors
    /// When that can't be, or not yet.
    pub fn replace(&mut self, now: Micros, out: PeerId, by: PeerId) -> Result<(), ReplaceError> {
        self.node.replace(time(now), peer(out), peer(by))
    }

    /// The next thing to do, or that has happened.
    ///
    /// # Errors
    /// When another build's command is decided: this peer can't go on.
    pub fn poll(&mut self) -> Result<Option<Event<T>>, Unreadable> {
        let Some(action) = self.node.poll_action() else {
            return Ok(None);
        };
        Ok(Some(match action {
            Action::Send(envelope) => {
                let address = self.node.address_of(envelope.to).map(str::to_owned);
                Event::Send(address, envelope)
            }
            Action::Persist { seq, records } => Event::Persist(seq, records),
            Action::SaveSnapshot {
                seq,
                snapshot,
                records,
            } => Event::SaveSnapshot(seq, snapshot, records),
            Action::Restore(snapshot) => Event::Restore(snapshot.slot.0, snapshot.state.to_vec()),
            Action::Apply {
                slot,
                entry,
                tokens,
            } => Event::Decided(self.decided(slot.0, entry, tokens)?),
            Action::Leads(by) => Event::Leads(ballot(by)),
            Action::Deposed => Event::Deposed,
            Action::Lost { token, .. } => match self.take_origin(token) {
                Some(origin) => Event::Lost(origin),
                None => return self.poll(),
            },
            Action::Removed => Event::Removed,
        }))
    }

    fn decided(
        &mut self,
        slot: u64,
        entry: Entry,
        tokens: Vec<u64>,
    ) -> Result<Decided<T>, Unreadable> {
        let regroups = matches!(entry, Entry::Reconfigure(_));
        let commands = match entry {
            Entry::Commands(commands) => commands,
            Entry::Noop | Entry::Reconfigure(_) => Vec::new(),
        };
        let mut tokens = tokens.into_iter();
        let mut decided = Decided {
            slot,
            bytes: 0,
            regroups,
            commands: Vec::with_capacity(commands.len()),
        };
        for bytes in commands {
            decided.bytes += bytes.len();
            let command = postcards::decode(&bytes).map_err(|why| Unreadable {
                slot,
                why: why.to_string(),
            })?;
            let origin = tokens.next().and_then(|token| self.take_origin(token));
            decided.commands.push((command, origin));
        }
        Ok(decided)
    }
}

const _: () = assert!(MAX_COMMAND <= paxos::limits::MAX_COMMAND);
const _: () = assert!(MAX_PROPOSALS * 2 <= paxos::limits::MAX_WAITING);
const _: () = assert!(MAX_PROPOSED_BYTES * 2 <= paxos::limits::MAX_WAITING_BYTES);
