//! Durability: what a log replays to, against what clients were told.
//!
//! # Invariants
//! 1. Replay is in any order: the highest version of a key wins, a tombstone wins over the object
//!    of its version.
//! 2. Entries before a tablet's takeover do not count (SAFETY 20).
//! 3. Whatever a completed operation saw or made is in the replayed log, or superseded there.

use std::collections::BTreeMap;

use ramkeep_wire::entry::Entry;
use ramkeep_wire::segment::VerifiedSegment;
use ramkeep_wire::{LogPosition, Version};

use super::zones::State;
use crate::history::{Action, Operation, Outcome, Place};

/// What a log replays to.
#[derive(Clone, Debug, Default)]
pub struct Replayed {
    /// The last state of each key, with the value if there is an object.
    pub keys: BTreeMap<Place, (State, Vec<u8>)>,
    /// Versions that two different objects of one key bear.
    pub reused: Vec<(Place, State)>,
    /// The highest safe version: what was removed below it need not be told of any more.
    pub safe: Version,
    /// Objects by key and version.
    objects: BTreeMap<(Place, State), Vec<u8>>,
}

/// Whether what a log says of a key at a position counts.
pub type Counts<'a> = dyn Fn(&Place, LogPosition) -> bool + 'a;

/// Replays a log.
#[must_use]
pub fn replay(segments: &[VerifiedSegment<'_>], counts: &Counts<'_>) -> Replayed {
    let mut replayed = Replayed::default();
    for segment in segments {
        let id = segment.claim().segment;
        for (at, entry) in segment.entries() {
            replayed.take(&entry, |place| {
                counts(place, LogPosition::new(id, at as u32))
            });
        }
    }
    replayed
}

impl Replayed {
    fn take(&mut self, entry: &Entry<'_>, counts: impl Fn(&Place) -> bool) {
        let (place, state, value) = match entry {
            Entry::Object(o) => (
                (o.table, o.key.to_vec()),
                State::present(o.version),
                o.value.to_vec(),
            ),
            Entry::Tombstone(t) => (
                (t.table, t.key.to_vec()),
                State::removed(t.version),
                Vec::new(),
            ),
            Entry::SafeVersion(version) => {
                self.safe = self.safe.max(*version);
                return;
            }
            _ => return,
        };
        if !counts(&place) {
            return;
        }
        if state.version().is_some() {
            let key = (place.clone(), state);
            match self.objects.get(&key) {
                Some(known) if *known != value => self.reused.push(key),
                Some(_) => {}
                None => {
                    self.objects.insert(key, value.clone());
                }
            }
        }
        let last = self
            .keys
            .entry(place)
            .or_insert((State::INITIAL, Vec::new()));
        if state > last.0 {
            *last = (state, value);
        }
    }

    /// Whether the log lacks a state that was told of. That of a removal may be gone with what it
    /// removed, once versions below the safe one are never used again.
    #[must_use]
    fn lacks(&self, told: State, place: &Place) -> bool {
        let state = self.state(place);
        let gone = |version| state.version().is_none() && version < self.safe;
        told > state && !told.removal_of().is_some_and(gone)
    }

    /// The last state of a key.
    #[must_use]
    pub fn state(&self, place: &Place) -> State {
        self.keys
            .get(place)
            .map_or(State::INITIAL, |(state, _)| *state)
    }
}

/// What clients were told of one key: the log must have at least this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The highest state that an answer named.
    pub state: State,
    /// The answer.
    pub operation: Operation,
}

/// What the answers to the operations on a key say must be durable.
#[must_use]
pub fn told(operations: &[Operation]) -> Option<Told> {
    operations
        .iter()
        .filter_map(|operation| {
            named_state(operation).map(|state| Told {
                state,
                operation: operation.clone(),
            })
        })
        .max_by_key(|told| told.state)
}

/// The state that an answer proves to have been reached.
#[must_use]
pub fn named_state(operation: &Operation) -> Option<State> {
    match &operation.outcome {
        Outcome::Found { version, .. } | Outcome::Written { version } => {
            Some(State::present(*version))
        }
        Outcome::Removed {
            version: Some(version),
        } => Some(State::removed(*version)),
        Outcome::Rejected {
            version: Some(version),
        } => Some(State::present(*version)),
        _ => None,
    }
}

