//! A coordinator process with its disk and its connections to servers and other coordinators.
//!
//! # Invariants
//! 1. The core hears that records are persisted only once they are synced.
//! 2. A reply that counts while a lease runs is given only if the clock, read after the core made
//!    it, says so.

mod disk;
mod lines;

use std::collections::BTreeMap;

use paxos::limits::Timing;
use paxos::{Record, Snapshot};
use ramkeep_coordinator::{Config, Coordinator, Output};
use ramkeep_wire::backup::{BackupRequest, BackupResponse};
use ramkeep_wire::coordinator::{Request, Response, Settings};
use ramkeep_wire::envelope::{Header, Kind};
use ramkeep_wire::order::{Command, Order, OrderReply};
use ramkeep_wire::{Micros, Party, PeerId, ServerId, postcards};

use super::{Context, delivered};
use crate::crash_points::CrashPoint;
use crate::network::{ConnectionId, NetEvent};
use crate::world::Event;
pub use disk::CoordinatorDisk;
use lines::Lines;

/// What a coordinator process starts with.
#[derive(Clone, Debug)]
pub struct CoordinatorConfig {
    /// Which peer.
    pub peer: PeerId,
    /// Where it listens.
    pub address: String,
    /// All of the group.
    pub peers: Vec<(PeerId, String)>,
    /// Constants of the cluster.
    pub settings: Settings,
    /// The times of the group.
    pub timing: Timing,
    /// How long a sync takes, at least and at most.
    pub sync: (u64, u64),
    /// Bytes of a crashed master's log for one recovery master.
    pub partition_bytes: u64,
}

impl CoordinatorConfig {
    fn core(&self, incarnation: [u8; 16], entropy: [u8; 32]) -> Config {
        Config {
            peer: self.peer,
            incarnation,
            address: self.address.clone(),
            peers: self.peers.clone(),
            settings: self.settings.clone(),
            timing: self.timing,
            entropy,
        }
    }
}

#[derive(Debug)]
struct ServerLink {
    connection: ConnectionId,
    open: bool,
    /// No process listened there when it was asked for.
    nobody: bool,
    /// What waits for the connection or for its answer.
    mail: BTreeMap<u64, Mail>,
}

/// What is sent to a server.
#[derive(Debug)]
enum Mail {
    Order(Order),
    /// A question, with its token.
    Ask(u64, BackupRequest),
}

impl Mail {
    fn kind(&self) -> Kind {
        match self {
            Self::Order(_) => Kind::Order,
            Self::Ask(..) => Kind::BackupRequest,
        }
    }

    fn payload(&self) -> Vec<u8> {
        match self {
            Self::Order(order) => postcards::encode(order),
            Self::Ask(_, request) => postcards::encode(request),
        }
    }
}

/// A coordinator process.
#[derive(Debug)]
pub struct CoordinatorNode {
    config: CoordinatorConfig,
    core: Coordinator,
    disk: CoordinatorDisk,
    /// A sync up to here is under way.
    syncing: Option<u64>,
    /// Syncs take so many times as long.
    slow: u64,
    lines: Lines,
    /// Connections that others opened, with who is there.
    inbound: BTreeMap<ConnectionId, Party>,
    /// Where the answer to a token goes.
    tokens: BTreeMap<u64, (ConnectionId, Header)>,
    next: u64,
    servers: BTreeMap<ServerId, ServerLink>,
    stopped: bool,
    /// The crashed masters the end of whose logs it knew when it was asked last.
    ends: Vec<ServerId>,
}

impl CoordinatorNode {
    /// Moments of recoveries that came since this was asked last.
    pub fn take_points(&mut self) -> Vec<CrashPoint> {
        let found = self.core.ends_found();
        let new = found.iter().any(|master| !self.ends.contains(master));
        self.ends = found;
        new.then_some(CrashPoint::EndChosen).into_iter().collect()
    }

