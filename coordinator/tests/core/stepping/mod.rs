//! One coordinator step by step: what it says, orders and decides, and when.

mod leading;

use paxos::Record;
use paxos::limits::MAX_IN_FLIGHT;
use ramkeep_coordinator::Coordinator;
use ramkeep_coordinator::core::RecoverError;
use ramkeep_coordinator::limits::{CLIENT_LEASE, MAX_ADDRESSES, SNAPSHOT_AFTER};
use ramkeep_wire::coordinator::{
    Answer, Enlist, Heartbeat, Refused, Request, ServerState, Symptom, TabletState,
};
use ramkeep_wire::limits::{MAX_ADDRESS, MAX_REPLICAS, MAX_TABLE_NAME};
use ramkeep_wire::order::{Command, OrderReply};
use ramkeep_wire::{
    Ballot, ListVersion, LogPosition, MapVersion, Micros, Party, PeerId, ReplicationEpoch,
    SegmentId, ServerId, TableId,
};

use crate::world::*;

impl World {
    fn orders(&mut self, kind: fn(&Command) -> bool) -> Vec<(ServerId, Command)> {
        let orders = self.orders_of(ALONE, kind).into_iter();
        orders
            .map(|(server, order)| (server, order.command))
            .collect()
    }

    fn only(&mut self) -> &mut Machine {
        self.machine(ALONE)
    }

    fn tell(&mut self, server: ServerId, command: &Command, reply: OrderReply) {
        self.reply(ALONE, server, command, reply);
    }

    fn obey_alone(&mut self, (server, command): &(ServerId, Command)) {
        self.tell(*server, command, done(command));
    }

    fn create(&mut self, name: &str) -> u64 {
        self.ask(create(name, None))
    }

    fn drop_table(&mut self, name: &str) -> u64 {
        self.ask(drop_table(name, None))
    }
}

fn heartbeat(server: ServerId, list: ListVersion) -> Heartbeat {
    Heartbeat {
        list,
        ..Heartbeat::of(server)
    }
}

fn is_probe(command: &Command) -> bool {
    *command == Command::Probe
}

fn is_update(command: &Command) -> bool {
    matches!(command, Command::UpdateServers(_))
}

#[test]
fn nothing_is_answered_before_it_is_on_the_disk() {
    let mut world = World::alone();
    world.only().hold_disk = true;
    let token = world.ask(enlist(1));
    assert!(world.only().answers.is_empty());
    world.restart();
    assert_eq!(
        world.state().servers().iter().count(),
        0,
        "it never happened"
    );
    let answer = world.answer(enlist(1));
    assert!(matches!(answer, Answer::Enlisted { .. }));
    assert!(world.given(token).is_none());
}

#[test]
fn requests_during_a_sync_share_the_next_one() {
    let mut world = World::alone();
    world.only().hold_disk = true;
    let before = world.only().persists;
    for nonce in 1..=100 {
        world.ask(enlist(nonce));
    }
    assert_eq!(world.only().persists, before + MAX_IN_FLIGHT);
    world.sync(ALONE);
    assert_eq!(world.only().answers.len(), 1);
    assert_eq!(world.only().persists, before + MAX_IN_FLIGHT + 1);
    for _ in 0..MAX_IN_FLIGHT {
        world.sync(ALONE);
    }
    assert_eq!(world.only().answers.len(), 100);
}

#[test]
fn what_was_answered_is_there_after_a_restart() {
    let mut world = World::alone();
    let server = world.up(1);
    let before = world.state().clone();
    let ballot = world.core(ALONE).ballot();
    world.restart();
    assert!(world.core(ALONE).ballot() > ballot);
    assert_eq!(world.state().server_list(), before.server_list());
    assert_eq!(world.state().constants(), before.constants());
    assert_eq!(world.enlist(1), server, "its nonce is known");
}

#[test]
fn what_is_over_a_limit_never_reaches_the_journal() {
    let mut world = World::alone();
    let server = world.up(1);
    let before = world.only().persists;
    let long = "n".repeat(MAX_TABLE_NAME + 1);
    for request in [create(&long, None), drop_table(&long, None)] {
        let answer = world.answer(request);
        assert_eq!(answer, Answer::Refused(Refused::TableName));
    }
    for addresses in [
        Vec::new(),
        vec!["127.0.0.1:1".to_owned(); MAX_ADDRESSES + 1],
        vec!["a".repeat(MAX_ADDRESS + 1)],
    ] {
        let request = Enlist {
            addresses,
            ..enlistment(2)
        };
        let answer = world.answer(Request::Enlist(request));
        assert!(matches!(answer, Answer::Refused(Refused::Invalid(_))));
    }
    let answer = world.answer(Request::RecordEpoch {
        master: server,
        segment: SegmentId(1),
        epoch: ReplicationEpoch(1),
        backups: (2..).map(ServerId).take(MAX_REPLICAS + 1).collect(),
    });
    assert!(matches!(answer, Answer::Refused(Refused::Invalid(_))));
    assert_eq!(world.only().persists, before);
}

