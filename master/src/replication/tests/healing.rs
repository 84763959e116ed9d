//! The pace of healing.

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

/// Kills a backup that no head is on.
fn kill_one_without_heads(world: &mut World) {
    let heads = world.replication.heads();
    let heads: BTreeSet<ServerId> = heads.flat_map(|(_, head)| head.backups()).collect();
    let other = (1..=4).map(ServerId).find(|id| !heads.contains(id));
    world.kill(other.expect("heads are on fewer than all backups"));
    world.pump();
}

fn later(world: &mut World, us: u64) {
    world.now = Micros(world.now.0 + us);
    world.pump();
}

#[test]
fn copies_go_one_by_one_and_rest_three_times_as_long_as_each_takes() {
    let mut world = World::new(2, 4);
    fill(&mut world, 3 * MAX_COPIES);
    kill_one_without_heads(&mut world);
    assert!(world.replication.is_healing());
    let first = waiting(&world);
    assert_eq!(first.len(), 1, "the others wait for its answer");
    world.now = Micros(world.now.0 + 100);
    world.deliver(first[0]);
    world.acknowledge(first[0]);
    later(&mut world, 299);
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
