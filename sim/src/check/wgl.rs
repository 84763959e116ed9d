//! Linearizability of one key by search: Wing and Gong's algorithm with Lowe's memory of
//! configurations. Exact also with open operations, but exponential at worst, so it is bounded.
//!
//! What keeps it small, and takes away no order that counts:
//! 1. What was only looked at, and fits now, happens now: it changes nothing for the others.
//! 2. Versions name the order of all that was answered: once a state is passed, nothing that names an
//!    earlier one may be left.
//! 3. An overwrite takes the next version, so that a gap says how many open operations fill it.
//! 4. Of open operations that do the same the one asked for first happens first. Writes of values that
//!    nobody saw do the same.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use foldhash::fast::FixedState;
use ramkeep_wire::Version;
use ramkeep_wire::data::RejectRules;

use super::zones::{State, counter};
use crate::history::{Action, Operation, Outcome};

/// What the search found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Search {
    /// An order explains all answers.
    Linearizable,
    /// None does.
    NotLinearizable,
    /// Too many configurations.
    GaveUp,
}

/// A value, told from others in little memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Held {
    Counter(i64),
    /// By its place among all values that are no counters and were seen.
    Bytes(usize),
    /// No counter, and nobody was shown it.
    Unseen,
}

/// A key as the search sees it. `low` is the least that the highest version used can be; a
/// version of `None` is not known yet (its write is open) and at least `low`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Model {
    low: u64,
    object: Option<(Option<u64>, Held)>,
}

/// An operation with its values as the search has them.
struct Known<'a> {
    operation: &'a Operation,
    writes: Option<Held>,
    found: Option<Held>,
    /// The open operation before it that does the same.
    twin: Option<usize>,
}

impl Known<'_> {
    /// The state that the answer names, in the order in which a key passes through them.
    fn state(&self) -> Option<State> {
        match &self.operation.outcome {
            Outcome::Found { version, .. }
            | Outcome::Written { version }
            | Outcome::Rejected {
                version: Some(version),
            } => Some(State::present(*version)),
            Outcome::Removed {
                version: Some(version),
            } => Some(State::removed(*version)),
            _ => None,
        }
    }
}

impl Model {
    /// The first state that may still be ahead, or be the present one.
    fn state(&self) -> State {
        match self.object {
            Some(_) => State::present(Version(self.low)),
            None => State::removed(Version(self.low)),
        }
    }
}

/// The operations that count, in order of their invocations.
fn known(operations: &[Operation]) -> Vec<Known<'_>> {
    let mut sorted: Vec<&Operation> = operations
        .iter()
        .filter(|o| o.outcome != Outcome::Failed)
        .filter(|o| o.is_open() || o.outcome != Outcome::Unknown)
        .collect();
    sorted.sort_by_key(|operation| operation.invoked);
    let seen = sorted
        .iter()
        .filter_map(|operation| match &operation.outcome {
            Outcome::Found { value, .. } => Some(value),
            _ => None,
        });
    let seen: BTreeSet<&Vec<u8>> = seen.collect();
    let mut places = BTreeMap::new();
    let mut held = |value: &Vec<u8>| match counter(value) {
        Some(number) => Held::Counter(number),
        None if !seen.contains(value) => Held::Unseen,
        None => {
            let next = places.len();
            Held::Bytes(*places.entry(value.clone()).or_insert(next))
        }
    };
    let mut all: Vec<Known<'_>> = Vec::with_capacity(sorted.len());
    for operation in sorted {
        all.push(Known {
            twin: None,
            operation,
            writes: match &operation.action {
                Action::Write { value, .. } => Some(held(value)),
                _ => None,
            },
            found: match &operation.outcome {
                Outcome::Found { value, .. } => Some(held(value)),
                _ => None,
            },
        });
    }
    for index in 0..all.len() {
        all[index].twin = twin(&all, index);
    }
    all
}

