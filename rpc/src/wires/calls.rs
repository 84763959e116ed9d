//! Calls over wires: a request, and the answer that repeats its correlation.
//!
//! # Invariants
//! 1. Every call that began ends once: answered, not answered in time, or with its wire.
//! 2. An answer counts only on the wire that its request left on, and only if it is of the kind that
//!    belongs to the request.
//! 3. At most [`CallRules::max_in_flight`] calls to one key are under way.

use std::collections::BTreeMap;
use std::time::Duration;

use ramkeep_wire::envelope::{Envelope, Kind};
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::{Micros, Party};

use super::table::{WireRules, Wires};
use super::words::{WireEnd, WireId};

/// How a table treats its calls.
#[derive(Clone, Copy, Debug)]
pub struct CallRules {
    /// How long an answer is waited for.
    pub patience: Duration,
    /// Calls to one key that are under way at the same time.
    pub max_in_flight: usize,
}

/// Why a call has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallLost {
    /// No process of that identity is at its addresses.
    Nobody,
    /// The wire was up, and closed.
    Closed,
    /// There was no answer in time.
    Late,
    /// Something else: nothing is proved.
    Unclear,
}

impl From<&WireEnd> for CallLost {
    fn from(end: &WireEnd) -> Self {
        match end {
            WireEnd::Nobody => Self::Nobody,
            WireEnd::Closed(_) => Self::Closed,
            WireEnd::Refused(_) | WireEnd::Unclear(_) => Self::Unclear,
        }
    }
}

/// What ended with a wire.
#[derive(Debug, PartialEq, Eq)]
pub struct EndedCalls<K, T> {
    /// To whom it was.
    pub key: K,
    /// It had been of use.
    pub was_up: bool,
    /// What became of its calls.
    pub lost: CallLost,
    /// The calls that were on it, in the order in which they began.
    pub calls: Vec<T>,
}

#[derive(Debug)]
struct Call<K, T> {
    key: K,
    kind: Kind,
    until: Micros,
    tag: T,
}

/// Wires with the calls on them. `T` says what each call is for.
#[derive(Debug)]
pub struct Calls<K, T> {
    wires: Wires<K>,
    rules: CallRules,
    /// By correlation, which only grows.
    under_way: BTreeMap<u64, Call<K, T>>,
    last: u64,
}

impl<K: Ord + Clone, T> Calls<K, T> {
    /// A table without wires or calls.
    #[must_use]
    pub fn new(room: u8, wires: WireRules, rules: CallRules) -> Self {
        Self {
            wires: Wires::new(room, wires),
            rules,
            under_way: BTreeMap::new(),
            last: 0,
        }
    }

    /// The wires, to be looked at, given up, or drained.
    pub fn wires(&mut self) -> &mut Wires<K> {
        &mut self.wires
    }

    /// Whether nothing is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Calls to a key that are under way.
    #[must_use]
    pub fn in_flight(&self, key: &K) -> usize {
        let calls = self.under_way.values();
        calls.filter(|call| call.key == *key).count()
    }

    /// Asks `to`, at these addresses, over the wire to it, which is made if there is none.
    ///
    /// # Errors
    /// Gives the tag back when as many calls as may be are under way, or the key rests.
    #[allow(clippy::too_many_arguments)]
    pub fn call(
        &mut self,
        now: Micros,
        key: &K,
        addresses: &[String],
        to: Party,
        kind: Kind,
        payload: &[u8],
        tag: T,
    ) -> Result<(), T> {
        let crowded = self.in_flight(key) >= self.rules.max_in_flight;
        if crowded || !self.wires.ensure(now, key, addresses, to) {
            return Err(tag);
        }
        self.last += 1;
        self.wires.send(key, kind, self.last, payload);
        let call = Call {
            key: key.clone(),
            kind,
            until: now + self.rules.patience,
            tag,
        };
        self.under_way.insert(self.last, call);
        Ok(())
    }

    /// A wire is up.
    pub fn handle_up(&mut self, wire: WireId, local: Party, peer: Party) -> Option<K> {
        self.wires.handle_up(wire, local, peer)
    }

    /// The call that this envelope answers, which is over with it.
    pub fn handle_received(&mut self, wire: WireId, envelope: &Envelope<'_>) -> Option<(K, T)> {
        let key = self.wires.key(wire)?;
        let correlation = envelope.header.correlation;
        let call = self.under_way.get(&correlation)?;
        if call.key != *key || envelope.header.kind.answers() != Some(call.kind) {
            return None;
        }
        let call = self.under_way.remove(&correlation)?;
        Some((call.key, call.tag))
    }

    /// A wire has ended, and its calls with it. `None`: of an older life.
    pub fn handle_down(
        &mut self,
        now: Micros,
        wire: WireId,
        end: &WireEnd,
    ) -> Option<EndedCalls<K, T>> {
        let (key, was_up) = self.wires.handle_down(now, wire)?;
        let calls = if mutants::active(Mutant::ForgetLostCalls) {
            Vec::new()
        } else {
            self.end_calls(&key)
        };
        Some(EndedCalls {
            key,
            was_up,
            lost: CallLost::from(end),
            calls,
        })
    }

    /// Closes the wire to a key and ends its calls, which are returned.
    pub fn forget(&mut self, key: &K) -> Vec<T> {
        self.wires.forget(key);
        self.end_calls(key)
    }

    fn end_calls(&mut self, key: &K) -> Vec<T> {
        let calls = self.under_way.extract_if(.., |_, call| call.key == *key);
        calls.map(|(_, call)| call.tag).collect()
    }

    /// Lets time pass: the calls that were not answered in time, which are over.
    pub fn handle_tick(&mut self, now: Micros) -> Vec<(K, T)> {
        let late = self.under_way.extract_if(.., |_, call| call.until <= now);
        late.map(|(_, call)| (call.key, call.tag)).collect()
    }

    /// When [`Calls::handle_tick`] has something to do.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Micros> {
        self.under_way.values().map(|call| call.until).min()
    }
}
