//! The stories bite: each fails with the fault planted that it is about.

use ramkeep_wire::mutants::{Mutant, bites};

use super::tests;

#[test]
fn each_story_of_the_end_catches_its_planted_fault() {
    let stories: [(Mutant, fn()); 5] = [
        (
            Mutant::OldEpochCounts,
            tests::a_replica_of_an_epoch_below_the_recorded_one_does_not_count,
        ),
        (
            Mutant::FloorIgnored,
            tests::an_open_replica_below_the_floor_does_not_count,
        ),
        (
            Mutant::RebootIgnored,
            tests::what_was_written_before_a_reboot_is_no_evidence_for_the_end,
        ),
        (
            Mutant::ShortestEnd,
            tests::an_old_shorter_valid_copy_takes_nothing_away,
        ),
        (
            Mutant::MissingIgnored,
            tests::a_segment_of_the_digest_must_be_there_closed_as_named,
        ),
    ];
    for (mutant, story) in stories {
        assert!(bites(mutant, story), "{mutant:?} is not caught");
    }
}
