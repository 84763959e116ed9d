//! What a server says and does, as one sees it who looks on: from the envelopes that go in and out,
//! never from what its cores mean to do.

mod told;

use std::collections::BTreeMap;

use ramkeep_backup::{Backup, FrameStore};
use ramkeep_wire::backup::{BackupRequest, BackupResponse};
use ramkeep_wire::coordinator::ServerState;
use ramkeep_wire::envelope::{self, Envelope, Kind};
use ramkeep_wire::order::{Command, Order, OrderReply};
use ramkeep_wire::{LogPosition, Party, postcards};

use self::told::Asked;
use crate::crash_points::CrashPoint;
use crate::network::ConnectionId;

/// What was seen of one server process.
#[derive(Debug, Default)]
pub struct ServerWatch {
    asked: BTreeMap<ConnectionId, Asked>,
    /// It has told a client of what it looked up, since this was asked last.
    told: bool,
    /// What it must not have done.
    wrongs: Vec<String>,
    /// Moments of recoveries that came since this was asked last.
    points: Vec<CrashPoint>,
    /// Orders that it has refused for their ballot.
    stale_orders: u64,
    /// Frames in use when it was looked last.
    used: u32,
    /// Where the log must be durable for what was replayed to be so.
    replayed: Vec<LogPosition>,
}

impl ServerWatch {
    /// Whether it has told a client of what it looked up, since this was asked last.
    pub fn take_told(&mut self) -> bool {
        std::mem::take(&mut self.told)
    }

    /// What it must not have done, since this was asked last.
    pub fn take_wrongs(&mut self) -> Vec<String> {
        std::mem::take(&mut self.wrongs)
    }

    /// Moments of recoveries that came since this was asked last.
    pub fn take_points(&mut self) -> Vec<CrashPoint> {
        std::mem::take(&mut self.points)
    }

    /// Orders that it has refused for their ballot.
    #[must_use]
    pub fn stale_orders(&self) -> u64 {
        self.stale_orders
    }

    /// A client asks for data.
    pub(crate) fn asked(&mut self, inbound: ConnectionId, request: &Envelope<'_>) {
        self.asked.entry(inbound).or_default().note(request);
    }

    /// A client is told something.
    pub(crate) fn told(&mut self, inbound: ConnectionId, out: &[u8]) {
        let asked = self.asked.get_mut(&inbound);
        self.told |= asked.is_some_and(|asked| asked.is_told(out));
    }

    /// A connection is gone.
    pub(crate) fn gone(&mut self, inbound: ConnectionId) {
        self.asked.remove(&inbound);
    }

    /// An envelope was answered at once, by a server with this backup.
    pub(crate) fn answered<S: FrameStore>(
        &mut self,
        request: &Envelope<'_>,
        out: &[u8],
        backup: Option<&Backup<S>>,
    ) {
        let Ok(Some((reply, _))) = envelope::parse(out) else {
            return;
        };
        match reply.header.kind {
            Kind::OrderReply => self.ordered(request.payload, reply.payload, backup),
            Kind::BackupResponse => self.shown(request, reply.payload),
            _ => {}
        }
    }

    fn ordered<S: FrameStore>(&mut self, order: &[u8], reply: &[u8], backup: Option<&Backup<S>>) {
        match postcards::decode(reply) {
            Ok(OrderReply::Recovered(_)) => self.points.push(CrashPoint::SaidSo),
            Ok(OrderReply::StaleBallot(_)) => self.stale_orders += 1,
            Ok(OrderReply::Done) => self.has_fenced(order, backup),
            _ => {}
        }
    }

    /// Who says that it knows a list has fenced whom the list names as crashed (SAFETY 5).
    fn has_fenced<S: FrameStore>(&mut self, order: &[u8], backup: Option<&Backup<S>>) {
        let order = postcards::decode::<Order>(order).map(|order| order.command);
        let (Ok(Command::UpdateServers(list)), Some(backup)) = (order, backup) else {
            return;
        };
        let crashed = list
            .servers
            .iter()
            .filter(|e| e.state == ServerState::Crashed);
        for entry in crashed.filter(|entry| !backup.has_fenced(entry.server)) {
            let (server, version) = (entry.server, list.version);
            let wrong = format!("{server:?} is not fenced where {version:?} is known");
            self.wrongs.push(wrong);
        }
    }

    fn shown(&mut self, request: &Envelope<'_>, reply: &[u8]) {
        let from = request.header.from;
        let asked = postcards::decode(request.payload);
        match (BackupResponse::read(reply), asked) {
            (Ok((BackupResponse::Inventory(_), _)), _) if from.as_server().is_none() => {
                self.points.push(CrashPoint::FenceAnswered);
            }
            // A living master reads back what is its own.
            (Ok((BackupResponse::Bytes { .. }, _)), Ok(BackupRequest::Fetch { master, .. }))
                if from != Party::server(master) =>
            {
                self.points.push(CrashPoint::FirstFetch);
            }
            _ => {}
        }
    }

    /// Looks at the frames after something that no other server's master did.
    pub(crate) fn freed<S: FrameStore>(&mut self, backup: &Backup<S>, by_a_list: bool) {
        let used = backup.stats().used;
        if by_a_list && used < self.used {
            self.points.push(CrashPoint::Freed);
        }
        self.used = used;
    }

    /// A replay has ended, and the log with it.
    pub(crate) fn replayed(&mut self, end: LogPosition) {
        self.points.push(CrashPoint::Replayed);
        self.replayed.push(end);
    }

    /// The log is durable up to here.
    pub(crate) fn durable(&mut self, durable: LogPosition) {
        let before = self.replayed.len();
        self.replayed.retain(|end| *end > durable);
        if self.replayed.len() < before {
            self.points.push(CrashPoint::Durable);
        }
    }
}
