//! The verdict on a history: version order first, search where open operations leave it undecided.

use super::wgl::{Search, search};
use super::zones::{self, Violation};
use crate::history::{History, Operation, Outcome, Place};

/// Configurations that the search may visit for one key.
pub const SEARCH_BUDGET: usize = 1_000_000;

/// Checks every key of a history: those whose answers contradict each other.
#[must_use]
pub fn check_history(history: &History) -> Vec<(Place, Violation)> {
    let wrong = |(place, operations): (&Place, &[Operation])| {
        let violation = check_key(operations).err()?;
        Some((place.clone(), violation))
    };
    history.keys().filter_map(wrong).collect()
}

/// Checks one key.
pub fn check_key(operations: &[Operation]) -> Result<(), Violation> {
    zones::check(operations)?;
    let exact = operations
        .iter()
        .all(|o| !o.is_open() && !matches!(o.outcome, Outcome::NotACounter | Outcome::Overflow));
    if exact {
        return Ok(());
    }
    match search(operations, SEARCH_BUDGET) {
        Search::Linearizable => Ok(()),
        Search::NotLinearizable => Err(Violation::NoOrder),
        Search::GaveUp => Err(Violation::Undecided),
    }
}
