//! The network between simulated processes: connections that carry whole envelopes.
//!
//! A connection behaves as TCP does. Within it, what is sent in one direction arrives in order and
//! once. When it breaks, a prefix of what is under way in each direction may still arrive, each side
//! learns of it at a time of its own, and so bytes of an old connection may be taken after those of a
//! new one: that is where loss, repetition (by the sender's retries) and reordering come from.
//! A cut holds bytes back, as retransmission would, until it ends or the connection breaks.
//!
//! # Invariants
//! 1. In one direction of one connection, envelopes arrive in the order sent, none twice.
//! 2. A side that has been told of the break gets nothing more from that connection.
//! 3. Every envelope is parsed as it leaves: nothing but valid envelopes travels.

mod faults;

use std::collections::BTreeMap;
use std::time::Duration;

use ramkeep_wire::{Micros, envelope};

use crate::events::Events;
use crate::rng::Rng;

pub use faults::{CUT_BREAKS_AFTER, Direction};

/// One life of a process: a restart is another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessId(pub u32);

/// A connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// Why a connection could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmade {
    /// The port refuses: no process listens there.
    PortRefuses,
    /// Nothing answered in time: there is a cut, or a backlog that is full.
    NoAnswer,
}

/// What the network does to a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetEvent {
    /// The connection that `at` asked for is there.
    Opened {
        /// Which.
        connection: ConnectionId,
        /// Who asked.
        at: ProcessId,
    },
    /// The connection that `at` asked for could not be made.
    Failed {
        /// Which.
        connection: ConnectionId,
        /// Who asked.
        at: ProcessId,
        /// Why.
        why: Unmade,
    },
    /// Someone has connected to `at`.
    Accepted {
        /// Which.
        connection: ConnectionId,
        /// Who listens.
        at: ProcessId,
    },
    /// One envelope arrives.
    Deliver {
        /// On which connection.
        connection: ConnectionId,
        /// At whom.
        at: ProcessId,
        /// Its number in its direction.
        number: u64,
        /// The envelope.
        bytes: Vec<u8>,
    },
    /// `at` learns that the connection is gone.
    Broken {
        /// Which.
        connection: ConnectionId,
        /// Who learns it.
        at: ProcessId,
    },
}

impl NetEvent {
    /// Whom it happens to.
    #[must_use]
    pub fn at(&self) -> ProcessId {
        match self {
            Self::Opened { at, .. }
            | Self::Failed { at, .. }
            | Self::Accepted { at, .. }
            | Self::Deliver { at, .. }
            | Self::Broken { at, .. } => *at,
        }
    }
}

/// How long things take.
#[derive(Clone, Copy, Debug)]
pub struct Delays {
    /// Usual delay of an envelope.
    pub usual: (u64, u64),
    /// Envelopes in a thousand that take longer.
    pub late_per_mille: u64,
    /// Their delay.
    pub late: (u64, u64),
}

impl Default for Delays {
    fn default() -> Self {
        Self {
            usual: (20, 120),
            late_per_mille: 20,
            late: (500, 5_000),
        }
    }
}

#[derive(Debug)]
struct Lane {
    sent: u64,
    delivered: u64,
    last: Micros,
    /// Envelopes from this number on are lost.
    lost_from: u64,
    /// What survives a break arrives no earlier than this.
    late_until: Micros,
}

impl Lane {
    fn new(now: Micros) -> Self {
        Self {
            sent: 0,
            delivered: 0,
            last: now,
            lost_from: u64::MAX,
            late_until: Micros(0),
        }
    }
}

#[derive(Debug)]
struct Connection {
    /// Who asked for it, and who listens.
    ends: [ProcessId; 2],
    /// What each end sends.
    lanes: [Lane; 2],
    /// Whether each end has been told of the break.
    told: [bool; 2],
    broken: bool,
}

impl Connection {
    fn side(&self, process: ProcessId) -> usize {
        usize::from(self.ends[0] != process)
    }
}

/// How long a connect is tried.
pub const CONNECT_TIMEOUT: Duration = Duration::from_millis(200);

