//! A server process: a master, a backup or both behind one address.
//!
//! # Invariants
//! 1. What is meant for another ServerId is not looked at: the connection is closed (SAFETY 6).
//! 2. Acknowledgements reach the master only from the connection that is registered for their
//!    backup; when that breaks the core is told before another is made.
//! 3. A server that learns that it was decided crashed stops.

use std::collections::BTreeMap;
use std::time::Duration;

use ramkeep_backup::{Backup, FrameStore, MemoryStore};
use ramkeep_master::core::{Master, MasterConfig, Sink};
use ramkeep_master::store::DataSession;
use ramkeep_wire::backup::BackupRequest;
use ramkeep_wire::coordinator::{
    Answer, Enlist, Heartbeat, Refused, Request, Response, Roles, ServerList, ServerState,
};
use ramkeep_wire::envelope::{self, Envelope, Header, Kind};
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::order::{Command, Order, OrderReply};
use ramkeep_wire::replicate::{Replicate, ReplicateAck};
use ramkeep_wire::{Ballot, BootId, Micros, Party, SegmentId, ServerId, postcards};

use super::{Context, delivered};
use crate::network::{ConnectionId, NetEvent};

/// How often a server lets time pass.
const TICK: Duration = Duration::from_millis(10);
/// How long a coordinator may take to answer.
const ASK_PATIENCE: Duration = Duration::from_secs(2);

/// What a server process starts with.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where it listens.
    pub address: String,
    /// What it does.
    pub roles: Roles,
    /// Where the coordinators listen.
    pub coordinators: Vec<String>,
    /// Bytes for log and index.
    pub memory: u64,
    /// The boot of its machine.
    pub boot: BootId,
    /// Recognises this process when it enlists.
    pub nonce: [u8; 16],
    /// Seeds the placement of replicas.
    pub seed: u64,
    /// Between two attempts to reach the coordinator or a backup.
    pub reconnect: Duration,
}

#[derive(Debug)]
struct Ask {
    request: Request,
    sent: Option<(u64, Micros)>,
    asked: Micros,
}

#[derive(Debug, Default)]
struct CoordinatorLink {
    connection: Option<ConnectionId>,
    open: bool,
    which: usize,
    not_before: Micros,
    asks: Vec<Ask>,
    next: u64,
}

#[derive(Debug)]
struct BackupLink {
    connection: ConnectionId,
    open: bool,
}

#[derive(Debug, Default)]
struct Inbound {
    data: DataSession,
}

/// A server process.
#[derive(Debug)]
pub struct ServerNode {
    config: ServerConfig,
    backup: Option<Backup<MemoryStore>>,
    master: Option<Master>,
    server: ServerId,
    settings: Option<ramkeep_wire::coordinator::Settings>,
    list: ServerList,
    ballot: Ballot,
    stopped: bool,
    coordinator: CoordinatorLink,
    backups: BTreeMap<ServerId, BackupLink>,
    not_before: BTreeMap<ServerId, Micros>,
    inbound: BTreeMap<ConnectionId, Inbound>,
    next_tick: Micros,
    next_heartbeat: Micros,
}

impl ServerNode {
    /// A process that starts with the frames given, if it is a backup.
    #[must_use]
    pub fn new(config: ServerConfig, frames: Option<MemoryStore>, now: Micros) -> Self {
        let backup = frames.map(|store| {
            Backup::open(store, config.boot, now).expect("the frames were formatted by the world")
        });
        Self {
            config,
            backup,
            master: None,
            server: ServerId(0),
            settings: None,
            list: ServerList::default(),
            ballot: Ballot::default(),
            stopped: false,
            coordinator: CoordinatorLink::default(),
            backups: BTreeMap::new(),
            not_before: BTreeMap::new(),
            inbound: BTreeMap::new(),
            next_tick: now,
            next_heartbeat: now,
        }
    }

    /// Its identity; 0 until it is enlisted.
    #[must_use]
    pub fn server(&self) -> ServerId {
        self.server
    }

