//! A coordinator process with its journal's disk.
//!
//! # Invariants
//! 1. What was not synced when the process is killed may be lost from any record on; what was
//!    synced is not.
//! 2. The core hears that a record is persisted only once it is synced.

use std::collections::{BTreeMap, VecDeque};

use ramkeep_coordinator::{Config, Coordinator, Output};
use ramkeep_wire::coordinator::{Request, Settings};
use ramkeep_wire::envelope::{Header, Kind};
use ramkeep_wire::order::{Command, Order, OrderReply};
use ramkeep_wire::{Micros, Party, PeerId, ServerId, postcards};

use super::{Context, delivered};
use crate::network::{ConnectionId, NetEvent};
use crate::rng::Rng;
use crate::world::Event;

/// The journal as the disk has it.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    snapshot: Option<(u64, Vec<u8>)>,
    records: VecDeque<(u64, Vec<u8>)>,
    /// Records up to this slot are on the disk for good.
    synced: u64,
}

impl Journal {
    /// What a kill leaves: all that was synced, and perhaps some of what was not.
    pub fn crash(&mut self, rng: &mut Rng) {
        let unsynced = self
            .records
            .iter()
            .filter(|(index, _)| *index > self.synced)
            .count();
        if unsynced > 0 {
            let lost = rng.index(unsynced + 1);
            self.records.truncate(self.records.len() - lost);
        }
        self.synced = self.records.back().map_or(self.synced, |(index, _)| *index);
    }

    /// What is on the disk for good.
    #[must_use]
    pub fn durable(&self) -> Self {
        let mut journal = self.clone();
        journal.records.retain(|(index, _)| *index <= self.synced);
        journal
    }

    /// A coordinator that goes on from here.
    #[must_use]
    pub fn recover(&self, config: Config) -> Coordinator {
        let snapshot = self
            .snapshot
            .as_ref()
            .map(|(index, bytes)| (*index, bytes.as_slice()));
        Coordinator::recover(config, snapshot, self.records.iter().cloned())
            .expect("a journal that this build wrote makes a coordinator")
    }
}

/// What a coordinator process starts with.
#[derive(Clone, Debug)]
pub struct CoordinatorConfig {
    /// Which peer.
    pub peer: PeerId,
    /// Where it listens.
    pub address: String,
    /// Constants of the cluster.
    pub settings: Settings,
    /// How long a sync takes, at least and at most.
    pub sync: (u64, u64),
}

impl CoordinatorConfig {
    /// The core's configuration for one start.
    #[must_use]
    pub fn core(&self, entropy: [u8; 32]) -> Config {
        Config {
            peer: self.peer,
            address: self.address.clone(),
            settings: self.settings.clone(),
            entropy,
        }
    }
}

#[derive(Debug)]
struct ServerLink {
    connection: ConnectionId,
    open: bool,
    /// Orders that wait for the connection or for their answer.
    orders: BTreeMap<u64, Order>,
}

/// A coordinator process.
pub struct CoordinatorNode {
    config: CoordinatorConfig,
    core: Coordinator,
    journal: Journal,
    /// Connections that servers and clients opened, with who is there.
    inbound: BTreeMap<ConnectionId, Party>,
    /// Where the answer to a token goes.
    tokens: BTreeMap<u64, (ConnectionId, Header)>,
    next: u64,
    servers: BTreeMap<ServerId, ServerLink>,
}

impl std::fmt::Debug for CoordinatorNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CoordinatorNode").finish_non_exhaustive()
    }
}

impl CoordinatorNode {
    /// A process that starts with what is in the journal.
    #[must_use]
    pub fn new(config: CoordinatorConfig, journal: Journal, entropy: [u8; 32]) -> Self {
        let core = journal.recover(config.core(entropy));
        Self {
            config,
            core,
            journal,
            inbound: BTreeMap::new(),
            tokens: BTreeMap::new(),
            next: 1,
            servers: BTreeMap::new(),
        }
    }

    /// The journal.
    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// The core.
    #[must_use]
    pub fn core(&self) -> &Coordinator {
        &self.core
    }

    /// What is left of the process when it is killed.
    #[must_use]
    pub fn into_journal(self) -> Journal {
        self.journal
    }

    pub(super) fn start(&mut self, context: &mut Context<'_>) {
        self.core.start(context.now);
        self.act(context);
    }

    pub(super) fn timer(&mut self, context: &mut Context<'_>) {
        self.core.handle_tick(context.now);
        self.act(context);
    }

    pub(super) fn next_timeout(&self) -> Option<Micros> {
        self.core.next_timeout()
    }

    /// The disk has synced everything up to a slot.
    pub fn persisted(&mut self, context: &mut Context<'_>, index: u64) {
        self.journal.synced = self.journal.synced.max(index);
        self.core.handle_persisted(context.now, index);
        self.act(context);
    }

    pub(super) fn net(&mut self, context: &mut Context<'_>, event: &NetEvent) {
        match event {
            NetEvent::Accepted { connection, .. } => {
                self.inbound.insert(*connection, Party::NONE);
            }
            NetEvent::Deliver {
                connection, bytes, ..
            } => self.deliver(context, *connection, bytes),
            NetEvent::Opened { connection, .. } => self.opened(context, *connection),
            NetEvent::Failed { connection, .. } => self.lost(context, *connection, true),
            NetEvent::Broken { connection, .. } => self.lost(context, *connection, false),
        }
        self.act(context);
    }

