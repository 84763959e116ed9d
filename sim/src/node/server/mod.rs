//! A server process: a master, a backup or both behind one address.
//!
//! # Invariants
//! 1. What is meant for another ServerId is not looked at: the connection is closed (SAFETY 6).
//! 2. Acknowledgements reach the master only from the connection that is registered for their
//!    backup; when that breaks the core is told before another is made.
//! 3. A server that learns that it was decided crashed stops.

mod asks;
mod backups;
mod probes;
mod recoveries;
mod told;

use std::collections::BTreeMap;
use std::time::Duration;

use ramkeep_backup::{Backup, FrameStore, MemoryStore};
use ramkeep_master::core::Master;
use ramkeep_master::store::DataSession;
use ramkeep_wire::backup::{BackupRequest, BackupResponse};
use ramkeep_wire::coordinator::{Enlist, Request, Roles, ServerEntry, ServerList, ServerState};
use ramkeep_wire::envelope::{Envelope, Kind};
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::order::{Command, Order, OrderReply};
use ramkeep_wire::replicate::Replicate;
use ramkeep_wire::{Ballot, BootId, Micros, Party, ServerId, postcards};

use self::probes::Probes;
use self::recoveries::RecoveryLinks;
use self::told::Asked;
use super::{Context, delivered};
use crate::crash_points::CrashPoint;
use crate::network::{ConnectionId, NetEvent};

/// How often a server lets time pass.
const TICK: Duration = Duration::from_millis(10);

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
    /// Where the leader is said to be.
    hint: Option<String>,
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
    asked: Asked,
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
    stale_orders: u64,
    coordinator: CoordinatorLink,
    backups: BTreeMap<ServerId, BackupLink>,
    recovery: RecoveryLinks,
    probes: Probes,
    not_before: BTreeMap<ServerId, Micros>,
    inbound: BTreeMap<ConnectionId, Inbound>,
    next_tick: Micros,
    next_heartbeat: Micros,
    /// It has told a client of what it looked up, since this was asked last.
    told: bool,
    /// Moments of recoveries that came since this was asked last.
    points: Vec<CrashPoint>,
}

impl ServerNode {
    /// A process that starts with the frames given, if it is a backup.
    #[must_use]
    pub fn new(config: ServerConfig, frames: Option<MemoryStore>, now: Micros) -> Self {
        let backup = frames.map(|store| {
            Backup::open(store, config.boot, now).expect("the frames were formatted by the world")
        });
        let recovery = RecoveryLinks::new(config.seed);
        Self {
            config,
            backup,
            master: None,
            server: ServerId(0),
            settings: None,
            list: ServerList::default(),
            ballot: Ballot::default(),
            stopped: false,
            stale_orders: 0,
            coordinator: CoordinatorLink::default(),
            backups: BTreeMap::new(),
            recovery,
            probes: Probes::default(),
            not_before: BTreeMap::new(),
            inbound: BTreeMap::new(),
            next_tick: now,
            next_heartbeat: now,
            told: false,
            points: Vec::new(),
        }
    }

    /// Whether it has told a client of what it looked up, since this was asked last.
    pub fn take_told(&mut self) -> bool {
        std::mem::take(&mut self.told)
    }