    /// Its master.
    #[must_use]
    pub fn master(&self) -> Option<&Master> {
        self.master.as_ref()
    }

    /// Its backup.
    #[must_use]
    pub fn backup(&self) -> Option<&Backup<MemoryStore>> {
        self.backup.as_ref()
    }

    /// Its backup, to look into or to damage.
    pub fn backup_mut(&mut self) -> Option<&mut Backup<MemoryStore>> {
        self.backup.as_mut()
    }

    /// Whether it has asked the coordinator to record a replication epoch, and waits for the answer.
    #[must_use]
    pub fn asks_for_a_record(&self) -> bool {
        let asks = self.coordinator.asks.iter();
        asks.filter(|ask| ask.sent.is_some())
            .any(|ask| matches!(ask.request, Request::RecordEpoch { .. }))
    }

    /// Whether it has heard that a server was decided crashed.
    #[must_use]
    pub fn knows_crashed(&self, server: ServerId) -> bool {
        let listed = self.list.servers.iter().find(|e| e.server == server);
        // A process that dies before it is enlisted holds nothing under its own name.
        server == ServerId(0) || listed.is_some_and(|e| e.state == ServerState::Crashed)
    }

    /// Whether it was decided crashed and has stopped.
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// The frames that a kill leaves.
    #[must_use]
    pub fn into_frames(self) -> Option<MemoryStore> {
        self.backup.map(Backup::into_store)
    }

    pub(super) fn start(&mut self, context: &mut Context<'_>) {
        let request = Request::Enlist(Enlist {
            nonce: self.config.nonce,
            roles: self.config.roles,
            addresses: vec![self.config.address.clone()],
            replaces: self.backup.as_ref().and_then(Backup::replaces),
            boot: self.config.boot,
            frames: self
                .backup
                .as_ref()
                .map_or(0, |backup| backup.store().geometry().frames()),
            memory: self.config.memory,
        });
        self.ask(context, request);
        self.act(context);
    }

    pub(super) fn next_timeout(&self) -> Option<Micros> {
        (!self.stopped).then_some(self.next_tick)
    }

    pub(super) fn timer(&mut self, context: &mut Context<'_>) {
        self.next_tick = context.now + TICK;
        if let Some(master) = &self.master {
            master.handle_tick(context.now);
        }
        self.expire_asks(context);
        self.heartbeat(context);
        self.act(context);
    }

    pub(super) fn net(&mut self, context: &mut Context<'_>, event: &NetEvent) {
        if self.stopped {
            return;
        }
        match event {
            NetEvent::Accepted { connection, .. } => {
                self.inbound.insert(*connection, Inbound::default());
            }
            NetEvent::Opened { connection, .. } => self.opened(context, *connection),
            NetEvent::Deliver {
                connection, bytes, ..
            } => self.deliver(context, *connection, &delivered(bytes)),
            NetEvent::Failed { connection, .. } | NetEvent::Broken { connection, .. } => {
                self.lost(context, *connection);
            }
        }
        self.act(context);
    }

    fn me(&self) -> Party {
        match self.server {
            ServerId(0) => Party::NONE,
            server => Party::server(server),
        }
    }

    fn opened(&mut self, context: &mut Context<'_>, connection: ConnectionId) {
        let to = self
            .backups
            .iter()
            .find(|(_, link)| link.connection == connection)
            .map_or(Party::NONE, |(server, _)| Party::server(*server));
        context.hello(connection, self.me(), to);
    }

    fn welcomed(&mut self, context: &mut Context<'_>, connection: ConnectionId) {
        if self.coordinator.connection == Some(connection) {
            self.coordinator.open = true;
            return;
        }
        let found = self
            .backups
            .iter_mut()
            .find(|(_, link)| link.connection == connection);
        if let (Some((server, link)), Some(master)) = (found, &self.master) {
            link.open = true;
            master.link_up(*server);
            context.say(format_args!("connected to backup {server:?}"));
        }
    }

