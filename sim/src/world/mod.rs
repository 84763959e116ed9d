//! A simulated cluster: machines with disks, processes on them, the network between, one clock of
//! true time that nobody in it can read.
//!
//! # Invariants
//! 1. Everything that happens follows from the seed: one queue of events, one order.
//! 2. A killed process leaves what its disk has, and nothing that it sends after that arrives.
//! 3. A paused process handles nothing; what arrives meanwhile it gets, in order, when it goes on.

mod death;
pub mod directories;
mod rest;
mod strangers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use paxos::limits::Timing;
use ramkeep_backup::{Frames, Geometry, MemoryStore};
use ramkeep_coordinator::Config;
use ramkeep_server::core::{SCRUB_EVERY, ServerConfig};
use ramkeep_wire::coordinator::{MasterStats, Roles, Settings};
use ramkeep_wire::{BootId, Micros, PeerId, ServerId};

use crate::check::group::GroupWatch;
use crate::clock::Clock;
use crate::crash_points::Reached;
use crate::disk::CoordinatorDisk;
use crate::events::Events;
use crate::history::History;
use crate::network::{Delays, NetEvent, Network, ProcessId};
use crate::node::coordinator::CoordinatorConfig;
use crate::node::{AdminNode, ClientNode, Context, CoordinatorNode, Node, ServerNode};
use crate::promise::FramesLost;
use crate::rng::Rng;
use crate::trace::{Lines, Trace};
use crate::workload::Workload;
use crate::workload::client::{ClientBooks, ClientConfig};
use crate::workload::tables::{AdminConfig, TableBooks};

use self::rest::TimerRest;

/// What happens.
#[derive(Debug)]
pub enum Event {
    /// The network does something.
    Net(NetEvent),
    /// A process's time has come.
    Timer {
        /// Whose.
        process: ProcessId,
        /// Which of its timers: an older one is void.
        number: u64,
    },
    /// A coordinator's disk has synced.
    Persisted {
        /// Whose.
        process: ProcessId,
        /// Up to this of what was handed out.
        index: u64,
    },
    /// A paused process goes on.
    Resume(ProcessId),
    /// A machine without a process starts one.
    Restart(usize),
    /// An operator asks, again and again, for one coordinator in the place of another.
    Replace {
        /// Who is lost.
        lost: PeerId,
        /// Who is to take its place.
        by: PeerId,
        /// Where that one is.
        newcomer: usize,
    },
    /// Something for whoever drives the world.
    Step(u32),
}

impl From<NetEvent> for Event {
    fn from(event: NetEvent) -> Self {
        Self::Net(event)
    }
}

/// What a machine's disk, or its tmpfs, has while no process runs there.
#[derive(Clone, Debug)]
pub enum Disk {
    /// A coordinator's.
    Journal(CoordinatorDisk),
    /// A backup's.
    Frames(MemoryStore),
    /// Nothing that outlives a process.
    None,
}

/// What runs on a machine.
#[derive(Clone, Debug)]
pub enum Role {
    /// A coordinator.
    Coordinator(CoordinatorConfig),
    /// A server; boot and nonce change with each start.
    Server(ServerConfig),
    /// A client, or one who makes and drops tables.
    Client,
    /// One who does not belong.
    Stranger,
}

/// A machine.
#[derive(Debug)]
pub struct Machine {
    /// What runs there.
    pub role: Role,
    /// Its address.
    pub address: String,
    /// What its disk has.
    pub disk: Disk,
    /// The process running there.
    pub process: Option<ProcessId>,
    /// The loss of its frames that came with the end of the last process, while there is none.
    pub lost: Option<usize>,
    boot: BootId,
    clock: Clock,
}

