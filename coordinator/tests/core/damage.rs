//! Damage that a recovery master finds: the leader proves it, names it, and lets nobody try in vain.

use ramkeep_wire::coordinator::{Answer, Loss};
use ramkeep_wire::{SegmentId, ServerId, TableId};

use crate::recovery::{accept, cast, is_lost, missing};
use crate::world::*;

const CLOSED: SegmentId = SegmentId(5);

/// One bit of each copy of M's closed segment flips; once more, and it is as it was.
fn flip(world: &mut World, m: ServerId) {
    for fake in world.servers.values_mut() {
        let copies = fake.replicas.iter_mut();
        for (_, bytes) in copies.filter(|(info, _)| info.master == m && info.segment == CLOSED) {
            bytes[60] ^= 1;
        }
    }
}

fn attempts(world: &World, m: ServerId) -> u32 {
    let record = world.state().recoveries().by_master(m);
    record.map_or(0, |record| record.attempts)
}

/// M crashed, and all copies of its closed segment are damaged, as its recovery master has found.
fn damaged() -> (World, ServerId, TableId) {
    let (mut world, [m, ..], table) = cast();
    world.behave(&Behaviour::CannotProve(CLOSED));
    flip(&mut world, m);
    world.kill(m);
    (world, m, table)
}

fn lacks() -> Loss {
    Loss {
        segments: vec![CLOSED],
        ..Loss::default()
    }
}

#[test]
fn damage_that_a_recovery_master_finds_is_named_and_can_be_given_up() {
    let (mut world, m, table) = damaged();
    assert_eq!(missing(&mut world, m), lacks());
    let report = world.reports().remove(0);
    assert!(report.stuck, "{report:?}");
    assert!(
        report.phase.contains("segment-5 of") && report.phase.contains("proves itself"),
        "{report:?}"
    );
    let holders = world.status().damaged.into_iter().map(|one| one.backup);
    assert_eq!(holders.count(), 2, "both copies are known to be damaged");
    // Nobody tries in vain, whoever leads.
    let tried = attempts(&world, m);
    world.run(5_000);
    world.restart();
    assert_eq!(missing(&mut world, m), lacks());
    world.run(5_000);
    assert_eq!(attempts(&world, m), tried);
    assert!(is_lost(&world, table));
    assert_eq!(accept(&mut world, m, lacks()), Answer::Noted);
    world.until_recovered(&[m]);
}

#[test]
fn when_a_copy_can_be_proved_again_another_try_begins() {
    let (mut world, m, _) = damaged();
    assert_eq!(missing(&mut world, m), lacks());
    let tried = attempts(&world, m);
    flip(&mut world, m);
    world.behave(&Behaviour::Recovers);
    world.until("another try", |world| attempts(world, m) > tried);
    world.until_recovered(&[m]);
}

#[test]
fn nobody_else_tries_what_cannot_be_proved_when_its_recovery_master_dies() {
    let (mut world, m, table) = damaged();
    assert_eq!(missing(&mut world, m), lacks());
    let by = world.state().recoveries().by_master(m).unwrap().partitions[0].by;
    let tried = attempts(&world, m);
    world.kill(by);
    world.run(3_000);
    assert_eq!(attempts(&world, m), tried);
    assert!(is_lost(&world, table));
}

#[test]
fn who_cannot_prove_what_the_leader_can_is_not_asked_again() {
    let (mut world, [m, ..], _) = cast();
    world.behave(&Behaviour::CannotProve(CLOSED));
    world.kill(m);
    let tried_by = |world: &World| {
        let record = world.state().recoveries().by_master(m)?;
        Some(record.partitions.first()?.by)
    };
    world.until("tried", |world| tried_by(world).is_some());
    let first = tried_by(&world).unwrap();
    for (server, fake) in &mut world.servers {
        if *server != first {
            fake.behaviour = Behaviour::Recovers;
        }
    }
    world.until_recovered(&[m]);
    assert!(world.status().damaged.is_empty(), "nothing is damaged");
}

#[cfg(feature = "mutants")]
#[test]
fn planted_faults_of_damage_are_caught() {
    use ramkeep_wire::mutants::{self, Mutant};

    let story = damage_that_a_recovery_master_finds_is_named_and_can_be_given_up;
    assert!(mutants::fails(Mutant::BelieveInventories, story));
    story();
}
