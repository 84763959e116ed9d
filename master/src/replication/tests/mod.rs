//! Replication against a model: see `world`.

mod healing;
mod lease;
mod world;

use std::collections::BTreeSet;

use proptest::prelude::*;
use ramkeep_wire::replicate::{ReplicateAck, ReplicateStatus, flags};

use super::*;
use world::{FRAMES, FakeBackup, HEADER, Sent, World};

#[test]
fn nothing_is_durable_until_every_backup_has_acknowledged() {
    let mut world = World::new(2, 2);
    world.pump();
    world.deliver(ServerId(1));
    world.acknowledge(ServerId(1));
    world.pump();
    assert_eq!(world.log.head().3, 0);
    world.deliver(ServerId(2));
    world.acknowledge(ServerId(2));
    world.pump();
    assert_eq!(world.log.head().3, HEADER);
}

#[test]
fn nothing_more_is_durable_until_the_epoch_of_a_changed_set_is_recorded() {
    let mut world = World::new(2, 3);
    world.settle();
    let on = world.replication.backups_of(SegmentId(1));
    world.log.head().0 += 100;
    world.break_link(on[0]);
    for _ in 0..10 {
        world.pump();
        (1..=3).for_each(|id| world.deliver(ServerId(id)));
        (1..=3).for_each(|id| world.acknowledge(ServerId(id)));
    }
    assert_eq!(world.log.head().3, HEADER, "held by both, but not recorded");
    assert_eq!(world.records.len(), 1);
    world.record();
    world.pump();
    assert_eq!(world.log.head().3, HEADER + 100);
}

#[test]
fn a_head_closes_only_after_the_next_is_open_and_acknowledges_only_after_that() {
    let mut world = World::new(2, 2);
    world.settle();
    assert!(world.log.roll_over());
    world.log.head().0 += 50;
    assert!(!world.log.roll_over(), "never a third open head");
    world.pump();
    let closes = |world: &World| {
        world
            .sent
            .values()
            .flatten()
            .filter(|m| matches!(m, Sent::Replicate(m) if m.has(flags::CLOSED)))
            .count()
    };
    assert_eq!(closes(&world), 0, "the next head is not open yet");
    (1..=2).for_each(|id| world.deliver(ServerId(id)));
    (1..=2).for_each(|id| world.acknowledge(ServerId(id)));
    world.pump();
    assert_eq!((closes(&world), world.log.head().3), (2, 0));
    world.settle();
    assert_eq!(world.log.head().3, HEADER + 50 + 5);
}

#[test]
fn too_few_backups_refuse_writes_after_a_while_and_take_them_again_later() {
    let mut world = World::new(2, 2);
    world.settle();
    world.kill(ServerId(1));
    world.pump();
    assert!(!world.replication.too_few_backups(world.now));
    world.settle();
    assert!(world.replication.too_few_backups(world.now));
    world.backups.insert(ServerId(3), FakeBackup::default());
    world.replication.link_up(ServerId(3));
    world.settle();
    assert!(!world.replication.too_few_backups(world.now));
    assert_eq!(world.replication.under_replicated(), 0);
}

/// Closes `segments` segments on `world`'s backups.
fn fill(world: &mut World, segments: usize) {
    for _ in 0..segments {
        world.log.head().0 += 1_000;
        assert!(world.log.roll_over());
        world.settle();
    }
}

#[test]
fn a_damaged_replica_is_freed_before_another_can_take_its_place_on_the_same_backup() {
    let mut world = World::new(2, 2);
    fill(&mut world, 2);
    let (segment, liar) = (SegmentId(1), ServerId(1));
    assert!(world.replication.is_closed_on(segment, liar));
    world.replication.replica_damaged(segment, liar);
    assert_eq!(world.replication.under_replicated(), 1);
    world.pump();
    let first = world.sent[&liar].front();
    assert!(matches!(first, Some(Sent::Free(segments)) if segments == &[segment]));
    world.settle();
    assert_eq!(world.replication.under_replicated(), 0);
    assert_eq!(world.replication.backups_of(segment).len(), 2);
    world.check(2);
}

#[test]
fn a_free_of_a_damaged_replica_that_got_lost_is_sent_again() {
    let mut world = World::new(2, 2);
    fill(&mut world, 2);
    let (segment, liar) = (SegmentId(1), ServerId(1));
    world.replication.replica_damaged(segment, liar);
    world.pump();
    world.break_link(liar);
    world.pump();
    world.replication.link_up(liar);
    world.pump();
    let first = world.sent[&liar].front();
    assert!(matches!(first, Some(Sent::Free(segments)) if segments == &[segment]));
    world.settle();
    assert_eq!(world.replication.under_replicated(), 0);
    world.check(2);
}