#[derive(Debug)]
struct Running {
    machine: usize,
    node: Node,
    clock: Clock,
    rng: Rng,
    paused: bool,
    /// When it fell asleep, by its clock, until it has handled something since.
    asleep_since: Option<Micros>,
    inbox: VecDeque<Event>,
    timer: (u64, Option<Micros>),
    rest: TimerRest,
    /// Dies within the next store to its frames, after so many bytes.
    dies_after: Option<usize>,
}

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// It is killed; its machine lives on, and its peers hear of it at once.
    Kill,
    /// Its machine goes down without a word: peers hear nothing for long. Frames in memory are lost.
    PowerLoss,
}

/// Constants of a world.
#[derive(Clone, Debug)]
pub struct WorldConfig {
    /// The seed.
    pub seed: u64,
    /// Constants of the cluster.
    pub settings: Settings,
    /// How long the network takes.
    pub delays: Delays,
    /// How long a sync of each coordinator's disk takes; the first again after the last.
    pub sync: Vec<(u64, u64)>,
    /// The times of the group of coordinators.
    pub timing: Timing,
    /// Bytes of a crashed master's log for one recovery master.
    pub partition_bytes: u64,
    /// Bytes of commands after which a coordinator takes a snapshot.
    pub snapshot_after: usize,
    /// How long servers wait before they try again to reach each other.
    pub reconnect: Duration,
    /// What of the trace is kept as text.
    pub lines: Lines,
}

/// A simulated cluster.
#[derive(Debug)]
pub struct World {
    /// The constants.
    pub config: WorldConfig,
    /// Chance for whoever drives the world.
    pub rng: Rng,
    /// What clients did and were told.
    pub history: History,
    /// What the coordinators have done.
    pub group: GroupWatch,
    /// What happened.
    pub trace: Trace,
    /// The network.
    pub network: Network,
    /// What will happen.
    pub events: Events<Event>,
    /// The machines.
    pub machines: Vec<Machine>,
    /// Losses of a machine's frames that are not made up for, by their place among all.
    pub wiped: BTreeSet<usize>,
    /// Machines whose frames are as they once were: what they hold counts as lost, and is there.
    pub rolled_back: BTreeSet<usize>,
    /// Machines with replicas that were damaged: whatever they hold is taken for lost.
    pub damaged: BTreeSet<usize>,
    /// Masters of whose segments all copies but one each were damaged after they were decided dead.
    pub spoiled: BTreeSet<ServerId>,
    /// Processes that have died.
    pub deaths: u64,
    /// All losses of a machine's frames.
    pub losses: Vec<FramesLost>,
    /// Masters that are cut off for so long that they are decided dead, and until when.
    pub doomed: Vec<(ServerId, Micros)>,
    /// What masters had when their process ended.
    pub left: BTreeMap<ServerId, MasterStats>,
    /// Moments of recoveries that came since this was looked at last.
    pub reached: Vec<Reached>,
    /// What was told by who had no right to (SAFETY 1).
    pub wrongs: Vec<String>,
    /// What is left of clients that have ended.
    departed: Vec<ClientBooks>,
    coordinators: Vec<String>,
    processes: BTreeMap<ProcessId, Running>,
    listeners: BTreeMap<String, ProcessId>,
    next_process: u32,
}

impl World {
    /// Without machines.
    #[must_use]
    pub fn new(config: WorldConfig) -> Self {
        let rng = Rng::new(config.seed);
        Self {
            network: Network::new(rng.fork(1), config.delays),
            rng: rng.fork(2),
            history: History::default(),
            group: GroupWatch::default(),
            trace: Trace::new(config.lines),
            events: Events::default(),
            machines: Vec::new(),
            wiped: BTreeSet::new(),
            rolled_back: BTreeSet::new(),
            damaged: BTreeSet::new(),
            spoiled: BTreeSet::new(),
            deaths: 0,
            losses: Vec::new(),
            doomed: Vec::new(),
            left: BTreeMap::new(),
            reached: Vec::new(),
            wrongs: Vec::new(),
            departed: Vec::new(),
            coordinators: Vec::new(),
            processes: BTreeMap::new(),
            listeners: BTreeMap::new(),
            next_process: 1,
            config,
        }
    }

