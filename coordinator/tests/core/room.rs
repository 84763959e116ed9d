//! What does not fit is cut anew, or waits for room; nobody begins in vain (SAFETY 26).

use ramkeep_wire::ServerId;
use ramkeep_wire::coordinator::ShortageKind;

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
    for part in [
        "take 6",
        "3 masters have room for 209 KiB",
        "another server",
    ] {
        assert!(reports[0].phase.contains(part), "{part}: {reports:?}");
    }
    world.server(b).free = 700_000;
    world.until_served();
    assert!(!is_lost(&world, table) && tries(&world) == 2);
}

#[test]
pub(crate) fn who_lacks_frames_for_a_while_gives_its_part_to_one_that_does_not() {
    let (mut world, [m, b, c, d], _) = cast();
    world.behave(&Behaviour::Goes);
    world.run(300);
    world.kill(m);
    let planned = |world: &World| Some(world.state().recoveries().by_master(m)?.partitions[0].by);
    world.until("planned", |world| planned(world).is_some());
    let first = planned(&world).unwrap();
    let full = [b, c, d].into_iter().find(|one| *one != first).unwrap();
    world.server(full).frames = 0;
    world.run(1_500);
    assert_eq!(planned(&world), Some(first), "it may be for a moment");
    let report = world.reports().remove(0);
    let lacks = format!("{first:?} needs free frames on 2 other servers, and 1 have some");
    assert!(report.stuck && report.phase.contains(&lacks), "{report:?}");
    let shortages = world.status().shortages;
    assert!(
        shortages
            .iter()
            .any(|one| one.is_now && one.server == first),
        "{shortages:?}"
    );
    world.behave(&Behaviour::Recovers);
    // The full one finds frames for its copies on the others.
    world.server(first).behaviour = Behaviour::Goes;
    world.until_served();
    assert!(!world.server(full).recoveries.is_empty());
}

#[test]
fn frames_that_are_kept_for_recoveries_are_none_for_writing() {
    let (mut world, [m, b, c, d], _) = cast();
    world.run(300);
    let is_said = |world: &mut World| {
        let mut shortages = world.status().shortages.into_iter();
        shortages.any(|one| one.is_now && one.server == m && one.kind == ShortageKind::Frames)
    };
    assert!(!is_said(&mut world));
    for server in [b, c, d] {
        world.server(server).kept = 1_000;
    }
    world.run(300);
    assert!(is_said(&mut world));
}

#[test]
fn what_would_be_lacking_should_the_fullest_die_is_said_before() {
    let (mut world, [m, b, c, d], _) = cast();
    world.run(300);
    assert_eq!(world.status().shortages, []);
    world.server(m).live = 300 << 20;
    for heir in [b, c, d] {
        world.server(heir).free = 90 << 20;
    }
    world.run(300);
    let shortages = world.status().shortages;
    assert!(
        shortages.len() == 1 && shortages[0].server == m && !shortages[0].is_now,
        "{shortages:?}"
    );
    assert!(
        shortages[0].text.contains("room for 270 MiB"),
        "{shortages:?}"
    );
    world.kill(d);
    world.run(1_000);
    let kinds: Vec<_> = world
        .status()
        .shortages
        .iter()
        .map(|one| one.kind)
        .collect();
    assert_eq!(kinds, [ShortageKind::Memory, ShortageKind::Backups]);
}
