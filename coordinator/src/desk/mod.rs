//! The desk of one coordinator process: the core, and all that is decided around it. Who asked what and is
//! answered, what is on its way to servers, the lines to the other coordinators.
//!
//! ```text
//!  sessions' envelopes, what becomes of wires, disk, time
//!      │                                         ▲
//!      ▼                                         │ DeskOutput: persist, wires, replies
//!  desk::Desk ──> core::Coordinator ──> Output ──┘
//! ```
//! Call any `handle_*`, then drain [`Desk::poll_output`]; call [`Desk::handle_tick`] at
//! [`Desk::next_timeout`] at the latest.
//!
//! # Invariants
//! 1. What the core wants done leaves in the order in which it wants it.
//! 2. A reply that counts while a lease runs is given only if a clock that is read after the core
//!    made it says so.
//! 3. A coordinator is heard only on its own connections.
//! 4. Nobody is heard who is of another cluster.
//! 5. After the end nothing leaves any more.

mod callers;
mod errands;
mod leaderless;
mod maps;
mod moved;
mod peers;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use paxos::{Record, Snapshot};
use ramkeep_rpc::wires::{Calls, WireEnd, WireId, WireOutput};
use ramkeep_wire::coordinator::{Answer, Refused, Request, Response};
use ramkeep_wire::envelope::{Envelope, Kind};
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::limits::MAX_UNSENT;
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::{ClusterId, ListVersion, Micros, Party, PeerId, ServerId, postcards};

use crate::consensus::Unreadable;
use crate::core::{Coordinator, Output};
use callers::Callers;
pub use callers::{MAX_UNANSWERED, SessionId};
use errands::Errand;
use maps::EncodedMap;
use moved::Moved;
use peers::PeerLines;

/// What must happen outside, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeskOutput {
    /// Have this on the disk for good, then call [`Desk::handle_persisted`].
    Persist(DiskJob),
    /// Do this with a connection.
    Wire(WireOutput),
    /// Send an answer.
    Reply {
        /// To whom.
        session: SessionId,
        /// A whole envelope.
        bytes: Vec<u8>,
    },
    /// This is the cluster: connections of another are refused from now on.
    KnowCluster(ClusterId),
    /// The process ends.
    End(DeskEnd),
}

/// What is to be on the disk for good; one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskJob {
    /// Names it; grows.
    pub seq: u64,
    /// Takes the place of the last snapshot and of all records.
    pub snapshot: Option<Snapshot>,
    /// Come after the records that are there, or begin anew beside the snapshot.
    pub records: Vec<Record>,
}

/// Why a coordinator process can't go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeskEnd {
    /// Another coordinator took this one's place.
    #[error("another coordinator took this one's place; its directory is of no more use")]
    Removed,
    /// This one has a copy of the directory of a coordinator that runs.
    #[error(
        "the coordinator whose directory this is runs at {0}: this is a copy of it, and takes part in \
         nothing. Stop that one before this one is started in its place"
    )]
    Copy(String),
    /// The group has decided what this build can't read.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

/// A coordinator process, but for its disk, its sockets and its clock.
#[derive(Debug)]
pub struct Desk {
    core: Coordinator,
    callers: Callers,
    errands: Calls<ServerId, Errand>,
    /// Servers for which an order was given that had no room.
    crowded: BTreeSet<ServerId>,
    /// The server list by which the wires of errands were looked through last.
    errands_of: ListVersion,
    peers: PeerLines,
    maps: EncodedMap,
    /// As it was told.
    cluster: ClusterId,
    /// Since when it knows nobody who leads, and whether why was said.
    leaderless: Option<(Micros, bool)>,
    /// From where members call, as was said in the log.
    told_moves: BTreeMap<paxos::PeerId, String>,
    /// As long as it is not known whether this coordinator runs where it was before.
    moved: Option<Moved>,
    /// The generation of the group that all who asked before were told.
    told_generation: Option<u32>,
    /// Why it is to end.
    last: Option<DeskEnd>,
    ended: bool,
}

