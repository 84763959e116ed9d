//! The verdict on a history: version order first, search where open operations leave it undecided.

use super::wgl::{Search, search};
use super::zones::{self, Violation};
use crate::history::{History, Operation, Outcome, Place};

/// Configurations that the search may visit for one key.
pub const SEARCH_BUDGET: usize = 200_000;

/// What became of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Keys whose answers contradict each other.
    pub violations: Vec<(Place, Violation)>,
    /// Keys for which the search gave up; version order found nothing wrong with them.
    pub undecided: usize,
}

/// Checks every key of a history.
#[must_use]
pub fn check_history(history: &History) -> Verdict {
    let mut verdict = Verdict::default();
    for (place, operations) in history.keys() {
        match check_key(operations) {
            Ok(true) => {}
            Ok(false) => verdict.undecided += 1,
            Err(violation) => verdict.violations.push((place.clone(), violation)),
        }
    }
    verdict
}

/// Checks one key; `Ok(false)` when the search gave up.
pub fn check_key(operations: &[Operation]) -> Result<bool, Violation> {
    zones::check(operations)?;
    let exact = operations
        .iter()
        .all(|o| !o.is_open() && o.outcome != Outcome::NotACounter);
    if exact {
        return Ok(true);
    }
    match search(operations, SEARCH_BUDGET) {
        Search::Linearizable => Ok(true),
        Search::NotLinearizable => Err(Violation::NoOrder),
        Search::GaveUp => Ok(false),
    }
}