#[test]
fn a_table_needs_a_master_that_is_ready() {
    let mut world = World::alone();
    let server = world.enlist(1);
    let refused = world.answer(create("t", None));
    assert_eq!(refused, Answer::Refused(Refused::NoMaster));
    world.beat(server);
    let token = world.create("t");
    world.obey(ALONE, is_take);
    table_of(world.given(token));
}

#[test]
fn a_table_is_answered_when_all_owners_serve_it() {
    let mut world = World::alone();
    let servers = [world.up(1), world.up(2)];
    let token = world.create("t");
    let again = world.create("t");
    let orders = world.orders(is_take);
    assert_eq!(orders.iter().map(|(s, _)| *s).collect::<Vec<_>>(), servers);
    world.obey_alone(&orders[0]);
    assert!(world.only().answers.is_empty());
    world.obey_alone(&orders[1]);
    let table = table_of(world.given(token));
    for tablet in &table.tablets {
        assert_eq!(
            (tablet.state, tablet.takeover),
            (TabletState::Normal, LogPosition(42))
        );
    }
    assert_eq!(table_of(world.given(again)), table);
    let third = world.create("t");
    assert_eq!(table_of(world.given(third)), table);
    let known = world.state().map_version();
    assert_eq!(world.answer(Request::Map { known }), Answer::Map(None));
    let known = MapVersion(0);
    let Answer::Map(Some(map)) = world.answer(Request::Map { known }) else {
        panic!("no map");
    };
    assert_eq!((map.tables, map.servers.len()), (vec![table], 2));
}

#[test]
fn a_restart_during_an_assignment_goes_on_with_it() {
    let mut world = World::alone();
    world.up(1);
    world.up(2);
    world.create("t");
    let orders = world.orders(is_take);
    world.obey_alone(&orders[0]);
    world.restart();
    world.run(100);
    let again = world.orders(is_take);
    assert!(!again.is_empty());
    assert!(
        again.iter().all(|order| *order == orders[1]),
        "only what is left"
    );
    world.obey_alone(&orders[1]);
    let token = world.create("t");
    assert!(
        table_of(world.given(token))
            .tablets
            .iter()
            .all(|t| t.state == TabletState::Normal)
    );
    world.run(5_000);
    assert_eq!(world.orders(is_take), []);
}

#[test]
fn an_order_is_repeated_until_it_is_confirmed() {
    let mut world = World::alone();
    let server = world.up(1);
    let token = world.create("t");
    let (_, command) = world.orders(is_take)[0].clone();
    world.tell(server, &command, OrderReply::NotReady);
    world.run(10_000);
    let repeated = world.orders(is_take).len();
    assert!((8..20).contains(&repeated), "{repeated}");
    assert!(world.given(token).is_none());
    world.tell(server, &command, OrderReply::Taken(Vec::new()));
    assert!(world.given(token).is_none(), "that reply confirms nothing");
    world.tell(server, &command, done(&command));
    assert!(world.given(token).is_some());
}

#[test]
fn a_table_is_dropped_when_every_owner_has_let_go() {
    let mut world = World::alone();
    let servers = [world.up(1), world.up(2)];
    world.create("t");
    world.obey(ALONE, is_take);
    let dropped = world.drop_table("t");
    let created = world.create("t");
    let orders = world.orders(is_drop);
    assert_eq!(orders.len(), 2);
    world.tell(servers[0], &orders[0].1, OrderReply::Done);
    assert!(world.given(dropped).is_none());
    world.restart();
    world.run(100);
    assert!(
        world
            .orders(is_drop)
            .iter()
            .all(|(server, _)| *server == servers[1])
    );
    let (dropped, created) = (world.drop_table("t"), (created, world.create("t")).1);
    world.tell(servers[1], &orders[1].1, OrderReply::Done);
    assert_eq!(world.given(dropped), Some(Answer::Dropped));
    world.obey(ALONE, is_take);
    let table = table_of(world.given(created));
    assert_eq!(
        table.table,
        TableId(2),
        "a table of the same name is another table"
    );
}

#[test]
fn a_dropped_table_of_a_crashed_owner_waits_for_its_fence() {
    let mut world = World::alone();
    let (dead, other) = (world.up(1), world.up(2));
    world.create("t");
    world.obey(ALONE, is_take);
    world.alive.remove(&dead);
    world.alive.remove(&other);
    let dropped = world.drop_table("t");
    for (server, command) in world.orders(is_drop) {
        if server == other {
            world.tell(server, &command, OrderReply::Done);
        }
    }
    // Only signs of life of the other, with an old list: it does not know that the other is dead.
    let old = world.state().list_version();
    while world.state_of(dead) != ServerState::Crashed {
        world.run(100);
        world.ask(Request::Heartbeat(heartbeat(other, old)));
    }
    for _ in 0..20 {
        world.run(100);
        world.ask(Request::Heartbeat(heartbeat(other, old)));
    }
    assert!(world.given(dropped).is_none());
    let (_, update) = world.orders(is_update).pop().unwrap();
    world.tell(other, &update, OrderReply::Done);
    world.run(100);
    assert!(world.given(dropped).is_none(), "its lease has not run out");
    world.run(150);
    assert_eq!(world.given(dropped), Some(Answer::Dropped));
}

