//! The connections to the other coordinators, as the shell keeps them: one to each, for what this
//! one says; what they say comes on theirs.
//!
//! # Invariants
//! 1. Messages to one coordinator leave in order, as long as its connection lasts.
//! 2. At most [`MAX_WAITING`] messages wait for a connection; older ones are lost.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ramkeep_wire::envelope::{Header, Kind};
use ramkeep_wire::{Micros, Party, PeerId, postcards};

use super::super::Context;
use crate::network::ConnectionId;

/// Messages that wait while a connection is made.
const MAX_WAITING: usize = 64;
/// Between two attempts to connect.
const RETRY: Duration = Duration::from_millis(100);

#[derive(Debug)]
struct Line {
    address: String,
    connection: Option<ConnectionId>,
    open: bool,
    /// No process listened there when it was asked for.
    nobody: bool,
    retry: Micros,
    waiting: VecDeque<Vec<u8>>,
}

/// The connections.
#[derive(Debug)]
pub(super) struct Lines {
    me: PeerId,
    all: BTreeMap<PeerId, Line>,
}

impl Lines {
    pub(super) fn new(me: PeerId) -> Self {
        let all = BTreeMap::new();
        Self { me, all }
    }

    fn header(&self, to: PeerId) -> Header {
        let (to, me) = (Party::coordinator(to), Party::coordinator(self.me));
        Header::new(Kind::Group, 0, to, me)
    }

    /// Sends a message, or keeps it while a connection is made.
    pub(super) fn send(
        &mut self,
        context: &mut Context<'_>,
        address: Option<String>,
        message: &paxos::Envelope,
    ) {
        let to = PeerId(message.to.0);
        let Some(address) = address else { return };
        let header = self.header(to);
        let known = self.all.get(&to);
        if known.is_none_or(|line| line.address != address) {
            if let Some(old) = known.and_then(|line| line.connection) {
                context.close(old);
            }
            let line = Line {
                address,
                connection: None,
                open: false,
                nobody: false,
                retry: Micros(0),
                waiting: VecDeque::new(),
            };
            self.all.insert(to, line);
            self.connect(context);
        }
        let Some(line) = self.all.get_mut(&to) else {
            return;
        };
        let payload = postcards::encode(message);
        match line.connection {
            Some(connection) if line.open => context.send_payload(connection, header, &payload),
            _ => {
                if line.waiting.len() >= MAX_WAITING {
                    line.waiting.pop_front();
                }
                line.waiting.push_back(payload);
            }
        }
    }

    /// Asks for the connections that are missing and due.
    pub(super) fn connect(&mut self, context: &mut Context<'_>) {
        for line in self.all.values_mut() {
            if line.connection.is_none() && line.retry <= context.now {
                line.nobody = !context.listeners.contains_key(&line.address);
                line.connection = Some(context.connect(&line.address));
            }
        }
    }

    /// When the next connection is to be asked for.
    pub(super) fn due(&self) -> Option<Micros> {
        let missing = self.all.values().filter(|line| line.connection.is_none());
        missing.map(|line| line.retry).min()
    }

    fn at(&self, connection: ConnectionId) -> Option<PeerId> {
        let mut all = self.all.iter();
        all.find(|(_, line)| line.connection == Some(connection))
            .map(|(id, _)| *id)
    }

    /// A connection has opened. False when it is none of these.
    pub(super) fn opened(&self, context: &mut Context<'_>, connection: ConnectionId) -> bool {
        let Some(to) = self.at(connection) else {
            return false;
        };
        let me = Party::coordinator(self.me);
        context.hello(connection, me, Party::coordinator(to));
        true
    }

    /// A connection can be used. False when it is none of these.
    pub(super) fn welcomed(&mut self, context: &mut Context<'_>, connection: ConnectionId) -> bool {
        let Some(to) = self.at(connection) else {
            return false;
        };
        let header = self.header(to);
        if let Some(line) = self.all.get_mut(&to) {
            line.open = true;
            for payload in std::mem::take(&mut line.waiting) {
                context.send_payload(connection, header, &payload);
            }
        }
        true
    }

    /// A connection is gone, or could not be made: to whom, and whether nobody listens there.
    pub(super) fn lost(
        &mut self,
        context: &Context<'_>,
        connection: ConnectionId,
    ) -> Option<(PeerId, bool)> {
        let to = self.at(connection)?;
        let line = self.all.get_mut(&to)?;
        line.connection = None;
        line.open = false;
        line.retry = context.now + RETRY;
        Some((to, std::mem::take(&mut line.nobody)))
    }
}
