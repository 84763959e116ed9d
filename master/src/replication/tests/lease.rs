//! The lease: what it counts from, whom it is needed from, and how it is kept.

use super::world::LEASE;
use super::*;

const FIRST: SegmentId = SegmentId(1);

fn pass(world: &mut World, us: u64) {
    world.now = Micros(world.now.0 + us);
}

fn exchange(world: &mut World, with: &[ServerId]) {
    for id in with {
        while world.sent.get(id).is_some_and(|queue| !queue.is_empty()) {
            world.deliver(*id);
        }
        while world.acks.get(id).is_some_and(|queue| !queue.is_empty()) {
            world.acknowledge(*id);
        }
    }
}

/// Time passes in small steps, for all but the `stopped`; changes are recorded if `recorded`.
fn run(world: &mut World, us: u64, stopped: &[ServerId], recorded: bool) {
    for _ in 0..us / 100 {
        pass(world, 100);
        world.pump();
        let ids: Vec<ServerId> = world.backups.keys().copied().collect();
        let awake: Vec<ServerId> = ids.into_iter().filter(|id| !stopped.contains(id)).collect();
        exchange(world, &awake);
        if recorded {
            world.record();
        }
        world.check_lease();
    }
}

fn lease_left(world: &World) -> u64 {
    let until = world.replication.lease_until();
    until.0.saturating_sub(world.now.0)
}

#[test]
fn a_grant_counts_from_when_its_request_was_sent() {
    let mut world = World::new(2, 2);
    world.pump();
    let sent = world.now;
    assert_eq!(
        world.replication.lease_until(),
        Micros(0),
        "none is granted"
    );
    pass(&mut world, 700);
    exchange(&mut world, &[ServerId(1)]);
    assert_eq!(world.replication.lease_until(), Micros(0), "one is missing");
    pass(&mut world, 300);
    exchange(&mut world, &[ServerId(2)]);
    let until = Micros(sent.0 + u64::from(LEASE));
    assert_eq!(world.replication.lease_until(), until);
}

#[test]
fn a_master_that_writes_nothing_renews_its_lease() {
    let mut world = World::new(2, 2);
    run(&mut world, 1_000, &[], false);
    for _ in 0..50 {
        run(&mut world, 1_000, &[], false);
        assert!(lease_left(&world) >= u64::from(LEASE) / 2);
    }
}

#[test]
fn while_the_log_rolls_over_the_backups_of_both_heads_are_needed() {
    let mut world = World::new(2, 4);
    run(&mut world, 1_000, &[], false);
    let old = world.replication.backups_of(FIRST);
    let new = loop {
        assert!(world.log.roll_over());
        let [_, Some(head)] = world.log.open_heads() else {
            panic!("the log has a head");
        };
        world.pump();
        let new = world.replication.backups_of(head);
        if head == SegmentId(2) {
            break new;
        }
    };
    let fresh: Vec<ServerId> = (new.iter().copied())
        .filter(|id| !old.contains(id))
        .collect();
    assert_eq!(lease_left(&world) == 0, !fresh.is_empty());
    exchange(&mut world, &new);
    assert!(lease_left(&world) > 0, "the new ones have granted");
    // Only the old ones fall silent: the old head is not closed.
    let old_only: Vec<ServerId> = (old.iter().copied())
        .filter(|id| !new.contains(id))
        .collect();
    let until = world.replication.lease_until();
    pass(&mut world, 400);
    world.pump();
    exchange(&mut world, &new);
    if !old_only.is_empty() {
        assert_eq!(world.replication.lease_until(), until);
    }
}

#[test]
fn a_stopped_backup_is_replaced_before_the_lease_runs_out() {
    let mut world = World::new(2, 4);
    run(&mut world, 2_000, &[], true);
    let stopped = [world.replication.backups_of(FIRST)[0]];
    for _ in 0..100 {
        run(&mut world, 100, &stopped, true);
        assert!(lease_left(&world) > 0, "a read would have waited");
    }
    assert!(!world.replication.backups_of(FIRST).contains(&stopped[0]));
}

