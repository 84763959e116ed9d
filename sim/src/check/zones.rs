//! Linearizability of one key by version order, in the manner of Gibbons and Korach's zones.
//!
//! Every answer names the object's version, so the order of all changes is known: version v is
//! state 2v, its removal state 2v + 1, and a key starts in state 0. What remains to be shown is that
//! each operation can be given a moment between its invocation and its return such that the moments
//! follow the order of states. With moments chosen greedily that holds just if no operation on an
//! earlier state was invoked after one on a later state had returned.
//!
//! # Invariants
//! 1. Without open operations the verdict is exact.
//! 2. With them, what is reported is a violation however they are taken to have ended.

use std::collections::BTreeMap;

use ramkeep_wire::Version;

use crate::history::{Action, Operation, Outcome};

/// A state of a key, in the order in which a key passes through them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct State(pub u64);

impl State {
    /// Before any write.
    pub const INITIAL: Self = Self(0);

    /// The object exists at `version`.
    #[must_use]
    pub fn present(version: Version) -> Self {
        Self(version.0 * 2)
    }

    /// The object of `version` was removed.
    #[must_use]
    pub fn removed(version: Version) -> Self {
        Self(version.0 * 2 + 1)
    }

    /// Whether there is an object.
    #[must_use]
    pub fn version(self) -> Option<Version> {
        (self.0 != 0 && self.0.is_multiple_of(2)).then_some(Version(self.0 / 2))
    }

    /// The version that was removed, if that is the state.
    #[must_use]
    pub fn removal_of(self) -> Option<Version> {
        (!self.0.is_multiple_of(2)).then_some(Version(self.0 / 2))
    }
}

/// How a history contradicts itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Two changes got one version.
    #[error("version {0} was used twice")]
    VersionReused(Version),
    /// Two removals of one version.
    #[error("version {0} was removed twice")]
    RemovedTwice(Version),
    /// A value nobody wrote under that version.
    #[error("version {version} was seen with a value that its write did not have")]
    WrongValue {
        /// Seen.
        version: Version,
    },
    /// A version nobody wrote.
    #[error("version {0} was seen, but nobody wrote it")]
    NeverWritten(Version),
    /// A change that no call explains: one that ran more than once.
    #[error(
        "version {new} comes after {old}, and nobody made those between: something took effect twice"
    )]
    Twice {
        /// The change before.
        old: Version,
        /// The one that is too high.
        new: Version,
    },
    /// Answers contradict real time.
    #[error(
        "state {later:?} was seen before state {earlier:?} was asked for again: going back in time"
    )]
    BackInTime {
        /// The state that came first.
        earlier: State,
        /// The one that was seen to be over it.
        later: State,
    },
    /// An answer of "absent" with no moment at which the key was absent.
    #[error("an absent object was seen at a time when it was there all along")]
    NeverAbsent,
    /// A condition that did not hold was taken to hold, or the other way.
    #[error("a conditional operation was decided wrongly at version {0}")]
    Rules(Version),
    /// A counter went from one value to another that its increment does not explain.
    #[error("an increment to version {0} does not follow from the value before it")]
    Increment(Version),
    /// The exhaustive search found no order.
    #[error("no order of the operations explains the answers")]
    NoOrder,
    /// It gave up before it had found one, or that there is none.
    #[error("no order of the operations was found, and not all were tried")]
    Undecided,
}

#[derive(Clone, Copy, Debug)]
struct Zone {
    /// Invocation of the change that began the state, if it is known.
    begun: Option<(u64, u64)>,
    min_return: u64,
    max_invoke: u64,
}

impl Default for Zone {
    fn default() -> Self {
        Self {
            begun: None,
            min_return: u64::MAX,
            max_invoke: 0,
        }
    }
}

/// States with the stamps from which, or up to which, they count.
type Steps = Vec<(u64, State)>;

/// What is known of the states of one key.
#[derive(Debug, Default)]
struct States<'a> {
    zones: BTreeMap<State, Zone>,
    /// Changes with what they made.
    changes: BTreeMap<State, &'a Operation>,
    values: BTreeMap<Version, Vec<u8>>,
    absent: Vec<&'a Operation>,
}

/// Checks the operations of one key. Open operations are left out of account, except that with any
/// of them only what they can't explain is reported.
pub fn check(operations: &[Operation]) -> Result<(), Violation> {
    let open = operations.iter().any(Operation::is_open);
    let mut states = States::default();
    for operation in operations {
        states.add(operation)?;
    }
    for operation in operations {
        states.check_value(operation, operations)?;
    }
    states.check_time()?;
    if !open {
        states.check_changes()?;
        states.check_absent()?;
    }
    Ok(())
}

