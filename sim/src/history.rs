//! What clients did and were told, in the order in which it happened.
//!
//! # Invariants
//! 1. Stamps are unique and grow: an operation that returned before another was invoked has a
//!    return stamp below the other's invoke stamp.
//! 2. An operation with an unknown outcome took effect at one point after its invocation, or never.

use std::collections::BTreeMap;

use ramkeep_wire::data::RejectRules;
use ramkeep_wire::{TableId, Version};

/// What was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The object of a key. Also what a scan says of each key in its range.
    Read,
    /// Set the value.
    Write {
        /// To this.
        value: Vec<u8>,
        /// Unless these apply.
        rules: RejectRules,
    },
    /// Remove the object.
    Remove {
        /// Unless these apply.
        rules: RejectRules,
    },
    /// Add to a counter.
    Increment {
        /// This much.
        by: i64,
    },
}

impl Action {
    /// Whether it may change the object.
    #[must_use]
    pub fn mutates(&self) -> bool {
        !matches!(self, Self::Read)
    }
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// No answer, or one that leaves open whether it took effect.
    Unknown,
    /// Refused for a reason that is not the object's; took no effect.
    Failed,
    /// Read: the object. Increment: its new state.
    Found {
        /// Its version.
        version: Version,
        /// Its value.
        value: Vec<u8>,
    },
    /// Read: there is none.
    Absent,
    /// Write: the new version.
    Written {
        /// The new version.
        version: Version,
    },
    /// Remove: the removed version, or `None` if there was no object.
    Removed {
        /// Of what was removed.
        version: Option<Version>,
    },
    /// A reject rule applied to the object of this version, or to there being none.
    Rejected {
        /// What it applied to.
        version: Option<Version>,
    },
    /// Increment of an object that is no counter.
    NotACounter,
    /// Increment of an object to which so much can't be added.
    Overflow,
}

/// One operation on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Which client.
    pub client: u32,
    /// When it was asked.
    pub invoked: u64,
    /// When it was answered; `u64::MAX` if it was not, or left open.
    pub returned: u64,
    /// What was asked.
    pub action: Action,
    /// What was answered.
    pub outcome: Outcome,
}

impl Operation {
    /// Whether it may have changed the object without saying so.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.action.mutates() && self.outcome == Outcome::Unknown
    }
}

/// A key of a table.
pub type Place = (TableId, Vec<u8>);

/// An operation under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    key: usize,
    operation: usize,
}

/// The history of a run.
#[derive(Debug, Default)]
pub struct History {
    stamp: u64,
    keys: BTreeMap<Place, usize>,
    operations: Vec<Vec<Operation>>,
}

impl History {
    /// An operation is asked for.
    pub fn invoke(&mut self, client: u32, place: &Place, action: Action) -> Ticket {
        self.stamp += 1;
        let invoked = self.stamp;
        self.invoke_at(invoked, client, place, action)
    }

    /// An operation is asked for as part of a larger one that was invoked at `invoked`.
    pub fn invoke_at(
        &mut self,
        invoked: u64,
        client: u32,
        place: &Place,
        action: Action,
    ) -> Ticket {
        let key = match self.keys.get(place) {
            Some(key) => *key,
            None => {
                self.operations.push(Vec::new());
                self.keys.insert(place.clone(), self.operations.len() - 1);
                self.operations.len() - 1
            }
        };
        let operations = &mut self.operations[key];
        operations.push(Operation {
            client,
            invoked,
            returned: u64::MAX,
            action,
            outcome: Outcome::Unknown,
        });
        Ticket {
            key,
            operation: operations.len() - 1,
        }
    }

    /// The operation is answered.
    pub fn complete(&mut self, ticket: Ticket, outcome: Outcome) {
        self.stamp += 1;
        let stamp = self.stamp;
        let operation = &mut self.operations[ticket.key][ticket.operation];
        assert_eq!(operation.returned, u64::MAX, "an operation returns once");
        if outcome != Outcome::Unknown {
            operation.returned = stamp;
        }
        operation.outcome = outcome;
    }

    /// A stamp of its own: for a larger operation's invocation.
    pub fn tick(&mut self) -> u64 {
        self.stamp += 1;
        self.stamp
    }

    /// All keys with their operations.
    pub fn keys(&self) -> impl Iterator<Item = (&Place, &[Operation])> {
        self.keys
            .iter()
            .map(|(place, key)| (place, self.operations[*key].as_slice()))
    }

    /// The operations on a key.
    #[must_use]
    pub fn of(&self, place: &Place) -> &[Operation] {
        self.keys
            .get(place)
            .map_or(&[], |key| self.operations[*key].as_slice())
    }

    /// Operations in all.
    #[must_use]
    pub fn len(&self) -> usize {
        self.operations.iter().map(Vec::len).sum()
    }

    /// Whether nothing was asked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }
}
