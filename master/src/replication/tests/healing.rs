//! The pace of healing.

use std::collections::VecDeque;

use super::*;

/// Messages of copies that wait at backups; what is sent under a lease is of heads.
fn waiting(world: &World) -> Vec<ServerId> {
    let sent = world.sent.iter();
    let sent = sent.flat_map(|(to, queue)| queue.iter().map(move |one| (*to, one)));
    let copies = sent.filter(|(_, one)| match one {
        Sent::Replicate(message) => !message.has(flags::LEASE),
        Sent::Free(_) => false,
    });
    copies.map(|(to, _)| to).collect()
}

/// The backups of heads.
fn heads_on(world: &World) -> BTreeSet<ServerId> {
    let heads = world.replication.heads();
    heads.flat_map(|(_, head)| head.backups()).collect()
}

/// Kills a backup that no head is on.
fn kill_one_without_heads(world: &mut World) {
    let heads = heads_on(world);
    let other = (1..=4).map(ServerId).find(|id| !heads.contains(id));
    world.kill(other.expect("heads are on fewer than all backups"));
    world.pump();
}

fn later(world: &mut World, us: u64) {
    world.now = Micros(world.now.0 + us);
    world.pump();
}

#[test]
fn copies_go_one_by_one_and_rest_five_times_as_long_as_each_takes() {
    let mut world = World::new(2, 4);
    fill(&mut world, 3 * MAX_COPIES);
    kill_one_without_heads(&mut world);
    assert!(world.replication.is_healing());
    let first = waiting(&world);
    assert_eq!(first.len(), 1, "the others wait for its answer");
    world.now = Micros(world.now.0 + 100);
    world.deliver(first[0]);
    world.acknowledge(first[0]);
    later(&mut world, 499);
    assert!(waiting(&world).is_empty(), "it rests");
    later(&mut world, 1);
    assert_eq!(waiting(&world).len(), 1);
    world.settle();
    assert!(!world.replication.is_healing());
    assert_eq!(world.replication.under_replicated(), 0);
    world.check(2);
}

#[test]
fn segments_without_any_copy_left_do_not_wait() {
    let mut world = World::new(1, 4);
    fill(&mut world, 3 * MAX_COPIES);
    kill_one_without_heads(&mut world);
    assert!(waiting(&world).len() > 1);
    world.settle();
    assert_eq!(world.replication.under_replicated(), 0);
}

fn is_bare(world: &World, id: SegmentId) -> bool {
    let segment = world.replication.segments.get(&id);
    segment.is_some_and(|one| one.closed_everywhere && !one.has_copy())
}

#[test]
fn segments_without_any_copy_left_come_first_even_while_a_master_is_recovered() {
    let mut world = World::new(2, 8);
    fill(&mut world, 40);
    let heads = heads_on(&world);
    let segments = world.replication.segments.values();
    let both = segments.map(Replicated::backups);
    let both = both
        .into_iter()
        .find(|both| heads.is_disjoint(&both.iter().copied().collect()));
    for backup in both.expect("some segment is where no head is") {
        world.kill(backup);
    }
    world.replication.recovering(true);
    world.pump();
    let all = world.replication.segments.keys().copied();
    let bare: Vec<SegmentId> = all.filter(|id| is_bare(&world, *id)).collect();
    assert!(!bare.is_empty());
    for id in bare.iter().take(MAX_COPIES) {
        assert!(world.replication.active.contains(id), "{id:?} waits");
    }
    world.settle();
    assert!(bare.iter().all(|id| !is_bare(&world, *id)));
}

#[test]
fn a_backup_that_answers_no_copy_holds_up_copies_to_it_only() {
    let mut world = World::new(2, 5);
    fill(&mut world, 3 * MAX_COPIES);
    // Nobody is replaced for being slow: the coordinator is not there.
    world.replication.coordinator_answered(None);
    kill_one_without_heads(&mut world);
    let mute = waiting(&world)[0];
    let before = world.replication.under_replicated();
    for _ in 0..400 {
        later(&mut world, 10_000);
        for id in (1..=5).map(ServerId).filter(|id| *id != mute) {
            while !world.sent.get(&id).is_none_or(VecDeque::is_empty) {
                world.deliver(id);
            }
            while !world.acks.get(&id).is_none_or(VecDeque::is_empty) {
                world.acknowledge(id);
            }
        }
    }
    let after = world.replication.under_replicated();
    assert!(after < before, "{before} lacked a copy, {after} do");
}
