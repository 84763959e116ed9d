//! One stranger: its visits, and those who take it for another.

use std::collections::BTreeMap;

use ramkeep_rpc::Handshake;
use ramkeep_wire::envelope::{Header, Kind};
use ramkeep_wire::{Micros, Party};

use super::manner::{Manner, StrangerConfig, VISITOR};
use super::visit::{Heard, Visit};
use crate::network::{ConnectionId, NetEvent};
use crate::node::{Context, delivered};

/// One who connects to a stranger.
#[derive(Debug)]
enum Guest {
    /// It is told nothing.
    Ignored,
    /// It says for whom it is.
    Shaking(Handshake, Party),
    /// It takes the stranger for whom it looked for: `NONE` for whoever is there.
    In(Party),
}

/// A stranger.
#[derive(Debug)]
pub struct StrangerNode {
    config: StrangerConfig,
    visit: Option<Visit>,
    next_visit: Micros,
    /// Who connects to it.
    guests: BTreeMap<ConnectionId, Guest>,
    /// What processes of the cluster did that they must not.
    pub wrongs: Vec<String>,
    /// Visits that ended, and those of them that the visited ended, by a refusal or a close.
    pub ended: (u64, u64),
    /// Requests that came to it: from processes that took it for another.
    pub requests: u64,
}

impl StrangerNode {
    /// A stranger that has not begun.
    #[must_use]
    pub fn new(config: StrangerConfig) -> Self {
        Self {
            config,
            visit: None,
            next_visit: Micros(0),
            guests: BTreeMap::new(),
            wrongs: Vec::new(),
            ended: (0, 0),
            requests: 0,
        }
    }

    pub(crate) fn start(&mut self, context: &mut Context<'_>) {
        self.next_visit = context.now + self.config.rest;
    }

    pub(crate) fn next_timeout(&self) -> Option<Micros> {
        match &self.visit {
            Some(visit) => Some(visit.until()),
            None if self.config.visits.is_empty() => None,
            None => Some(self.next_visit),
        }
    }

    pub(crate) fn timer(&mut self, context: &mut Context<'_>) {
        if let Some(visit) = self.visit.take_if(|visit| visit.until() <= context.now) {
            // It may be cut off: nothing is wrong yet with one that stays.
            context.close(visit.connection());
            self.over(context, false);
        }
        if self.visit.is_none() && !self.config.visits.is_empty() && context.now >= self.next_visit
        {
            let address = context.rng.choose(&self.config.visits).clone();
            self.visit = Some(Visit::begin(context, address));
        }
    }

    fn over(&mut self, context: &Context<'_>, by_the_visited: bool) {
        self.ended.0 += 1;
        self.ended.1 += u64::from(by_the_visited);
        self.next_visit = context.now + self.config.rest;
    }

    pub(crate) fn net(&mut self, context: &mut Context<'_>, event: &NetEvent) {
        let connection = match event {
            NetEvent::Accepted { connection, .. } => return self.receive(context, *connection),
            NetEvent::Opened { connection, .. }
            | NetEvent::Failed { connection, .. }
            | NetEvent::Deliver { connection, .. }
            | NetEvent::Broken { connection, .. } => *connection,
        };
        let visits = |visit: &mut Visit| visit.connection() == connection;
        match (self.visit.take_if(visits), event) {
            (Some(visit), _) => self.visiting(context, visit, event),
            (None, NetEvent::Deliver { bytes, .. }) => self.told(context, connection, bytes),
            (None, _) => {
                self.guests.remove(&connection);
            }
        }
    }

    fn visiting(&mut self, context: &mut Context<'_>, mut visit: Visit, event: &NetEvent) {
        let heard = match event {
            NetEvent::Opened { .. } => visit.enter(context, &self.config),
            NetEvent::Deliver { bytes, .. } => visit.hear(context, &self.config, bytes),
            NetEvent::Failed { .. } => Heard::NotReached,
            NetEvent::Broken { .. } | NetEvent::Accepted { .. } => Heard::Closed,
        };
        match heard {
            Heard::Nothing => {
                self.visit = Some(visit);
                return;
            }
            Heard::Closed => self.over(context, true),
            Heard::LetIn | Heard::NotReached => self.over(context, false),
            Heard::Wrong(what) => {
                self.complain(format_args!("at {}: {what}", visit.address()));
                self.over(context, false);
            }
        }
        context.close(visit.connection());
    }

    fn complain(&mut self, what: std::fmt::Arguments<'_>) {
        let StrangerConfig { number, manner, .. } = &self.config;
        self.wrongs
            .push(format!("stranger {number}, {manner:?}, {what}"));
    }

    /// Someone takes it for another.
    fn receive(&mut self, context: &mut Context<'_>, connection: ConnectionId) {
        if self.config.manner == Manner::Silent {
            self.guests.insert(connection, Guest::Ignored);
            return;
        }
        let (nonce, mut out) = (context.rng.bytes(), Vec::new());
        let begun = Handshake::accept(&self.config.identity, true, nonce, &mut out);
        context.send(connection, &out);
        match begun {
            Ok(handshake) => {
                let guest = Guest::Shaking(handshake, Party::NONE);
                self.guests.insert(connection, guest);
            }
            Err(_) => context.close(connection),
        }
    }

    /// What a guest says: it is sent what it did not ask for.
    fn told(&mut self, context: &mut Context<'_>, connection: ConnectionId, bytes: &[u8]) {
        let header = delivered(bytes).header;
        match self.guests.get_mut(&connection) {
            Some(Guest::Shaking(handshake, to)) => {
                if header.kind == Kind::Hello {
                    *to = header.to;
                }
                let (to, mut out) = (*to, Vec::new());
                let outcome = handshake.handle(bytes, &mut out);
                context.send(connection, &out);
                match outcome {
                    Ok(None) => {}
                    Ok(Some(opened)) if opened.peer != Party::client(VISITOR) => {
                        self.guests.insert(connection, Guest::In(to));
                    }
                    // Strangers are no business of each other.
                    Ok(Some(_)) | Err(_) => {
                        self.guests.remove(&connection);
                        context.close(connection);
                    }
                }
            }
            Some(Guest::In(to)) => {
                let to = *to;
                self.asked(context, connection, to, header);
            }
            Some(Guest::Ignored) | None => {}
        }
    }

    /// A request for whom the guest takes it for.
    fn asked(
        &mut self,
        context: &mut Context<'_>,
        connection: ConnectionId,
        to: Party,
        asked: Header,
    ) {
        self.requests += 1;
        let me = self.config.identity.party();
        if to != Party::NONE && to != me {
            let (from, kind) = (asked.from, asked.kind);
            self.complain(format_args!(
                "who is {me:?}: {from:?} sent it a {kind:?} for {to:?}"
            ));
        }
        if self.config.manner == Manner::WrongKinds {
            context.send_payload(connection, asked.reply(Kind::Probe), &[]);
        }
    }
}