    /// Where the coordinators listen.
    #[must_use]
    pub fn coordinators(&self) -> Vec<String> {
        self.coordinators.clone()
    }

    /// Adds the machines of a group of so many coordinators and starts them.
    pub fn add_coordinators(&mut self, count: u32) -> Vec<usize> {
        let address = |id: u32| format!("coordinator{id}");
        let peers: Vec<_> = (1..=count).map(|id| (PeerId(id), address(id))).collect();
        self.coordinators = peers.iter().map(|(_, at)| at.clone()).collect();
        let add = |(place, (peer, address)): (usize, (PeerId, String))| {
            let core = Config {
                peer,
                incarnation: [0; 16],
                address: address.clone(),
                peers: peers.clone(),
                settings: self.config.settings.clone(),
                timing: self.config.timing,
                founds: true,
                entropy: [0; 32],
            };
            let config = CoordinatorConfig {
                core,
                partition_bytes: self.config.partition_bytes,
                snapshot_after: self.config.snapshot_after,
            };
            let takes = self.config.sync[place % self.config.sync.len()];
            let disk = Disk::Journal(CoordinatorDisk::new(self.rng.bytes(), takes));
            let boot = BootId::default();
            self.add(Role::Coordinator(config), address, disk, boot)
        };
        peers.clone().into_iter().enumerate().map(add).collect()
    }

    /// Adds a server's machine and starts it.
    pub fn add_server(&mut self, roles: Roles, frames: u32, memory: u64) -> usize {
        let address = format!("server{}", self.machines.len());
        let boot = BootId(self.rng.bytes());
        let disk = if roles.backup {
            Disk::Frames(self.empty_frames(frames, boot))
        } else {
            Disk::None
        };
        let config = ServerConfig {
            roles,
            coordinators: self.coordinators(),
            memory,
            boot,
            nonce: [0; 16],
            seed: 0,
            reconnect: self.config.reconnect,
            scrub_every: SCRUB_EVERY,
        };
        self.add(Role::Server(config), address, disk, boot)
    }

    /// Adds a client's machine and starts it.
    pub fn add_client(&mut self, config: ClientConfig, workload: Workload) -> usize {
        let address = format!("client{}", config.number);
        let node = self.client_node(config, workload);
        self.add_process(Role::Client, address, node)
    }

    fn client_node(&mut self, config: ClientConfig, workload: Workload) -> Node {
        let nonces: Vec<_> = (0..config.sessions).map(|_| self.rng.bytes()).collect();
        let coordinators = self.coordinators();
        let books = ClientBooks::new(config, workload);
        Node::Client(Box::new(ClientNode::new(&coordinators, &nonces, books)))
    }

    /// The client on a machine ends, with a farewell or without, and another starts there.
    pub fn replace_client(
        &mut self,
        machine: usize,
        farewell: bool,
        config: ClientConfig,
        workload: Workload,
    ) {
        if let Some(process) = self.machines[machine].process {
            if farewell {
                self.with(process, |node, context| {
                    if let Node::Client(node) = node {
                        node.leave(context);
                    }
                });
            }
            self.kill(process, Death::Kill);
        }
        let node = self.client_node(config, workload);
        self.spawn(machine, node);
    }

    /// The books of all clients, of those that have ended, too.
    pub fn client_books(&self) -> impl Iterator<Item = &ClientBooks> {
        let machines = 0..self.machines.len();
        let running = machines.filter_map(|machine| self.client(machine));
        self.departed.iter().chain(running)
    }

    /// Adds the machine of one who makes and drops tables, and starts it.
    pub fn add_admin(&mut self, config: AdminConfig) -> usize {
        let address = format!("admin{}", config.number);
        let coordinators = self.coordinators();
        let books = TableBooks::new(config, self.rng.bytes());
        let node = AdminNode::new(&coordinators, books);
        self.add_process(Role::Client, address, Node::Admin(Box::new(node)))
    }

