//! A server's recoveries: what they ask of backups, over connections of their own, and their replay.
//! Scrubbing goes the same way.
//!
//! # Invariants
//! 1. Every request of the core is answered, if only with nothing.
//! 2. A replayer does a few steps for each input, as many and as often as its process drew: whatever
//!    may happen between two steps of a real one may happen here.

use std::collections::btree_map::{BTreeMap, Entry};
use std::time::Duration;

use ramkeep_master::core::{Master, ScrubAsk};
use ramkeep_master::recovery::{Ask, AskId, Driven, RecoveryId, Replayer};
use ramkeep_wire::backup::{BackupRequest, BackupResponse};
use ramkeep_wire::envelope::{Header, Kind};
use ramkeep_wire::{LogPosition, Micros, Party, ServerId, postcards};

use super::{Context, ServerNode};
use crate::crash_points::CrashPoint;
use crate::network::ConnectionId;
use crate::rng::Rng;

/// A backup may take as long to answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Steps of one replayer for each input.
const STEPS: [usize; 4] = [1, 3, 3, 20];
/// A replayer that has work goes on after so long, microseconds.
const PACES: [u64; 5] = [30, 300, 300, 2_000, 8_000];
/// A replica is read back every so many milliseconds.
const SCRUBS: [u64; 4] = [10, 50, 200, 1_000];

/// For whom something is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum For {
    Recovery((RecoveryId, AskId)),
    Scrub,
}

#[derive(Debug)]
struct Asked {
    by: For,
    request: BackupRequest,
    /// Its number on the connection, once it is sent.
    number: Option<u64>,
    since: Micros,
}

#[derive(Debug)]
struct FetchLink {
    connection: ConnectionId,
    open: bool,
    asked: Vec<Asked>,
}

/// Connections to backups for recoveries, and what replays.
#[derive(Debug)]
pub(super) struct RecoveryLinks {
    links: BTreeMap<ServerId, FetchLink>,
    replayers: Vec<(RecoveryId, Replayer)>,
    last: u64,
    steps: usize,
    pace: Duration,
    /// Where the log must be durable for what was replayed to be so.
    finished: Vec<LogPosition>,
    scrub_every: Duration,
    next_scrub: Micros,
    /// What scrubbing asked is not answered yet.
    scrubs: bool,
}

impl RecoveryLinks {
    /// None yet; how fast it replays follows from the seed.
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed).fork(7);
        Self {
            links: BTreeMap::new(),
            replayers: Vec::new(),
            last: 0,
            steps: *rng.choose(&STEPS),
            pace: Duration::from_micros(*rng.choose(&PACES)),
            finished: Vec::new(),
            scrub_every: Duration::from_millis(*rng.choose(&SCRUBS)),
            next_scrub: Micros(0),
            scrubs: false,
        }
    }

    /// When a replayer that has work goes on.
    pub(super) fn pace(&self) -> Duration {
        self.pace
    }

    /// Whom a connection leads to, if it is one of these.
    pub(super) fn to(&self, connection: ConnectionId) -> Option<ServerId> {
        let mut links = self.links.iter();
        let found = links.find(|(_, link)| link.connection == connection);
        found.map(|(server, _)| *server)
    }

    /// A connection is of use.
    pub(super) fn welcomed(&mut self, server: ServerId) {
        if let Some(link) = self.links.get_mut(&server) {
            link.open = true;
        }
    }

    /// Whether a replayer has something to do.
    pub(super) fn is_busy(&self) -> bool {
        !self.replayers.is_empty()
    }

    /// What was replayed is durable, with the log up to here.
    pub(super) fn is_durable(&mut self, durable: LogPosition) -> Option<CrashPoint> {
        let before = self.finished.len();
        self.finished.retain(|end| *end > durable);
        (self.finished.len() < before).then_some(CrashPoint::Durable)
    }

    /// Nothing more comes over the connection to a backup.
    fn cut(&mut self, server: ServerId, now: Micros, master: &Master) {
        let asked = self.links.remove(&server).map(|link| link.asked);
        for asked in asked.into_iter().flatten() {
            self.answer(now, master, asked.by, None);
        }
    }

    fn answer(
        &mut self,
        now: Micros,
        master: &Master,
        by: For,
        answer: Option<(BackupResponse, &[u8])>,
    ) {
        match by {
            For::Recovery(id) => master.recoveries().handle_answer(now, id, answer),
            For::Scrub => {
                self.scrubs = false;
                master.handle_scrubbed(answer.as_ref());
            }
        }
    }

    /// What scrubbing asks next, if it is time.
    fn scrub(&mut self, now: Micros, master: &Master) -> Option<ScrubAsk> {
        if self.scrubs || now < self.next_scrub {
            return None;
        }
        self.next_scrub = now + self.scrub_every;
        let ask = master.poll_scrub();
        self.scrubs = ask.is_some();
        ask
    }

    fn replay(&mut self, master: &Master) -> Option<CrashPoint> {
        while let Some(started) = master.recoveries().poll_started() {
            self.replayers.push(started);
        }
        let before = self.finished.len();
        let (most, finished) = (self.steps, &mut self.finished);
        self.replayers
            .retain_mut(|(id, replayer)| steps(master, *id, replayer, most, finished));
        (self.finished.len() > before).then_some(CrashPoint::Replayed)
    }
}

