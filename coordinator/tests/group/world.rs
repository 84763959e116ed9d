//! Three coordinators in virtual time. Messages take a millisecond; the test has the disks, the
//! cuts and the kills.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use paxos::limits::Timing;
use paxos::{Record, Snapshot, Stored};
use ramkeep_coordinator::core::default_settings;
use ramkeep_coordinator::{Config, Coordinator, Output};
use ramkeep_wire::coordinator::{
    Answer, ClusterStatus, Enlist, Heartbeat, Once, Refused, Request, Response, Roles, Table,
};
use ramkeep_wire::order::{Command, Order, OrderReply};
use ramkeep_wire::{BootId, ClientId, LogPosition, Micros, Party, PeerId, ServerId};

/// How long a message is on its way.
const TRIP: u64 = 1_000;
/// More than the group takes to settle whatever happened.
pub const SETTLED: u64 = 1_500;

pub enum Write {
    Records(Vec<Record>),
    Snapshot(Snapshot, Vec<Record>),
}

/// An answer with until when it counts.
pub type Given = (Response, Option<Micros>);

/// A machine: its disk, and the process that runs there, if one does.
#[derive(Default)]
pub struct Machine {
    pub core: Option<Coordinator>,
    pub disk: Stored,
    pub incarnation: [u8; 16],
    pub peers: Vec<(PeerId, String)>,
    /// What is written waits, and is not persisted.
    pub hold_disk: bool,
    held: VecDeque<(u64, Write)>,
    pub answers: BTreeMap<u64, Given>,
    pub orders: Vec<(ServerId, Order)>,
    pub removed: bool,
}

pub struct World {
    pub machines: BTreeMap<u32, Machine>,
    pub now: Micros,
    wire: VecDeque<(Micros, paxos::Envelope)>,
    pub cut: BTreeSet<u32>,
    tokens: u64,
    lives: u8,
    /// Send heartbeats and answer probes.
    pub alive: BTreeSet<ServerId>,
    beat: Micros,
}

pub fn address(peer: u32) -> String {
    format!("127.0.0.1:{}", 7_100 + peer)
}

impl World {
    /// A group of three that has a leader.
    pub fn new() -> Self {
        let mut world = Self {
            machines: BTreeMap::new(),
            now: Micros(5_000_000),
            wire: VecDeque::new(),
            cut: BTreeSet::new(),
            tokens: 0,
            lives: 0,
            alive: BTreeSet::new(),
            beat: Micros(0),
        };
        let peers: Vec<_> = (1..=3).map(|peer| (PeerId(peer), address(peer))).collect();
        for peer in 1..=3 {
            world.add(peer, peers.clone());
        }
        world.run(SETTLED);
        world
    }

    /// A machine with an empty disk, and a process there.
    pub fn add(&mut self, peer: u32, peers: Vec<(PeerId, String)>) {
        let machine = Machine {
            peers,
            incarnation: [self.lives + 100; 16],
            ..Machine::default()
        };
        self.machines.insert(peer, machine);
        self.start(peer);
    }

    pub fn machine(&mut self, peer: u32) -> &mut Machine {
        self.machines.get_mut(&peer).unwrap()
    }

    pub fn core(&self, peer: u32) -> &Coordinator {
        self.machines[&peer].core.as_ref().expect("it runs")
    }

    pub fn kill(&mut self, peer: u32) {
        let machine = self.machine(peer);
        machine.core = None;
        machine.held.clear();
        machine.hold_disk = false;
    }

    pub fn wipe(&mut self, peer: u32) {
        self.kill(peer);
        let incarnation = [self.lives + 100; 16];
        let machine = self.machine(peer);
        machine.disk = Stored::default();
        machine.incarnation = incarnation;
    }

    pub fn start(&mut self, peer: u32) {
        self.lives += 1;
        let (now, lives) = (self.now, self.lives);
        let machine = self.machine(peer);
        machine.orders.clear();
        machine.answers.clear();
        let config = Config {
            peer: PeerId(peer),
            incarnation: machine.incarnation,
            address: address(peer),
            peers: machine.peers.clone(),
            settings: default_settings(),
            timing: Timing::default(),
            entropy: [lives; 32],
        };
        machine.core = Some(Coordinator::new(now, config, machine.disk.clone()).unwrap());
        self.pump(peer);
    }

