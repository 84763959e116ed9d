//! Linearizability of one key by search: Wing and Gong's algorithm with Lowe's memory of
//! configurations. Exact also with open operations, but exponential at worst, so it is bounded.

use std::collections::{BTreeMap, HashSet};

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

/// A value, told from others in little memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Held {
    Counter(i64),
    /// By its place among all values that are no counters.
    Bytes(usize),
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
}

/// The operations that count, in order of their invocations.
fn known(operations: &[Operation]) -> Vec<Known<'_>> {
    let mut sorted: Vec<&Operation> = operations
        .iter()
        .filter(|o| o.outcome != Outcome::Failed)
        .filter(|o| o.is_open() || o.outcome != Outcome::Unknown)
        .collect();
    sorted.sort_by_key(|operation| operation.invoked);
    let mut places = BTreeMap::new();
    let mut held = |value: &Vec<u8>| match counter(value) {
        Some(number) => Held::Counter(number),
        None => {
            let next = places.len();
            Held::Bytes(*places.entry(value.clone()).or_insert(next))
        }
    };
    let mut all = Vec::with_capacity(sorted.len());
    for operation in sorted {
        all.push(Known {
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
    all
}

/// Looks for an order of the operations on one key that explains all answers, through at most
/// `budget` configurations.
#[must_use]
pub fn search(operations: &[Operation], budget: usize) -> Search {
    let mut searcher = Searcher {
        operations: known(operations),
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
    operations: Vec<Known<'a>>,
    seen: HashSet<Configuration, FixedState>,
    budget: usize,
}

impl Searcher<'_> {
    /// All answered operations have their place; open ones may never have happened.
    fn explained(&self, configuration: &Configuration) -> bool {
        self.operations
            .iter()
            .enumerate()
            .all(|(index, known)| known.operation.is_open() || configuration.has(index))
    }

    /// What could have happened next. Open operations come first so that, the stack being last in
    /// first out, answered ones are tried before them.
    fn steps(&self, configuration: &Configuration) -> Vec<Configuration> {
        let waiting = || (0..self.operations.len()).filter(|index| !configuration.has(*index));
        let deadline = waiting()
            .map(|index| self.operations[index].operation.returned)
            .min()
            .unwrap_or(u64::MAX);
        let mut steps = Vec::new();
        let mut answered = Vec::new();
        for index in waiting() {
            let operation = self.operations[index].operation;
            if operation.invoked > deadline {
                break;
            }
            let Some(model) = apply(&self.operations[index], &configuration.model) else {
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
        Outcome::NotACounter => matches!(model.object, Some((_, Held::Bytes(_)))).then_some(*model),
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

fn write(model: &Model, version: Version, held: Held) -> Option<Model> {
    (version.0 > model.low).then_some(Model {
        low: version.0,
        object: Some((Some(version.0), held)),
    })
}

/// The number that an increment adds to.
fn number(model: &Model) -> Option<i64> {
    match model.object {
        None => Some(0),
        Some((_, Held::Counter(number))) => Some(number),
        Some((_, Held::Bytes(_))) => None,
    }
}

fn increment(model: &Model, by: i64, version: Version, held: Held) -> Option<Model> {
    let sum = Held::Counter(number(model)?.wrapping_add(by));
    (held == sum).then_some(())?;
    write(model, version, held)
}

fn apply_open(known: &Known<'_>, model: &Model) -> Option<Model> {
    let written = |held, model: Model| Model {
        low: model.low + 1,
        object: Some((None, held)),
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
            let sum = number(model)?.wrapping_add(*by);
            Some(written(Held::Counter(sum), *model))
        }
    }
}
