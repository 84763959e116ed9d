//! Coordinators in virtual time, one alone or a group. Messages take a millisecond; the test has the
//! disks, the cuts and the kills.
//!
//! # Invariants
//! 1. No request is answered twice, and no two coordinators may answer at the same time.
//! 2. One that is alone answers at once what waits for nothing, and never after its lease.
//! 3. The end of a crashed master's log is decided once, unless the test loses it.

mod asking;
mod replicas;
mod running;
mod servers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use paxos::limits::Timing;
use paxos::{Record, Snapshot, Stored};
use ramkeep_coordinator::core::default_settings;
use ramkeep_coordinator::{Config, Coordinator, State};
use ramkeep_wire::backup::BackupRequest;
use ramkeep_wire::coordinator::Response;
use ramkeep_wire::order::{LogEnd, Order};
use ramkeep_wire::{Micros, PeerId, ServerId};

pub use asking::*;
pub use servers::{Behaviour, Fake};

/// How long a message is on its way.
const TRIP: u64 = 1_000;
/// How often servers report.
const BEAT: u64 = 100_000;
/// More than a group takes to settle whatever happened.
pub const SETTLED: u64 = 1_500;
/// The one that is alone.
pub const ALONE: u32 = 1;

/// What a disk is asked to do.
enum Write {
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
    /// It may make a cluster: until its disk was lost.
    pub founds: bool,
    /// What is written waits, and is not persisted.
    pub hold_disk: bool,
    held: VecDeque<(u64, Write)>,
    /// Syncs of the journal that were asked for.
    pub persists: usize,
    pub answers: BTreeMap<u64, Given>,
    /// Orders to servers that do not answer by themselves.
    pub orders: Vec<(ServerId, Order)>,
    pub removed: bool,
}

/// What is on its way to a server.
enum Mail {
    Order(ServerId, Order),
    Question(ServerId, u64, BackupRequest),
}

pub struct World {
    pub machines: BTreeMap<u32, Machine>,
    pub now: Micros,
    wire: VecDeque<(Micros, paxos::Envelope)>,
    pub cut: BTreeSet<u32>,
    lives: u8,
    tokens: u64,
    answered: BTreeSet<u64>,
    beat: Micros,
    /// Report, and do what they are ordered to when the test says so.
    pub alive: BTreeSet<ServerId>,
    /// Report, and answer by themselves.
    pub servers: BTreeMap<ServerId, Fake>,
    /// Of `servers`: what is sent there finds no process.
    killed: BTreeSet<ServerId>,
    /// Orders and questions on their way to `servers`; none where the test answers.
    mail: Option<VecDeque<Mail>>,
    /// The end of each log that was ever decided.
    pub ends: BTreeMap<ServerId, LogEnd>,
    /// What backups held may be lost after that.
    pub loses_ends: bool,
}

pub fn address(peer: u32) -> String {
    format!("127.0.0.1:{}", 7_100 + peer)
}

/// The peers 1 to `count`.
pub fn peers(count: u32) -> Vec<(PeerId, String)> {
    (1..=count).map(|id| (PeerId(id), address(id))).collect()
}

impl World {
    /// One coordinator, which leads.
    pub fn alone() -> Self {
        let mut world = Self::of(1);
        world.begin();
        world
    }

    /// One coordinator, which leads, and servers that answer by themselves.
    pub fn with_servers() -> Self {
        Self {
            mail: Some(VecDeque::new()),
            ..Self::alone()
        }
    }

    /// A group of three that has a leader.
    pub fn group() -> Self {
        let mut world = Self::of(3);
        world.run(SETTLED);
        world
    }

    fn of(count: u32) -> Self {
        let mut world = Self {
            machines: BTreeMap::new(),
            now: Micros(5_000_000),
            wire: VecDeque::new(),
            cut: BTreeSet::new(),
            lives: 0,
            tokens: 0,
            answered: BTreeSet::new(),
            beat: Micros(0),
            alive: BTreeSet::new(),
            servers: BTreeMap::new(),
            killed: BTreeSet::new(),
            mail: None,
            ends: BTreeMap::new(),
            loses_ends: false,
        };
        for peer in 1..=count {
            world.add(peer, peers(count));
        }
        world
    }

    /// A machine with an empty disk, and a process there.
    pub fn add(&mut self, peer: u32, peers: Vec<(PeerId, String)>) {
        let machine = Machine {
            peers,
            founds: true,
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

    /// The replicated state, as the one has it that answers.
    pub fn state(&self) -> &State {
        self.core(self.speaker().expect("somebody leads")).state()
    }

    fn is_alone(&self) -> bool {
        self.machines[&ALONE].peers.len() == 1
    }

    /// The process of a coordinator is killed.
    pub fn stop(&mut self, peer: u32) {
        let machine = self.machine(peer);
        machine.core = None;
        machine.held.clear();
        machine.hold_disk = false;
        self.mail.iter_mut().for_each(VecDeque::clear);
    }

    pub fn wipe(&mut self, peer: u32) {
        self.stop(peer);
        let incarnation = [self.lives + 100; 16];
        let machine = self.machine(peer);
        machine.disk = Stored::default();
        machine.founds = false;
        machine.incarnation = incarnation;
    }

    /// What a process is started with there.
    pub fn config(&self, peer: u32) -> Config {
        let machine = &self.machines[&peer];
        Config {
            peer: PeerId(peer),
            incarnation: machine.incarnation,
            address: address(peer),
            peers: machine.peers.clone(),
            settings: default_settings(),
            timing: Timing::default(),
            founds: machine.founds,
            entropy: [self.lives; 32],
        }
    }

    pub fn start(&mut self, peer: u32) {
        self.lives += 1;
        let (now, config) = (self.now, self.config(peer));
        let machine = self.machine(peer);
        machine.orders.clear();
        machine.core = Some(Coordinator::new(now, config, machine.disk.clone()).unwrap());
        self.pump(peer);
    }

    /// The one that is alone is killed, and another goes on from what its disk has.
    pub fn restart(&mut self) {
        self.stop(ALONE);
        self.start(ALONE);
        self.begin();
    }

    /// One that is alone leads as soon as its disk has that it does.
    fn begin(&mut self) {
        while !self.core(ALONE).leads() {
            let due = self.core(ALONE).next_timeout();
            let due = due.expect("it has something to do");
            assert!(due <= self.now, "nothing to wait for");
            self.input(ALONE, |core, now| core.handle_tick(now));
        }
    }

    /// The leader is killed, and another leads.
    pub fn fail_over(&mut self) -> u32 {
        let old = self.leader();
        self.stop(old);
        self.run(SETTLED);
        let new = self.leader();
        assert_ne!(new, old);
        new
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

    /// Whom requests go to: the one that is alone, or who leads.
    fn speaker(&self) -> Option<u32> {
        if self.is_alone() {
            Some(ALONE)
        } else {
            self.find_leader()
        }
    }

    /// The members that run and don't lead.
    pub fn others(&self) -> Vec<u32> {
        let leader = self.leader();
        let running = self.machines.iter().filter(|(_, m)| m.core.is_some());
        let running = running.map(|(peer, _)| *peer);
        running.filter(|peer| *peer != leader).collect()
    }
}