#[test]
fn until_a_change_is_recorded_the_old_set_is_needed_as_well() {
    let mut world = World::new(2, 3);
    run(&mut world, 2_000, &[], true);
    let until = world.replication.lease_until();
    let dead = world.replication.backups_of(FIRST)[0];
    world.kill(dead);
    run(&mut world, 1_000, &[], false);
    assert!(world.replication.lease_until() <= until, "nobody renews it");
    run(&mut world, u64::from(LEASE), &[], false);
    assert_eq!(lease_left(&world), 0);
    run(&mut world, 100, &[], true);
    assert!(lease_left(&world) > 0, "the new set alone is enough now");
}

#[test]
fn with_nobody_to_replace_it_the_set_shrinks_and_grows_again_later() {
    let mut world = World::new(2, 2);
    run(&mut world, 2_000, &[], true);
    world.kill(ServerId(1));
    for _ in 0..100 {
        world.log.head().0 += 1;
        run(&mut world, 100, &[], true);
        assert!(lease_left(&world) > 0, "reads go on");
    }
    assert_eq!(world.replication.backups_of(FIRST), [ServerId(2)]);
    let head = *world.log.head();
    assert!(head.3 < head.0, "writes don't");
    assert!(world.replication.too_few_backups(world.now));
    let shrunk = world.recorded[&FIRST];
    assert!(shrunk > ReplicationEpoch(1));
    world.backups.insert(ServerId(3), FakeBackup::default());
    world.replication.link_up(ServerId(3));
    run(&mut world, 2_000, &[], true);
    assert!(world.recorded[&FIRST] > shrunk, "a fresh epoch");
    let head = *world.log.head();
    assert_eq!(head.3, head.0, "writes go on");
}

#[test]
fn one_that_may_live_is_not_left_out_for_want_of_another() {
    let mut world = World::new(2, 2);
    run(&mut world, 2_000, &[], true);
    world.break_link(ServerId(1));
    run(&mut world, 2 * u64::from(LEASE), &[], true);
    assert!(
        !world.recorded.contains_key(&FIRST),
        "its copy still counts"
    );
    assert_eq!(lease_left(&world), 0, "and so does its grant");
    world.replication.link_up(ServerId(1));
    run(&mut world, 1_000, &[], true);
    assert!(lease_left(&world) > 0);
}

#[test]
fn a_master_that_slept_does_not_blame_its_backups() {
    let mut world = World::new(2, 4);
    run(&mut world, 2_000, &[], true);
    let on = world.replication.backups_of(FIRST);
    world.log.head().0 += 10;
    world.pump();
    pass(&mut world, 60_000);
    world.pump();
    assert_eq!(world.replication.backups_of(FIRST), on);
}

#[test]
fn a_slow_backup_is_kept_while_no_coordinator_answers() {
    let mut world = World::new(2, 4);
    run(&mut world, 2_000, &[], true);
    let on = world.replication.backups_of(FIRST);
    world.replication.coordinator_answers(false);
    run(&mut world, 20_000, &on[..1], false);
    assert_eq!(world.replication.backups_of(FIRST), on);
    run(&mut world, 1_000, &[], false);
    assert!(lease_left(&world) > 0, "it is back, and so is the lease");
    world.replication.coordinator_answers(true);
    run(&mut world, 2_000, &on[..1], true);
    assert!(!world.replication.backups_of(FIRST).contains(&on[0]));
}

#[test]
fn a_backup_without_a_frame_is_no_reason_to_stop_reading() {
    let mut world = World::new(2, 3);
    for id in 100..100 + FRAMES as u64 {
        let full = world.backups.get_mut(&ServerId(3)).expect("of three");
        full.inherited.insert(SegmentId(id));
    }
    run(&mut world, 2_000, &[], true);
    for _ in 0..4 {
        world.log.head().0 += 100;
        world.log.roll_over();
        for _ in 0..20 {
            world.pump();
            exchange(&mut world, &[ServerId(1), ServerId(2), ServerId(3)]);
        }
        assert!(lease_left(&world) > 0, "although no change is recorded");
        run(&mut world, 2_000, &[], true);
    }
}