/// The network.
#[derive(Debug)]
pub struct Network {
    rng: Rng,
    delays: Delays,
    connections: BTreeMap<ConnectionId, Connection>,
    next: u64,
    /// Directions that carry nothing until then.
    cuts: BTreeMap<(ProcessId, ProcessId), Micros>,
    /// Directions that are slower by a factor, until then.
    slow: BTreeMap<(ProcessId, ProcessId), (u64, Micros)>,
    /// Processes that take no more connections, until then.
    full: BTreeMap<ProcessId, Micros>,
    /// Envelopes sent, for the report.
    pub envelopes: u64,
    /// Bytes sent, for the report.
    pub bytes: u64,
}

impl Network {
    /// A network without connections.
    #[must_use]
    pub fn new(rng: Rng, delays: Delays) -> Self {
        Self {
            rng,
            delays,
            connections: BTreeMap::new(),
            next: 1,
            cuts: BTreeMap::new(),
            slow: BTreeMap::new(),
            full: BTreeMap::new(),
            envelopes: 0,
            bytes: 0,
        }
    }

    /// `from` asks for a connection to `to`, or to an address where nobody listens.
    pub fn connect<E: From<NetEvent>>(
        &mut self,
        events: &mut Events<E>,
        from: ProcessId,
        to: Option<ProcessId>,
    ) -> ConnectionId {
        let now = events.now();
        let connection = ConnectionId(self.next);
        self.next += 1;
        let failed = |why| NetEvent::Failed {
            connection,
            at: from,
            why,
        };
        let Some(to) = to else {
            let delay = self.delay(now, from, from);
            events.at(now + delay, failed(Unmade::PortRefuses).into());
            return connection;
        };
        let there = self.arrival(now, from, to);
        let back = self.arrival(there, to, from);
        // A full backlog swallows what asks for a connection, as the system does.
        let is_full = self.full.get(&to).is_some_and(|until| *until > now);
        if is_full || back > now + CONNECT_TIMEOUT {
            events.at(now + CONNECT_TIMEOUT, failed(Unmade::NoAnswer).into());
            return connection;
        }
        self.connections.insert(
            connection,
            Connection {
                ends: [from, to],
                lanes: [Lane::new(there), Lane::new(back)],
                told: [false; 2],
                broken: false,
            },
        );
        events.at(there, NetEvent::Accepted { connection, at: to }.into());
        events.at(
            back,
            NetEvent::Opened {
                connection,
                at: from,
            }
            .into(),
        );
        connection
    }

    /// `from` sends envelopes, one after another in `bytes`. What is sent on a broken connection is
    /// swallowed.
    pub fn send<E: From<NetEvent>>(
        &mut self,
        events: &mut Events<E>,
        connection: ConnectionId,
        from: ProcessId,
        mut bytes: &[u8],
    ) {
        while !bytes.is_empty() {
            let (_, len) = envelope::parse(bytes)
                .expect("cores send valid envelopes")
                .expect("cores send whole envelopes");
            self.send_one(events, connection, from, &bytes[..len]);
            bytes = &bytes[len..];
        }
    }

    fn send_one<E: From<NetEvent>>(
        &mut self,
        events: &mut Events<E>,
        connection: ConnectionId,
        from: ProcessId,
        bytes: &[u8],
    ) {
        self.envelopes += 1;
        self.bytes += bytes.len() as u64;
        let Some(known) = self.connections.get(&connection) else {
            return;
        };
        let side = known.side(from);
        let to = known.ends[1 - side];
        if known.broken {
            return;
        }
        let arrival = self.arrival(events.now(), from, to);
        let Some(known) = self.connections.get_mut(&connection) else {
            return;
        };
        let lane = &mut known.lanes[side];
        lane.last = lane.last.max(arrival);
        let number = lane.sent;
        lane.sent += 1;
        events.at(
            lane.last,
            NetEvent::Deliver {
                connection,
                at: to,
                number,
                bytes: bytes.to_vec(),
            }
            .into(),
        );
    }

