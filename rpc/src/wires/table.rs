//! Wires by key: which there are, what waits for them, what is wanted of them.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ramkeep_wire::envelope::{self, Header, Kind};
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::{Micros, Party};

use super::words::{WireId, WireOutput};

/// How a table treats its wires.
#[derive(Clone, Copy, Debug)]
pub struct WireRules {
    /// From the end of a wire to the next.
    pub rest: Duration,
    /// Envelopes that wait for a connection.
    pub max_waiting: usize,
}

#[derive(Debug)]
enum WireState {
    /// Being made, with what waits for it.
    Connecting(WireId, VecDeque<Waiting>),
    /// Of use.
    Up {
        wire: WireId,
        local: Party,
        peer: Party,
    },
    /// Ended; the next may be made from then on.
    Resting(Micros),
}

/// An envelope that waits: who sends it is known when the connection is up.
#[derive(Debug)]
struct Waiting {
    kind: Kind,
    correlation: u64,
    payload: Vec<u8>,
}

#[derive(Debug)]
struct Entry {
    addresses: Vec<String>,
    state: WireState,
}

/// Wires by key.
#[derive(Debug)]
pub struct Wires<K> {
    room: u8,
    rules: WireRules,
    entries: BTreeMap<K, Entry>,
    keys: BTreeMap<WireId, K>,
    last: u64,
    outputs: VecDeque<WireOutput>,
}

impl<K: Ord + Clone> Wires<K> {
    /// A table without wires. No two tables of a process have the same room.
    #[must_use]
    pub fn new(room: u8, rules: WireRules) -> Self {
        Self {
            room,
            rules,
            entries: BTreeMap::new(),
            keys: BTreeMap::new(),
            last: 0,
            outputs: VecDeque::new(),
        }
    }

    /// Sees to it that there is a wire to `to` at these addresses, or that one is being made. Returns
    /// false while the key rests. A wire to other addresses is replaced.
    pub fn ensure(&mut self, now: Micros, key: &K, addresses: &[String], to: Party) -> bool {
        let known = self.entries.get(key);
        if known.is_some_and(|entry| entry.addresses != addresses) {
            self.forget(key);
        }
        match self.entries.get(key).map(|entry| &entry.state) {
            Some(WireState::Connecting(..) | WireState::Up { .. }) => return true,
            Some(WireState::Resting(until)) if *until > now => return false,
            Some(WireState::Resting(_)) | None => {}
        }
        self.last += 1;
        let wire = WireId {
            room: self.room,
            number: self.last,
        };
        let entry = Entry {
            addresses: addresses.to_vec(),
            state: WireState::Connecting(wire, VecDeque::new()),
        };
        self.entries.insert(key.clone(), entry);
        self.keys.insert(wire, key.clone());
        self.outputs.push_back(WireOutput::Connect {
            wire,
            addresses: addresses.to_vec(),
            to,
        });
        true
    }

    /// Closes the wire to a key, and forgets the key with what waited and its rest.
    pub fn forget(&mut self, key: &K) {
        if let Some(wire) = self.wire(key) {
            self.keys.remove(&wire);
            self.outputs.push_back(WireOutput::Close { wire });
        }
        self.entries.remove(key);
    }

    /// Closes the wire to a key; the key rests as after any end.
    pub fn close(&mut self, now: Micros, key: &K) {
        let addresses = self.entries.get(key).map(|entry| entry.addresses.clone());
        self.forget(key);
        if let Some(addresses) = addresses {
            let state = WireState::Resting(now + self.rules.rest);
            self.entries.insert(key.clone(), Entry { addresses, state });
        }
    }

    /// Forgets the keys that are not to be kept.
    pub fn retain(&mut self, mut keep: impl FnMut(&K) -> bool) {
        let over: Vec<K> = self.entries.keys().filter(|k| !keep(k)).cloned().collect();
        over.iter().for_each(|key| self.forget(key));
    }

    /// All keys that have a wire, or had one and rest.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.entries.keys()
    }

    /// Whether the wire to a key is of use.
    #[must_use]
    pub fn is_up(&self, key: &K) -> bool {
        let state = self.entries.get(key).map(|entry| &entry.state);
        matches!(state, Some(WireState::Up { .. }))
    }

    /// Whose wire this is; `None`: of an older life.
    #[must_use]
    pub fn key(&self, wire: WireId) -> Option<&K> {
        self.keys.get(&wire)
    }

    /// The wire to a key, up or being made.
    #[must_use]
    pub fn wire(&self, key: &K) -> Option<WireId> {
        match &self.entries.get(key)?.state {
            WireState::Connecting(wire, _) | WireState::Up { wire, .. } => Some(*wire),
            WireState::Resting(_) => None,
        }
    }

    /// Sends an envelope, or keeps it until the wire is up. False: there is no wire; nothing comes of it.
    pub fn send(&mut self, key: &K, kind: Kind, correlation: u64, payload: &[u8]) -> bool {
        match self.entries.get_mut(key).map(|entry| &mut entry.state) {
            Some(WireState::Up { wire, local, peer }) => {
                let header = Header::new(kind, correlation, *peer, *local);
                let mut bytes = Vec::with_capacity(envelope::HEADER_LEN + payload.len());
                envelope::append(&mut bytes, header, payload);
                let wire = *wire;
                self.outputs.push_back(WireOutput::Send { wire, bytes });
                true
            }
            Some(WireState::Connecting(_, waiting)) => {
                if waiting.len() >= self.rules.max_waiting {
                    waiting.pop_front();
                }
                let payload = payload.to_vec();
                waiting.push_back(Waiting {
                    kind,
                    correlation,
                    payload,
                });
                true
            }
            Some(WireState::Resting(_)) | None => false,
        }
    }

    /// A wire is up, between these parties: what waited leaves. `None`: of an older life.
    pub fn handle_up(&mut self, wire: WireId, local: Party, peer: Party) -> Option<K> {
        let key = self.keys.get(&wire)?.clone();
        let state = WireState::Up { wire, local, peer };
        let before = std::mem::replace(&mut self.entries.get_mut(&key)?.state, state);
        if let WireState::Connecting(_, waiting) = before {
            for Waiting {
                kind,
                correlation,
                payload,
            } in waiting
            {
                self.send(&key, kind, correlation, &payload);
            }
        }
        Some(key)
    }

    /// A wire has ended, or could not be made. The key, and whether it was up; `None`: of an older
    /// life.
    pub fn handle_down(&mut self, now: Micros, wire: WireId) -> Option<(K, bool)> {
        let key = self.keys.get(&wire)?.clone();
        let entry = self.entries.get_mut(&key)?;
        let was_up = matches!(entry.state, WireState::Up { .. });
        if was_up && mutants::active(Mutant::KeepBrokenWire) {
            return Some((key, was_up));
        }
        self.keys.remove(&wire);
        entry.state = WireState::Resting(now + self.rules.rest);
        Some((key, was_up))
    }

    /// When the first of the keys that rest may be tried again.
    #[must_use]
    pub fn next_due(&self) -> Option<Micros> {
        let states = self.entries.values().map(|entry| &entry.state);
        let resting = states.filter_map(|state| match state {
            WireState::Resting(until) => Some(*until),
            WireState::Connecting(..) | WireState::Up { .. } => None,
        });
        resting.min()
    }

    /// What is to be done next.
    pub fn poll_output(&mut self) -> Option<WireOutput> {
        self.outputs.pop_front()
    }
}
