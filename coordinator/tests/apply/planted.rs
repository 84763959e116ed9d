//! The checks bite: with a fault planted, what must hold does not hold.

use ramkeep_wire::mutants::{Mutant, bites};

use crate::recoveries;

#[test]
fn a_try_that_was_given_up_and_gets_tablets_is_found() {
    assert!(bites(
        Mutant::LateTryCounts,
        recoveries::who_was_given_up_gets_nothing
    ));
}

#[test]
fn replicas_freed_before_all_is_taken_over_are_found() {
    assert!(bites(
        Mutant::FreedEarly,
        recoveries::nothing_is_freed_while_a_planned_tablet_waits
    ));
}