    /// Whether an event that has come due really happens; keeps the connection's books.
    pub fn happens(&mut self, event: &NetEvent) -> bool {
        match event {
            NetEvent::Failed { .. } => true,
            NetEvent::Opened { connection, at } | NetEvent::Accepted { connection, at } => self
                .connections
                .get(connection)
                .is_some_and(|known| !known.told[known.side(*at)]),
            NetEvent::Deliver {
                connection,
                at,
                number,
                ..
            } => self.arrives(*connection, *at, *number),
            NetEvent::Broken { connection, at } => self.learns(*connection, *at),
        }
    }

    /// When an event that has come due happens instead: what a broken connection still delivers may
    /// come late.
    #[must_use]
    pub fn postponed(&self, now: Micros, event: &NetEvent) -> Option<Micros> {
        let NetEvent::Deliver { connection, at, .. } = event else {
            return None;
        };
        let known = self.connections.get(connection)?;
        let late = known.lanes[1 - known.side(*at)].late_until;
        (late > now).then_some(late)
    }

    fn arrives(&mut self, connection: ConnectionId, at: ProcessId, number: u64) -> bool {
        let Some(known) = self.connections.get_mut(&connection) else {
            return false;
        };
        let side = known.side(at);
        let lane = &mut known.lanes[1 - side];
        if known.told[side] || number >= lane.lost_from {
            return false;
        }
        assert_eq!(lane.delivered, number, "a connection keeps its order");
        lane.delivered += 1;
        true
    }

    fn learns(&mut self, connection: ConnectionId, at: ProcessId) -> bool {
        let Some(known) = self.connections.get_mut(&connection) else {
            return false;
        };
        let side = known.side(at);
        let news = !known.told[side];
        known.told[side] = true;
        if known.told == [true; 2] {
            self.connections.remove(&connection);
        }
        news
    }

    /// The other end of a connection.
    #[must_use]
    pub fn other_end(&self, connection: ConnectionId, of: ProcessId) -> Option<ProcessId> {
        let known = self.connections.get(&connection)?;
        Some(known.ends[1 - known.side(of)])
    }

    /// `side` closes its end: it gets nothing more, and what it sent before still arrives first.
    pub fn close<E: From<NetEvent>>(
        &mut self,
        events: &mut Events<E>,
        connection: ConnectionId,
        by: ProcessId,
    ) {
        let Some(known) = self.connections.get_mut(&connection) else {
            return;
        };
        let side = known.side(by);
        known.told[side] = true;
        known.broken = true;
        let (at, when) = (known.ends[1 - side], known.lanes[side].last);
        events.at(when, NetEvent::Broken { connection, at }.into());
    }

    /// The open connections with `process` at an end.
    #[must_use]
    pub fn connections_of(&self, process: ProcessId) -> Vec<ConnectionId> {
        self.connections
            .iter()
            .filter(|(_, known)| known.ends.contains(&process))
            .map(|(id, _)| *id)
            .collect()
    }

    /// The open connections between two processes.
    #[must_use]
    pub fn connections_between(&self, one: ProcessId, two: ProcessId) -> Vec<ConnectionId> {
        self.connections
            .iter()
            .filter(|(_, known)| {
                !known.broken && known.ends.contains(&one) && known.ends.contains(&two)
            })
            .map(|(id, _)| *id)
            .collect()
    }

    fn arrival(&mut self, now: Micros, from: ProcessId, to: ProcessId) -> Micros {
        let held = self.cuts.get(&(from, to)).copied().unwrap_or(now).max(now);
        held + self.delay(now, from, to)
    }

    fn delay(&mut self, now: Micros, from: ProcessId, to: ProcessId) -> Duration {
        let Delays {
            usual,
            late_per_mille,
            late,
        } = self.delays;
        let range = if self.rng.per_mille(late_per_mille) {
            late
        } else {
            usual
        };
        let factor = match self.slow.get(&(from, to)) {
            Some((factor, until)) if *until > now => *factor,
            _ => 1,
        };
        self.rng.micros(range.0..range.1 + 1) * u32::try_from(factor).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests;
