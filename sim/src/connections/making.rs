//! Wires: the connections that a process makes.

use ramkeep_rpc::wires::{Attempt, Reach, WireEnd, WireId};
use ramkeep_rpc::{Batch, Closed, Expect, Handshake, Opened, hand_over};
use ramkeep_wire::Party;

use super::table::Connections;
use super::words::{End, Happening, Making, ON_THIS_MACHINE, Side};
use crate::network::{ConnectionId, Unmade};
use crate::node::Context;

/// The room of the wires that [`Connections::connect`] makes.
const PLAIN_ROOM: u8 = u8::MAX;

impl Connections {
    /// Makes a wire outside of any table, to `to` (`NONE`: whoever is there) at one of these addresses.
    pub fn connect(
        &mut self,
        context: &mut Context<'_>,
        addresses: Vec<String>,
        to: Party,
    ) -> WireId {
        self.last_plain += 1;
        let wire = WireId {
            room: PLAIN_ROOM,
            number: self.last_plain,
        };
        self.make(context, wire, addresses, to);
        wire
    }

    pub(super) fn make(
        &mut self,
        context: &mut Context<'_>,
        wire: WireId,
        addresses: Vec<String>,
        to: Party,
    ) {
        assert!(!self.wires.contains_key(&wire), "no wire is made twice");
        self.try_next(context, wire, Reach::new(addresses, to), to);
    }

    /// Sends envelopes on a wire that is up.
    pub fn send(&mut self, context: &mut Context<'_>, wire: WireId, bytes: &[u8]) {
        if let Some(connection) = self.connection(wire) {
            context.send(connection, bytes);
        }
    }

    /// Closes a wire, or stops making it.
    pub fn close(&mut self, context: &mut Context<'_>, wire: WireId) {
        if let Some(Making { connection, .. }) = self.wires.remove(&wire) {
            self.take_end(connection);
            context.close(connection);
        }
        // What it came to may wait to be told.
        self.news
            .retain(|news| !matches!(news, Happening::Down { wire: down, .. } if *down == wire));
    }

    /// The connection under a wire that is up.
    #[must_use]
    pub fn connection(&self, wire: WireId) -> Option<ConnectionId> {
        let connection = self.wires.get(&wire)?.connection;
        match self.ends.get(&connection)? {
            End::Wire { .. } => Some(connection),
            End::Asked(_) | End::Shaking { .. } | End::Inbound { .. } => None,
        }
    }

    fn try_next(&mut self, context: &mut Context<'_>, wire: WireId, mut reach: Reach, to: Party) {
        match reach.next_address() {
            Ok(address) => {
                let connection = context.connect(&address);
                self.ends.insert(connection, End::Asked(wire));
                let making = Making {
                    reach,
                    to,
                    connection,
                };
                self.wires.insert(wire, making);
            }
            Err(end) => self.news.push(Happening::Down { wire, end }),
        }
    }

    pub(super) fn attempt_failed(
        &mut self,
        context: &mut Context<'_>,
        wire: WireId,
        attempt: Attempt,
    ) {
        if let Some(Making { mut reach, to, .. }) = self.wires.remove(&wire) {
            reach.failed(attempt);
            self.try_next(context, wire, reach, to);
        }
    }

    pub(super) fn network_failed(
        &mut self,
        context: &mut Context<'_>,
        connection: ConnectionId,
        why: Unmade,
    ) {
        if let Some(End::Asked(wire)) = self.take_end(connection) {
            let attempt = match why {
                Unmade::PortRefuses => Attempt::NobodyListens("connection refused".to_owned()),
                Unmade::NoAnswer => Attempt::Failed("no answer".to_owned()),
            };
            self.attempt_failed(context, wire, attempt);
        }
    }

    /// The network has made a connection: this process says hello.
    pub(super) fn network_answered(&mut self, context: &mut Context<'_>, connection: ConnectionId) {
        let Some(End::Asked(wire)) = self.ends.get(&connection) else {
            return;
        };
        let wire = *wire;
        let to = self.wires.get(&wire).map_or(Party::NONE, |wire| wire.to);
        let (nonce, mut out) = (context.rng.bytes(), Vec::new());
        let begun = Handshake::connect(&self.identity, ON_THIS_MACHINE, to, nonce, &mut out);
        self.shake(context, connection, Side::Connecting(wire), begun, &out);
    }

    pub(super) fn is_up(&mut self, connection: ConnectionId, wire: WireId, opened: &Opened) {
        let expect = Expect::made(opened.local, opened.peer);
        self.ends.insert(connection, End::Wire { wire, expect });
        self.news.push(Happening::Up {
            wire,
            local: opened.local,
            peer: opened.peer,
            cluster: opened.cluster,
        });
    }

    pub(super) fn received(
        &mut self,
        context: &mut Context<'_>,
        connection: ConnectionId,
        wire: WireId,
        expect: Expect,
        bytes: &[u8],
    ) {
        let mut batch = Batch::expecting(bytes, expect);
        let (count, end) = hand_over(&mut batch, &mut |_| {});
        assert!(count <= 1, "the network carries one envelope");
        if count == 1 {
            let bytes = bytes.to_vec();
            self.news.push(Happening::Received { wire, bytes });
        }
        if let Some(end) = end {
            if let Some(refusal) = end.farewell() {
                let (from, to) = (expect.to(), expect.from());
                let told = ramkeep_rpc::hello::refusal_envelope(refusal, from, to);
                context.send(connection, &told);
            }
            context.close(connection);
            self.take_end(connection);
            self.is_down(wire, &end);
        }
    }

    /// A wire that was up is no more.
    pub(super) fn is_down(&mut self, wire: WireId, why: &Closed) {
        self.wires.remove(&wire);
        let end = WireEnd::Closed(why.to_string());
        self.news.push(Happening::Down { wire, end });
    }
}