/// A few steps of a replayer; false if it is done with.
fn steps(
    master: &Master,
    id: RecoveryId,
    replayer: &mut Replayer,
    most: usize,
    ends: &mut Vec<LogPosition>,
) -> bool {
    for _ in 0..most {
        match replayer.drive(id, master.store(), || master.recoveries()) {
            Driven::Worked | Driven::Told => {}
            Driven::WaitsForBackups | Driven::WaitsForSegments => return true,
            Driven::Ended => return false,
            Driven::Finished(end) => {
                ends.push(end);
                return false;
            }
        }
    }
    true
}

impl ServerNode {
    /// Drives the recoveries: replays a little, and asks for what is wanted next.
    pub(super) fn recover(&mut self, context: &mut Context<'_>) {
        let Some(master) = &self.master else { return };
        let scrub = self.recovery.scrub(context.now, master);
        let over = master.recoveries().is_idle() && self.recovery.links.is_empty();
        // A replayer whose recovery is gone hears so when it asks for work.
        if over && !self.recovery.is_busy() && scrub.is_none() {
            return;
        }
        let point = self.recovery.replay(master);
        self.points.extend(point);
        self.expire_fetches(context);
        if let Some(ScrubAsk { to, request }) = scrub {
            self.put(context, to, For::Scrub, request);
        }
        self.poll_fetches(context);
        self.send_fetches(context);
    }

    fn expire_fetches(&mut self, context: &mut Context<'_>) {
        let Some(master) = &self.master else { return };
        let idle = master.recoveries().is_idle();
        let late = |asked: &Asked| context.now.since(asked.since) >= PATIENCE;
        let scrubs = |asked: &Asked| asked.by == For::Scrub;
        let links = self.recovery.links.iter();
        let over: Vec<(ServerId, ConnectionId)> = links
            .filter(|(_, link)| {
                link.asked.iter().any(late) || (idle && !link.asked.iter().any(scrubs))
            })
            .map(|(server, link)| (*server, link.connection))
            .collect();
        for (server, connection) in over {
            context.close(connection);
            self.recovery.cut(server, context.now, master);
        }
    }

    fn poll_fetches(&mut self, context: &mut Context<'_>) {
        while let Some(Ask { to, id, request }) = self
            .master
            .as_ref()
            .and_then(|master| master.recoveries().poll_ask(context.now))
        {
            self.put(context, to, For::Recovery(id), request);
        }
    }

    /// Asks a backup, itself or over a connection.
    fn put(&mut self, context: &mut Context<'_>, to: ServerId, by: For, request: BackupRequest) {
        let Some(master) = &self.master else { return };
        if to == self.server {
            // Its own backup is no further than a call. Nobody but the network is between the others.
            let from = Party::server(self.server);
            let answer = (self.backup.as_mut()).map(|backup| {
                let answer = backup.handle_request(context.now, from, request);
                (answer.response, answer.bytes)
            });
            return self.recovery.answer(context.now, master, by, answer);
        }
        let link = match self.recovery.links.entry(to) {
            Entry::Occupied(link) => link.into_mut(),
            Entry::Vacant(none) => {
                let Some(address) = master.addresses_of(to).first().cloned() else {
                    return self.recovery.answer(context.now, master, by, None);
                };
                none.insert(FetchLink {
                    connection: context.connect(&address),
                    open: false,
                    asked: Vec::new(),
                })
            }
        };
        link.asked.push(Asked {
            by,
            request,
            number: None,
            since: context.now,
        });
    }

    fn send_fetches(&mut self, context: &mut Context<'_>) {
        let from = self.me();
        let RecoveryLinks { links, last, .. } = &mut self.recovery;
        for (server, link) in links.iter_mut().filter(|(_, link)| link.open) {
            for asked in link.asked.iter_mut().filter(|a| a.number.is_none()) {
                *last += 1;
                asked.number = Some(*last);
                let header = Header::new(Kind::BackupRequest, *last, Party::server(*server), from);
                let payload = postcards::encode(&asked.request);
                context.send_payload(link.connection, header, &payload);
            }
        }
    }

    /// What a backup answered to a recovery.
    pub(super) fn fetched(
        &mut self,
        context: &mut Context<'_>,
        connection: ConnectionId,
        number: u64,
        payload: &[u8],
    ) {
        let Some(server) = self.recovery.to(connection) else {
            return;
        };
        let Some(master) = &self.master else { return };
        let Some(link) = self.recovery.links.get_mut(&server) else {
            return;
        };
        let mut asked = link.asked.iter();
        let Some(at) = asked.position(|asked| asked.number == Some(number)) else {
            return;
        };
        let by = link.asked.remove(at).by;
        let answer = BackupResponse::read(payload).ok();
        self.recovery.answer(context.now, master, by, answer);
    }

    /// A connection to a backup for recoveries is gone.
    pub(super) fn fetches_lost(&mut self, context: &Context<'_>, server: ServerId) {
        let Some(master) = &self.master else { return };
        self.recovery.cut(server, context.now, master);
    }
}
