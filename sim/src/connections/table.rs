//! The connections of one process, and what it hears of them.

use std::collections::{BTreeMap, BTreeSet};

use ramkeep_rpc::hello::HANDSHAKE_DEADLINE;
use ramkeep_rpc::wires::{Attempt, WireId, WireOutput};
use ramkeep_rpc::{Closed, Handshake, HelloError, Identity, Opened};
use ramkeep_wire::Micros;
use ramkeep_wire::envelope::Kind;
use ramkeep_wire::hello::Refusal;

use super::words::{End, Happening, Making, Side};
use crate::network::{ConnectionId, NetEvent};
use crate::node::Context;

/// The connections of one process.
#[derive(Debug)]
pub struct Connections {
    pub(super) identity: Identity,
    pub(super) serves: &'static [Kind],
    /// Wires that are being made or up.
    pub(super) wires: BTreeMap<WireId, Making>,
    pub(super) ends: BTreeMap<ConnectionId, End>,
    /// When handshakes are given up.
    deadlines: BTreeSet<(Micros, ConnectionId)>,
    /// What the process has not heard yet.
    pub(super) news: Vec<Happening>,
    pub(super) last_plain: u64,
}

impl Connections {
    /// No connections. Requests of the kinds in `serves` are given to the process; one that serves
    /// none does not listen.
    #[must_use]
    pub fn new(identity: Identity, serves: &'static [Kind]) -> Self {
        Self {
            identity,
            serves,
            wires: BTreeMap::new(),
            ends: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            news: Vec::new(),
            last_plain: 0,
        }
    }

    /// Who this process is on its connections.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Does what a core wants of a wire.
    pub fn perform(&mut self, context: &mut Context<'_>, output: WireOutput) {
        match output {
            WireOutput::Connect {
                wire,
                addresses,
                to,
            } => self.make(context, wire, addresses, to),
            WireOutput::Send { wire, bytes } => self.send(context, wire, &bytes),
            WireOutput::Close { wire } => self.close(context, wire),
        }
    }

    /// What the process hears of an event of the network.
    #[must_use]
    pub fn handle(&mut self, context: &mut Context<'_>, event: &NetEvent) -> Vec<Happening> {
        match event {
            NetEvent::Opened { connection, .. } => self.network_answered(context, *connection),
            NetEvent::Failed {
                connection, why, ..
            } => self.network_failed(context, *connection, *why),
            NetEvent::Accepted { connection, .. } => self.accept(context, *connection),
            NetEvent::Deliver {
                connection, bytes, ..
            } => self.deliver(context, *connection, bytes),
            NetEvent::Broken { connection, .. } => self.broken(context, *connection),
        }
        std::mem::take(&mut self.news)
    }

    /// Lets time pass: what the process hears that no event of the network told.
    #[must_use]
    pub fn handle_tick(&mut self, context: &mut Context<'_>) -> Vec<Happening> {
        while let Some((until, connection)) = self.deadlines.first().copied()
            && until <= context.now
        {
            let why =
                format!("the peer did not finish the handshake within {HANDSHAKE_DEADLINE:?}");
            context.close(connection);
            if let Some(End::Shaking { side, .. }) = self.take_end(connection) {
                self.not_opened(context, side, Attempt::Failed(why));
            }
        }
        std::mem::take(&mut self.news)
    }

    /// When [`Connections::handle_tick`] has something to do.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Micros> {
        if !self.news.is_empty() {
            return Some(Micros(0));
        }
        self.deadlines.first().map(|(until, _)| *until)
    }

    /// Ends all connections, as a process that stops does: peers that it accepted are told so.
    pub fn stop(&mut self, context: &mut Context<'_>) {
        for wire in self.wires.keys().copied().collect::<Vec<_>>() {
            self.close(context, wire);
        }
        for connection in self.ends.keys().copied().collect::<Vec<_>>() {
            self.refuse_inbound(context, connection, &Refusal::Stopping);
        }
    }

    pub(super) fn take_end(&mut self, connection: ConnectionId) -> Option<End> {
        let end = self.ends.remove(&connection)?;
        if let End::Shaking { until, .. } = &end {
            self.deadlines.remove(&(*until, connection));
        }
        Some(end)
    }

    /// A handshake has begun, or could not.
    pub(super) fn shake(
        &mut self,
        context: &mut Context<'_>,
        connection: ConnectionId,
        side: Side,
        begun: Result<Handshake, HelloError>,
        out: &[u8],
    ) {
        context.send(connection, out);
        match begun {
            Ok(handshake) => {
                let until = context.now + HANDSHAKE_DEADLINE;
                self.deadlines.insert((until, connection));
                let handshake = Box::new(handshake);
                let end = End::Shaking {
                    side,
                    handshake,
                    until,
                };
                self.ends.insert(connection, end);
            }
            Err(error) => self.handshake_failed(context, connection, side, &error),
        }
    }

    fn deliver(&mut self, context: &mut Context<'_>, connection: ConnectionId, bytes: &[u8]) {
        match self.ends.get_mut(&connection) {
            Some(End::Shaking {
                side, handshake, ..
            }) => {
                let (side, mut out) = (*side, Vec::new());
                let outcome = handshake.handle(bytes, &mut out);
                context.send(connection, &out);
                match outcome {
                    Ok(None) => {}
                    Ok(Some(opened)) => self.opened(connection, side, &opened),
                    Err(error) => self.handshake_failed(context, connection, side, &error),
                }
            }
            Some(End::Wire { wire, expect }) => {
                let (wire, expect) = (*wire, *expect);
                self.received(context, connection, wire, expect, bytes);
            }
            Some(End::Inbound { peer }) => {
                let peer = *peer;
                self.requested(context, connection, peer, bytes);
            }
            Some(End::Asked(_)) | None => {}
        }
    }

    fn opened(&mut self, connection: ConnectionId, side: Side, opened: &Opened) {
        assert!(opened.rest.is_empty(), "the network carries one envelope");
        self.take_end(connection);
        match side {
            Side::Connecting(wire) => self.is_up(connection, wire, opened),
            Side::Accepting => self.is_accepted(connection, opened.peer, opened.cluster),
        }
    }

    fn handshake_failed(
        &mut self,
        context: &mut Context<'_>,
        connection: ConnectionId,
        side: Side,
        error: &HelloError,
    ) {
        context.say(format_args!("no connection: {error}"));
        context.close(connection);
        self.take_end(connection);
        self.not_opened(context, side, Attempt::from(error));
    }

    /// What was to be a connection is none.
    fn not_opened(&mut self, context: &mut Context<'_>, side: Side, attempt: Attempt) {
        match side {
            Side::Connecting(wire) => self.attempt_failed(context, wire, attempt),
            Side::Accepting => {}
        }
    }

    fn broken(&mut self, context: &mut Context<'_>, connection: ConnectionId) {
        match self.take_end(connection) {
            Some(End::Shaking { side, .. }) => {
                let why = "the connection broke during the handshake".to_owned();
                self.not_opened(context, side, Attempt::Failed(why));
            }
            Some(End::Asked(wire)) => {
                let why = "the connection broke before it was made".to_owned();
                self.attempt_failed(context, wire, Attempt::Failed(why));
            }
            Some(End::Wire { wire, .. }) => self.is_down(wire, &Closed::ByPeer),
            Some(End::Inbound { peer }) => {
                let inbound = connection;
                self.news.push(Happening::Gone { inbound, peer });
            }
            None => {}
        }
    }
}