impl<'a> States<'a> {
    fn add(&mut self, operation: &'a Operation) -> Result<(), Violation> {
        match &operation.outcome {
            Outcome::Unknown | Outcome::Failed | Outcome::NotACounter | Outcome::Overflow => Ok(()),
            Outcome::Written { version } => {
                if let Action::Write { value, .. } = &operation.action {
                    self.values.insert(*version, value.clone());
                }
                self.change(State::present(*version), operation)
            }
            Outcome::Found { version, value } => {
                if operation.action == Action::Read {
                    self.see(State::present(*version), operation);
                    return Ok(());
                }
                self.values.insert(*version, value.clone());
                self.change(State::present(*version), operation)
            }
            Outcome::Removed {
                version: Some(version),
            } => self.change(State::removed(*version), operation),
            Outcome::Rejected { version } => self.add_rejected(operation, *version),
            Outcome::Absent | Outcome::Removed { version: None } => {
                self.absent.push(operation);
                Ok(())
            }
        }
    }

    fn add_rejected(
        &mut self,
        operation: &'a Operation,
        version: Option<Version>,
    ) -> Result<(), Violation> {
        let rejects = match &operation.action {
            Action::Write { rules, .. } | Action::Remove { rules } => rules.reject(version),
            Action::Read | Action::Increment { .. } => false,
        };
        match version {
            _ if !rejects => return Err(Violation::Rules(version.unwrap_or_default())),
            Some(version) => self.see(State::present(version), operation),
            None => self.absent.push(operation),
        }
        Ok(())
    }

    fn see(&mut self, state: State, operation: &Operation) {
        let zone = self.zones.entry(state).or_default();
        zone.min_return = zone.min_return.min(operation.returned);
        zone.max_invoke = zone.max_invoke.max(operation.invoked);
    }

    fn change(&mut self, state: State, operation: &'a Operation) -> Result<(), Violation> {
        if self.changes.insert(state, operation).is_some() {
            return Err(match state.version() {
                Some(version) => Violation::VersionReused(version),
                None => Violation::RemovedTwice(Version(state.0 / 2)),
            });
        }
        self.zones.entry(state).or_default().begun = Some((operation.invoked, operation.returned));
        Ok(())
    }

    /// A version seen must have been written, with the value seen.
    fn check_value(&self, seen: &Operation, all: &[Operation]) -> Result<(), Violation> {
        let (version, value) = match &seen.outcome {
            Outcome::Found { version, value } if seen.action == Action::Read => {
                (*version, Some(value))
            }
            Outcome::Rejected {
                version: Some(version),
            }
            | Outcome::Removed {
                version: Some(version),
            } => (*version, None),
            _ => return Ok(()),
        };
        match (self.values.get(&version), value) {
            (Some(written), Some(value)) if written != value => {
                Err(Violation::WrongValue { version })
            }
            (Some(_), _) => Ok(()),
            (None, value) => {
                let explained = all
                    .iter()
                    .any(|other| could_have_made(other, value, seen.returned));
                if explained {
                    Ok(())
                } else {
                    Err(Violation::NeverWritten(version))
                }
            }
        }
    }

    /// No operation on an earlier state is invoked after one on a later state has returned.
    fn check_time(&self) -> Result<(), Violation> {
        let mut latest = (0, State::INITIAL);
        for (state, zone) in &self.zones {
            let begun = zone.begun.map_or(latest.0, |(invoked, _)| invoked);
            let ended = zone.begun.map_or(u64::MAX, |(_, returned)| returned);
            if zone.min_return.min(ended) < latest.0 {
                return Err(Violation::BackInTime {
                    earlier: latest.1,
                    later: *state,
                });
            }
            if zone.min_return < begun {
                return Err(Violation::BackInTime {
                    earlier: *state,
                    later: *state,
                });
            }
            latest = latest.max((begun, *state)).max((zone.max_invoke, *state));
        }
        Ok(())
    }