    /// A process that starts with what is on the disk.
    #[must_use]
    pub fn new(
        now: Micros,
        config: CoordinatorConfig,
        disk: CoordinatorDisk,
        entropy: [u8; 32],
    ) -> Self {
        let core = Coordinator::new(now, config.core(disk.incarnation, entropy), disk.stored())
            .expect("a disk that this build wrote makes a coordinator")
            .with_partitions_of(config.partition_bytes);
        Self {
            lines: Lines::new(config.peer),
            config,
            core,
            disk,
            syncing: None,
            slow: 1,
            ends: Vec::new(),
            inbound: BTreeMap::new(),
            tokens: BTreeMap::new(),
            next: 1,
            servers: BTreeMap::new(),
            stopped: false,
        }
    }

    /// The core.
    #[must_use]
    pub fn core(&self) -> &Coordinator {
        &self.core
    }

    /// Its disk.
    #[must_use]
    pub fn disk(&self) -> &CoordinatorDisk {
        &self.disk
    }

    /// Which peer it is.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        self.config.peer
    }

    /// What is left of the process when it is killed.
    #[must_use]
    pub fn into_disk(self) -> CoordinatorDisk {
        self.disk
    }

    /// From now on a sync takes so many times as long.
    pub fn slow_disk(&mut self, factor: u64) {
        self.slow = factor;
    }

    /// The disk is as it should be, and what is under way takes no longer than it should.
    pub fn mend_disk(&mut self, context: &mut Context<'_>) {
        self.slow = 1;
        if let Some(index) = self.syncing {
            self.await_sync(context, index);
        }
    }

    pub(super) fn start(&mut self, context: &mut Context<'_>) {
        self.act(context);
    }

    pub(super) fn timer(&mut self, context: &mut Context<'_>) {
        self.lines.connect(context);
        self.core.handle_tick(context.now);
        self.act(context);
    }

    pub(super) fn next_timeout(&self) -> Option<Micros> {
        let due = self.core.next_timeout().into_iter().chain(self.lines.due());
        due.min().filter(|_| !self.stopped)
    }

    /// The disk has synced everything up to `seq`.
    pub fn persisted(&mut self, context: &mut Context<'_>, seq: u64) {
        if self.syncing != Some(seq) {
            return;
        }
        self.disk.sync(seq);
        self.syncing = None;
        self.core.handle_persisted(context.now, seq);
        self.sync(context);
        self.act(context);
    }

    pub(super) fn net(&mut self, context: &mut Context<'_>, event: &NetEvent) {
        if self.stopped {
            return;
        }
        match event {
            NetEvent::Accepted { connection, .. } => {
                self.inbound.insert(*connection, Party::NONE);
            }
            NetEvent::Deliver {
                connection, bytes, ..
            } => self.deliver(context, *connection, bytes),
            NetEvent::Opened { connection, .. } => self.opened(context, *connection),
            NetEvent::Failed { connection, .. } => self.failed(context, *connection),
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
            Kind::Welcome => {
                context.prove(connection, &envelope);
                self.welcomed(context, connection);
            }
            Kind::Proof => {}
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
            Kind::BackupResponse => {
                let Ok((response, bytes)) = BackupResponse::read(envelope.payload) else {
                    return context.close(connection);
                };
                let answer = (response, bytes.to_vec());
                self.asked(context, connection, envelope.header.correlation, answer);
            }
            Kind::Group => self.group(context, connection, envelope.payload),
            _ => context.close(connection),
        }
    }

    /// Another coordinator says something; it speaks for itself only.
    fn group(&mut self, context: &mut Context<'_>, connection: ConnectionId, payload: &[u8]) {
        let Ok(message) = postcards::decode::<paxos::Envelope>(payload) else {
            return context.close(connection);
        };
        let from = Party::coordinator(PeerId(message.from.0));
        if self.inbound.get(&connection) != Some(&from) {
            return context.close(connection);
        }
        if context.trace.wants_lines() {
            let mut text = format!("{:?}", message.body);
            text.truncate(
                text.find(|c: char| !c.is_alphanumeric())
                    .unwrap_or(text.len()),
            );
            context.say(format_args!("hears {text} of {from:?}"));
        }
        self.core.handle_message(context.now, message);
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
        if let Some(Mail::Order(order)) = link.mail.remove(&correlation) {
            context.say(format_args!("{server:?} answers {reply:?}"));
            self.core
                .handle_order_reply(context.now, server, &order.command, reply);
        }
    }

    fn asked(
        &mut self,
        context: &mut Context<'_>,
        connection: ConnectionId,
        correlation: u64,
        answer: (BackupResponse, Vec<u8>),
    ) {
        let mut links = self.servers.iter_mut();
        let found = links.find(|(_, link)| link.connection == connection);
        let Some((server, link)) = found else { return };
        let server = *server;
        if let Some(Mail::Ask(token, _)) = link.mail.remove(&correlation) {
            self.core
                .handle_backup_answer(context.now, server, token, Some(answer));
        }
    }

    fn opened(&mut self, context: &mut Context<'_>, connection: ConnectionId) {
        if self.lines.opened(context, connection) {
            return;
        }
        let found = self
            .servers
            .iter_mut()
            .find(|(_, link)| link.connection == connection);
        let Some((server, _)) = found else { return };
        let me = Party::coordinator(self.config.peer);
        context.hello(connection, me, Party::server(*server));
    }

    fn welcomed(&mut self, context: &mut Context<'_>, connection: ConnectionId) {
        if self.lines.welcomed(context, connection) {
            return;
        }
        let found = self
            .servers
            .iter_mut()
            .find(|(_, link)| link.connection == connection);
        let Some((server, link)) = found else { return };
        link.open = true;
        for (correlation, mail) in &link.mail {
            let header = header(self.config.peer, *server, *correlation, mail);
            context.send_payload(connection, header, &mail.payload());
        }
    }

    /// A connection could not be made: nobody listens there, or nothing gets through.
    fn failed(&mut self, context: &mut Context<'_>, connection: ConnectionId) {
        let mut links = self.servers.values();
        let link = links.find(|link| link.connection == connection);
        let nobody = link.is_none_or(|link| link.nobody);
        self.lost(context, connection, nobody);
    }

    /// A connection is gone, or could not be made.
    fn lost(&mut self, context: &mut Context<'_>, connection: ConnectionId, refused: bool) {
        if let Some((peer, nobody)) = self.lines.lost(context, connection) {
            if nobody && refused {
                self.core.handle_peer_gone(context.now, peer);
            }
            return;
        }
        let party = self.inbound.remove(&connection);
        self.tokens.retain(|_, (at, _)| *at != connection);
        let found = self
            .servers
            .iter()
            .find(|(_, link)| link.connection == connection)
            .map(|(server, link)| (*server, link.open));
        if let Some((server, open)) = found {
            let gone = self.servers.remove(&server);
            if open {
                self.core.handle_link_down(context.now, server);
            } else {
                self.core.handle_probe_failed(context.now, server, refused);
            }
            for mail in gone.into_iter().flat_map(|link| link.mail.into_values()) {
                self.mail_lost(context.now, server, &mail);
            }
        } else if let Some(server) = party.and_then(Party::as_server) {
            self.core.handle_link_down(context.now, server);
        }
    }

    fn act(&mut self, context: &mut Context<'_>) {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Persist { seq, records } => self.persist(context, seq, None, records),
                Output::SaveSnapshot {
                    seq,
                    snapshot,
                    records,
                } => self.persist(context, seq, Some(snapshot), records),
                Output::Send { addresses, message } => {
                    let address = addresses.into_iter().next();
                    self.lines.send(context, address, &message);
                }
                Output::Reply {
                    token,
                    response,
                    until,
                } => self.reply(context, token, response, until),
                Output::Order {
                    server,
                    addresses,
                    order,
                } => self.order(context, server, &addresses, order),
                Output::Ask {
                    server,
                    addresses,
                    token,
                    request,
                } => {
                    context.say(format_args!("asks {server:?} for {request:?}"));
                    self.send(context, server, &addresses, Mail::Ask(token, request));
                }
                Output::Removed => {
                    context.say(format_args!("another took this coordinator's place"));
                    self.stopped = true;
                }
                Output::Stop(why) => {
                    context
                        .group
                        .find(format!("a coordinator can't go on: {why}"));
                    self.stopped = true;
                }
            }
        }
        let until = (self.core.leads()).then(|| self.core.node().lease_until());
        // A group of one has its lease for ever.
        let until = until.flatten().map(|until| match until.0 {
            u64::MAX => Micros(u64::MAX),
            shown => context.clock.when(Micros(shown)),
        });
        let now = context.events.now();
        context
            .group
            .acted(now, self.config.peer, &self.core, until);
    }

    fn reply(
        &mut self,
        context: &mut Context<'_>,
        token: u64,
        response: Response,
        until: Option<Micros>,
    ) {
        let Some((connection, header)) = self.tokens.remove(&token) else {
            return;
        };
        let late = until.is_some_and(|until| context.clock_now() >= until);
        let response = if late {
            self.core.not_leader()
        } else {
            response
        };
        context.group.answers(&response);
        let header = header.reply(Kind::CoordinatorResponse);
        context.send_payload(connection, header, &postcards::encode(&response));
    }

    fn persist(
        &mut self,
        context: &mut Context<'_>,
        seq: u64,
        snapshot: Option<Snapshot>,
        records: Vec<Record>,
    ) {
        self.disk.hand_out(seq, snapshot, records);
        self.sync(context);
    }

    /// Begins a sync of all that waits, unless one is under way.
    fn sync(&mut self, context: &mut Context<'_>) {
        let Some(index) = self.disk.unsynced().filter(|_| self.syncing.is_none()) else {
            return;
        };
        self.syncing = Some(index);
        self.await_sync(context, index);
    }

    fn await_sync(&self, context: &mut Context<'_>, index: u64) {
        let (least, most) = self.config.sync;
        let delay = context.rng.micros(least * self.slow..most * self.slow + 1);
        let process = context.me;
        let event = Event::Persisted { process, index };
        context.events.at(context.events.now() + delay, event);
    }

    fn order(
        &mut self,
        context: &mut Context<'_>,
        server: ServerId,
        addresses: &[String],
        order: Order,
    ) {
        if order.command != Command::Probe {
            context.say(format_args!(
                "orders {server:?} to {}",
                brief(&order.command)
            ));
        }
        self.send(context, server, addresses, Mail::Order(order));
    }

    fn send(
        &mut self,
        context: &mut Context<'_>,
        server: ServerId,
        addresses: &[String],
        mail: Mail,
    ) {
        let Some(address) = addresses.first() else {
            return self.mail_lost(context.now, server, &mail);
        };
        let correlation = self.next;
        self.next += 1;
        let link = self.servers.entry(server).or_insert_with(|| ServerLink {
            connection: context.connect(address),
            open: false,
            nobody: !context.listeners.contains_key(address),
            mail: BTreeMap::new(),
        });
        if link.open {
            let header = header(self.config.peer, server, correlation, &mail);
            context.send_payload(link.connection, header, &mail.payload());
        }
        link.mail.insert(correlation, mail);
        let mut oldest = None;
        if link.mail.len() > MAX_MAIL {
            oldest = link.mail.pop_first();
        }
        if let Some((_, mail)) = oldest {
            self.mail_lost(context.now, server, &mail);
        }
    }

    /// Orders are repeated anyway; questions are when it is known that they are lost.
    fn mail_lost(&mut self, now: Micros, server: ServerId, mail: &Mail) {
        if let Mail::Ask(token, _) = mail {
            self.core.handle_backup_answer(now, server, *token, None);
        }
    }
}

/// Orders and questions without an answer that are remembered for one server.
const MAX_MAIL: usize = 64;

fn header(peer: PeerId, server: ServerId, correlation: u64, mail: &Mail) -> Header {
    let (to, from) = (Party::server(server), Party::coordinator(peer));
    Header::new(mail.kind(), correlation, to, from)
}

fn brief(command: &Command) -> String {
    match command {
        Command::UpdateServers(list) => format!("take server list {}", list.version),
        other => format!("{other:?}"),
    }
}
