//! The group of coordinators, looked at from outside, where one sees all of them at one instant.
//!
//! # Invariants, each a finding when it does not hold
//! 1. Agreement: two coordinators that have applied the same slots have the same state, byte by
//!    byte.
//! 2. No two lead with a valid lease at one instant.
//! 3. Nobody answers from its state once a higher ballot is decided, and what is told of lists and
//!    maps never goes back.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use foldhash::fast::FixedState;
use ramkeep_coordinator::state::State;
use ramkeep_coordinator::{Coordinator, DeskEnd};
use ramkeep_wire::coordinator::{Answer, Response};
use ramkeep_wire::envelope::Envelope;
use ramkeep_wire::{Ballot, ListVersion, MapVersion, Micros, PeerId, postcards};

use crate::clock::Clock;

/// What the coordinators of a world have done.
#[derive(Debug, Default)]
pub struct GroupWatch {
    /// By slot: a hash over the state after it.
    states: BTreeMap<u64, u64>,
    /// The last slot that each has applied in this life.
    applied: BTreeMap<PeerId, u64>,
    newest: Option<(u64, Arc<State>)>,
    /// Who leads, and until when of true time its lease is valid.
    leading: BTreeMap<PeerId, (Ballot, Micros)>,
    map: MapVersion,
    list: ListVersion,
    findings: Vec<String>,
}

impl GroupWatch {
    /// The last slot that any coordinator has applied: whatever is in it is decided for good.
    #[must_use]
    pub fn slot(&self) -> u64 {
        self.newest.as_ref().map_or(0, |(slot, _)| *slot)
    }

    /// The state after that slot.
    #[must_use]
    pub fn state(&self) -> Option<Arc<State>> {
        self.newest.as_ref().map(|(_, state)| state.clone())
    }

    /// What was found.
    #[must_use]
    pub fn findings(&self) -> &[String] {
        &self.findings
    }

    /// Something is not as it should be.
    pub fn find(&mut self, what: String) {
        self.findings.push(what);
    }

    /// Looks at a coordinator that has handled something.
    pub fn acted(&mut self, now: Micros, clock: Clock, peer: PeerId, core: &Coordinator) {
        let slot = core.node().decided().0;
        if self.applied.insert(peer, slot) != Some(slot) {
            self.agrees(peer, slot, core.state());
        }
        let lease = core.leads().then(|| core.node().lease_until()).flatten();
        match lease.map(|until| until.0) {
            // A group of one has its lease for ever.
            Some(u64::MAX) => self.leads(now, peer, core.ballot(), Micros(u64::MAX)),
            Some(shown) => self.leads(now, peer, core.ballot(), clock.when(Micros(shown))),
            None => {
                self.leading.remove(&peer);
            }
        }
    }

    /// A coordinator can't go on.
    pub fn ended(&mut self, why: &DeskEnd) {
        if let DeskEnd::Unreadable(why) = why {
            self.find(format!("a coordinator can't go on: {why}"));
        }
    }

    /// A coordinator's process has ended.
    pub fn gone(&mut self, peer: PeerId) {
        self.applied.remove(&peer);
        self.leading.remove(&peer);
    }

    fn agrees(&mut self, peer: PeerId, slot: u64, state: &State) {
        let mut hasher = FixedState::with_seed(7).build_hasher();
        hasher.write(&postcards::encode(state));
        let hash = hasher.finish();
        if *self.states.entry(slot).or_insert(hash) != hash {
            self.find(format!("{peer:?} disagrees on the state after slot {slot}"));
        }
        if self.newest.is_none() || slot > self.slot() {
            self.newest = Some((slot, Arc::new(state.clone())));
        }
    }

    fn leads(&mut self, now: Micros, peer: PeerId, ballot: Ballot, until: Micros) {
        self.leading.insert(peer, (ballot, until));
        if until <= now {
            return;
        }
        let mut all = self.leading.iter();
        let other = all.find(|(id, (_, until))| **id != peer && *until > now);
        if let Some((id, (theirs, _))) = other {
            let text = format!(
                "{peer:?} leads under {ballot} and {id:?} under {theirs}, both with a lease"
            );
            self.find(text);
        }
    }

    /// A coordinator gives an answer, in this envelope.
    pub fn answers(&mut self, envelope: &Envelope<'_>) {
        match postcards::decode(envelope.payload) {
            Ok(response) => self.says(&response),
            Err(error) => self.find(format!("an answer is none: {error}")),
        }
    }

    fn says(&mut self, response: &Response) {
        let from_state = match &response.answer {
            Answer::Map(map) => {
                let version = map.as_ref().map(|map| map.version);
                if version.is_some_and(|version| version < self.map) {
                    self.find(format!("an answer goes back to map {version:?}"));
                }
                self.map = self.map.max(version.unwrap_or_default());
                true
            }
            Answer::Servers(list) | Answer::Heard { list, .. } => {
                let version = list.as_ref().map(|list| list.version);
                if version.is_some_and(|version| version < self.list) {
                    self.find(format!("an answer goes back to list {version:?}"));
                }
                self.list = self.list.max(version.unwrap_or_default());
                true
            }
            Answer::Status(_) => true,
            _ => false,
        };
        let led = self.newest.as_ref().map(|(_, state)| state.ballot());
        if from_state && led.is_some_and(|led| led > response.ballot) {
            let (old, led) = (response.ballot, led.unwrap_or_default());
            self.find(format!("{old} answers from its state although {led} leads"));
        }
    }
}
