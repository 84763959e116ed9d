//! Coordinators whose directories are lost: an empty group makes no cluster unless it is told to.

use crate::world::{SETTLED, World};

fn after_all_lost_their_disks() -> World {
    let mut world = World::group();
    for peer in 1..=3 {
        world.wipe(peer);
    }
    for peer in 1..=3 {
        world.start(peer);
    }
    world.run(5 * SETTLED);
    world
}

#[test]
fn a_group_that_lost_all_its_disks_does_not_make_another_cluster_by_itself() {
    let world = after_all_lost_their_disks();
    assert_eq!(world.find_leader(), None);
    assert!((1..=3).all(|peer| world.core(peer).node().group().is_none()));
}

#[test]
fn it_makes_one_when_it_is_told_to() {
    let mut world = after_all_lost_their_disks();
    for peer in 1..=3 {
        world.stop(peer);
        world.machine(peer).founds = true;
        world.start(peer);
    }
    world.run(5 * SETTLED);
    assert!(world.find_leader().is_some());
}

#[test]
fn one_that_lost_its_disk_is_taken_in_again_without_being_told_anything() {
    let mut world = World::group();
    let lost = world.others()[0];
    world.wipe(lost);
    world.start(lost);
    world.run(5 * SETTLED);
    assert!(world.core(lost).node().is_member());
}

#[cfg(feature = "mutants")]
#[test]
fn planted_faults_of_new_clusters_are_caught() {
    use ramkeep_wire::mutants::{self, Mutant};
    assert!(mutants::fails(
        Mutant::FoundUnasked,
        a_group_that_lost_all_its_disks_does_not_make_another_cluster_by_itself
    ));
}
