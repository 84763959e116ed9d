//! What servers are to take and to drop, of many tables at a time.

use ramkeep_wire::coordinator::{Answer, TabletState};
use ramkeep_wire::limits::MAX_TABLETS_PER_ORDER;
use ramkeep_wire::order::{Command, Order, OrderReply};
use ramkeep_wire::{LogPosition, ServerId, TableId};

use crate::recovery::cast;
use crate::world::*;

fn create_many(world: &mut World, count: usize) -> Vec<u64> {
    let names = (0..count).map(|number| format!("table {number}"));
    names.map(|name| world.ask(create(&name, None))).collect()
}

/// How many pieces each order has.
fn pieces(orders: &[(ServerId, Order)]) -> Vec<usize> {
    let pieces = orders.iter().map(|(_, order)| match &order.command {
        Command::TakeTablets(grants) => grants.len(),
        Command::DropTables(tables) => tables.len(),
        other => panic!("{other:?}"),
    });
    pieces.collect()
}

fn what_belongs_together_is_one_order() {
    let mut world = World::alone();
    world.up(1);
    let created = create_many(&mut world, 6);
    assert_eq!(pieces(&world.obey(ALONE, is_take)), [1], "the first");
    assert_eq!(pieces(&world.obey(ALONE, is_take)), [5], "all others");
    assert!(created.iter().all(|token| world.given(*token).is_some()));
    world.run(5_000);
    assert_eq!(world.obey(ALONE, is_take), [], "each once");

    let names = (0..6).map(|number| format!("table {number}"));
    let dropped: Vec<u64> = names
        .map(|name| world.ask(drop_table(&name, None)))
        .collect();
    assert_eq!(pieces(&world.obey(ALONE, is_drop)), [1]);
    assert_eq!(pieces(&world.obey(ALONE, is_drop)), [5]);
    for token in dropped {
        assert_eq!(world.given(token), Some(Answer::Dropped));
    }
    world.run(5_000);
    assert_eq!(world.obey(ALONE, is_drop), []);
}

#[test]
fn what_a_server_is_to_take_or_to_drop_meanwhile_is_one_order() {
    what_belongs_together_is_one_order();
}

#[test]
fn more_than_fits_one_order_comes_in_several_without_waiting() {
    let mut world = World::alone();
    world.up(1);
    let created = create_many(&mut world, 2 * MAX_TABLETS_PER_ORDER + 10);
    let before = world.now;
    let most = MAX_TABLETS_PER_ORDER;
    for expected in [1, most, most, 9] {
        assert_eq!(pieces(&world.obey(ALONE, is_take)), [expected]);
    }
    assert_eq!(world.now, before, "no time passes");
    assert!(created.iter().all(|token| world.given(*token).is_some()));
}

#[test]
fn the_rest_is_ordered_before_the_first_is_decided() {
    let mut world = World::alone();
    world.up(1);
    let created = create_many(&mut world, MAX_TABLETS_PER_ORDER + 10);
    world.obey(ALONE, is_take);
    world.machine(ALONE).hold_disk = true;
    let most = MAX_TABLETS_PER_ORDER;
    assert_eq!(pieces(&world.obey(ALONE, is_take)), [most]);
    assert_eq!(pieces(&world.obey(ALONE, is_take)), [9], "only the rest");
    // Another leads before any of it is on the disk: all of it is owed still.
    world.restart();
    world.run(1);
    assert_eq!(pieces(&world.obey(ALONE, is_take)), [most]);
    assert_eq!(pieces(&world.obey(ALONE, is_take)), [9]);
    drop(created);
    assert!(world.all_served());
}

fn a_refused_tablet_holds_up_no_other() {
    let mut world = World::alone();
    let server = world.up(1);
    create_many(&mut world, 3);
    world.obey(ALONE, is_take);
    let (_, given) = world.orders_of(ALONE, is_take).pop().unwrap();
    let taken = Some(LogPosition(42));
    let partly = OrderReply::Taken(vec![None, taken]);
    world.reply(ALONE, server, &given.command, partly.clone());
    let state = |world: &World, table| world.tablets(TableId(table))[0].state;
    assert_eq!(state(&world, 3), TabletState::Normal);
    assert_eq!(state(&world, 2), TabletState::Assigning, "nobody serves it");
    // It is asked again and again, but not without pause, and others do not wait for it.
    world.run(10_000);
    let again = world.orders_of(ALONE, is_take);
    assert!((8..20).contains(&again.len()), "{}", again.len());
    assert!(pieces(&again).iter().all(|pieces| *pieces == 1));
    world.ask(create("another", None));
    world.obey(ALONE, is_take);
    assert!(world.all_served());
}

#[test]
fn a_tablet_that_its_owner_refuses_holds_up_no_other() {
    a_refused_tablet_holds_up_no_other();
}

/// Tables of which each has a tablet on the one that dies.
const TABLES: u64 = 300;

fn heirs_of_many_tables_take_them_together() {
    let (mut world, [m, ..], _) = cast();
    for number in 1..TABLES {
        world.make_table(&number.to_string());
    }
    assert!(world.all_served());
    let before = world.state().map_version();
    world.kill(m);
    world.until_recovered(&[m]);
    let versions = world.state().map_version().0 - before.0;
    // Down, planned, replayed, taken: as with one table.
    assert!(versions <= 4 + 2, "{versions} maps for one death");
}

#[test]
fn a_death_changes_the_map_as_often_with_many_tables_as_with_one() {
    heirs_of_many_tables_take_them_together();
}

#[cfg(feature = "mutants")]
#[test]
fn planted_faults_of_orders_are_caught() {
    use ramkeep_wire::mutants::{self, Mutant};

    let faults: [(Mutant, fn()); 3] = [
        (Mutant::OrdersOneByOne, what_belongs_together_is_one_order),
        (
            Mutant::OrdersOneByOne,
            heirs_of_many_tables_take_them_together,
        ),
        (Mutant::RefusedIsTaken, a_refused_tablet_holds_up_no_other),
    ];
    for (mutant, story) in faults {
        assert!(mutants::fails(mutant, story), "{mutant:?}");
        story();
    }
}
