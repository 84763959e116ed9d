//! The core in virtual time: what the leader says, orders and decides, and when.
#![allow(clippy::unwrap_used, reason = "helpers of tests panic like tests")]

mod leading;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use paxos::limits::{MAX_IN_FLIGHT, Timing};
use paxos::{Record, Snapshot, Stored};
use ramkeep_coordinator::core::{RecoverError, default_settings};
use ramkeep_coordinator::limits::{CLIENT_LEASE, MAX_ADDRESSES, SNAPSHOT_AFTER};
use ramkeep_coordinator::{Config, Coordinator, Output};
use ramkeep_wire::coordinator::{
    Answer, Enlist, Heartbeat, Refused, Request, Roles, ServerState, Symptom, TabletState,
};
use ramkeep_wire::limits::{MAX_ADDRESS, MAX_REPLICAS, MAX_TABLE_NAME};
use ramkeep_wire::order::{Command, Order, OrderReply};
use ramkeep_wire::{
    Ballot, BootId, ListVersion, LogPosition, MapVersion, Micros, Party, PeerId, ReplicationEpoch,
    SegmentId, ServerId, TableId,
};

const ADDRESS: &str = "127.0.0.1:7100";

fn config(seed: u8) -> Config {
    Config {
        peer: PeerId(1),
        incarnation: [9; 16],
        address: ADDRESS.into(),
        peers: vec![(PeerId(1), ADDRESS.into())],
        settings: default_settings(),
        timing: Timing::default(),
        entropy: [seed; 32],
    }
}

/// What the disk is asked to do.
enum Write {
    Records(Vec<Record>),
    Snapshot(Snapshot, Vec<Record>),
}

/// A coordinator with a disk, and everything that it said.
struct World {
    core: Coordinator,
    now: Micros,
    disk: Stored,
    /// Persisted at once unless held.
    hold_disk: bool,
    held: VecDeque<(u64, Write)>,
    persists: usize,
    answers: BTreeMap<u64, Answer>,
    orders: Vec<(ServerId, Order)>,
    tokens: u64,
    /// Send heartbeats and confirm lists.
    alive: BTreeSet<ServerId>,
}

impl World {
    fn new() -> Self {
        let now = Micros(5_000_000);
        let mut world = Self {
            core: Coordinator::new(now, config(1), Stored::default()).unwrap(),
            now,
            disk: Stored::default(),
            hold_disk: false,
            held: VecDeque::new(),
            persists: 0,
            answers: BTreeMap::new(),
            orders: Vec::new(),
            tokens: 0,
            alive: BTreeSet::new(),
        };
        world.begin();
        world
    }

    /// Killed and started again with what its disk has.
    fn restart(&mut self) {
        let seed = self.tokens as u8;
        self.core = Coordinator::new(self.now, config(seed), self.disk.clone()).unwrap();
        self.held.clear();
        self.hold_disk = false;
        self.orders.clear();
        self.begin();
    }

    /// One who is alone leads as soon as its disk has that it does.
    fn begin(&mut self) {
        self.pump();
        while !self.core.leads() {
            let due = self.core.next_timeout().expect("it has something to do");
            assert!(due <= self.now, "nothing to wait for");
            self.core.handle_tick(self.now);
            self.pump();
        }
    }