    fn lost(&mut self, context: &mut Context<'_>, connection: ConnectionId) {
        if self.inbound.remove(&connection).is_some() {
            return;
        }
        if self.coordinator.connection == Some(connection) {
            return self.coordinator_lost(context);
        }
        let found = self
            .backups
            .iter()
            .find(|(_, link)| link.connection == connection)
            .map(|(server, _)| *server);
        if let Some(server) = found {
            context.say(format_args!("lost backup {server:?}"));
            self.backup_lost(context, server);
        }
    }

    fn backup_lost(&mut self, context: &Context<'_>, server: ServerId) {
        self.backups.remove(&server);
        self.not_before.insert(server, context.now + self.config.reconnect);
        if let Some(master) = &self.master {
            master.link_down(server);
        }
    }

    fn deliver(
        &mut self,
        context: &mut Context<'_>,
        connection: ConnectionId,
        envelope: &Envelope<'_>,
    ) {
        let header = &envelope.header;
        if header.kind == Kind::Hello {
            return context.welcome(connection, envelope, self.me());
        }
        let meant = header.to == Party::NONE || header.to == Party::server(self.server);
        if !meant && !mutants::active(Mutant::IgnoreServerId) {
            context.say(format_args!("refuses what is for {:?}", header.to));
            context.close(connection);
            return self.lost(context, connection);
        }
        match header.kind {
            Kind::Welcome => self.welcomed(context, connection),
            Kind::Refusal => {
                context.close(connection);
                self.lost(context, connection);
            }
            Kind::CoordinatorResponse => self.answered(context, header, envelope.payload),
            Kind::DataRequest => self.data(context, connection, envelope),
            Kind::Replicate => self.replicate(context, connection, envelope),
            Kind::ReplicateAck => self.acknowledged(context, connection, envelope.payload),
            Kind::BackupRequest => self.backup_request(context, connection, envelope),
            Kind::Order => self.order(context, connection, envelope),
            Kind::BackupResponse => {}
            _ => context.close(connection),
        }
    }

    fn data(
        &mut self,
        context: &mut Context<'_>,
        connection: ConnectionId,
        envelope: &Envelope<'_>,
    ) {
        let (Some(master), Some(inbound)) = (&self.master, self.inbound.get_mut(&connection))
        else {
            return context.close(connection);
        };
        let mut out = Vec::new();
        let mut batch = inbound.data.begin(master.store(), &mut out);
        let read = batch.envelope(&envelope.header, envelope.payload);
        batch.end(master.lease());
        if !out.is_empty() {
            context.send(connection, &out);
        }
        if read.is_err() {
            context.close(connection);
        }
    }

    fn replicate(
        &mut self,
        context: &mut Context<'_>,
        connection: ConnectionId,
        envelope: &Envelope<'_>,
    ) {
        let (Some(backup), Some(from)) = (&mut self.backup, envelope.header.from.as_server())
        else {
            return context.close(connection);
        };
        let Ok(message) = Replicate::read(envelope.payload) else {
            return context.close(connection);
        };
        if !backup.hears(context.now, from, envelope.header.correlation) {
            context.say(format_args!("refuses what is left of a connection of {from:?}"));
            return context.close(connection);
        }
        let ack = backup.handle_replicate(context.now, from, &message);
        if context.trace.wants_lines() {
            context.say(format_args!(
                "holds {from:?} {:?} {:?} up to {} flags {} -> {:?} {:?} {}",
                message.segment,
                message.epoch,
                message.length,
                message.flags,
                ack.status,
                ack.epoch,
                ack.length
            ));
        }
        let header = envelope.header.reply(Kind::ReplicateAck);
        context.send_payload(connection, header, &ack.to_bytes());
    }

