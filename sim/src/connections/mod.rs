//! The connections of a simulated process, between its cores and the network: hellos, addresses
//! tried in turn, envelopes that are not for it, refusals. A node sees none of that.
//!
//! # Invariants
//! 1. Whether a connection comes to be, what may come on it and why it ends is judged by
//!    `ramkeep_rpc`, as it is over sockets; here bytes and time are carried.
//! 2. A wire's up comes before anything received on it, its down once and last. Nothing is heard of a
//!    wire that the process has closed.
//! 3. An accepted connection is told of once its peer is known, its end once and last, but for one
//!    that the process closed.

mod accepting;
mod carrier;
mod making;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod toys;

use std::collections::{BTreeMap, BTreeSet};

use ramkeep_rpc::hello::HANDSHAKE_DEADLINE;
use ramkeep_rpc::wires::{Attempt, WireEnd, WireId, WireOutput};
use ramkeep_rpc::{Expect, Handshake, HelloError, Identity, Opened};
use ramkeep_wire::envelope::Kind;
use ramkeep_wire::{ClusterId, Micros, Party};

pub use self::carrier::{Carried, WireCarrier};
use self::making::Making;
use crate::network::{ConnectionId, NetEvent};
use crate::node::Context;

/// What becomes of a process's connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happening {
    /// A wire is of use.
    Up {
        /// Which.
        wire: WireId,
        /// This process, as it said hello.
        local: Party,
        /// Who is there.
        peer: Party,
        /// The cluster, as either side knew it; zero if neither did.
        cluster: ClusterId,
    },
    /// An envelope came on a wire.
    Received {
        /// Which.
        wire: WireId,
        /// The envelope.
        bytes: Vec<u8>,
    },
    /// A wire has ended, or could not be made.
    Down {
        /// Which.
        wire: WireId,
        /// Why.
        end: WireEnd,
    },
    /// Someone has connected, and is who it says.
    Accepted {
        /// The connection.
        inbound: ConnectionId,
        /// Who.
        peer: Party,
    },
    /// An envelope of a kind that is served here came on an accepted connection.
    Request {
        /// The connection.
        inbound: ConnectionId,
        /// The envelope.
        bytes: Vec<u8>,
    },
    /// An accepted connection has ended.
    Gone {
        /// The connection.
        inbound: ConnectionId,
        /// Who was there.
        peer: Party,
    },
}

/// All simulated processes count as being on one machine: keys are for those of several.
const ON_THIS_MACHINE: bool = true;
/// The room of the wires that [`Connections::connect`] makes.
const PLAIN_ROOM: u8 = u8::MAX;

/// The connections of one process.
#[derive(Debug)]
pub struct Connections {
    identity: Identity,
    serves: &'static [Kind],
    /// Wires that are being made or up.
    wires: BTreeMap<WireId, Making>,
    ends: BTreeMap<ConnectionId, End>,
    /// When handshakes are given up.
    deadlines: BTreeSet<(Micros, ConnectionId)>,
    /// What the process has not heard yet.
    news: Vec<Happening>,
    last_plain: u64,
}

/// This process's end of a connection.
#[derive(Debug)]
enum End {
    /// The network has not answered yet.
    Asked(WireId),
    /// The handshake is under way.
    Shaking {
        side: Side,
        handshake: Box<Handshake>,
        until: Micros,
    },
    /// Made by this process, and of use.
    Wire { wire: WireId, expect: Expect },
    /// Accepted, from a known peer.
    Inbound { peer: Party },
}

/// Which side of a handshake this process is.
#[derive(Clone, Copy, Debug)]
enum Side {
    Connecting(WireId),
    Accepting,
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
            self.refuse_inbound(context, connection, &ramkeep_wire::hello::Refusal::Stopping);
        }
    }

    fn take_end(&mut self, connection: ConnectionId) -> Option<End> {
        let end = self.ends.remove(&connection)?;
        if let End::Shaking { until, .. } = &end {
            self.deadlines.remove(&(*until, connection));
        }
        Some(end)
    }

    /// A handshake has begun, or could not.
    fn shake(
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
            Side::Accepting => self.is_accepted(connection, opened.peer),
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
            Some(End::Wire { wire, .. }) => self.is_down(wire, &ramkeep_rpc::Closed::ByPeer),
            Some(End::Inbound { peer }) => {
                let inbound = connection;
                self.news.push(Happening::Gone { inbound, peer });
            }
            None => {}
        }
    }
}
