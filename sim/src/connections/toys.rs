//! Small processes on a simulated network, driven by hand.

use std::collections::BTreeMap;
use std::time::Duration;

use ramkeep_rpc::Identity;
use ramkeep_rpc::wires::{WireEnd, WireId};
use ramkeep_wire::envelope::{self, Header, Kind};
use ramkeep_wire::{ClusterId, Micros, Party, ServerId};

use crate::check::group::GroupWatch;
use crate::clock::Clock;
use crate::connections::{Connections, Happening};
use crate::events::Events;
use crate::history::History;
use crate::network::{ConnectionId, Delays, NetEvent, Network, ProcessId};
use crate::node::Context;
use crate::rng::Rng;
use crate::strangers::{StrangerConfig, StrangerNode};
use crate::trace::{Lines, Trace};
use crate::world::Event;

pub(crate) const OURS: ClusterId = ClusterId([1; 16]);
pub(crate) const OTHER: ClusterId = ClusterId([2; 16]);

pub(crate) fn server(id: u64) -> Party {
    Party::server(ServerId(id))
}

/// A server of our cluster.
pub(crate) fn ours(id: u64) -> Identity {
    Identity::new(None)
        .with_cluster(OURS)
        .with_party(server(id))
}

pub(crate) fn enveloped(kind: Kind, to: Party, from: Party) -> Vec<u8> {
    let mut bytes = Vec::new();
    envelope::append(&mut bytes, Header::new(kind, 7, to, from), b"payload");
    bytes
}

pub(crate) struct Toy {
    pub(crate) connections: Connections,
    /// What it heard and was not looked at.
    pub(crate) heard: Vec<Happening>,
}

pub(crate) struct Toys {
    pub(crate) network: Network,
    pub(crate) events: Events<Event>,
    pub(crate) toys: BTreeMap<ProcessId, Toy>,
    pub(crate) strangers: BTreeMap<ProcessId, StrangerNode>,
    /// What came to processes without a layer, that speak bytes.
    pub(crate) raw: Vec<NetEvent>,
    rng: Rng,
    /// The clock and the chance of each process.
    bodies: BTreeMap<ProcessId, (Clock, Rng)>,
    listeners: BTreeMap<String, ProcessId>,
    others: Others,
}

/// What a context has that no toy needs.
struct Others {
    history: History,
    group: GroupWatch,
    trace: Trace,
}

impl Toys {
    pub(crate) fn new(seed: u64) -> Self {
        let rng = Rng::new(seed);
        Self {
            network: Network::new(rng.fork(1), Delays::default()),
            events: Events::default(),
            toys: BTreeMap::new(),
            strangers: BTreeMap::new(),
            raw: Vec::new(),
            rng,
            bodies: BTreeMap::new(),
            listeners: BTreeMap::new(),
            others: Others {
                history: History::default(),
                group: GroupWatch::default(),
                trace: Trace::new(Lines::No),
            },
        }
    }

    /// A process that listens at its number, and serves orders.
    pub(crate) fn add(&mut self, number: u32, identity: Identity) -> ProcessId {
        let process = self.add_raw(number);
        let toy = Toy {
            connections: Connections::new(identity, &[Kind::Order]),
            heard: Vec::new(),
        };
        self.toys.insert(process, toy);
        process
    }

    /// A stranger that listens at its number.
    pub(crate) fn add_stranger(&mut self, config: StrangerConfig) -> ProcessId {
        let process = self.add_raw(config.number);
        self.strangers.insert(process, StrangerNode::new(config));
        self.with_stranger(process, StrangerNode::start);
        process
    }

    /// A process that listens at its number, and speaks bytes.
    pub(crate) fn add_raw(&mut self, number: u32) -> ProcessId {
        let process = ProcessId(number);
        self.listeners.insert(number.to_string(), process);
        let clock = Clock::random(&mut self.rng);
        let rng = self.rng.fork(u64::from(number) + 10);
        self.bodies.insert(process, (clock, rng));
        process
    }