    fn acknowledged(&mut self, context: &Context<'_>, connection: ConnectionId, payload: &[u8]) {
        let from = self
            .backups
            .iter()
            .find(|(_, link)| link.connection == connection)
            .map(|(server, _)| *server);
        let (Some(from), Some(master)) = (from, &self.master) else {
            return;
        };
        if let Ok(ack) = ReplicateAck::read(payload) {
            master.handle_ack(context.now, from, &ack);
        }
    }

    fn backup_request(
        &mut self,
        context: &mut Context<'_>,
        connection: ConnectionId,
        envelope: &Envelope<'_>,
    ) {
        let (Some(backup), Ok(request)) = (
            &mut self.backup,
            postcards::decode::<BackupRequest>(envelope.payload),
        ) else {
            return context.close(connection);
        };
        if let BackupRequest::Free { master, .. } = request
            && !backup.hears(context.now, master, envelope.header.correlation)
        {
            context.say(format_args!("refuses what is left of a connection of {master:?}"));
            return context.close(connection);
        }
        let answer = backup.handle_request(context.now, envelope.header.from, request);
        let mut payload = postcards::encode(&answer.response);
        payload.extend_from_slice(answer.bytes);
        let header = envelope.header.reply(Kind::BackupResponse);
        context.send_payload(connection, header, &payload);
    }

    fn order(
        &mut self,
        context: &mut Context<'_>,
        connection: ConnectionId,
        envelope: &Envelope<'_>,
    ) {
        let Ok(order) = postcards::decode::<Order>(envelope.payload) else {
            return context.close(connection);
        };
        let reply = self.carry_out(context, order);
        let header = envelope.header.reply(Kind::OrderReply);
        context.send_payload(connection, header, &postcards::encode(&reply));
    }

    fn carry_out(&mut self, context: &mut Context<'_>, order: Order) -> OrderReply {
        if order.ballot < self.ballot {
            return OrderReply::StaleBallot(self.ballot);
        }
        self.ballot = order.ballot;
        if let Command::UpdateServers(list) = &order.command {
            self.take_list(context, list);
        }
        match (&self.master, &order.command) {
            (Some(master), _) => master.handle_order(order),
            (None, Command::TakeTablets(_)) => OrderReply::NotReady,
            (None, _) => OrderReply::Done,
        }
    }

    /// The backup fences who was decided crashed; a server that finds itself there stops.
    fn take_list(&mut self, context: &mut Context<'_>, list: &ServerList) {
        if list.version <= self.list.version {
            return;
        }
        self.list = list.clone();
        for entry in &list.servers {
            if entry.state != ServerState::Crashed {
                continue;
            }
            if let Some(backup) = &mut self.backup {
                backup.fence(entry.server);
            }
            if entry.server == self.server {
                self.stop(context);
            }
        }
    }

    fn stop(&mut self, context: &mut Context<'_>) {
        if !self.stopped {
            context.say(format_args!("{:?} was decided crashed and stops", self.server));
            self.stopped = true;
        }
    }

    fn ask(&mut self, context: &Context<'_>, request: Request) {
        self.coordinator.asks.push(Ask {
            request,
            sent: None,
            asked: context.now,
        });
    }

    fn expire_asks(&mut self, context: &mut Context<'_>) {
        let late = |ask: &Ask| {
            ask.sent
                .is_some_and(|(_, sent)| context.now.since(sent) >= ASK_PATIENCE)
        };
        if self.coordinator.asks.iter().any(late) {
            if let Some(connection) = self.coordinator.connection {
                context.close(connection);
            }
            self.coordinator_lost(context);
        }
    }

    /// The connection to the coordinator is gone: who asked is told so, but enlisting goes on.
    fn coordinator_lost(&mut self, context: &mut Context<'_>) {
        let not_before = context.now + self.config.reconnect;
        let link = &mut self.coordinator;
        link.connection = None;
        link.open = false;
        link.which += 1;
        link.not_before = not_before;
        let (enlist, others): (Vec<_>, Vec<_>) = link
            .asks
            .drain(..)
            .partition(|ask| matches!(ask.request, Request::Enlist(_)));
        link.asks = enlist;
        for ask in &mut link.asks {
            ask.sent = None;
        }
        for ask in others {
            self.answer(context, &ask.request, None);
        }
    }