/// What a replayed log lacks of what a client was told, or has that nobody asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Loss {
    /// An answer named a state that the log does not reach.
    #[error("{place:?}: the log ends at {replayed:?}, but a client was told of {told:?}")]
    Lost {
        /// Of which key.
        place: Place,
        /// What the log has.
        replayed: State,
        /// What a client was told.
        told: State,
    },
    /// The log has the state, with another value.
    #[error("{place:?}: the log has another value at {state:?} than its write had")]
    WrongValue {
        /// Of which key.
        place: Place,
        /// At which state.
        state: State,
    },
    /// The log has a value that nobody wrote.
    #[error("{place:?}: the log has a value at {state:?} that nobody wrote")]
    Invented {
        /// Of which key.
        place: Place,
        /// At which state.
        state: State,
    },
    /// The key was seen absent after the state in which the log leaves it.
    #[error("{place:?}: a client was told that it is absent, the log has it back at {state:?}")]
    CameBack {
        /// Of which key.
        place: Place,
        /// At which state.
        state: State,
    },
    /// One version for two objects.
    #[error("{place:?}: two objects bear the version of {state:?}")]
    VersionReused {
        /// Of which key.
        place: Place,
        /// At which state.
        state: State,
    },
}

/// Compares the replayed state of one key with what clients were told of it.
pub fn check_key(place: &Place, operations: &[Operation], replayed: &Replayed) -> Result<(), Loss> {
    let state = replayed.state(place);
    if let Some(told) = told(operations)
        && replayed.lacks(told.state, place)
        && !may_be_removed(operations, told.state, replayed)
    {
        return Err(Loss::Lost {
            place: place.clone(),
            replayed: state,
            told: told.state,
        });
    }
    let Some(version) = state.version() else {
        return Ok(());
    };
    let value = &replayed.keys[place].1;
    let mut explained = false;
    for operation in operations {
        let known = match (&operation.action, &operation.outcome) {
            (Action::Write { value, .. }, Outcome::Written { version: made }) => {
                (*made == version).then_some(value == &replayed.keys[place].1)
            }
            (
                _,
                Outcome::Found {
                    version: seen,
                    value,
                },
            ) => (*seen == version).then_some(value == &replayed.keys[place].1),
            _ => None,
        };
        match known {
            Some(true) => explained = true,
            Some(false) => {
                return Err(Loss::WrongValue {
                    place: place.clone(),
                    state,
                });
            }
            None => explained |= may_have_made(operation, value),
        }
    }
    if explained {
        check_absences(place, operations, state)
    } else {
        Err(Loss::Invented {
            place: place.clone(),
            state,
        })
    }
}

/// Whether a removal without an answer may have taken what a client was told of, and be gone with it
/// from a log that was replayed since.
fn may_be_removed(operations: &[Operation], told: State, replayed: &Replayed) -> bool {
    let removes = |operation: &Operation| {
        operation.is_open() && matches!(operation.action, Action::Remove { .. })
    };
    let unused = told
        .version()
        .is_some_and(|version| version < replayed.safe);
    unused && operations.iter().any(removes)
}

fn may_have_made(operation: &Operation, value: &[u8]) -> bool {
    operation.is_open()
        && match &operation.action {
            Action::Write { value: written, .. } => written == value,
            Action::Increment { .. } => value.len() == 8,
            _ => false,
        }
}

/// An object that the log ends with must not have been seen absent after it was seen there, nor
/// after its write had returned.
fn check_absences(place: &Place, operations: &[Operation], state: State) -> Result<(), Loss> {
    let seen = operations
        .iter()
        .filter(|o| named_state(o) == Some(state))
        .map(|o| o.returned)
        .min();
    let Some(seen) = seen else { return Ok(()) };
    let absent_later = operations.iter().any(|operation| {
        let absent = matches!(
            operation.outcome,
            Outcome::Absent
                | Outcome::Removed { version: None }
                | Outcome::Rejected { version: None }
        );
        absent && operation.invoked > seen
    });
    if absent_later {
        return Err(Loss::CameBack {
            place: place.clone(),
            state,
        });
    }
    Ok(())
}