#[test]
fn a_take_that_comes_after_the_drop_is_undone() {
    let mut world = World::alone();
    let server = world.up(1);
    world.create("t");
    let (_, take) = world.orders(is_take)[0].clone();
    world.drop_table("t");
    world.tell(
        server,
        &Command::DropTables(vec![TableId(1)]),
        OrderReply::Done,
    );
    assert!(world.state().table(TableId(1)).is_none());
    world.only().orders.clear();
    world.tell(server, &take, done(&take));
    assert_eq!(
        world.orders(is_drop),
        [(server, Command::DropTables(vec![TableId(1)]))]
    );
}

#[test]
fn a_silent_server_is_probed_and_decided_crashed() {
    let mut world = World::alone();
    let (silent, other) = (world.up(1), world.up(2));
    world.create("t");
    world.obey(ALONE, is_take);
    world.alive.remove(&silent);
    world.run(2_000);
    assert_eq!(world.state_of(silent), ServerState::Up);
    assert!(
        world
            .orders(is_probe)
            .iter()
            .all(|(server, _)| *server == silent)
    );
    world.run(1_500);
    assert_eq!(world.state_of(silent), ServerState::Crashed);
    assert_eq!(world.state_of(other), ServerState::Up);
    assert_eq!(world.beat(silent), Answer::Refused(Refused::Crashed));
    assert_eq!(world.answer(enlist(1)), Answer::Refused(Refused::Crashed));
    let record = world.state().table(TableId(1)).unwrap();
    assert!(record.is_down());
    world.only().orders.clear();
    world.run(3_000);
    assert!(
        world.machines[&ALONE]
            .orders
            .iter()
            .all(|(server, _)| *server != silent),
        "nobody talks to it"
    );
}

#[test]
fn a_false_suspicion_is_cleared_by_any_answer() {
    let mut world = World::alone();
    let server = world.up(1);
    let other = world.up(2);
    world.alive.remove(&server);
    for _ in 0..100 {
        world.ask(Request::Suspect {
            server,
            by: other,
            symptom: Symptom::Silent,
        });
        world.input(ALONE, |core, now| core.handle_link_down(now, server));
        world.run(100);
        for (probed, command) in world.orders(is_probe) {
            assert_eq!(probed, server);
            world.tell(server, &command, OrderReply::Done);
        }
    }
    assert_eq!(world.state_of(server), ServerState::Up);
}

#[test]
fn a_closed_port_is_believed_sooner_than_silence() {
    let mut world = World::alone();
    let server = world.up(1);
    world.alive.clear();
    world.input(ALONE, |core, now| core.handle_link_down(now, server));
    for _ in 0..8 {
        world.run(100);
        if !world.orders(is_probe).is_empty() {
            world.input(ALONE, |core, now| {
                core.handle_probe_failed(now, server, true);
            });
        }
    }
    assert_eq!(world.state_of(server), ServerState::Crashed);
}

#[test]
fn nobody_is_dead_for_silence_while_there_was_no_leader() {
    let mut world = World::alone();
    let server = world.up(1);
    world.alive.clear();
    world.now = Micros(world.now.0 + 600_000_000);
    world.restart();
    world.run(400);
    assert_eq!(world.orders(is_probe), []);
    world.run(1_000);
    assert_eq!(world.state_of(server), ServerState::Up);
}

#[test]
fn nobody_is_dead_for_a_pause_of_the_coordinator() {
    let mut world = World::alone();
    let server = world.up(1);
    world.alive.clear();
    world.run(2_300);
    assert_eq!(
        world.state_of(server),
        ServerState::Up,
        "about to be decided"
    );
    world.now = Micros(world.now.0 + 60_000_000);
    world.input(ALONE, Coordinator::handle_tick);
    world.run(1_000);
    assert_eq!(world.state_of(server), ServerState::Up);
}

#[test]
fn servers_are_told_of_each_new_list_until_they_have_it() {
    let mut world = World::alone();
    let first = world.up(1);
    let second = world.enlist(2);
    world.run(50);
    let told = world.orders(is_update);
    assert!(told.iter().any(|(server, _)| *server == first));
    world.run(500);
    world.only().orders.clear();
    world.run(1_500);
    assert!(
        world
            .orders(is_update)
            .iter()
            .all(|(server, _)| *server == second),
        "its heartbeats said that the first has it"
    );
}

#[test]
fn a_heartbeat_brings_the_list_to_one_who_lacks_it() {
    let mut world = World::alone();
    let server = world.up(1);
    let report = heartbeat(server, ListVersion(0));
    let Answer::Heard {
        list: Some(list), ..
    } = world.answer(Request::Heartbeat(report))
    else {
        panic!("no list");
    };
    assert_eq!(list, world.state().server_list());
    assert_eq!(
        world.beat(server),
        Answer::Heard {
            list: None,
            lease_us: 0,
            ended: ramkeep_wire::EndedClients::default(),
            over: Vec::new(),
        }
    );
}