    fn pump(&mut self, peer: u32) {
        let now = self.now;
        let cut = self.cut.contains(&peer);
        let machine = self.machines.get_mut(&peer).unwrap();
        while let Some(output) = machine.core.as_mut().and_then(Coordinator::poll_output) {
            match output {
                Output::Persist { seq, records } => {
                    machine.held.push_back((seq, Write::Records(records)));
                }
                Output::SaveSnapshot {
                    seq,
                    snapshot,
                    records,
                } => {
                    let write = Write::Snapshot(snapshot, records);
                    machine.held.push_back((seq, write));
                }
                Output::Send { addresses, message } => {
                    assert_eq!(addresses.first(), Some(&address(message.to.0)));
                    if !cut {
                        self.wire.push_back((Micros(now.0 + TRIP), message));
                    }
                }
                Output::Reply {
                    token,
                    response,
                    until,
                } => {
                    let before = machine.answers.insert(token, (response, until));
                    assert_eq!(before, None, "answered twice");
                }
                Output::Order { server, order, .. } => machine.orders.push((server, order)),
                // Servers of this world answer orders only when a test does.
                Output::Ask { .. } => {}
                Output::Removed => machine.removed = true,
                Output::Stop(why) => panic!("{why}"),
            }
        }
        if !machine.hold_disk && !machine.held.is_empty() {
            self.sync(peer);
        }
        self.answer_probes(peer);
    }

    /// All that waits for the disk is there.
    pub fn sync(&mut self, peer: u32) {
        let now = self.now;
        let machine = self.machine(peer);
        let Some((seq, write)) = machine.held.pop_front() else {
            return;
        };
        match write {
            Write::Records(records) => machine.disk.records.extend(records),
            Write::Snapshot(snapshot, records) => {
                machine.disk = Stored {
                    snapshot: Some(snapshot),
                    records,
                };
            }
        }
        if let Some(core) = &mut machine.core {
            core.handle_persisted(now, seq);
        }
        self.pump(peer);
        self.sync(peer);
    }

    /// Bytes of entries that wait for the disk.
    pub fn unwritten(&self, peer: u32) -> usize {
        let held = self.machines[&peer].held.iter();
        held.map(|(_, write)| match write {
            Write::Records(records) | Write::Snapshot(_, records) => {
                records.iter().map(Record::size).sum::<usize>()
            }
        })
        .sum()
    }

    fn answer_probes(&mut self, peer: u32) {
        let now = self.now;
        let alive = self.alive.clone();
        let machine = self.machine(peer);
        let probed: Vec<ServerId> = machine
            .orders
            .extract_if(.., |(_, order)| order.command == Command::Probe)
            .map(|(server, _)| server)
            .filter(|server| alive.contains(server))
            .collect();
        for server in probed {
            if let Some(core) = &mut self.machine(peer).core {
                core.handle_order_reply(now, server, &Command::Probe, OrderReply::Done);
            }
            self.pump(peer);
        }
    }

    /// Time passes.
    pub fn run(&mut self, ms: u64) {
        let end = Micros(self.now.0 + ms * 1_000);
        while self.now < end {
            if self.now >= self.beat {
                self.beat = Micros(self.now.0 + 100_000);
                self.beat();
            }
            let arrives = self.wire.front().map(|(at, _)| *at);
            let cores = self.machines.values().filter_map(|m| m.core.as_ref());
            let due = cores.filter_map(Coordinator::next_timeout);
            let next = due.chain(arrives).chain([self.beat, end]).min().unwrap();
            self.now = next.max(Micros(self.now.0 + 1)).min(end);
            self.deliver();
            self.tick();
        }
    }

    fn deliver(&mut self) {
        while self.wire.front().is_some_and(|(at, _)| *at <= self.now) {
            let (_, message) = self.wire.pop_front().unwrap();
            let (now, to) = (self.now, message.to.0);
            let cut = self.cut.contains(&to) || self.cut.contains(&message.from.0);
            if let Some(core) = self.machines.get_mut(&to).and_then(|m| m.core.as_mut())
                && !cut
            {
                core.handle_message(now, message);
                self.pump(to);
            }
        }
    }

    fn tick(&mut self) {
        let now = self.now;
        for peer in self.machines.keys().copied().collect::<Vec<_>>() {
            if let Some(core) = &mut self.machine(peer).core
                && core.next_timeout().is_some_and(|due| due <= now)
            {
                core.handle_tick(now);
                self.pump(peer);
            }
        }
    }

    fn beat(&mut self) {
        let Some(leader) = self.find_leader() else {
            return;
        };
        for server in self.alive.clone() {
            let list = self.core(leader).state().list_version();
            self.ask(leader, heartbeat(server, list.0));
        }
    }

    /// Who may answer now.
    pub fn find_leader(&self) -> Option<u32> {
        let leads = |(peer, machine): (&u32, &Machine)| {
            let core = machine.core.as_ref()?;
            let lease = core.node().lease_until()?;
            (core.leads() && lease.0 > self.now.0).then_some(*peer)
        };
        let mut found = self.machines.iter().filter_map(leads);
        let leader = found.next();
        assert_eq!(found.next(), None, "two may answer at the same time");
        leader
    }

    pub fn leader(&self) -> u32 {
        self.find_leader().expect("somebody leads")
    }

    /// The members that run and don't lead.
    pub fn others(&self) -> Vec<u32> {
        let leader = self.leader();
        let running = self.machines.iter().filter(|(_, m)| m.core.is_some());
        let running = running.map(|(peer, _)| *peer);
        running.filter(|peer| *peer != leader).collect()
    }