    fn add_process(&mut self, role: Role, address: String, node: Node) -> usize {
        let machine = self.add_machine(role, address, Disk::None, BootId::default());
        self.spawn(machine, node);
        machine
    }

    fn empty_frames(&self, frames: u32, boot: BootId) -> MemoryStore {
        let geometry = Geometry::new(frames, self.config.settings.segment_size)
            .expect("settings with a possible segment size");
        let mut store = MemoryStore::new(geometry);
        Frames::format(&mut store, boot).expect("an empty store can be formatted");
        store
    }

    fn add(&mut self, role: Role, address: String, disk: Disk, boot: BootId) -> usize {
        let machine = self.add_machine(role, address, disk, boot);
        self.start(machine);
        machine
    }

    fn add_machine(&mut self, role: Role, address: String, disk: Disk, boot: BootId) -> usize {
        let machine = self.machines.len();
        let clock = Clock::random(&mut self.rng);
        self.machines.push(Machine {
            role,
            address,
            disk,
            process: None,
            lost: None,
            boot,
            clock,
        });
        machine
    }

    /// Starts a process on a machine that has none.
    pub fn start(&mut self, machine: usize) {
        let place = &mut self.machines[machine];
        if place.process.is_some() {
            return;
        }
        let disk = std::mem::replace(&mut place.disk, Disk::None);
        let now = place.clock.shows(self.events.now());
        let node = match (&place.role, disk) {
            (Role::Coordinator(config), Disk::Journal(disk)) => {
                let node = CoordinatorNode::new(now, config, disk, self.rng.bytes());
                Node::Coordinator(Box::new(node))
            }
            (Role::Server(config), disk) => {
                let config = ServerConfig {
                    boot: place.boot,
                    nonce: self.rng.bytes(),
                    seed: self.rng.bits(),
                    ..config.clone()
                };
                let frames = match disk {
                    Disk::Frames(mut frames) => {
                        frames.revive();
                        Some(frames)
                    }
                    _ => None,
                };
                Node::Server(Box::new(ServerNode::new(
                    place.address.clone(),
                    config,
                    frames,
                    now,
                )))
            }
            _ => return,
        };
        self.spawn(machine, node);
    }

    fn spawn(&mut self, machine: usize, node: Node) {
        let process = ProcessId(self.next_process);
        self.next_process += 1;
        let place = &mut self.machines[machine];
        place.process = Some(process);
        place.lost = None;
        self.listeners.insert(place.address.clone(), process);
        let running = Running {
            machine,
            node,
            clock: place.clock,
            rng: self.rng.fork(u64::from(process.0) + 1_000),
            paused: false,
            asleep_since: None,
            inbox: VecDeque::new(),
            timer: (0, None),
            rest: TimerRest::default(),
            dies_after: None,
        };
        let address = place.address.clone();
        self.say(format_args!("-- {address} starts as process {}", process.0));
        self.processes.insert(process, running);
        self.with(process, |node, context| node.start(context));
        self.end(process);
    }

    /// Says what happens, for a person.
    pub fn say(&mut self, text: std::fmt::Arguments<'_>) {
        if self.trace.wants_lines() {
            self.trace.line(self.events.now(), text);
        }
    }

