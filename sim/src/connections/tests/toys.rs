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
use crate::trace::{Lines, Trace};
use crate::world::Event;

pub(super) const OURS: ClusterId = ClusterId([1; 16]);
pub(super) const OTHER: ClusterId = ClusterId([2; 16]);

pub(super) fn server(id: u64) -> Party {
    Party::server(ServerId(id))
}

/// A server of our cluster.
pub(super) fn ours(id: u64) -> Identity {
    Identity::new(None)
        .with_cluster(OURS)
        .with_party(server(id))
}

pub(super) fn enveloped(kind: Kind, to: Party, from: Party) -> Vec<u8> {
    let mut bytes = Vec::new();
    envelope::append(&mut bytes, Header::new(kind, 7, to, from), b"payload");
    bytes
}

pub(super) struct Toy {
    pub(super) connections: Connections,
    /// What it heard and was not looked at.
    pub(super) heard: Vec<Happening>,
    clock: Clock,
    rng: Rng,
}

pub(super) struct Toys {
    pub(super) network: Network,
    pub(super) events: Events<Event>,
    pub(super) toys: BTreeMap<ProcessId, Toy>,
    /// What came to processes without a layer, that speak bytes.
    pub(super) raw: Vec<NetEvent>,
    rng: Rng,
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
    pub(super) fn new(seed: u64) -> Self {
        let rng = Rng::new(seed);
        Self {
            network: Network::new(rng.fork(1), Delays::default()),
            events: Events::default(),
            toys: BTreeMap::new(),
            raw: Vec::new(),
            rng,
            listeners: BTreeMap::new(),
            others: Others {
                history: History::default(),
                group: GroupWatch::default(),
                trace: Trace::new(Lines::No),
            },
        }
    }

    /// A process that listens at its number, and serves orders.
    pub(super) fn add(&mut self, number: u32, identity: Identity) -> ProcessId {
        let process = self.add_raw(number);
        let toy = Toy {
            connections: Connections::new(identity, &[Kind::Order]),
            heard: Vec::new(),
            clock: Clock::random(&mut self.rng),
            rng: self.rng.fork(u64::from(number) + 10),
        };
        self.toys.insert(process, toy);
        process
    }

    /// A process that listens at its number, and speaks bytes.
    pub(super) fn add_raw(&mut self, number: u32) -> ProcessId {
        let process = ProcessId(number);
        self.listeners.insert(number.to_string(), process);
        process
    }

    pub(super) fn with<R>(
        &mut self,
        process: ProcessId,
        act: impl FnOnce(&mut Connections, &mut Context<'_>) -> R,
    ) -> R {
        let toy = self.toys.get_mut(&process).expect("it is a toy");
        let mut context = Context {
            me: process,
            now: toy.clock.shows(self.events.now()),
            clock: toy.clock,
            rng: &mut toy.rng,
            history: &mut self.others.history,
            group: &mut self.others.group,
            listeners: &self.listeners,
            network: &mut self.network,
            events: &mut self.events,
            trace: &mut self.others.trace,
        };
        act(&mut toy.connections, &mut context)
    }

    /// Lets a process with bytes of its own connect to `to`.
    pub(super) fn raw_connect(&mut self, from: ProcessId, to: ProcessId) -> ConnectionId {
        self.network.connect(&mut self.events, from, Some(to))
    }

    pub(super) fn now(&self) -> Micros {
        self.events.now()
    }

    /// Lets everything happen that happens within `time`.
    pub(super) fn pass(&mut self, time: Duration) {
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
                let news = self.with(process, |connections, context| {
                    connections.handle_tick(context)
                });
                self.hear(process, news);
                true
            }
            _ => false,
        }
    }

    fn set_timers(&mut self) {
        for (process, toy) in &self.toys {
            let due = toy.connections.next_timeout();
            let due = due.map(|shown| toy.clock.when(shown));
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
        if !self.toys.contains_key(&at) {
            return self.raw.push(event);
        }
        let news = self.with(at, |connections, context| {
            connections.handle(context, &event)
        });
        self.hear(at, news);
    }

    fn hear(&mut self, process: ProcessId, news: Vec<Happening>) {
        if let Some(toy) = self.toys.get_mut(&process) {
            toy.heard.extend(news);
        }
    }

    /// What a process has heard since this was asked last.
    pub(super) fn heard(&mut self, process: ProcessId) -> Vec<Happening> {
        let toy = self.toys.get_mut(&process).expect("it is a toy");
        std::mem::take(&mut toy.heard)
    }

    /// Has `from` make a wire to addresses, and lets time pass.
    pub(super) fn connect(&mut self, from: ProcessId, addresses: &[u32], to: Party) -> WireId {
        let addresses = addresses.iter().map(u32::to_string).collect();
        let wire = self.with(from, |connections, context| {
            connections.connect(context, addresses, to)
        });
        self.pass(Duration::from_millis(50));
        wire
    }

    /// How a wire to addresses ends that can't be made.
    pub(super) fn end(&mut self, from: ProcessId, addresses: &[u32], to: Party) -> WireEnd {
        let wire = self.connect(from, addresses, to);
        match &self.heard(from)[..] {
            [Happening::Down { wire: down, end }] if *down == wire => end.clone(),
            other => panic!("expected its end, heard {other:?}"),
        }
    }

    /// A wire that is up, and its other end.
    pub(super) fn joined(&mut self, from: ProcessId, to: ProcessId) -> (WireId, ConnectionId) {
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

    pub(super) fn send(&mut self, from: ProcessId, wire: WireId, bytes: &[u8]) {
        self.with(from, |connections, context| {
            connections.send(context, wire, bytes);
        });
        self.pass(Duration::from_millis(20));
    }

    pub(super) fn send_inbound(&mut self, from: ProcessId, inbound: ConnectionId, bytes: &[u8]) {
        self.with(from, |connections, context| {
            connections.send_inbound(context, inbound, bytes);
        });
        self.pass(Duration::from_millis(20));
    }
}