impl Desk {
    /// Around a core that was just made.
    #[must_use]
    pub fn new(core: Coordinator) -> Self {
        let me = core.peer_id();
        let moved = core.was_elsewhere().map(|at| Moved::from(me, at));
        Self {
            moved,
            last: None,
            told_generation: None,
            core,
            callers: Callers::default(),
            errands: errands::none(),
            crowded: BTreeSet::new(),
            errands_of: ListVersion(0),
            peers: PeerLines::new(),
            maps: EncodedMap::default(),
            cluster: ClusterId::default(),
            leaderless: None,
            told_moves: BTreeMap::new(),
            ended: false,
        }
    }

    /// The core, to be looked at.
    #[must_use]
    pub fn core(&self) -> &Coordinator {
        &self.core
    }

    /// Another process has connected, and said hello: who it is, and of which cluster if it knows that.
    pub fn open_session(&mut self, session: SessionId, party: Party, cluster: ClusterId) {
        self.callers.open(session, party, cluster);
    }

    /// A session is over; its answers go nowhere.
    pub fn close_session(&mut self, now: Micros, session: SessionId) {
        if let Some(server) = self.callers.close(session) {
            self.core.handle_link_down(now, server);
        }
    }

    /// Requests of a session without an answer yet.
    #[must_use]
    pub fn unanswered(&self, session: SessionId) -> usize {
        self.callers.unanswered(session)
    }

    /// Whether a session's next envelope is taken, while so many bytes of answers wait for its
    /// connection: what one may have kept is bounded. What is left is offered again after a reply.
    #[must_use]
    pub fn takes(&self, session: SessionId, unsent: usize) -> bool {
        unsent <= MAX_UNSENT && self.unanswered(session) < MAX_UNANSWERED
    }

    /// A session brought an envelope.
    ///
    /// # Errors
    /// When it makes no sense: the session is refused and over.
    pub fn handle_envelope(
        &mut self,
        now: Micros,
        session: SessionId,
        envelope: &Envelope<'_>,
    ) -> Result<(), Refusal> {
        if self.moved.is_some() {
            return Err(Refusal::Busy);
        }
        self.check_cluster(session)?;
        match envelope.header.kind {
            Kind::CoordinatorRequest => self.request(now, session, envelope),
            Kind::Group => self.hear(now, session, envelope),
            kind => Err(Refusal::Malformed(format!("{kind:?} is not served here"))),
        }
    }

    /// Who connected while this coordinator had no cluster may turn out to be of another (SAFETY 30).
    fn check_cluster(&self, session: SessionId) -> Result<(), Refusal> {
        let unknown = ClusterId::default();
        let ours = (self.core.state().constants()).map_or(unknown, |constants| constants.cluster);
        let theirs = self.callers.cluster(session).unwrap_or(unknown);
        let differ = ours != unknown && theirs != unknown && ours != theirs;
        if differ && !mutants::active(Mutant::KeepOldSessions) {
            return Err(Refusal::Cluster(ours));
        }
        Ok(())
    }

    fn request(
        &mut self,
        now: Micros,
        session: SessionId,
        envelope: &Envelope<'_>,
    ) -> Result<(), Refusal> {
        let request: Request = read(envelope)?;
        if let Request::Heartbeat(report) = &request {
            self.callers.is_of(session, report.server);
        }
        let header = &envelope.header;
        if let Some(token) = self.callers.ask(session, header) {
            self.core.handle_request(now, header.from, token, request);
        }
        Ok(())
    }

    /// Another coordinator says something. Nothing is answered here: answers go on this
    /// coordinator's own connections.
    fn hear(
        &mut self,
        now: Micros,
        session: SessionId,
        envelope: &Envelope<'_>,
    ) -> Result<(), Refusal> {
        let message: paxos::Envelope = read(envelope)?;
        let party = self.callers.party(session).unwrap_or(Party::NONE);
        let itself = party == Party::coordinator(PeerId(message.from.0));
        if !itself && !mutants::active(Mutant::HearAnyPeer) {
            let why = format!("{party:?} speaks for coordinator {}", message.from);
            return Err(Refusal::Malformed(why));
        }
        self.core.handle_message(now, message);
        Ok(())
    }

