//! The checks bite: with a fault planted, what must hold does not hold.

use ramkeep_wire::mutants::{Mutant, bites};

use crate::recoveries;

#[test]
fn replicas_freed_before_all_is_taken_over_are_found() {
    assert!(bites(
        Mutant::FreedEarly,
        recoveries::nothing_is_freed_while_a_planned_tablet_waits
    ));
}
