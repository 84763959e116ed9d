//! Tries of recovery masters, and what they are told and asked beside.

use ramkeep_wire::coordinator::{Answer, Heartbeat, Request};
use ramkeep_wire::limits::MAX_CLIENTS_NAMED;
use ramkeep_wire::order::Recovery;
use ramkeep_wire::{ClientId, EndedRound, HeldTry, LogPosition, ServerId};

use crate::recovery::cast;
use crate::world::*;

/// More clients with a lease than one page names.
fn lease_many(world: &mut World) -> u64 {
    let clients = 2 * MAX_CLIENTS_NAMED as u64 + 9;
    for client in 1..=clients {
        let mut nonce = [0; 16];
        nonce[..8].copy_from_slice(&client.to_le_bytes());
        world.answer(Request::OpenClientLease { nonce });
    }
    clients
}

#[test]
fn a_report_is_answered_with_the_page_of_ended_clients_that_it_asks_for() {
    let (mut world, [m, ..], _) = cast();
    let clients = lease_many(&mut world);
    let hear = |world: &mut World, clients| {
        let report = Heartbeat {
            clients,
            ..Heartbeat::of(m)
        };
        match world.answer(Request::Heartbeat(report)) {
            Answer::Heard { ended, .. } => ended,
            other => panic!("{other:?}"),
        }
    };
    let late = ClientId(clients - 1);
    world.answer(Request::CloseClientLease { client: late });
    world.restart();
    let page = hear(&mut world, Some(ClientId(2 * MAX_CLIENTS_NAMED as u64)));
    assert_eq!(page.below, ClientId(clients + 1), "whoever leads");
    assert!(page.from < late && !page.except.contains(&late));
    assert_eq!(page.except.len(), 9);
    let nothing = hear(&mut world, None);
    assert!(nothing.below == ClientId(0) && nothing.except.is_empty());
}

/// What a recovery master of `master` was ordered.
fn orders(world: &World, master: ServerId) -> Vec<Recovery> {
    let fakes = world.servers.values();
    let orders = fakes.flat_map(|fake| &fake.recoveries);
    orders.filter(|one| one.master == master).cloned().collect()
}

#[test]
fn with_its_orders_a_recovery_master_hears_of_all_leases_that_have_ended() {
    let (mut world, [m, ..], _) = cast();
    lease_many(&mut world);
    world.behave(&Behaviour::Goes);
    world.kill(m);
    world.until("told", |world| orders(world, m).len() > 2);
    // Another leader does not know what was told.
    world.restart();
    let before = orders(&world, m).len();
    let is_told = |orders: &[Recovery]| {
        let mut round = EndedRound::default();
        orders.iter().for_each(|order| round.took(&order.ended));
        round.is_complete()
    };
    world.until("all is told", |world| is_told(&orders(world, m)[before..]));
    let all = orders(&world, m);
    assert!(is_told(&all[..3]), "one page with each order");
    assert!(all.iter().all(|order| order.id() == all[0].id()));
}

#[test]
fn a_report_is_answered_with_the_tries_that_are_over() {
    let (mut world, [m, ..], _) = cast();
    world.behave(&Behaviour::Goes);
    world.kill(m);
    world.until("replayed", |world| !orders(world, m).is_empty());
    let by = world.state().recoveries().by_master(m).unwrap().partitions[0].by;
    let tried = HeldTry {
        id: orders(&world, m)[0].id(),
        takeover: Some(LogPosition(77)),
    };
    let over = |world: &mut World| {
        let report = Heartbeat {
            tries: vec![tried],
            ..Heartbeat::of(by)
        };
        match world.answer(Request::Heartbeat(report)) {
            Answer::Heard { over, .. } => over,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        over(&mut world),
        [],
        "it is replayed, and will be taken over"
    );
    world.ask(drop_table("t", None));
    world.run(2);
    world.restart();
    assert_eq!(over(&mut world), [tried], "whoever leads");
}