    /// A wire is up, between these parties.
    pub fn handle_wire_up(&mut self, wire: WireId, local: Party, peer: Party) {
        if let Some(moved) = &mut self.moved {
            if moved.is_there(wire, local, peer) {
                self.last = Some(DeskEnd::Copy(moved.address().to_owned()));
            }
        } else if !self.peers.handle_up(wire, local, peer) {
            self.errands.handle_up(wire, local, peer);
        }
    }

    /// An envelope came on a wire.
    pub fn handle_received(&mut self, now: Micros, wire: WireId, envelope: &Envelope<'_>) {
        self.errand_answered(now, wire, envelope);
    }

    /// A wire has ended, or could not be made.
    pub fn handle_wire_down(&mut self, now: Micros, wire: WireId, end: &WireEnd) {
        if let Some(moved) = &mut self.moved {
            match moved.ended(now, wire, end) {
                None => {}
                Some(true) => self.last = Some(DeskEnd::Copy(moved.address().to_owned())),
                Some(false) => self.goes_on(now),
            }
        } else if !self.errands_ended(now, wire, end)
            && let Some(gone) = self.peers.handle_down(now, wire, end)
        {
            self.core.handle_peer_gone(now, gone);
        }
    }

    /// All records and snapshots up to `seq` are on the disk for good.
    pub fn handle_persisted(&mut self, now: Micros, seq: u64) {
        self.core.handle_persisted(now, seq);
    }

    /// Time has passed.
    pub fn handle_tick(&mut self, now: Micros) {
        if let Some(moved) = &self.moved {
            if moved.until().is_some_and(|until| until <= now) {
                self.goes_on(now);
            }
            return;
        }
        self.core.handle_tick(now);
        self.tell_why(now);
        self.tell_moves();
        self.errands_late(now);
        self.peers.handle_tick(now);
    }