    fn pump(&mut self) {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Persist { seq, records } => {
                    self.persists += 1;
                    self.held.push_back((seq, Write::Records(records)));
                }
                Output::SaveSnapshot {
                    seq,
                    snapshot,
                    records,
                } => self
                    .held
                    .push_back((seq, Write::Snapshot(snapshot, records))),
                Output::Reply {
                    token,
                    response,
                    until,
                } => {
                    assert!(until.is_none_or(|until| until > self.now), "alone");
                    assert!(response.ballot >= self.core.state().ballot());
                    assert!(self.answers.insert(token, response.answer).is_none());
                }
                Output::Order { server, order, .. } => {
                    assert_eq!(order.ballot, self.core.ballot());
                    self.orders.push((server, order));
                }
                // Nobody answers: what follows is the business of tests/recovery.
                Output::Ask { .. } => {}
                output @ (Output::Send { .. } | Output::Removed | Output::Stop(_)) => {
                    panic!("{output:?} of one who is alone")
                }
            }
        }
        if !self.hold_disk && !self.held.is_empty() {
            self.sync();
        }
    }

    /// The oldest that is held is on the disk for good.
    fn sync(&mut self) {
        if let Some((seq, write)) = self.held.pop_front() {
            match write {
                Write::Records(records) => self.disk.records.extend(records),
                Write::Snapshot(snapshot, records) => {
                    self.disk = Stored {
                        snapshot: Some(snapshot),
                        records,
                    };
                }
            }
            self.core.handle_persisted(self.now, seq);
            self.pump();
        }
    }

    fn ask_from(&mut self, from: Party, request: Request) -> u64 {
        self.tokens += 1;
        self.core
            .handle_request(self.now, from, self.tokens, request);
        self.pump();
        self.tokens
    }

    fn ask(&mut self, request: Request) -> u64 {
        self.ask_from(Party::NONE, request)
    }

    fn answer(&mut self, request: Request) -> Answer {
        let token = self.ask(request);
        self.answers.remove(&token).expect("answered at once")
    }

    /// Time passes, with ticks when they are due and heartbeats of those alive.
    fn run(&mut self, ms: u64) {
        let end = self.now.0 + ms * 1_000;
        let mut beat = self.now.0;
        while self.now.0 < end {
            if self.now.0 >= beat {
                beat = self.now.0 + 100_000;
                for server in self.alive.clone() {
                    self.beat(server);
                }
            }
            let due = self.core.next_timeout().map_or(end, |due| due.0);
            let next = due.clamp(self.now.0 + 1, end);
            self.now = Micros(if self.alive.is_empty() {
                next
            } else {
                next.min(beat)
            });
            if self.now.0 >= due {
                self.core.handle_tick(self.now);
                self.pump();
            }
        }
    }

    fn beat(&mut self, server: ServerId) -> Answer {
        let list = self.core.state().list_version();
        let report = heartbeat(server, list);
        self.answer(Request::Heartbeat(report))
    }

    fn enlist(&mut self, nonce: u8) -> ServerId {
        let answer = self.answer(enlist(nonce));
        let Answer::Enlisted { server, .. } = answer else {
            panic!("{answer:?}");
        };
        server
    }

    fn up(&mut self, nonce: u8) -> ServerId {
        let server = self.enlist(nonce);
        self.beat(server);
        assert_eq!(self.state_of(server), ServerState::Up);
        self.alive.insert(server);
        server
    }

    fn state_of(&self, server: ServerId) -> ServerState {
        self.core.state().servers().by_id(server).unwrap().state
    }

    fn reply(&mut self, server: ServerId, command: &Command, reply: OrderReply) {
        self.core
            .handle_order_reply(self.now, server, command, reply);
        self.pump();
    }

    /// The orders given since the last call that are of some kind.
    fn orders(&mut self, wanted: fn(&Command) -> bool) -> Vec<(ServerId, Command)> {
        let orders = std::mem::take(&mut self.orders);
        let orders = orders
            .into_iter()
            .map(|(server, order)| (server, order.command));
        orders.filter(|(_, command)| wanted(command)).collect()
    }

    fn confirm_takes(&mut self) {
        for (server, command) in self.orders(is_take) {
            self.reply(server, &command, taken(&command));
        }
    }

    fn create(&mut self, name: &str) -> u64 {
        self.ask(Request::CreateTable {
            name: name.into(),
            once: None,
        })
    }

    fn drop_table(&mut self, name: &str) -> u64 {
        self.ask(Request::DropTable {
            name: name.into(),
            once: None,
        })
    }
}

fn enlist(nonce: u8) -> Request {
    Request::Enlist(Enlist {
        nonce: [nonce; 16],
        roles: Roles {
            master: true,
            backup: true,
        },
        addresses: vec![format!("127.0.0.1:{}", 7_110 + u16::from(nonce))],
        replaces: None,
        boot: BootId([0; 16]),
        frames: 8,
        memory: 1 << 26,
    })
}

fn heartbeat(server: ServerId, list: ListVersion) -> Heartbeat {
    Heartbeat {
        server,
        list,
        ready: true,
        floor: None,
        master: None,
        backup: None,
        damaged: Vec::new(),
        resident: 0,
    }
}