    /// Has a process handle something; then sets its timer.
    pub fn with<R>(
        &mut self,
        process: ProcessId,
        act: impl FnOnce(&mut Node, &mut Context<'_>) -> R,
    ) -> Option<R> {
        let running = self.processes.get_mut(&process)?;
        let clock_now = running.clock.shows(self.events.now());
        let asleep_since = running.asleep_since.take();
        let mut context = Context {
            me: process,
            now: asleep_since.unwrap_or(clock_now),
            clock: running.clock,
            group: &mut self.group,
            rng: &mut running.rng,
            history: &mut self.history,
            listeners: &self.listeners,
            network: &mut self.network,
            events: &mut self.events,
            trace: &mut self.trace,
        };
        let result = act(&mut running.node, &mut context);
        let due = running.node.next_timeout();
        running.rest.look(due, clock_now);
        let wanted = due.map(|shown| running.clock.when(shown).max(self.events.now()));
        if wanted != running.timer.1 {
            running.timer = (running.timer.0 + 1, wanted);
            if let Some(at) = wanted {
                let number = running.timer.0;
                // A timer that is due already comes a little later, as a busy process's does.
                let at = at.max(self.events.now() + Duration::from_micros(20));
                self.events.at(at, Event::Timer { process, number });
            }
        }
        Some(result)
    }

    /// A process's node, for one who looks on from outside.
    pub(crate) fn with_node<R>(
        &mut self,
        process: ProcessId,
        look: impl FnOnce(&mut Node) -> R,
    ) -> Option<R> {
        let running = self.processes.get_mut(&process)?;
        Some(look(&mut running.node))
    }

    /// What a machine's clock shows.
    #[must_use]
    pub fn shown(&self, machine: usize) -> Micros {
        self.machines[machine].clock.shows(self.events.now())
    }

    /// Has a machine's clock run faster than true time by so many parts per million, from now on.
    pub fn set_rate(&mut self, machine: usize, ppm: i64) {
        let now = self.events.now();
        let place = &mut self.machines[machine];
        place.clock = place.clock.at_rate(now, ppm);
        let (clock, process) = (place.clock, place.process);
        if let Some(running) = process.and_then(|process| self.processes.get_mut(&process)) {
            running.clock = clock;
        }
    }

    /// Handles the next event; `Some` for one that is for whoever drives the world.
    pub fn step(&mut self) -> Option<Option<u32>> {
        let event = self.events.pop()?;
        match event {
            Event::Step(number) => return Some(Some(number)),
            Event::Restart(machine) => self.start(machine),
            Event::Replace { lost, by, newcomer } => self.ask_to_replace(lost, by, newcomer),
            Event::Resume(process) => self.resume(process),
            Event::Net(event) => {
                if let Some(late) = self.network.postponed(self.events.now(), &event) {
                    self.events.at(late, Event::Net(event));
                } else if self.network.happens(&event) {
                    self.note(&event);
                    self.give(event.at(), Event::Net(event));
                }
            }
            Event::Timer { process, .. } | Event::Persisted { process, .. } => {
                self.give(process, event);
            }
        }
        Some(None)
    }

    fn note(&mut self, event: &NetEvent) {
        let now = self.events.now();
        let at = u64::from(event.at().0);
        match event {
            NetEvent::Deliver { bytes, .. } => self.trace.note(now, at << 8 | 1, bytes),
            NetEvent::Opened { .. } => self.trace.note(now, at << 8 | 2, &[]),
            NetEvent::Failed { .. } => self.trace.note(now, at << 8 | 3, &[]),
            NetEvent::Accepted { .. } => self.trace.note(now, at << 8 | 4, &[]),
            NetEvent::Broken { .. } => self.trace.note(now, at << 8 | 5, &[]),
        }
    }

    fn give(&mut self, process: ProcessId, event: Event) {
        let Some(running) = self.processes.get_mut(&process) else {
            return;
        };
        if running.paused {
            running.inbox.push_back(event);
            return;
        }
        match event {
            Event::Net(event) => self.give_net(process, &event),
            Event::Timer { number, .. } if running.timer.0 == number => {
                running.timer.1 = None;
                self.with(process, |node, context| node.timer(context));
                self.judge_rest(process);
                self.judge_answers(process);
                self.note_points(process);
            }
            Event::Persisted { index, .. } => {
                self.with(process, |node, context| {
                    if let Node::Coordinator(node) = node {
                        node.persisted(context, index);
                    }
                });
            }
            _ => {}
        }
        self.end(process);
    }

    fn give_net(&mut self, process: ProcessId, event: &NetEvent) {
        let dies = self
            .processes
            .get(&process)
            .and_then(|running| running.dies_after)
            .filter(|_| matches!(event, NetEvent::Deliver { .. }));
        if let Some(bytes) = dies {
            // Nothing that it sends from here on arrives, and its next stores are cut short.
            self.network
                .process_gone(&mut self.events, process, (50, 2_000));
            self.with(process, |node, _| {
                if let Node::Server(server) = node
                    && let Some(mut backup) = server.backup()
                {
                    backup.store_mut().kill_after(bytes);
                }
            });
        }
        self.with(process, |node, context| node.net(context, event));
        self.judge_answers(process);
        self.note_points(process);
        if dies.is_some() {
            self.kill(process, Death::Kill);
        }
    }

    /// Notes the moments of recoveries that a process has come to.
    fn note_points(&mut self, process: ProcessId) {
        let Some(running) = self.processes.get_mut(&process) else {
            return;
        };
        let machine = Some(running.machine);
        let points = match &mut running.node {
            Node::Server(node) => node.watch.take_points(),
            Node::Coordinator(node) => node.take_points(),
            Node::Stranger(node) => return self.wrongs.append(&mut node.wrongs),
            Node::Client(_) | Node::Admin(_) => return,
        };
        let reached = points.into_iter().map(|point| Reached { point, machine });
        self.reached.extend(reached);
    }

    /// The process on a machine.
    #[must_use]
    pub fn node(&self, machine: usize) -> Option<&Node> {
        let process = self.machines.get(machine)?.process?;
        self.processes.get(&process).map(|running| &running.node)
    }

    /// The machine that a process runs on.
    #[must_use]
    pub fn machine_of(&self, process: ProcessId) -> Option<usize> {
        self.processes.get(&process).map(|running| running.machine)
    }

    /// The server process on a machine.
    #[must_use]
    pub fn server(&self, machine: usize) -> Option<&ServerNode> {
        match self.node(machine)? {
            Node::Server(node) => Some(node),
            _ => None,
        }
    }

    /// The coordinator process on a machine.
    #[must_use]
    pub fn coordinator(&self, machine: usize) -> Option<&CoordinatorNode> {
        match self.node(machine)? {
            Node::Coordinator(node) => Some(node),
            _ => None,
        }
    }

    /// The machines of coordinators.
    pub fn coordinator_machines(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.machines.len()).filter(|m| matches!(self.machines[*m].role, Role::Coordinator(_)))
    }