    /// When [`Desk::handle_tick`] is due.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Micros> {
        if let Some(moved) = &self.moved {
            return moved.until().filter(|_| !self.ended);
        }
        let due = [
            self.core.next_timeout(),
            self.errands.next_timeout(),
            self.peers.next_timeout(),
        ];
        due.into_iter().flatten().min().filter(|_| !self.ended)
    }

    /// The process can't go on, for a reason of its own: nothing leaves any more.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// What must happen outside next. The clock is read for each output after the core made it, also
    /// for what comes of one that could not be carried out.
    pub fn poll_output(&mut self, clock: impl Fn() -> Micros) -> Option<DeskOutput> {
        loop {
            let now = clock();
            if self.ended {
                return self.drop_outputs();
            }
            if let Some(why) = self.last.take() {
                return Some(self.ends(why));
            }
            if self.moved.is_some() {
                // Who is there is asked as one of this cluster.
                let cluster = self.know_cluster();
                let moved = self.moved.as_mut();
                let asks = || Some(DeskOutput::Wire(moved?.poll_output(now)?));
                return cluster.or_else(asks);
            }
            if let Some(output) = self.poll_wires() {
                return Some(DeskOutput::Wire(output));
            }
            match self.core.poll_output() {
                Some(output) => {
                    if let Some(output) = self.pass_on(now, output) {
                        return Some(output);
                    }
                }
                None if self.forget_the_dead(now) => {}
                None => return self.know_cluster().or_else(|| self.tell_of_the_group()),
            }
        }
    }

    /// Who asked a leader before hears when the members change, though it asks nothing meanwhile: by the time
    /// that it does, all whom it knew may be gone.
    fn tell_of_the_group(&mut self) -> Option<DeskOutput> {
        let generation = self.core.node().group().map(|group| group.generation);
        if !self.core.leads() || generation == self.told_generation {
            return None;
        }
        let facts = self.core.group_facts()?;
        let told = self.callers.tell(self.core.ballot(), &facts);
        if told.is_none() {
            self.told_generation = generation;
        }
        let (session, bytes) = told?;
        Some(DeskOutput::Reply { session, bytes })
    }

    /// Whether it is not known yet whether this coordinator runs where it was before.
    #[must_use]
    pub fn is_asking_where_it_was(&self) -> bool {
        self.moved.is_some() && !self.ended && self.last.is_none()
    }

    /// It is not where it was: it has moved, and takes part from here.
    fn goes_on(&mut self, now: Micros) {
        if let Some(moved) = self.moved.take() {
            let (was, node) = (moved.address(), self.core.node());
            match node.has_moved_to() {
                Some(at) => tracing::info!(was, at, "this coordinator has moved"),
                None => tracing::info!(
                    was,
                    listens = node.setup().address,
                    "this coordinator listens elsewhere than it is called: if it was moved, start it with its new \
                     address in --peers, too"
                ),
            }
        }
        self.core.handle_tick(now);
    }

    fn drop_outputs(&mut self) -> Option<DeskOutput> {
        while self.core.poll_output().is_some() {}
        None
    }

    fn poll_wires(&mut self) -> Option<WireOutput> {
        let output = self.peers.poll_output();
        output.or_else(|| self.errands.wires().poll_output())
    }

    fn pass_on(&mut self, now: Micros, output: Output) -> Option<DeskOutput> {
        match output {
            Output::Persist { seq, records } => Some(DeskOutput::Persist(DiskJob {
                seq,
                snapshot: None,
                records,
            })),
            Output::SaveSnapshot {
                seq,
                snapshot,
                records,
            } => Some(DeskOutput::Persist(DiskJob {
                seq,
                snapshot: Some(snapshot),
                records,
            })),
            Output::Send { addresses, message } => {
                self.peers.send(now, addresses, &message);
                None
            }
            Output::Reply {
                token,
                response,
                until,
            } => {
                let counts = self.counts(now, until);
                let response = match counts {
                    true => response,
                    false => self.core.not_leader(),
                };
                self.reply(token, response)
            }
            Output::ReplyMap { token, until } => {
                if !self.counts(now, until) {
                    return self.reply(token, self.core.not_leader());
                }
                let map = self.maps.current(&self.core);
                self.reply_encoded(token, &map)
            }
            Output::Order {
                server,
                addresses,
                order,
            } => {
                self.order(now, server, &addresses, order);
                None
            }
            Output::Ask {
                server,
                addresses,
                token,
                request,
            } => {
                self.ask(now, server, &addresses, token, &request);
                None
            }
            Output::Removed => Some(self.ends(DeskEnd::Removed)),
            Output::Stop(why) => Some(self.ends(why.into())),
        }
    }

    fn ends(&mut self, why: DeskEnd) -> DeskOutput {
        self.ended = true;
        DeskOutput::End(why)
    }

    /// Whether an answer that counts until then may be given.
    fn counts(&self, now: Micros, until: Option<Micros>) -> bool {
        until.is_none_or(|until| now < until) || mutants::active(Mutant::StaleReply)
    }

    fn reply(&mut self, token: u64, mut response: Response) -> Option<DeskOutput> {
        if let Answer::Refused(Refused::NotLeader {
            leader: None, why, ..
        }) = &mut response.answer
        {
            *why = self.why_nobody_leads();
        }
        self.reply_encoded(token, &callers::encode(&response))
    }

    fn reply_encoded(&mut self, token: u64, payload: &[u8]) -> Option<DeskOutput> {
        let facts = self.core.group_facts();
        let (session, bytes) = self.callers.reply(token, payload, facts)?;
        Some(DeskOutput::Reply { session, bytes })
    }

    /// Once there is a cluster, nobody of another is talked to.
    fn know_cluster(&mut self) -> Option<DeskOutput> {
        let constants = self.core.state().constants()?;
        let cluster = constants.cluster;
        if std::mem::replace(&mut self.cluster, cluster) == cluster {
            return None;
        }
        tracing::info!(%cluster, settings = ?constants.settings, "cluster");
        Some(DeskOutput::KnowCluster(cluster))
    }
}

fn read<T: serde::de::DeserializeOwned>(envelope: &Envelope<'_>) -> Result<T, Refusal> {
    postcards::decode(envelope.payload)
        .map_err(|malformed| Refusal::Malformed(malformed.to_string()))
}