/// The last open operation before this one that does the same, if this one is open.
fn twin(all: &[Known<'_>], index: usize) -> Option<usize> {
    let known = &all[index];
    let same = |other: &Known<'_>| {
        let actions = match (&known.operation.action, &other.operation.action) {
            (Action::Write { rules, .. }, Action::Write { rules: others, .. }) => rules == others,
            (one, other) => one == other,
        };
        actions && known.writes == other.writes
    };
    let is_twin = |other: &usize| all[*other].operation.is_open() && same(&all[*other]);
    let open = known.operation.is_open();
    open.then(|| (0..index).rev().find(is_twin)).flatten()
}

/// Looks for an order of the operations on one key that explains all answers, through at most
/// `budget` configurations.
#[must_use]
pub fn search(operations: &[Operation], budget: usize) -> Search {
    let mut searcher = Searcher::new(known(operations), budget);
    let count = searcher.operations.len();
    let mut stack = vec![Configuration {
        done: vec![0; count.div_ceil(64).max(1)],
        model: Model {
            low: 0,
            object: None,
        },
    }];
    while let Some(configuration) = stack.pop() {
        if searcher.explained(&configuration) {
            return Search::Linearizable;
        }
        if searcher.seen.len() > searcher.budget {
            return Search::GaveUp;
        }
        for next in searcher.steps(&configuration) {
            if searcher.seen.insert(next.clone()) {
                stack.push(next);
            }
        }
    }
    Search::NotLinearizable
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Configuration {
    done: Vec<u64>,
    model: Model,
}

impl Configuration {
    fn has(&self, index: usize) -> bool {
        self.done[index / 64] >> (index % 64) & 1 == 1
    }
}

struct Searcher<'a> {
    operations: Vec<Known<'a>>,
    /// Operations that name a state, by that.
    by_state: Vec<(State, usize)>,
    seen: HashSet<Configuration, FixedState>,
    budget: usize,
}

impl<'a> Searcher<'a> {
    fn new(operations: Vec<Known<'a>>, budget: usize) -> Self {
        let named = operations.iter().enumerate();
        let named = named.filter_map(|(index, known)| Some((known.state()?, index)));
        let mut by_state: Vec<_> = named.collect();
        by_state.sort_unstable();
        Self {
            operations,
            by_state,
            seen: HashSet::with_hasher(FixedState::default()),
            budget,
        }
    }

    /// All answered operations have their place; open ones may never have happened.
    fn explained(&self, configuration: &Configuration) -> bool {
        self.operations
            .iter()
            .enumerate()
            .all(|(index, known)| known.operation.is_open() || configuration.has(index))
    }

    /// Something is left that names a state before the present one.
    fn is_dead(&self, configuration: &Configuration) -> bool {
        let mut left = self.by_state.iter();
        let first = left.find(|(_, index)| !configuration.has(*index));
        first.is_some_and(|(state, _)| *state < configuration.model.state())
    }

    /// What could have happened next. The stack is last in first out: answered operations are tried first,
    /// open removes last, since what is absent may take any version next.
    fn steps(&self, configuration: &Configuration) -> Vec<Configuration> {
        let waiting = || (0..self.operations.len()).filter(|index| !configuration.has(*index));
        let deadline = waiting()
            .map(|index| self.operations[index].operation.returned)
            .min()
            .unwrap_or(u64::MAX);
        let mut steps = Vec::new();
        let mut open = Vec::new();
        let mut answered = Vec::new();
        for index in waiting() {
            let known = &self.operations[index];
            let operation = known.operation;
            if operation.invoked > deadline {
                break;
            }
            if known.twin.is_some_and(|twin| !configuration.has(twin)) {
                continue;
            }
            let Some(model) = apply(known, &configuration.model) else {
                continue;
            };
            let mut next = Configuration {
                done: configuration.done.clone(),
                model,
            };
            next.done[index / 64] |= 1 << (index % 64);
            if !operation.is_open() && model == configuration.model {
                return vec![next];
            }
            if self.is_dead(&next) {
                continue;
            }
            if !operation.is_open() {
                answered.push(next);
            } else if next.model.object.is_none() {
                steps.push(next);
            } else {
                open.push(next);
            }
        }
        steps.append(&mut open);
        steps.append(&mut answered);
        steps
    }
}