    fn answered(&mut self, context: &mut Context<'_>, header: &Header, payload: &[u8]) {
        let asks = &mut self.coordinator.asks;
        let found = asks
            .iter()
            .position(|ask| ask.sent.is_some_and(|(number, _)| number == header.correlation));
        let (Some(found), Ok(response)) = (found, postcards::decode::<Response>(payload)) else {
            return;
        };
        if matches!(response.answer, Answer::Refused(Refused::NotLeader { .. })) {
            asks[found].sent = None;
            self.coordinator.not_before = context.now + self.config.reconnect;
            if !matches!(asks[found].request, Request::Enlist(_)) {
                let ask = asks.remove(found);
                self.answer(context, &ask.request, None);
            }
            return;
        }
        let ask = asks.remove(found);
        self.answer(context, &ask.request, Some(&response));
    }

    fn answer(
        &mut self,
        context: &mut Context<'_>,
        asked: &Request,
        response: Option<&Response>,
    ) {
        if let Some(response) = response {
            self.ballot = self.ballot.max(response.ballot);
            match &response.answer {
                Answer::Enlisted { .. } => return self.enlisted(context, &response.answer),
                Answer::Heard { list: Some(list) } => self.take_list(context, list),
                Answer::Refused(Refused::Crashed) => self.stop(context),
                Answer::EpochRecorded => {
                    context.say(format_args!("recorded: {asked:?}"));
                }
                Answer::Refused(why) => {
                    context.say(format_args!("refused: {asked:?}: {why}"));
                }
                _ => {}
            }
        }
        if let Some(master) = &self.master {
            master.handle_answer(context.now, asked, response);
        }
    }

    fn enlisted(&mut self, context: &mut Context<'_>, answer: &Answer) {
        let Answer::Enlisted {
            server,
            cluster,
            key,
            settings,
            list,
        } = answer
        else {
            return;
        };
        context.say(format_args!("enlisted as {server:?} at {}", self.config.address));
        self.server = *server;
        self.settings = Some(settings.clone());
        if let Some(backup) = &mut self.backup {
            backup
                .assign(*cluster, *server, settings.lease_us)
                .expect("frames in memory can be assigned");
        }
        if self.config.roles.master {
            let config = MasterConfig {
                me: *server,
                cluster: *cluster,
                key: *key,
                settings: settings.clone(),
                memory: self.config.memory,
                seed: self.config.seed,
            };
            self.master = Some(Master::new(config).expect("enough memory for a master"));
        }
        let list = list.clone();
        self.take_list(context, &list);
        if let Some(master) = &self.master {
            let command = Command::UpdateServers(list);
            let ballot = self.ballot;
            master.handle_order(Order { ballot, command });
        }
    }

    fn heartbeat(&mut self, context: &mut Context<'_>) {
        let Some(settings) = &self.settings else {
            return;
        };
        if context.now < self.next_heartbeat {
            return;
        }
        self.next_heartbeat = context.now + Duration::from_micros(settings.heartbeat_us.into());
        let under_way = |ask: &Ask| matches!(ask.request, Request::Heartbeat(_));
        if self.coordinator.asks.iter().any(under_way) {
            return;
        }
        let mut report = match &self.master {
            Some(master) => master.heartbeat(),
            None => Heartbeat {
                server: self.server,
                list: self.list.version,
                ready: true,
                floor: None,
                master: None,
                backup: None,
                resident: 0,
            },
        };
        report.backup = self.backup.as_ref().map(Backup::stats);
        self.ask(context, Request::Heartbeat(report));
    }

    /// Everything that is due after an input.
    fn act(&mut self, context: &mut Context<'_>) {
        if self.master.as_ref().is_some_and(Master::is_fenced) {
            self.stop(context);
        }
        if self.stopped {
            return;
        }
        self.pump(context);
        self.release(context);
        self.connect_backups(context);
        while let Some(request) = self.master.as_ref().and_then(Master::poll_request) {
            self.ask(context, request);
        }
        self.send_asks(context);
    }

