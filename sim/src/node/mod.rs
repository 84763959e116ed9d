//! Simulated processes: each drives one role's core as its shell would.

pub mod admin;
pub mod client;
pub mod coordinator;
pub mod server;

use std::collections::BTreeMap;

use ramkeep_wire::Micros;
use ramkeep_wire::envelope::{self, Envelope, Header};

use crate::check::group::GroupWatch;
use crate::clock::Clock;
use crate::events::Events;
use crate::history::History;
use crate::network::{ConnectionId, NetEvent, Network, ProcessId};
use crate::rng::Rng;
use crate::strangers::StrangerNode;
use crate::trace::Trace;
use crate::world::Event;

pub use admin::AdminNode;
pub use client::ClientNode;
pub use coordinator::CoordinatorNode;
pub use server::ServerNode;

/// What a process may use while it handles one input.
pub struct Context<'a> {
    /// This process.
    pub me: ProcessId,
    /// Its clock's time, as it read it when it began with this input.
    pub now: Micros,
    /// Its clock.
    pub clock: Clock,
    /// Chance for this process.
    pub rng: &'a mut Rng,
    /// What clients were told.
    pub history: &'a mut History,
    /// What the coordinators have done.
    pub group: &'a mut GroupWatch,
    /// Who listens where.
    pub listeners: &'a BTreeMap<String, ProcessId>,
    /// The network.
    pub network: &'a mut Network,
    /// What will happen.
    pub events: &'a mut Events<Event>,
    /// What has happened.
    pub trace: &'a mut Trace,
}

impl Context<'_> {
    /// What its clock shows if it is read again.
    #[must_use]
    pub fn clock_now(&self) -> Micros {
        self.clock.shows(self.events.now())
    }

    /// Asks for a connection to an address.
    pub fn connect(&mut self, address: &str) -> ConnectionId {
        let to = self.listeners.get(address).copied();
        self.network.connect(self.events, self.me, to)
    }

    /// Sends envelopes.
    pub fn send(&mut self, connection: ConnectionId, bytes: &[u8]) {
        self.network.send(self.events, connection, self.me, bytes);
    }

    /// Sends one envelope.
    pub fn send_payload(&mut self, connection: ConnectionId, header: Header, payload: &[u8]) {
        let mut out = Vec::with_capacity(envelope::HEADER_LEN + payload.len());
        envelope::append(&mut out, header, payload);
        self.send(connection, &out);
    }

    /// Closes this end of a connection.
    pub fn close(&mut self, connection: ConnectionId) {
        self.network.close(self.events, connection, self.me);
    }

    /// Says what happens, for a person.
    pub fn say(&mut self, text: std::fmt::Arguments<'_>) {
        if self.trace.wants_lines() {
            self.trace
                .line(self.events.now(), format_args!("{:<4} {text}", self.me.0));
        }
    }
}

/// A simulated process.
#[derive(Debug)]
pub enum Node {
    /// A coordinator.
    Coordinator(Box<CoordinatorNode>),
    /// A server: a master, a backup or both.
    Server(Box<ServerNode>),
    /// A client with its workload.
    Client(Box<ClientNode>),
    /// One who makes and drops tables.
    Admin(Box<AdminNode>),
    /// One who does not belong.
    Stranger(Box<StrangerNode>),
}

impl Node {
    /// The process begins.
    pub fn start(&mut self, context: &mut Context<'_>) {
        match self {
            Self::Coordinator(node) => node.start(context),
            Self::Server(node) => node.start(context),
            Self::Client(node) => node.poke(context),
            Self::Admin(node) => node.poke(context),
            Self::Stranger(node) => node.start(context),
        }
    }

    /// The network does something to the process.
    pub fn net(&mut self, context: &mut Context<'_>, event: &NetEvent) {
        match self {
            Self::Coordinator(node) => node.net(context, event),
            Self::Server(node) => node.net(context, event),
            Self::Client(node) => node.net(context, event),
            Self::Admin(node) => node.net(context, event),
            Self::Stranger(node) => node.net(context, event),
        }
    }

    /// The time that it waited for has come.
    pub fn timer(&mut self, context: &mut Context<'_>) {
        match self {
            Self::Coordinator(node) => node.timer(context),
            Self::Server(node) => node.timer(context),
            Self::Client(node) => node.timer(context),
            Self::Admin(node) => node.timer(context),
            Self::Stranger(node) => node.timer(context),
        }
    }

    /// Until when it waits, by its own clock.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Micros> {
        match self {
            Self::Coordinator(node) => node.next_timeout(),
            Self::Server(node) => node.next_timeout(),
            Self::Client(node) => node.next_timeout(),
            Self::Admin(node) => node.next_timeout(),
            Self::Stranger(node) => node.next_timeout(),
        }
    }
}

/// The envelope in what the network delivers, one at a time.
#[must_use]
pub fn delivered(bytes: &[u8]) -> Envelope<'_> {
    envelope::parse(bytes)
        .expect("the network carries valid envelopes")
        .expect("the network carries whole envelopes")
        .0
}
