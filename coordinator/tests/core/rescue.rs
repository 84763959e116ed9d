//! Most coordinators are lost for good, and the last one goes on.

use paxos::{Record, Stored};
use ramkeep_coordinator::journal::Owner;
use ramkeep_coordinator::rescue::{Place, Rescue, RescueError, rescue};
use ramkeep_wire::coordinator::Answer;
use ramkeep_wire::{Ballot, PeerId};

use crate::world::*;

fn place(world: &World, peer: u32) -> Place {
    Place {
        owner: Owner {
            peer: PeerId(peer),
            incarnation: world.machines[&peer].incarnation,
        },
        address: address(peer),
    }
}

/// A group that made a table, whose leader and another are lost; the last one, and their last ballot.
fn last_of_three() -> (World, u32, Ballot) {
    let mut world = World::group();
    for nonce in 1..=3 {
        world.up(nonce);
    }
    let survivor = world.others()[0];
    let made = world.ask(create("kept", None));
    world.run(100);
    let leader = world.leader();
    let take = world.obey(leader, is_take);
    assert!(!take.is_empty());
    world.run(100);
    assert!(matches!(world.given(made), Some(Answer::Table(_))));
    let ballot = world.core(leader).ballot();
    for peer in 1..=3 {
        world.stop(peer);
    }
    world.start(survivor);
    world.run(SETTLED);
    assert_eq!(world.find_leader(), None, "one of three");
    world.stop(survivor);
    (world, survivor, ballot)
}

fn put(world: &mut World, peer: u32, rescued: &Rescue) {
    world.machine(peer).disk = Stored {
        snapshot: Some(rescued.snapshot.clone()),
        records: rescued.records.clone(),
    };
}

fn rescued() -> (World, u32, Ballot) {
    let (mut world, survivor, ballot) = last_of_three();
    let mut disk = world.machines[&survivor].disk.clone();
    // What is decided is noted beside other records only: the note may lag behind.
    let notes = |record: &Record| matches!(record, Record::Decided(_));
    disk.records.retain(|record| !notes(record));
    let rescued = rescue(&[place(&world, survivor)], disk).unwrap();
    put(&mut world, survivor, &rescued);
    world.start(survivor);
    world.run(SETTLED);
    (world, survivor, ballot)
}

fn the_last_one_goes_on_with_all_that_it_had_accepted() {
    let (world, survivor, ballot) = rescued();
    assert_eq!(world.find_leader(), Some(survivor));
    assert!(world.core(survivor).ballot() > ballot);
    let state = world.core(survivor).state();
    assert!(state.tables().by_name("kept").is_some());
    assert_eq!(state.servers().iter().count(), 3);
}

#[test]
fn one_that_is_rescued_leads_alone_and_nothing_that_it_accepted_is_lost() {
    the_last_one_goes_on_with_all_that_it_had_accepted();
}

fn those_who_were_lost_and_come_back_lead_nobody() {
    let (mut world, survivor, old) = rescued();
    let ballot = world.core(survivor).ballot();
    assert!(
        ballot.round >> 32 > old.round >> 32,
        "above all that they may reach"
    );
    for peer in (1..=3).filter(|peer| *peer != survivor) {
        world.start(peer);
    }
    world.run(2 * SETTLED);
    assert_eq!(world.find_leader(), Some(survivor));
    for peer in (1..=3).filter(|peer| *peer != survivor) {
        let running = world.machines[&peer].core.as_ref();
        assert!(running.is_none_or(|core| !core.node().is_member()));
    }
}

#[test]
fn those_who_were_lost_can_form_no_quorum_against_it() {
    those_who_were_lost_and_come_back_lead_nobody();
}

#[test]
fn a_rescue_may_make_a_whole_group() {
    let (mut world, survivor, _) = last_of_three();
    let lost: Vec<u32> = (1..=3).filter(|peer| *peer != survivor).collect();
    for peer in &lost {
        world.wipe(*peer);
        // The world gives another disk with the next life.
        world.machine(*peer).incarnation = [200 + *peer as u8; 16];
    }
    let places: Vec<Place> = [survivor]
        .iter()
        .chain(&lost)
        .map(|at| place(&world, *at))
        .collect();
    let disk = world.machines[&survivor].disk.clone();
    let rescued = rescue(&places, disk).unwrap();
    for peer in 1..=3 {
        put(&mut world, peer, &rescued);
        world.start(peer);
    }
    world.run(2 * SETTLED);
    assert!(world.find_leader().is_some());
    assert_eq!(world.status().coordinators.len(), 3);
    assert!(world.state().tables().by_name("kept").is_some());
    world.fail_over();
}

#[test]
fn what_is_no_member_is_not_gone_on_from() {
    let (world, survivor, _) = last_of_three();
    let disk = world.machines[&survivor].disk.clone();
    let mut place = place(&world, survivor);
    place.owner.incarnation = [9; 16];
    assert_eq!(rescue(&[place.clone()], disk), Err(RescueError::NoMember));
    assert_eq!(
        rescue(&[place], Stored::default()),
        Err(RescueError::Nothing)
    );
}

#[cfg(feature = "mutants")]
#[test]
fn planted_faults_of_a_rescue_are_caught() {
    use ramkeep_wire::mutants::{self, Mutant};
    let faults: [(Mutant, fn()); 2] = [
        (
            Mutant::RescueForgets,
            the_last_one_goes_on_with_all_that_it_had_accepted,
        ),
        (
            Mutant::RescueKeepsGeneration,
            those_who_were_lost_and_come_back_lead_nobody,
        ),
    ];
    for (mutant, story) in faults {
        assert!(mutants::fails(mutant, story), "{mutant:?}");
    }
}