#[test]
fn copies_go_on_after_their_destination_has_died() {
    let mut world = World::new(2, 4);
    fill(&mut world, 3 * MAX_COPIES);
    world.kill(ServerId(1));
    world.pump();
    // Copies to some backup are under way, and it dies too.
    let to: Vec<ServerId> = world.sent.keys().copied().collect();
    let busiest = to.into_iter().max_by_key(|to| world.sent[to].len());
    world.kill(busiest.expect("something is being copied"));
    world.settle();
    assert_eq!(world.replication.under_replicated(), 0);
    world.check(2);
}

#[test]
fn backups_without_a_frame_are_no_backups_however_often_they_are_asked() {
    let mut world = World::new(2, 2);
    world.settle();
    let full: BTreeSet<SegmentId> = (100..100 + FRAMES as u64).map(SegmentId).collect();
    for backup in world.backups.values_mut() {
        backup.inherited.clone_from(&full);
    }
    assert!(world.log.roll_over());
    world.settle();
    assert!(world.replication.too_few_backups(world.now));
    world.backups.values_mut().for_each(|b| b.inherited.clear());
    world.settle();
    assert!(!world.replication.too_few_backups(world.now));
    assert_eq!(world.replication.under_replicated(), 0);
}

#[test]
fn a_slow_backup_is_freed_of_what_it_need_not_hold_any_more() {
    let mut world = World::new(2, 3);
    world.settle();
    let slow = world.replication.backups_of(SegmentId(1))[0];
    world.log.head().0 += 100;
    world.pump();
    world.now = Micros(world.now.0 + 1_001);
    world.pump();
    assert!(!world.replication.backups_of(SegmentId(1)).contains(&slow));
    fill(&mut world, 1);
    assert_eq!(world.leaked(), []);
}

#[test]
fn a_slow_backup_is_replaced_on_both_heads_at_once() {
    let mut world = World::new(2, 4);
    let slow = loop {
        world.settle();
        world.log.head().0 += 100;
        world.pump();
        assert!(world.log.roll_over());
        world.pump();
        let [Some(old), Some(new)] = world.log.open_heads() else {
            panic!("two heads are open");
        };
        let new = world.replication.backups_of(new);
        let old = world.replication.backups_of(old);
        if let Some(both) = old.into_iter().find(|id| new.contains(id)) {
            break both;
        }
    };
    for id in (1..=4).map(ServerId).filter(|id| *id != slow) {
        (0..4).for_each(|_| world.deliver(id));
        (0..4).for_each(|_| world.acknowledge(id));
    }
    world.now = Micros(world.now.0 + 1_001);
    world.pump();
    for head in world.log.open_heads().into_iter().flatten() {
        let on = world.replication.backups_of(head);
        assert!(!on.contains(&slow), "{head:?}");
    }
}

#[test]
fn a_late_acknowledgement_says_nothing_of_a_later_replica() {
    let mut world = World::new(2, 3);
    world.settle();
    let slow = world.replication.backups_of(SegmentId(1))[0];
    assert!(world.log.roll_over());
    // The close is on its way to one of them, who has it and does not say so.
    for _ in 0..4 {
        world.pump();
        (1..=3).for_each(|id| world.deliver(ServerId(id)));
        (1..=3)
            .filter(|id| *id != slow.0)
            .for_each(|id| world.acknowledge(ServerId(id)));
        if world
            .acks
            .get(&slow)
            .is_some_and(|acks| acks.iter().any(|ack| ack.flags & flags::OPEN != 0))
        {
            break;
        }
    }
    world.now = Micros(world.now.0 + 1_001);
    let late = world.acks.remove(&slow).unwrap_or_default();
    world.settle();
    assert!(!world.replication.backups_of(SegmentId(1)).contains(&slow));
    let other = world.replication.backups_of(SegmentId(1))[0];
    assert!(
        !world.backups[&slow].held.contains_key(&SegmentId(1)),
        "freed"
    );
    world.kill(other);
    world.pump();
    let on = |world: &World| world.replication.backups_of(SegmentId(1));
    assert!(!on(&world).contains(&slow), "it still owes answers");
    late.iter().for_each(|ack| {
        world.replication.handle_ack(world.now, slow, ack);
    });
    world.pump();
    assert!(on(&world).contains(&slow), "it shows that it lives");
    world.break_link(slow);
    world.replication.link_up(slow);
    world.settle();
    world.check(2);
}

