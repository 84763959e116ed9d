//! A client process: its sessions over the network, driven as the async client's lanes are.

use std::collections::BTreeMap;

use ramkeep_client::limits::MAX_LINK_UNSENT;
use ramkeep_client::session::{Session, Target};
use ramkeep_rpc::Identity;
use ramkeep_rpc::wires::{WireEnd, WireId};
use ramkeep_wire::Micros;

use super::{Context, delivered};
use crate::connections::{Connections, Happening};
use crate::network::NetEvent;
use crate::workload::client::ClientBooks;

/// A client process.
#[derive(Debug)]
pub struct ClientNode {
    sessions: Vec<Session<WireId>>,
    /// Whose connection each wire is: the session, the target, the number.
    wires: BTreeMap<WireId, (usize, Target, u64)>,
    connections: Connections,
    /// What it does and was told.
    pub books: ClientBooks,
}

impl ClientNode {
    /// A client with a session for each nonce.
    #[must_use]
    pub fn new(coordinators: &[String], nonces: &[[u8; 16]], books: ClientBooks) -> Self {
        let identity = Identity::new(None);
        let session =
            |nonce: &[u8; 16]| Session::new(identity.clone(), coordinators.to_vec(), *nonce);
        Self {
            sessions: nonces.iter().map(session).collect(),
            wires: BTreeMap::new(),
            connections: Connections::new(identity, &[]),
            books,
        }
    }

    /// It ends, and says so.
    pub fn leave(&mut self, context: &mut Context<'_>) {
        for (wire, bytes) in self.sessions.iter().filter_map(Session::farewell) {
            self.connections.send(context, wire, &bytes);
        }
        self.connections.stop(context);
    }

    pub(super) fn next_timeout(&self) -> Option<Micros> {
        let sessions = self.sessions.iter().filter_map(Session::next_timeout);
        let others = [self.books.next_timeout(), self.connections.next_timeout()];
        sessions.chain(others.into_iter().flatten()).min()
    }

    pub(super) fn timer(&mut self, context: &mut Context<'_>) {
        for session in &mut self.sessions {
            session.handle_tick(context.now);
        }
        let news = self.connections.handle_tick(context);
        self.heed(context, news);
    }

    pub(super) fn net(&mut self, context: &mut Context<'_>, event: &NetEvent) {
        let news = self.connections.handle(context, event);
        self.heed(context, news);
    }

    fn heed(&mut self, context: &mut Context<'_>, news: Vec<Happening>) {
        for happening in news {
            self.hear(context.now, happening);
        }
        self.poke(context);
    }

    fn hear(&mut self, now: Micros, happening: Happening) {
        let (Happening::Up { wire, .. }
        | Happening::Received { wire, .. }
        | Happening::Down { wire, .. }) = happening
        else {
            return;
        };
        let Some((session, target, number)) = self.wires.get(&wire).copied() else {
            return;
        };
        let session = &mut self.sessions[session];
        match happening {
            Happening::Up { cluster, .. } => {
                session.connected(target, number, wire, cluster);
            }
            Happening::Received { bytes, .. } => {
                // What is wrong with it has closed the connection.
                let _ = session.receive(now, target, number, &delivered(&bytes));
            }
            Happening::Down { end, .. } => {
                self.wires.remove(&wire);
                let why = end.to_string();
                match end {
                    WireEnd::Refused(refusal) => {
                        session.refused(now, target, number, &refusal, &why);
                    }
                    _ => session.lost(now, target, number, &why),
                }
            }
            _ => {}
        }
    }

    /// Does what is to be done now.
    pub fn poke(&mut self, context: &mut Context<'_>) {
        while self.books.act(context, &mut self.sessions) {
            self.pump(context);
        }
        self.pump(context);
    }

    fn pump(&mut self, context: &mut Context<'_>) {
        for (at, session) in self.sessions.iter_mut().enumerate() {
            while let Some((target, connection)) = session.next_send(context.now) {
                let mut bytes = Vec::new();
                session.fill(context.now, target, &mut bytes, MAX_LINK_UNSENT);
                self.connections.send(context, connection.link, &bytes);
            }
            while let Some(wish) = session.poll_connect() {
                let (to, addresses) = (wish.party(), wish.addresses);
                let wire = self.connections.connect(context, addresses, to);
                self.wires.insert(wire, (at, wish.target, wish.number));
            }
            while let Some(wire) = session.pop_closed() {
                self.wires.remove(&wire);
                self.connections.close(context, wire);
            }
        }
    }
}