    /// Moments of recoveries that came since this was asked last.
    pub fn take_points(&mut self) -> Vec<CrashPoint> {
        std::mem::take(&mut self.points)
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

    /// Orders that it has refused for their ballot.
    #[must_use]
    pub fn stale_orders(&self) -> u64 {
        self.stale_orders
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
        self.probe(context);
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
            .map(|(server, _)| *server)
            .or_else(|| self.recovery.to(connection))
            .or_else(|| self.probes.to(connection))
            .map_or(Party::NONE, Party::server);
        context.hello(connection, self.me(), to);
    }

    fn welcomed(&mut self, context: &mut Context<'_>, connection: ConnectionId) {
        if self.coordinator.connection == Some(connection) {
            self.coordinator.open = true;
            return;
        }
        if let Some(server) = self.recovery.to(connection) {
            return self.recovery.welcomed(server);
        }
        if let Some(server) = self.probes.to(connection) {
            return self.probe_welcomed(context, server);
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
        if let Some(server) = self.recovery.to(connection) {
            return self.fetches_lost(context, server);
        }
        if let Some(server) = self.probes.to(connection) {
            return self.probe_lost(server, false);
        }
        let found = self
            .backups
            .iter()
            .find(|(_, link)| link.connection == connection)
            .map(|(server, link)| (*server, link.open));
        if let Some((server, open)) = found {
            context.say(format_args!("lost backup {server:?}"));
            self.backup_lost(context, server);
            if let Some(prober) = self.probes.prober.as_mut().filter(|_| open) {
                prober.handle_closed(server);
            }
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
            Kind::Welcome => {
                context.prove(connection, envelope);
                self.welcomed(context, connection);
            }
            Kind::Proof => {}
            Kind::Refusal => {
                context.close(connection);
                match self.probes.to(connection) {
                    Some(server) => self.probe_lost(server, true),
                    None => self.lost(context, connection),
                }
            }
            Kind::Probe => {
                context.send_payload(connection, header.reply(Kind::ProbeReply), &[]);
            }
            Kind::ProbeReply => {
                if let Some(prober) = &mut self.probes.prober {
                    prober.handle_answer(header.correlation);
                }
            }
            Kind::CoordinatorResponse => self.answered(context, header, envelope.payload),
            Kind::DataRequest => self.data(context, connection, envelope),
            Kind::Replicate => self.replicate(context, connection, envelope),
            Kind::ReplicateAck => self.acknowledged(context, connection, envelope.payload),
            Kind::BackupRequest => self.backup_request(context, connection, envelope),
            Kind::Order => self.order(context, connection, envelope),
            Kind::BackupResponse => {
                self.fetched(context, connection, header.correlation, envelope.payload);
            }
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
        inbound.asked.note(envelope);
        let mut batch = inbound.data.begin(master.store(), &mut out);
        let read = batch.envelope(&envelope.header, envelope.payload);
        batch.end(|| master.lease(context.now));
        self.told |= inbound.asked.is_told(&out);
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
            context.say(format_args!(
                "refuses what is left of a connection of {from:?}"
            ));
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
            context.say(format_args!(
                "refuses what is left of a connection of {master:?}"
            ));
            return context.close(connection);
        }
        let from = envelope.header.from;
        let fetches = matches!(request, BackupRequest::Fetch { .. });
        let answer = backup.handle_request(context.now, from, request);
        match &answer.response {
            BackupResponse::Inventory(_) if from.as_server().is_none() => {
                self.points.push(CrashPoint::FenceAnswered);
            }
            BackupResponse::Bytes { .. } if fetches && from.as_server().is_some() => {
                self.points.push(CrashPoint::FirstFetch);
            }
            _ => {}
        }
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
        if matches!(reply, OrderReply::Recovered(_)) {
            self.points.push(CrashPoint::SaidSo);
        }
        let header = envelope.header.reply(Kind::OrderReply);
        context.send_payload(connection, header, &postcards::encode(&reply));
    }

    fn carry_out(&mut self, context: &mut Context<'_>, order: Order) -> OrderReply {
        if order.ballot < self.ballot {
            self.stale_orders += 1;
            return OrderReply::StaleBallot(self.ballot);
        }
        self.ballot = order.ballot;
        if let Command::UpdateServers(list) = &order.command {
            self.take_list(context, list);
        }
        match (&self.master, &order.command) {
            (Some(master), _) => master.handle_order(order),
            (None, Command::TakeTablets(_) | Command::TakeRecovered(_)) => OrderReply::NotReady,
            (None, Command::Recover(_)) => {
                OrderReply::CannotRecover("there is no master here".into())
            }
            (None, _) => OrderReply::Done,
        }
    }

    /// The backup fences who was decided crashed; a server that finds itself there stops.
    fn take_list(&mut self, context: &mut Context<'_>, list: &ServerList) {
        if list.version <= self.list.version {
            return;
        }
        self.list = list.clone();
        if let Some(backup) = &mut self.backup {
            let before = backup.stats().used;
            backup.take_list(list);
            if backup.stats().used < before {
                self.points.push(CrashPoint::Freed);
            }
        }
        let is_me = |entry: &&ServerEntry| entry.server == self.server;
        let me = list.servers.iter().find(is_me);
        if me.is_some_and(|entry| entry.state == ServerState::Crashed) {
            self.stop(context);
        }
    }

    fn stop(&mut self, context: &mut Context<'_>) {
        if !self.stopped {
            context.say(format_args!(
                "{:?} was decided crashed and stops",
                self.server
            ));
            self.stopped = true;
        }
    }

    /// Everything that is due after an input.
    fn act(&mut self, context: &mut Context<'_>) {
        if self.master.as_ref().is_some_and(Master::is_fenced) {
            self.stop(context);
        }
        if self.stopped {
            return;
        }
        self.recover(context);
        self.pump(context);
        self.release(context);
        if let Some(master) = &self.master {
            let durable = master.store().durability().position();
            self.points.extend(self.recovery.is_durable(durable));
        }
        self.connect_backups(context);
        while let Some(request) = self.master.as_ref().and_then(Master::poll_request) {
            self.ask(context, request);
        }
        self.send_asks(context);
        if self.recovery.is_busy() {
            self.next_tick = self.next_tick.min(context.now + self.recovery.pace());
        }
    }

    fn release(&mut self, context: &mut Context<'_>) {
        let Some(master) = &self.master else { return };
        for (connection, inbound) in &mut self.inbound {
            if !inbound.data.holds() {
                continue;
            }
            let mut out = Vec::new();
            let lease = || master.lease(context.now);
            inbound.data.release(master.store(), lease, &mut out);
            self.told |= inbound.asked.is_told(&out);
            if !out.is_empty() {
                context.send(*connection, &out);
            }
        }
    }
}
