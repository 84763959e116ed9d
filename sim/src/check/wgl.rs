//! Linearizability of one key by search: Wing and Gong's algorithm with Lowe's memory of
//! configurations. Exact also with open operations, but exponential at worst, so it is bounded.

use std::collections::HashSet;

use foldhash::fast::FixedState;
use ramkeep_wire::Version;
use ramkeep_wire::data::RejectRules;

use super::zones::counter;
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

/// A key as the search sees it. `low` is the least that the highest version used can be; a
/// version of `None` is not known yet (its write is open) and at least `low`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Model {
    low: u64,
    object: Option<(Option<u64>, Vec<u8>)>,
}

/// Looks for an order of the operations on one key that explains all answers, through at most
/// `budget` configurations.
#[must_use]
pub fn search(operations: &[Operation], budget: usize) -> Search {
    let mut sorted: Vec<&Operation> = operations
        .iter()
        .filter(|o| o.outcome != Outcome::Failed)
        .filter(|o| o.is_open() || o.outcome != Outcome::Unknown)
        .collect();
    sorted.sort_by_key(|operation| operation.invoked);
    let mut searcher = Searcher {
        operations: sorted,
        seen: HashSet::with_hasher(FixedState::default()),
        budget,
    };
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
    operations: Vec<&'a Operation>,
    seen: HashSet<Configuration, FixedState>,
    budget: usize,
}

impl Searcher<'_> {
    /// All answered operations have their place; open ones may never have happened.
    fn explained(&self, configuration: &Configuration) -> bool {
        self.operations
            .iter()
            .enumerate()
            .all(|(index, operation)| operation.is_open() || configuration.has(index))
    }

    /// What could have happened next. Open operations come first so that, the stack being last in
    /// first out, answered ones are tried before them.
    fn steps(&self, configuration: &Configuration) -> Vec<Configuration> {
        let waiting = || (0..self.operations.len()).filter(|index| !configuration.has(*index));
        let deadline = waiting()
            .map(|index| self.operations[index].returned)
            .min()
            .unwrap_or(u64::MAX);
        let mut steps = Vec::new();
        let mut answered = Vec::new();
        for index in waiting() {
            let operation = self.operations[index];
            if operation.invoked > deadline {
                break;
            }
            let Some(model) = apply(operation, &configuration.model) else {
                continue;
            };
            let mut next = Configuration {
                done: configuration.done.clone(),
                model,
            };
            next.done[index / 64] |= 1 << (index % 64);
            if operation.is_open() {
                steps.push(next);
            } else {
                answered.push(next);
            }
        }
        steps.append(&mut answered);
        steps
    }
}

fn apply(operation: &Operation, model: &Model) -> Option<Model> {
    match &operation.outcome {
        Outcome::Unknown => apply_open(&operation.action, model),
        Outcome::Failed => Some(model.clone()),
        Outcome::Found { version, value } => match &operation.action {
            Action::Increment { by } => increment(model, *by, *version, value),
            _ => at_version(model, *version)
                .filter(|m| m.object.as_ref().is_some_and(|(_, held)| held == value)),
        },
        Outcome::Absent | Outcome::Removed { version: None } => {
            model.object.is_none().then(|| model.clone())
        }
        Outcome::Written { version } => {
            let Action::Write { value, rules } = &operation.action else {
                return None;
            };
            let model = allowed(model, rules)?;
            write(&model, *version, value)
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
        Outcome::NotACounter => model
            .object
            .as_ref()
            .is_some_and(|(_, value)| counter(value).is_none())
            .then(|| model.clone()),
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
        None => model.object.is_none().then(|| model.clone()),
    }
}

/// The object exists at `version`; an unknown version becomes known.
fn at_version(model: &Model, version: Version) -> Option<Model> {
    let (held, value) = model.object.as_ref()?;
    let fits = match held {
        Some(held) => *held == version.0,
        None => version.0 >= model.low,
    };
    fits.then(|| Model {
        low: model.low.max(version.0),
        object: Some((Some(version.0), value.clone())),
    })
}

/// The rules let the operation through; a version they ask for becomes known.
fn allowed(model: &Model, rules: &RejectRules) -> Option<Model> {
    if (rules.exists && model.object.is_some()) || (rules.absent && model.object.is_none()) {
        return None;
    }
    match rules.unless_version {
        Some(wanted) => at_version(model, wanted),
        None => Some(model.clone()),
    }
}

fn write(model: &Model, version: Version, value: &[u8]) -> Option<Model> {
    (version.0 > model.low).then(|| Model {
        low: version.0,
        object: Some((Some(version.0), value.to_vec())),
    })
}

fn increment(model: &Model, by: i64, version: Version, value: &[u8]) -> Option<Model> {
    let old = match &model.object {
        None => 0,
        Some((_, value)) => counter(value)?,
    };
    (counter(value)? == old.wrapping_add(by)).then_some(())?;
    write(model, version, value)
}

fn apply_open(action: &Action, model: &Model) -> Option<Model> {
    let written = |value: Vec<u8>, model: &Model| Model {
        low: model.low + 1,
        object: Some((None, value)),
    };
    match action {
        Action::Read => None,
        Action::Write { value, rules } => {
            allowed(model, rules).map(|model| written(value.clone(), &model))
        }
        Action::Remove { rules } => {
            let model = allowed(model, rules)?;
            model.object.is_some().then_some(Model {
                low: model.low,
                object: None,
            })
        }
        Action::Increment { by } => {
            let old = match &model.object {
                None => 0,
                Some((_, value)) => counter(value)?,
            };
            Some(written(old.wrapping_add(*by).to_le_bytes().to_vec(), model))
        }
    }
}