    fn deliver(&mut self, context: &mut Context<'_>, connection: ConnectionId, bytes: &[u8]) {
        let envelope = delivered(bytes);
        match envelope.header.kind {
            Kind::Hello => {
                let me = Party::coordinator(self.config.peer);
                self.inbound.insert(connection, envelope.header.from);
                context.welcome(connection, &envelope, me);
            }
            Kind::Welcome => self.welcomed(context, connection),
            Kind::Refusal => {
                context.close(connection);
                self.lost(context, connection, true);
            }
            Kind::CoordinatorRequest => {
                let Ok(request) = postcards::decode::<Request>(envelope.payload) else {
                    return context.close(connection);
                };
                let token = self.next;
                self.next += 1;
                let from = envelope.header.from;
                self.inbound.insert(connection, from);
                self.tokens.insert(token, (connection, envelope.header));
                self.core.handle_request(context.now, from, token, request);
            }
            Kind::OrderReply => {
                let Ok(reply) = postcards::decode::<OrderReply>(envelope.payload) else {
                    return context.close(connection);
                };
                self.order_replied(context, connection, envelope.header.correlation, reply);
            }
            _ => context.close(connection),
        }
    }

    fn order_replied(
        &mut self,
        context: &mut Context<'_>,
        connection: ConnectionId,
        correlation: u64,
        reply: OrderReply,
    ) {
        let found = self
            .servers
            .iter_mut()
            .find(|(_, link)| link.connection == connection);
        let Some((server, link)) = found else { return };
        let server = *server;
        if let Some(order) = link.orders.remove(&correlation) {
            context.say(format_args!("{server:?} answers {reply:?}"));
            self.core
                .handle_order_reply(context.now, server, &order.command, reply);
        }
    }

    fn opened(&mut self, context: &mut Context<'_>, connection: ConnectionId) {
        let found = self
            .servers
            .iter_mut()
            .find(|(_, link)| link.connection == connection);
        let Some((server, _)) = found else { return };
        let me = Party::coordinator(self.config.peer);
        context.hello(connection, me, Party::server(*server));
    }

    fn welcomed(&mut self, context: &mut Context<'_>, connection: ConnectionId) {
        let found = self
            .servers
            .iter_mut()
            .find(|(_, link)| link.connection == connection);
        let Some((server, link)) = found else { return };
        link.open = true;
        for (correlation, order) in &link.orders {
            let header = order_header(self.config.peer, *server, *correlation);
            context.send_payload(connection, header, &postcards::encode(order));
        }
    }

    /// A connection is gone, or could not be made.
    fn lost(&mut self, context: &mut Context<'_>, connection: ConnectionId, refused: bool) {
        let party = self.inbound.remove(&connection);
        self.tokens.retain(|_, (at, _)| *at != connection);
        let found = self
            .servers
            .iter()
            .find(|(_, link)| link.connection == connection)
            .map(|(server, _)| *server);
        if let Some(server) = found {
            self.servers.remove(&server);
            if refused {
                self.core.handle_probe_failed(context.now, server, true);
            } else {
                self.core.handle_link_down(context.now, server);
            }
        } else if let Some(server) = party.and_then(Party::as_server) {
            self.core.handle_link_down(context.now, server);
        }
    }

    fn act(&mut self, context: &mut Context<'_>) {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Persist { index, bytes } => self.persist(context, index, bytes),
                Output::Snapshot { index, bytes } => {
                    self.journal.snapshot = Some((index, bytes));
                    self.journal.records.retain(|(record, _)| *record > index);
                    self.journal.synced = self.journal.synced.max(index);
                }
                Output::Reply { token, response } => {
                    if let Some((connection, header)) = self.tokens.remove(&token) {
                        let header = header.reply(Kind::CoordinatorResponse);
                        let payload = postcards::encode(&response);
                        context.send_payload(connection, header, &payload);
                    }
                }
                Output::Order {
                    server,
                    addresses,
                    order,
                } => self.order(context, server, &addresses, order),
            }
        }
    }

    fn persist(&mut self, context: &mut Context<'_>, index: u64, bytes: Vec<u8>) {
        self.journal.records.push_back((index, bytes));
        let (least, most) = self.config.sync;
        let delay = context.rng.micros(least..most + 1);
        let event = Event::Persisted {
            process: context.me,
            index,
        };
        context.events.at(context.events.now() + delay, event);
    }

    fn order(
        &mut self,
        context: &mut Context<'_>,
        server: ServerId,
        addresses: &[String],
        order: Order,
    ) {
        let Some(address) = addresses.first() else {
            return;
        };
        if order.command != Command::Probe {
            context.say(format_args!(
                "orders {server:?} to {}",
                brief(&order.command)
            ));
        }
        let correlation = self.next;
        self.next += 1;
        let link = self.servers.entry(server).or_insert_with(|| ServerLink {
            connection: context.connect(address),
            open: false,
            orders: BTreeMap::new(),
        });
        if link.open {
            let header = order_header(self.config.peer, server, correlation);
            context.send_payload(link.connection, header, &postcards::encode(&order));
        }
        link.orders.insert(correlation, order);
        while link.orders.len() > MAX_ORDERS {
            link.orders.pop_first();
        }
    }
}

/// Orders without an answer that are remembered for one server; older ones are repeated anyway.
const MAX_ORDERS: usize = 64;

fn order_header(peer: PeerId, server: ServerId, correlation: u64) -> Header {
    let (to, from) = (Party::server(server), Party::coordinator(peer));
    Header::new(Kind::Order, correlation, to, from)
}

fn brief(command: &Command) -> String {
    match command {
        Command::UpdateServers(list) => format!("take server list {}", list.version),
        other => format!("{other:?}"),
    }
}