    /// Each change follows from the state before it: only when no operation is open. An overwrite takes
    /// the version after the one before, so that a change that took effect twice leaves a gap.
    fn check_changes(&self) -> Result<(), Violation> {
        let mut before = State::INITIAL;
        for (state, change) in &self.changes {
            let version = Version(state.0 / 2);
            if let (Some(old), Some(new)) = (before.version(), state.version())
                && old.next() != new
            {
                return Err(Violation::Twice { old, new });
            }
            match &change.action {
                Action::Read => {}
                Action::Write { rules, .. } if rules.reject(before.version()) => {
                    return Err(Violation::Rules(version));
                }
                Action::Write { .. } => {}
                Action::Remove { rules } => {
                    if before.version() != Some(version) {
                        return Err(Violation::NeverWritten(version));
                    }
                    if rules.reject(before.version()) {
                        return Err(Violation::Rules(version));
                    }
                }
                Action::Increment { by } => self.check_increment(before, version, *by)?,
            }
            before = *state;
        }
        Ok(())
    }

    fn check_increment(&self, before: State, version: Version, by: i64) -> Result<(), Violation> {
        let old = match before.version() {
            None => Some(0),
            Some(version) => self.values.get(&version).and_then(|v| counter(v)),
        };
        let new = self.values.get(&version).and_then(|v| counter(v));
        match (old, new) {
            (Some(old), Some(new)) if old.checked_add(by) == Some(new) => Ok(()),
            _ => Err(Violation::Increment(version)),
        }
    }

    /// Each answer of "absent" fits a moment at which the key was absent. The lowest fitting state
    /// is the best for all, so going through them by invocation decides.
    fn check_absent(&self) -> Result<(), Violation> {
        let states: Vec<State> = std::iter::once(State::INITIAL)
            .chain(self.changes.keys().copied().filter(|s| s.0 % 2 == 1))
            .collect();
        let (returns, invokes) = self.bounds();
        let mut placed: Vec<(u64, State)> = Vec::new();
        let mut waiting = std::collections::BinaryHeap::new();
        let mut sorted = self.absent.clone();
        sorted.sort_by_key(|operation| operation.invoked);
        let mut floor = State::INITIAL;
        for operation in sorted {
            while let Some(std::cmp::Reverse((returned, index))) = waiting.peek().copied() {
                if returned >= operation.invoked {
                    break;
                }
                let (_, state): (u64, State) = placed[index];
                floor = floor.max(state);
                waiting.pop();
            }
            let low = lookup(&returns, operation.invoked).max(floor);
            let at = states.partition_point(|state| *state < low);
            let Some(state) = states.get(at) else {
                return Err(Violation::NeverAbsent);
            };
            if *state >= upper(&invokes, operation.returned) {
                return Err(Violation::NeverAbsent);
            }
            placed.push((operation.returned, *state));
            waiting.push(std::cmp::Reverse((operation.returned, placed.len() - 1)));
        }
        Ok(())
    }

    /// For each state in order: from which stamp on it (or a later one) has been reached, and up to
    /// which stamp it (or an earlier one) was still asked for.
    fn bounds(&self) -> (Steps, Steps) {
        let mut reached = Vec::new();
        let mut least = u64::MAX;
        for (state, zone) in self.zones.iter().rev() {
            let ended = zone.begun.map_or(u64::MAX, |(_, returned)| returned);
            let returned = zone.min_return.min(ended);
            if returned < least {
                least = returned;
                reached.push((returned, *state));
            }
        }
        let mut asked = Vec::new();
        let mut most = 0;
        for (state, zone) in &self.zones {
            let begun = zone.begun.map_or(0, |(invoked, _)| invoked);
            let invoked = zone.max_invoke.max(begun);
            if invoked > most {
                most = invoked;
                asked.push((invoked, *state));
            }
        }
        (reached, asked)
    }
}

/// The highest state that was reached before `stamp`; `reached` is by falling state and stamp.
fn lookup(reached: &[(u64, State)], stamp: u64) -> State {
    let at = reached.partition_point(|(returned, _)| *returned >= stamp);
    reached.get(at).map_or(State::INITIAL, |(_, state)| *state)
}

/// The lowest state that was asked for after `stamp`; `asked` is by growing state and stamp.
fn upper(asked: &[(u64, State)], stamp: u64) -> State {
    let at = asked.partition_point(|(invoked, _)| *invoked <= stamp);
    asked.get(at).map_or(State(u64::MAX), |(_, state)| *state)
}

fn could_have_made(operation: &Operation, value: Option<&Vec<u8>>, before: u64) -> bool {
    if !operation.is_open() || operation.invoked > before {
        return false;
    }
    match (&operation.action, value) {
        (Action::Write { value: written, .. }, Some(value)) => written == value,
        (Action::Write { .. }, None) | (Action::Increment { .. }, _) => true,
        _ => false,
    }
}

/// The number that a counter's value stands for.
#[must_use]
pub fn counter(value: &[u8]) -> Option<i64> {
    value.try_into().ok().map(i64::from_le_bytes)
}