fn apply(known: &Known<'_>, model: &Model) -> Option<Model> {
    let operation = known.operation;
    match &operation.outcome {
        Outcome::Unknown => apply_open(known, model),
        Outcome::Failed => Some(*model),
        Outcome::Found { version, .. } => match &operation.action {
            Action::Increment { by } => increment(model, *by, *version, known.found?),
            _ => at_version(model, *version)
                .filter(|m| m.object.map(|(_, held)| held) == known.found),
        },
        Outcome::Absent | Outcome::Removed { version: None } => {
            model.object.is_none().then_some(*model)
        }
        Outcome::Written { version } => {
            let Action::Write { rules, .. } = &operation.action else {
                return None;
            };
            let model = allowed(model, rules)?;
            write(&model, *version, known.writes?)
        }
        Outcome::Removed {
            version: Some(version),
        } => {
            let Action::Remove { rules } = &operation.action else {
                return None;
            };
            let model = at_version(model, *version)?;
            (!rules.reject(Some(*version))).then_some(Model {
                low: model.low,
                object: None,
            })
        }
        Outcome::Rejected { version } => rejected(&operation.action, model, *version),
        Outcome::Overflow => {
            let Action::Increment { by } = &operation.action else {
                return None;
            };
            number(model)?.checked_add(*by).is_none().then_some(*model)
        }
        Outcome::NotACounter => {
            matches!(model.object, Some((_, Held::Bytes(_) | Held::Unseen))).then_some(*model)
        }
    }
}

fn rejected(action: &Action, model: &Model, version: Option<Version>) -> Option<Model> {
    let rules = match action {
        Action::Write { rules, .. } | Action::Remove { rules } => rules,
        _ => return None,
    };
    if !rules.reject(version) {
        return None;
    }
    match version {
        Some(version) => at_version(model, version),
        None => model.object.is_none().then_some(*model),
    }
}

/// The object exists at `version`; an unknown version becomes known.
fn at_version(model: &Model, version: Version) -> Option<Model> {
    let (known, held) = model.object?;
    let fits = match known {
        Some(known) => known == version.0,
        None => version.0 >= model.low,
    };
    fits.then(|| Model {
        low: model.low.max(version.0),
        object: Some((Some(version.0), held)),
    })
}

/// The rules let the operation through; a version they ask for becomes known.
fn allowed(model: &Model, rules: &RejectRules) -> Option<Model> {
    if (rules.exists && model.object.is_some()) || (rules.absent && model.object.is_none()) {
        return None;
    }
    match rules.unless_version {
        Some(wanted) => at_version(model, wanted),
        None => Some(*model),
    }
}

/// An overwrite takes the next version, another write any that was never used.
fn write(model: &Model, version: Version, held: Held) -> Option<Model> {
    let fits = match model.object {
        Some((Some(known), _)) => version.0 == known + 1,
        _ => version.0 > model.low,
    };
    fits.then_some(Model {
        low: version.0,
        object: Some((Some(version.0), held)),
    })
}

/// The number that an increment adds to.
fn number(model: &Model) -> Option<i64> {
    match model.object {
        None => Some(0),
        Some((_, Held::Counter(number))) => Some(number),
        Some((_, Held::Bytes(_) | Held::Unseen)) => None,
    }
}

fn increment(model: &Model, by: i64, version: Version, held: Held) -> Option<Model> {
    let sum = Held::Counter(number(model)?.checked_add(by)?);
    (held == sum).then_some(())?;
    write(model, version, held)
}

fn apply_open(known: &Known<'_>, model: &Model) -> Option<Model> {
    let written = |held, model: Model| {
        let known = model.object.and_then(|(known, _)| known);
        Model {
            low: model.low + 1,
            object: Some((known.map(|known| known + 1), held)),
        }
    };
    match &known.operation.action {
        Action::Read => None,
        Action::Write { rules, .. } => Some(written(known.writes?, allowed(model, rules)?)),
        Action::Remove { rules } => {
            let model = allowed(model, rules)?;
            model.object.is_some().then_some(Model {
                low: model.low,
                object: None,
            })
        }
        Action::Increment { by } => {
            let sum = number(model)?.checked_add(*by)?;
            Some(written(Held::Counter(sum), *model))
        }
    }
}