    fn pump(&mut self, context: &mut Context<'_>) {
        let Some(master) = &self.master else { return };
        let mut sink = LinkSink {
            me: self.server,
            links: &self.backups,
            messages: Vec::new(),
            lost: Vec::new(),
        };
        master.pump(context.now, &mut sink);
        let LinkSink { messages, lost, .. } = sink;
        for (connection, bytes) in messages {
            context.send(connection, &bytes);
        }
        for server in lost {
            self.backup_lost(context, server);
        }
    }

    fn release(&mut self, context: &mut Context<'_>) {
        let Some(master) = &self.master else { return };
        for (connection, inbound) in &mut self.inbound {
            if !inbound.data.holds() {
                continue;
            }
            let mut out = Vec::new();
            inbound
                .data
                .release(master.store(), master.lease(), &mut out);
            if !out.is_empty() {
                context.send(*connection, &out);
            }
        }
    }

    fn connect_backups(&mut self, context: &mut Context<'_>) {
        let Some(master) = &self.master else { return };
        for (server, addresses) in master.backups() {
            let waits = self
                .not_before
                .get(&server)
                .is_some_and(|until| *until > context.now);
            let Some(address) = addresses.first() else {
                continue;
            };
            if self.backups.contains_key(&server) || waits {
                continue;
            }
            let connection = context.connect(address);
            let link = BackupLink {
                connection,
                open: false,
            };
            self.backups.insert(server, link);
        }
    }

    fn send_asks(&mut self, context: &mut Context<'_>) {
        let from = self.me();
        let link = &mut self.coordinator;
        if link.asks.iter().all(|ask| ask.sent.is_some()) || context.now < link.not_before {
            return;
        }
        let Some(connection) = link.connection else {
            let address = &self.config.coordinators[link.which % self.config.coordinators.len()];
            link.connection = Some(context.connect(address));
            return;
        };
        if !link.open {
            return;
        }
        for ask in link.asks.iter_mut().filter(|ask| ask.sent.is_none()) {
            link.next += 1;
            ask.sent = Some((link.next, context.now));
            let header = Header::new(Kind::CoordinatorRequest, link.next, Party::NONE, from);
            context.send_payload(connection, header, &postcards::encode(&ask.request));
        }
        link.asks.sort_by_key(|ask| ask.asked);
    }
}

/// Collects what the master sends, by connection.
struct LinkSink<'a> {
    me: ServerId,
    links: &'a BTreeMap<ServerId, BackupLink>,
    messages: Vec<(ConnectionId, Vec<u8>)>,
    lost: Vec<ServerId>,
}

impl LinkSink<'_> {
    fn send(&mut self, to: ServerId, kind: Kind, build: impl FnOnce(&mut Vec<u8>)) {
        match self.links.get(&to) {
            Some(link) if link.open => {
                let mut bytes = Vec::new();
                let number = link.connection.0;
                let header = Header::new(kind, number, Party::server(to), Party::server(self.me));
                let start = envelope::begin(&mut bytes, header);
                build(&mut bytes);
                envelope::seal(&mut bytes, start);
                self.messages.push((link.connection, bytes));
            }
            _ if self.lost.contains(&to) => {}
            _ => self.lost.push(to),
        }
    }
}

impl Sink for LinkSink<'_> {
    fn replicate(&mut self, to: ServerId, message: &Replicate<'_>) {
        self.send(to, Kind::Replicate, |out| message.write(out));
    }

    fn free(&mut self, to: ServerId, segments: Vec<SegmentId>) {
        let master = self.me;
        let request = BackupRequest::Free { master, segments };
        self.send(to, Kind::BackupRequest, |out| {
            out.extend_from_slice(&postcards::encode(&request));
        });
    }
}