    pub fn ask(&mut self, peer: u32, request: Request) -> u64 {
        self.tokens += 1;
        let (now, token) = (self.now, self.tokens);
        let core = self.machine(peer).core.as_mut().expect("it runs");
        core.handle_request(now, Party::NONE, token, request);
        self.pump(peer);
        token
    }

    /// What a process answers by now, if it does.
    pub fn given(&self, peer: u32, token: u64) -> Option<Answer> {
        let (response, until) = self.machines[&peer].answers.get(&token)?;
        assert!(until.is_none_or(|until| until > self.now), "it came late");
        Some(response.answer.clone())
    }

    /// What the leader answers in the end.
    pub fn answer(&mut self, request: Request) -> Answer {
        let leader = self.leader();
        let token = self.ask(leader, request);
        for _ in 0..100 {
            if let Some((response, _)) = self.machines[&leader].answers.get(&token) {
                return response.answer.clone();
            }
            self.run(1);
        }
        panic!("no answer");
    }

    pub fn status(&mut self) -> ClusterStatus {
        match self.answer(Request::Status) {
            Answer::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    pub fn enlist(&mut self, nonce: u8) -> ServerId {
        match self.answer(enlist(nonce)) {
            Answer::Enlisted { server, .. } => server,
            other => panic!("{other:?}"),
        }
    }

    /// A server that is in service and stays.
    pub fn up(&mut self, nonce: u8) -> ServerId {
        let server = self.enlist(nonce);
        self.alive.insert(server);
        self.beat = self.now;
        self.run(20);
        server
    }

    pub fn lease(&mut self, nonce: u8) -> ClientId {
        let open = Request::OpenClientLease { nonce: [nonce; 16] };
        match self.answer(open) {
            Answer::ClientLease { client, .. } => client,
            other => panic!("{other:?}"),
        }
    }

    /// Servers do what `peer` ordered of some kind; who was ordered what.
    pub fn obey(&mut self, peer: u32, kind: fn(&Command) -> bool) -> Vec<(ServerId, Order)> {
        let orders = self.orders(peer, kind);
        for (server, order) in &orders {
            self.reply(peer, *server, &order.command);
        }
        orders
    }

    /// The orders that `peer` gave since the last call; those of other kinds are forgotten.
    pub fn orders(&mut self, peer: u32, kind: fn(&Command) -> bool) -> Vec<(ServerId, Order)> {
        let orders = std::mem::take(&mut self.machine(peer).orders);
        orders
            .into_iter()
            .filter(|(_, order)| kind(&order.command))
            .collect()
    }

    pub fn reply(&mut self, peer: u32, server: ServerId, command: &Command) {
        let reply = match command {
            Command::TakeTablets(grants) => {
                OrderReply::Taken(grants.iter().map(|_| LogPosition(42)).collect())
            }
            Command::TakeRecovered(recovered) => {
                OrderReply::Taken(recovered.iter().map(|one| one.takeover).collect())
            }
            _ => OrderReply::Done,
        };
        let now = self.now;
        let core = self.machine(peer).core.as_mut().expect("it runs");
        core.handle_order_reply(now, server, command, reply);
        self.pump(peer);
    }

    /// The leader is killed, and another leads.
    pub fn fail_over(&mut self) -> u32 {
        let old = self.leader();
        self.kill(old);
        self.run(SETTLED);
        let new = self.leader();
        assert_ne!(new, old);
        new
    }
}

pub fn enlist(nonce: u8) -> Request {
    Request::Enlist(Enlist {
        nonce: [nonce; 16],
        roles: Roles {
            master: true,
            backup: true,
        },
        addresses: vec![format!("127.0.0.1:{}", 7_200 + u16::from(nonce))],
        replaces: None,
        boot: BootId([0; 16]),
        frames: 8,
        memory: 1 << 26,
    })
}

fn heartbeat(server: ServerId, list: u64) -> Request {
    Request::Heartbeat(Heartbeat {
        server,
        list: ramkeep_wire::ListVersion(list),
        ready: true,
        floor: None,
        master: None,
        backup: None,
        damaged: Vec::new(),
        resident: 0,
    })
}

pub fn create(name: &str, once: Option<Once>) -> Request {
    Request::CreateTable {
        name: name.into(),
        once,
    }
}

pub fn drop_table(name: &str, once: Option<Once>) -> Request {
    Request::DropTable {
        name: name.into(),
        once,
    }
}

pub fn table_of(answer: Option<Answer>) -> Table {
    match answer {
        Some(Answer::Table(table)) => table,
        other => panic!("{other:?}"),
    }
}

pub fn is_not_leader(answer: Option<&Answer>) -> bool {
    matches!(answer, Some(Answer::Refused(Refused::NotLeader { .. })))
}

pub fn is_take(command: &Command) -> bool {
    matches!(command, Command::TakeTablets(_))
}

pub fn is_drop(command: &Command) -> bool {
    matches!(command, Command::DropTable(_))
}
