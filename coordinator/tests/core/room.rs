//! What does not fit is cut anew, or waits for room; nobody begins in vain (SAFETY 26).

use ramkeep_wire::ServerId;

use crate::recovery::{cast, is_lost};
use crate::world::*;

/// M's log takes so many bytes; its last report said less, or nothing.
fn begin(
    takes: u64,
    reported: u64,
    free: [u64; 3],
) -> (World, [ServerId; 4], ramkeep_wire::TableId) {
    let (mut world, all, table) = cast();
    let [m, b, c, d] = all;
    world.behave(&Behaviour::Takes(takes));
    for (server, free) in [b, c, d].into_iter().zip(free) {
        world.server(server).free = free;
    }
    world.server(m).live = reported;
    world.run(300);
    world.kill(m);
    world.until("decided crashed", |world| is_lost(world, table));
    (world, all, table)
}

fn tries(world: &World) -> usize {
    let numbers = world.servers.values().flat_map(|fake| &fake.recoveries);
    let mut numbers: Vec<_> = numbers.map(|recovery| recovery.attempt).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers.len()
}

#[test]
pub(crate) fn what_does_not_fit_is_cut_as_the_room_is() {
    let free = [100_000, 60_000, 55_000];
    let (mut world, ..) = begin(190_000, 70_000, free);
    world.until_served();
    assert_eq!(tries(&world), 1 + 3, "one in vain, then one for each");
}

#[test]
fn what_fits_nowhere_waits_for_room_and_says_so() {
    let (mut world, [_, b, ..], table) = begin(600_000, 70_000, [100_000, 60_000, 55_000]);
    world.run(20_000);
    assert_eq!(tries(&world), 1, "nobody tries in vain");
    let reports = world.reports();
    assert!(reports[0].stuck, "{reports:?}");
    for part in ["take 6", "3 masters have room for 215000", "a server more"] {
        assert!(reports[0].phase.contains(part), "{part}: {reports:?}");
    }
    world.server(b).free = 700_000;
    world.until_served();
    assert!(!is_lost(&world, table) && tries(&world) == 2);
}