    pub(crate) fn with<R>(
        &mut self,
        process: ProcessId,
        act: impl FnOnce(&mut Connections, &mut Context<'_>) -> R,
    ) -> R {
        let mut toy = self.toys.remove(&process).expect("it is a toy");
        let result = act(&mut toy.connections, &mut self.context(process));
        self.toys.insert(process, toy);
        result
    }

    fn with_stranger(
        &mut self,
        process: ProcessId,
        act: impl FnOnce(&mut StrangerNode, &mut Context<'_>),
    ) {
        let mut node = self.strangers.remove(&process).expect("it is a stranger");
        act(&mut node, &mut self.context(process));
        self.strangers.insert(process, node);
    }

    fn context(&mut self, process: ProcessId) -> Context<'_> {
        let (clock, rng) = self.bodies.get_mut(&process).expect("it was added");
        Context {
            me: process,
            now: clock.shows(self.events.now()),
            clock: *clock,
            rng,
            history: &mut self.others.history,
            group: &mut self.others.group,
            listeners: &self.listeners,
            network: &mut self.network,
            events: &mut self.events,
            trace: &mut self.others.trace,
        }
    }

    /// Lets a process with bytes of its own connect to `to`.
    pub(crate) fn raw_connect(&mut self, from: ProcessId, to: ProcessId) -> ConnectionId {
        self.network.connect(&mut self.events, from, Some(to))
    }

    pub(crate) fn now(&self) -> Micros {
        self.events.now()
    }

    /// Lets everything happen that happens within `time`.
    pub(crate) fn pass(&mut self, time: Duration) {
        let until = self.now() + time;
        self.events.at(until, Event::Step(0));
        while self.step() {}
    }

    /// False once the step that ends a wait has come.
    fn step(&mut self) -> bool {
        self.set_timers();
        match self.events.pop() {
            Some(Event::Net(event)) => {
                if let Some(late) = self.network.postponed(self.now(), &event) {
                    self.events.at(late, Event::Net(event));
                } else if self.network.happens(&event) {
                    self.give(event);
                }
                true
            }
            Some(Event::Timer { process, .. }) => {
                self.tick(process);
                true
            }
            _ => false,
        }
    }

    fn tick(&mut self, process: ProcessId) {
        if self.strangers.contains_key(&process) {
            return self.with_stranger(process, StrangerNode::timer);
        }
        let news = self.with(process, |connections, context| {
            connections.handle_tick(context)
        });
        self.hear(process, news);
    }

    fn set_timers(&mut self) {
        let toys = self
            .toys
            .iter()
            .map(|(p, toy)| (p, toy.connections.next_timeout()));
        let strangers = self
            .strangers
            .iter()
            .map(|(p, node)| (p, node.next_timeout()));
        for (process, due) in toys.chain(strangers) {
            let due = due.map(|shown| self.bodies[process].0.when(shown));
            if let Some(due) = due.filter(|due| self.events.next_at().is_none_or(|at| *due < at)) {
                let timer = Event::Timer {
                    process: *process,
                    number: 0,
                };
                self.events.at(due, timer);
            }
        }
    }

    fn give(&mut self, event: NetEvent) {
        let at = event.at();
        if self.toys.contains_key(&at) {
            let news = self.with(at, |connections, context| {
                connections.handle(context, &event)
            });
            self.hear(at, news);
        } else if self.strangers.contains_key(&at) {
            self.with_stranger(at, |node, context| node.net(context, &event));
        } else {
            self.raw.push(event);
        }
    }

    fn hear(&mut self, process: ProcessId, news: Vec<Happening>) {
        if let Some(toy) = self.toys.get_mut(&process) {
            toy.heard.extend(news);
        }
    }

    /// What a process has heard since this was asked last.
    pub(crate) fn heard(&mut self, process: ProcessId) -> Vec<Happening> {
        let toy = self.toys.get_mut(&process).expect("it is a toy");
        std::mem::take(&mut toy.heard)
    }

    /// Has `from` make a wire to addresses, and lets time pass.
    pub(crate) fn connect(&mut self, from: ProcessId, addresses: &[u32], to: Party) -> WireId {
        let addresses = addresses.iter().map(u32::to_string).collect();
        let wire = self.with(from, |connections, context| {
            connections.connect(context, addresses, to)
        });
        self.pass(Duration::from_millis(50));
        wire
    }

    /// How a wire to addresses ends that can't be made.
    pub(crate) fn end(&mut self, from: ProcessId, addresses: &[u32], to: Party) -> WireEnd {
        let wire = self.connect(from, addresses, to);
        match &self.heard(from)[..] {
            [Happening::Down { wire: down, end }] if *down == wire => end.clone(),
            other => panic!("expected its end, heard {other:?}"),
        }
    }

    /// A wire that is up, and its other end.
    pub(crate) fn joined(&mut self, from: ProcessId, to: ProcessId) -> (WireId, ConnectionId) {
        let party = self.toys[&to].connections.identity().party();
        let wire = self.connect(from, &[to.0], party);
        let heard = self.heard(from);
        assert!(
            matches!(&heard[..], [Happening::Up { wire: up, .. }] if *up == wire),
            "{heard:?}"
        );
        match &self.heard(to)[..] {
            [Happening::Accepted { inbound, .. }] => (wire, *inbound),
            other => panic!("expected a connection, heard {other:?}"),
        }
    }

    pub(crate) fn send(&mut self, from: ProcessId, wire: WireId, bytes: &[u8]) {
        self.with(from, |connections, context| {
            connections.send(context, wire, bytes);
        });
        self.pass(Duration::from_millis(20));
    }

    pub(crate) fn send_inbound(&mut self, from: ProcessId, inbound: ConnectionId, bytes: &[u8]) {
        self.with(from, |connections, context| {
            connections.send_inbound(context, inbound, bytes);
        });
        self.pass(Duration::from_millis(20));
    }
}
