//! What is replayed finds its memory, or nothing of it is appended (SAFETY 26).

use ramkeep_wire::data::Status;
use ramkeep_wire::order::OrderReply;

use crate::world::{self, Backup, World, crashed, crashed_after, key, make_durable};

#[test]
pub(crate) fn what_does_not_fit_is_refused_before_anything_is_appended() {
    let (copies, mut order) = crashed();
    let mut world = World::with_room(6, [(2, Backup::with(&copies))]);
    let (began, free) = (world.appended(), world.store.stats().room);
    for attempt in 1..4 {
        order.attempt = attempt;
        let reply = world.recover(&order);
        let OrderReply::NoRoom { needs, room } = reply else {
            panic!("{reply:?}");
        };
        assert!(needs > room && room <= free, "{reply:?}");
        world.settle();
        assert_eq!(world.appended(), began, "nothing is left behind");
    }
    // A part of it fits: it is cut by hashes.
    let mut part = order.clone();
    part.attempt += 1;
    part.tablets[0].range.last.0 /= 4;
    let reply = world.recover(&part);
    assert!(matches!(reply, OrderReply::Recovered(_)), "{reply:?}");
    let found = world.store.stats().objects;
    assert_eq!(world.write_other(b"more", 100), Status::Ok, "of {found}");
}

#[test]
fn of_what_was_overwritten_only_what_wins_needs_memory() {
    let (copies, order) = crashed_after(8);
    let log: u64 = copies.iter().map(|copy| u64::from(copy.0.length)).sum();
    let mut world = World::tight([(2, Backup::with(&copies))]);
    let stats = world.store.stats();
    assert!(log > 2 * stats.room, "{log} {stats:?}");
    world.succeed(&order);
    assert_eq!(world.bad().len(), 0);
}

#[test]
pub(crate) fn what_is_promised_to_a_replay_no_client_takes() {
    let (copies, order) = crashed();
    let mut world = World::tight([(2, Backup::with(&copies))]);
    let began = world.appended();
    let mut number = 1_000;
    let mut reply = world.order(&order);
    let mut refused = 0;
    while matches!(reply, OrderReply::Recovering { .. }) {
        world.settle_a_little();
        let replays = world.appended() != began;
        while replays && refused == 0 {
            make_durable(&world.store);
            number += 1;
            refused += usize::from(world.write_other(&key(number), 100) == Status::OutOfMemory);
        }
        reply = world.order(&order);
    }
    assert!(refused > 0, "clients took all that was left");
    assert!(matches!(reply, OrderReply::Recovered(_)), "{reply:?}");
    world.succeed(&order);
    // What all of it needs is kept: everything can be removed.
    assert!(world.store.stats().objects > world::OBJECTS);
}

#[test]
fn however_short_memory_is_it_is_refused_whole_or_replayed_whole() {
    let (copies, order) = crashed_after(3);
    let mut done = [0, 0];
    for segments in 4..30 {
        let mut world = World::with_room(segments, [(2, Backup::with(&copies))]);
        let began = world.appended();
        match world.recover(&order) {
            OrderReply::NoRoom { .. } => {
                done[0] += 1;
                assert_eq!(world.appended(), began, "{segments}");
            }
            OrderReply::Recovered(_) => {
                done[1] += 1;
                world.succeed(&order);
            }
            reply => panic!("{segments}: {reply:?}"),
        }
    }
    assert!(done[0] > 3 && done[1] > 3, "{done:?}");
}