#[test]
fn impossible_acknowledgements_are_a_reason_to_replace_a_backup_and_nothing_else() {
    let mut world = World::new(2, 3);
    world.settle();
    let on = world.replication.backups_of(SegmentId(1));
    let ack = ReplicateAck {
        segment: SegmentId(1),
        epoch: ReplicationEpoch(1),
        length: u32::MAX,
        status: ReplicateStatus::Done,
        flags: flags::COMPLETE,
        lease_us: 0,
    };
    for impossible in [
        ack,
        ReplicateAck {
            epoch: ReplicationEpoch(9),
            length: HEADER,
            ..ack
        },
        ReplicateAck {
            status: ReplicateStatus::Gap,
            ..ack
        },
    ] {
        world.log.head().0 += 10;
        world.replication.handle_ack(world.now, on[0], &impossible);
        assert!(!world.replication.backups_of(SegmentId(1)).contains(&on[0]));
        world.settle();
        world.check(2);
        let head = *world.log.head();
        assert_eq!(head.0, head.3, "writes go on");
        // Back to where it was.
        let other = world
            .replication
            .backups_of(SegmentId(1))
            .into_iter()
            .find(|id| *id != on[1]);
        world.break_link(other.unwrap());
        world.settle();
        world.replication.link_up(other.unwrap());
    }
}

#[test]
fn replicas_of_a_backup_that_restarts_again_and_again_are_freed() {
    let mut world = World::new(2, 4);
    fill(&mut world, 6);
    world.restart(ServerId(1));
    world.restart(ServerId(5));
    // One that crashed before it knew who it was: the next names the same predecessor.
    world.replication.inherited(ServerId(90), ServerId(2));
    world.replication.crashed(ServerId(90));
    world.restart(ServerId(2));
    world.settle();
    assert_eq!(world.replication.under_replicated(), 0);
    assert_eq!(world.leaked(), []);
}

#[test]
fn what_is_left_to_do_does_not_grow_with_the_log() {
    let mut world = World::new(2, 4);
    fill(&mut world, 20);
    world.kill(ServerId(1));
    world.pump();
    assert!(world.replication.active.len() <= 2 + MAX_PACED);
    assert!(world.replication.under_replicated() > 2 + MAX_PACED);
    world.settle();
    assert_eq!(world.replication.under_replicated(), 0);
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Append(u32),
    RollOver,
    Deliver(u64),
    Acknowledge(u64),
    Record,
    LoseRecord(bool),
    Break(u64),
    Kill(u64),
    Restart(u64),
    Wait(u64),
    Damage(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => (1u32..2_000_000).prop_map(Event::Append),
        3 => Just(Event::RollOver),
        24 => (0u64..5).prop_map(Event::Deliver),
        24 => (0u64..5).prop_map(Event::Acknowledge),
        4 => Just(Event::Record),
        1 => any::<bool>().prop_map(Event::LoseRecord),
        2 => (0u64..5).prop_map(Event::Break),
        1 => (0u64..5).prop_map(Event::Kill),
        1 => (0u64..5).prop_map(Event::Restart),
        3 => (1u64..2_000).prop_map(Event::Wait),
        3 => (0u64..1_000).prop_map(Event::Damage),
    ]
}

fn happen(world: &mut World, event: Event) {
    match event {
        Event::Append(n) => world.log.head().0 += n,
        Event::RollOver => {
            world.log.roll_over();
        }
        Event::Deliver(n) => world.deliver(world.any(n)),
        Event::Acknowledge(n) => world.acknowledge(world.any(n)),
        Event::Record => world.record(),
        Event::LoseRecord(was_recorded) => world.lose_record(was_recorded),
        Event::Break(n) => {
            let server = world.any(n);
            world.break_link(server);
            world.replication.link_up(server);
        }
        Event::Kill(n) if world.backups.len() > 3 => {
            world.kill(world.any(n));
        }
        Event::Restart(n) => world.restart(world.any(n)),
        Event::Kill(_) => {}
        Event::Damage(n) => world.damage(n),
        Event::Wait(us) => world.now = Micros(world.now.0 + us),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn what_is_durable_is_never_contradicted_by_a_countable_replica(
        events in prop::collection::vec(event(), 1..400),
    ) {
        let mut world = World::new(2, 5);
        for event in events {
            world.now = Micros(world.now.0 + 1);
            happen(&mut world, event);
            world.pump();
            world.check(2);
            world.check_lease();
        }
        world.settle();
        world.check(2);
        let head = *world.log.head();
        prop_assert_eq!(head.0, head.3, "everything becomes durable once faults stop");
        prop_assert_eq!(world.replication.under_replicated(), 0);
        prop_assert!(!world.replication.too_few_backups(world.now));
        prop_assert_eq!(world.leaked(), []);
    }
}
