//! The stories of replay bite: each fails with the fault planted that it is about.

use ramkeep_wire::mutants::{Mutant, bites};

use crate::replay;

#[test]
fn each_story_of_replay_catches_its_planted_fault() {
    let stories: [(Mutant, fn()); 3] = [
        (
            Mutant::TakeoverIgnored,
            replay::a_tablet_that_came_back_does_not_bring_what_an_earlier_stay_left,
        ),
        (
            Mutant::NoTombstoneInReplay,
            replay::an_object_superseded_in_replay_gets_a_tombstone_of_the_recovery_masters_own_segment,
        ),
        (
            Mutant::DropEndsFinished,
            replay::a_table_dropped_after_its_replay_finished_leaves_what_was_replayed_of_others,
        ),
    ];
    for (mutant, story) in stories {
        assert!(bites(mutant, story), "{mutant:?} is not caught");
    }
}
