//! What goes wrong with connections: breaks, cuts, slow links, ends that are gone without a word.

use std::time::Duration;

use ramkeep_wire::Micros;

use super::{Connection, ConnectionId, NetEvent, Network, ProcessId};
use crate::events::Events;

/// A cut connection breaks at the latest after this.
pub const CUT_BREAKS_AFTER: Duration = Duration::from_secs(2);
/// What a link carries late when everything is mended arrives within this.
const HEALED_AFTER: Duration = Duration::from_millis(50);

/// Which way a cut goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Only from the first to the second.
    OneWay,
    /// Both ways.
    Both,
}

impl Network {
    /// Breaks a connection: in each direction a prefix of what is under way still arrives.
    pub fn sever<E: From<NetEvent>>(
        &mut self,
        events: &mut Events<E>,
        connection: ConnectionId,
        notice: (u64, u64),
    ) {
        let now = events.now();
        let Some(known) = self.connections.get_mut(&connection) else {
            return;
        };
        if known.broken {
            return;
        }
        known.broken = true;
        let notices = [0, 1].map(|_| now + self.rng.micros(notice.0..notice.1 + 1));
        for (side, lane) in known.lanes.iter_mut().enumerate() {
            lane.lost_from = self.rng.below(lane.delivered..lane.sent + 1);
            // Just before the other side learns of the break.
            let told = Micros(notices[1 - side].0.saturating_sub(1));
            if self.rng.percent(50) {
                lane.late_until = told;
            }
        }
        for (at, notice) in known.ends.into_iter().zip(notices) {
            events.at(notice, NetEvent::Broken { connection, at }.into());
        }
    }

    /// Breaks a connection so that `first` learns of it at once, and the other end only at `late`,
    /// just after everything that is under way to it has arrived.
    pub fn sever_late<E: From<NetEvent>>(
        &mut self,
        events: &mut Events<E>,
        connection: ConnectionId,
        first: ProcessId,
        late: Micros,
    ) {
        let Some(known) = self.connections.get_mut(&connection) else {
            return;
        };
        known.broken = true;
        let side = known.side(first);
        let lane = &mut known.lanes[side];
        lane.lost_from = lane.sent;
        lane.late_until = Micros(late.0.saturating_sub(1));
        let other = known.ends[1 - side];
        known.lanes[1 - side].lost_from = known.lanes[1 - side].delivered;
        for (at, when) in [(first, events.now()), (other, late)] {
            events.at(when, NetEvent::Broken { connection, at }.into());
        }
    }

    /// The process is gone: its connections break, its peers learn of it after a time in `notice`.
    pub fn process_gone<E: From<NetEvent>>(
        &mut self,
        events: &mut Events<E>,
        process: ProcessId,
        notice: (u64, u64),
    ) {
        for connection in self.connections_of(process) {
            self.sever(events, connection, notice);
            self.learns(connection, process);
        }
    }

    /// `gone` loses its end of a connection and learns of that at once. The other end goes on as if
    /// nothing had happened until `notice`: what it sends is swallowed, and nothing comes.
    pub fn leave_half_open<E: From<NetEvent>>(
        &mut self,
        events: &mut Events<E>,
        connection: ConnectionId,
        gone: ProcessId,
        notice: Micros,
    ) {
        let Some(known) = self.connections.get_mut(&connection) else {
            return;
        };
        if known.broken {
            return;
        }
        known.broken = true;
        for lane in &mut known.lanes {
            lane.lost_from = lane.delivered;
        }
        let deceived = known.ends[1 - known.side(gone)];
        for (at, when) in [(gone, events.now()), (deceived, notice)] {
            events.at(when, NetEvent::Broken { connection, at }.into());
        }
    }

    /// Connects to a process are not answered until `until`, although it listens: its backlog is full.
    pub fn fill_backlog(&mut self, of: ProcessId, until: Micros) {
        self.full.insert(of, until);
    }

    /// Nothing sent from `one` arrives at `two` until `until` (and the other way, if both).
    /// Connections that the cut would hold up for longer than they live break.
    pub fn cut<E: From<NetEvent>>(
        &mut self,
        events: &mut Events<E>,
        one: ProcessId,
        two: ProcessId,
        direction: Direction,
        until: Micros,
    ) {
        self.cuts.insert((one, two), until);
        if direction == Direction::Both {
            self.cuts.insert((two, one), until);
        }
        if until.since(events.now()) > CUT_BREAKS_AFTER {
            let wait = CUT_BREAKS_AFTER.as_micros() as u64;
            for connection in self.connections_between(one, two) {
                self.sever(events, connection, (wait, wait * 2));
            }
        }
    }

    /// Envelopes from `one` to `two` take `factor` times as long until `until`.
    pub fn slow_down(&mut self, one: ProcessId, two: ProcessId, factor: u64, until: Micros) {
        self.slow.insert((one, two), (factor, until));
    }

    /// All cuts, slow links and full backlogs end; connections that they hold up for long yet break, and who has
    /// not been told of a break is.
    pub fn heal<E: From<NetEvent>>(&mut self, events: &mut Events<E>) {
        self.cuts.clear();
        self.slow.clear();
        self.full.clear();
        let soon = events.now() + HEALED_AFTER;
        let held_up = |known: &Connection| known.lanes.iter().any(|lane| lane.last > soon);
        let held_up: Vec<ConnectionId> = (self.connections.iter())
            .filter(|(_, known)| held_up(known))
            .map(|(id, _)| *id)
            .collect();
        for connection in held_up {
            self.sever(events, connection, (50, 2_000));
        }
        let broken = self.connections.iter().filter(|(_, known)| known.broken);
        for (connection, known) in broken {
            let connection = *connection;
            for (at, told) in known.ends.into_iter().zip(known.told) {
                if !told {
                    events.at(soon, NetEvent::Broken { connection, at }.into());
                }
            }
        }
    }
}