    /// The machine of the coordinator that leads; of the one with the highest ballot, if several
    /// think that they do.
    #[must_use]
    pub fn leader(&self) -> Option<usize> {
        self.coordinator_machines()
            .filter_map(|m| {
                let core = self.coordinator(m)?.core();
                core.leads().then(|| (core.ballot(), m))
            })
            .max()
            .map(|(_, machine)| machine)
    }

    /// The books of one who makes and drops tables.
    #[must_use]
    pub fn admin(&self, machine: usize) -> Option<&TableBooks> {
        match self.node(machine)? {
            Node::Admin(node) => Some(&node.books),
            _ => None,
        }
    }

    /// The books of the client on a machine.
    #[must_use]
    pub fn client(&self, machine: usize) -> Option<&ClientBooks> {
        match self.node(machine)? {
            Node::Client(node) => Some(&node.books),
            _ => None,
        }
    }

    /// The boot of a machine.
    #[must_use]
    pub fn boot(&self, machine: usize) -> BootId {
        self.machines[machine].boot
    }

    /// Whether a backup runs there, or would.
    #[must_use]
    pub fn has_frames(&self, machine: usize) -> bool {
        matches!(&self.machines[machine].role, Role::Server(config) if config.roles.backup)
    }

    /// Machines on which servers run, or would.
    pub fn server_machines(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.machines.len()).filter(|m| matches!(self.machines[*m].role, Role::Server(_)))
    }
}