fn is_take(command: &Command) -> bool {
    matches!(command, Command::TakeTablets(_))
}

fn is_drop(command: &Command) -> bool {
    matches!(command, Command::DropTable(_))
}

fn is_probe(command: &Command) -> bool {
    *command == Command::Probe
}

fn is_update(command: &Command) -> bool {
    matches!(command, Command::UpdateServers(_))
}

fn taken(command: &Command) -> OrderReply {
    let Command::TakeTablets(grants) = command else {
        panic!("{command:?}");
    };
    OrderReply::Taken(grants.iter().map(|_| LogPosition(42)).collect())
}

fn table_of(answer: Option<Answer>) -> ramkeep_wire::coordinator::Table {
    match answer {
        Some(Answer::Table(table)) => table,
        other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_is_answered_before_it_is_on_the_disk() {
    let mut world = World::new();
    world.hold_disk = true;
    let token = world.ask(enlist(1));
    assert!(world.answers.is_empty());
    world.restart();
    assert_eq!(
        world.core.state().servers().iter().count(),
        0,
        "it never happened"
    );
    let answer = world.answer(enlist(1));
    assert!(matches!(answer, Answer::Enlisted { .. }));
    assert!(!world.answers.contains_key(&token));
}

#[test]
fn requests_during_a_sync_share_the_next_one() {
    let mut world = World::new();
    world.hold_disk = true;
    let before = world.persists;
    for nonce in 1..=100 {
        world.ask(enlist(nonce));
    }
    assert_eq!(world.persists, before + MAX_IN_FLIGHT);
    world.sync();
    assert_eq!(
        (world.answers.len(), world.persists),
        (1, before + MAX_IN_FLIGHT + 1)
    );
    for _ in 0..MAX_IN_FLIGHT {
        world.sync();
    }
    assert_eq!(world.answers.len(), 100);
}

#[test]
fn what_was_answered_is_there_after_a_restart() {
    let mut world = World::new();
    let server = world.up(1);
    let before = world.core.state().clone();
    let ballot = world.core.ballot();
    world.restart();
    assert!(world.core.ballot() > ballot);
    assert_eq!(world.core.state().server_list(), before.server_list());
    assert_eq!(world.core.state().constants(), before.constants());
    assert_eq!(world.enlist(1), server, "its nonce is known");
}

#[test]
fn what_is_over_a_limit_never_reaches_the_journal() {
    let mut world = World::new();
    let server = world.up(1);
    let before = world.persists;
    let long = "n".repeat(MAX_TABLE_NAME + 1);
    for request in [
        Request::CreateTable {
            name: long.clone(),
            once: None,
        },
        Request::DropTable {
            name: long,
            once: None,
        },
    ] {
        let answer = world.answer(request);
        assert_eq!(answer, Answer::Refused(Refused::TableName));
    }
    let Request::Enlist(usual) = enlist(2) else {
        unreachable!("an enlistment");
    };
    for addresses in [
        Vec::new(),
        vec!["127.0.0.1:1".to_owned(); MAX_ADDRESSES + 1],
        vec!["a".repeat(MAX_ADDRESS + 1)],
    ] {
        let request = Enlist {
            addresses,
            ..usual.clone()
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
    assert_eq!(world.persists, before);
}

#[test]
fn a_table_needs_a_master_that_is_ready() {
    let mut world = World::new();
    let server = world.enlist(1);
    let create = Request::CreateTable {
        name: "t".into(),
        once: None,
    };
    assert_eq!(
        world.answer(create.clone()),
        Answer::Refused(Refused::NoMaster)
    );
    world.beat(server);
    let token = world.ask(create);
    world.confirm_takes();
    assert!(matches!(world.answers[&token], Answer::Table(_)));
}

#[test]
fn a_table_is_answered_when_all_owners_serve_it() {
    let mut world = World::new();
    let servers = [world.up(1), world.up(2)];
    let token = world.create("t");
    let again = world.create("t");
    let orders = world.orders(is_take);
    assert_eq!(orders.iter().map(|(s, _)| *s).collect::<Vec<_>>(), servers);
    world.reply(servers[0], &orders[0].1, taken(&orders[0].1));
    assert!(world.answers.is_empty());
    world.reply(servers[1], &orders[1].1, taken(&orders[1].1));
    let table = table_of(world.answers.remove(&token));
    for tablet in &table.tablets {
        assert_eq!(
            (tablet.state, tablet.takeover),
            (TabletState::Normal, LogPosition(42))
        );
    }
    assert_eq!(table_of(world.answers.remove(&again)), table);
    let third = world.create("t");
    assert_eq!(table_of(world.answers.remove(&third)), table);
    let known = world.core.state().map_version();
    assert_eq!(world.answer(Request::Map { known }), Answer::Map(None));
    let Answer::Map(Some(map)) = world.answer(Request::Map {
        known: MapVersion(0),
    }) else {
        panic!("no map");
    };
    assert_eq!((map.tables, map.servers.len()), (vec![table], 2));
}

#[test]
fn a_restart_during_an_assignment_goes_on_with_it() {
    let mut world = World::new();
    let servers = [world.up(1), world.up(2)];
    world.create("t");
    let orders = world.orders(is_take);
    world.reply(servers[0], &orders[0].1, taken(&orders[0].1));
    world.restart();
    world.run(100);
    let again = world.orders(is_take);
    assert!(!again.is_empty());
    assert!(
        again.iter().all(|order| *order == orders[1]),
        "only what is left"
    );
    world.reply(servers[1], &orders[1].1, taken(&orders[1].1));
    let token = world.create("t");
    assert!(
        table_of(world.answers.remove(&token))
            .tablets
            .iter()
            .all(|t| t.state == TabletState::Normal)
    );
    world.run(5_000);
    assert_eq!(world.orders(is_take), []);
}

#[test]
fn an_order_is_repeated_until_it_is_confirmed() {
    let mut world = World::new();
    let server = world.up(1);
    let token = world.create("t");
    let (_, command) = world.orders(is_take)[0].clone();
    world.reply(server, &command, OrderReply::NotReady);
    world.run(10_000);
    let repeated = world.orders(is_take).len();
    assert!((8..20).contains(&repeated), "{repeated}");
    assert!(!world.answers.contains_key(&token));
    world.reply(server, &command, OrderReply::Taken(Vec::new()));
    assert!(
        !world.answers.contains_key(&token),
        "that reply confirms nothing"
    );
    world.reply(server, &command, taken(&command));
    assert!(world.answers.contains_key(&token));
}

#[test]
fn a_table_is_dropped_when_every_owner_has_let_go() {
    let mut world = World::new();
    let servers = [world.up(1), world.up(2)];
    world.create("t");
    world.confirm_takes();
    let dropped = world.drop_table("t");
    let created = world.create("t");
    let orders = world.orders(is_drop);
    assert_eq!(orders.len(), 2);
    world.reply(servers[0], &orders[0].1, OrderReply::Done);
    assert!(!world.answers.contains_key(&dropped));
    world.restart();
    world.run(100);
    assert!(
        world
            .orders(is_drop)
            .iter()
            .all(|(server, _)| *server == servers[1])
    );
    let (dropped, created) = (world.drop_table("t"), (created, world.create("t")).1);
    world.reply(servers[1], &orders[1].1, OrderReply::Done);
    assert_eq!(world.answers.remove(&dropped), Some(Answer::Dropped));
    world.confirm_takes();
    let table = table_of(world.answers.remove(&created));
    assert_eq!(
        table.table,
        TableId(2),
        "a table of the same name is another table"
    );
}

#[test]
fn a_dropped_table_of_a_crashed_owner_waits_for_its_fence() {
    let mut world = World::new();
    let (dead, other) = (world.up(1), world.up(2));
    world.create("t");
    world.confirm_takes();
    world.alive.remove(&dead);
    world.alive.remove(&other);
    let dropped = world.drop_table("t");
    for (server, command) in world.orders(is_drop) {
        if server == other {
            world.reply(server, &command, OrderReply::Done);
        }
    }
    // Only signs of life of the other, with an old list: it does not know that the other is dead.
    let old = world.core.state().list_version();
    while world.state_of(dead) != ServerState::Crashed {
        world.run(100);
        world.ask(Request::Heartbeat(heartbeat(other, old)));
    }
    for _ in 0..20 {
        world.run(100);
        world.ask(Request::Heartbeat(heartbeat(other, old)));
    }
    assert!(!world.answers.contains_key(&dropped));
    let (_, update) = world.orders(is_update).pop().unwrap();
    world.reply(other, &update, OrderReply::Done);
    world.run(100);
    assert!(
        !world.answers.contains_key(&dropped),
        "its lease has not run out"
    );
    world.run(150);
    assert_eq!(world.answers.remove(&dropped), Some(Answer::Dropped));
}

#[test]
fn a_take_that_comes_after_the_drop_is_undone() {
    let mut world = World::new();
    let server = world.up(1);
    world.create("t");
    let (_, take) = world.orders(is_take)[0].clone();
    world.drop_table("t");
    world.reply(server, &Command::DropTable(TableId(1)), OrderReply::Done);
    assert!(world.core.state().table(TableId(1)).is_none());
    world.orders.clear();
    world.reply(server, &take, taken(&take));
    assert_eq!(
        world.orders(is_drop),
        [(server, Command::DropTable(TableId(1)))]
    );
}

#[test]
fn a_silent_server_is_probed_and_decided_crashed() {
    let mut world = World::new();
    let (silent, other) = (world.up(1), world.up(2));
    world.create("t");
    world.confirm_takes();
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
    let record = world.core.state().table(TableId(1)).unwrap();
    assert!(record.is_down());
    world.orders.clear();
    world.run(3_000);
    assert!(
        world.orders.iter().all(|(server, _)| *server != silent),
        "nobody talks to it"
    );
}

#[test]
fn a_false_suspicion_is_cleared_by_any_answer() {
    let mut world = World::new();
    let server = world.up(1);
    let other = world.up(2);
    world.alive.remove(&server);
    for _ in 0..100 {
        world.ask(Request::Suspect {
            server,
            by: other,
            symptom: Symptom::Silent,
        });
        world.core.handle_link_down(world.now, server);
        world.run(100);
        for (probed, command) in world.orders(is_probe) {
            assert_eq!(probed, server);
            world.reply(server, &command, OrderReply::Done);
        }
    }
    assert_eq!(world.state_of(server), ServerState::Up);
}

#[test]
fn a_closed_port_is_believed_sooner_than_silence() {
    let mut world = World::new();
    let server = world.up(1);
    world.alive.clear();
    world.core.handle_link_down(world.now, server);
    world.pump();
    for _ in 0..8 {
        world.run(100);
        if !world.orders(is_probe).is_empty() {
            world.core.handle_probe_failed(world.now, server, true);
            world.pump();
        }
    }
    assert_eq!(world.state_of(server), ServerState::Crashed);
}

#[test]
fn nobody_is_dead_for_silence_while_there_was_no_leader() {
    let mut world = World::new();
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
    let mut world = World::new();
    let server = world.up(1);
    world.alive.clear();
    world.run(2_300);
    assert_eq!(
        world.state_of(server),
        ServerState::Up,
        "about to be decided"
    );
    world.now = Micros(world.now.0 + 60_000_000);
    world.core.handle_tick(world.now);
    world.pump();
    world.run(1_000);
    assert_eq!(world.state_of(server), ServerState::Up);
}

#[test]
fn servers_are_told_of_each_new_list_until_they_have_it() {
    let mut world = World::new();
    let first = world.up(1);
    let second = world.enlist(2);
    world.run(50);
    let told = world.orders(is_update);
    assert!(told.iter().any(|(server, _)| *server == first));
    world.run(500);
    world.orders.clear();
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
    let mut world = World::new();
    let server = world.up(1);
    let report = heartbeat(server, ListVersion(0));
    let Answer::Heard {
        list: Some(list), ..
    } = world.answer(Request::Heartbeat(report))
    else {
        panic!("no list");
    };
    assert_eq!(list, world.core.state().server_list());
    assert_eq!(
        world.beat(server),
        Answer::Heard {
            list: None,
            lease_us: 0,
            ended: world.core.state().clients().ended(),
        }
    );
}
