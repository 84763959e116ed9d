//! The coordinator of one peer: requests, messages, replies and time in; things to persist, answers,
//! messages and orders out.
//!
//! Call any `handle_*`, then drain [`Coordinator::poll_output`]; call [`Coordinator::handle_tick`]
//! at [`Coordinator::next_timeout`] at the latest.
//!
//! # Invariants
//! 1. An answer that depends on a command is given only after the command was decided and applied;
//!    any other answer counts only while the leader's lease runs.
//! 2. What is ordered follows from the replicated state: another leader, or another life, goes on
//!    with what was begun. Orders are repeated until they are confirmed, and carry the ballot.
//! 3. Nothing is answered but `NotLeader` before this leader's ballot is decided and applied, or
//!    after a server has seen a higher one.
//! 4. A new leader starts all timers afresh (SAFETY 8).

mod backlog;
mod claims;
mod damaged;
mod decided;
mod detector;
mod duties;
mod follow;
mod lot;
mod recovery;
mod requests;
mod waiting;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use paxos::limits::Timing;
use paxos::{Record, RestoreError, Setup, Snapshot, Stored};
use ramkeep_wire::backup::BackupRequest;
use ramkeep_wire::coordinator::{
    Answer, GroupFacts, Once, Refused, Response, Settings, SuspicionCounts,
};
use ramkeep_wire::limits::MAX_COORDINATORS;
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::order::{Command as OrderCommand, Order, OrderReply, TabletGrant};
use ramkeep_wire::{
    Ballot, ClientId, ListVersion, MapVersion, Micros, PeerId, ReplicationEpoch, SegmentId,
    ServerId,
};

use crate::command::Command;
use crate::consensus::{Consensus, Unreadable, peer, time};
use crate::entropy::Entropy;
use crate::limits::{PAUSE_SEEN, STARVED};
use crate::state::State;
use backlog::Backlog;
use claims::Claim;
use damaged::Damaged;
use detector::Watch;
use duties::{Duties, Duty};
use recovery::Recoveries;
use waiting::{Waiting, Wanted};

/// What a coordinator is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which peer this is.
    pub peer: PeerId,
    /// Of its disk.
    pub incarnation: [u8; 16],
    /// Where clients, servers and the other coordinators reach it.
    pub address: String,
    /// The coordinators that form a group together, this one among them; or, for one that joins,
    /// those that are there.
    pub peers: Vec<(PeerId, String)>,
    /// Constants of the cluster, in case this start makes it.
    pub settings: Settings,
    /// The times of the group.
    pub timing: Timing,
    /// Whether this start may make a cluster: if its disk is empty, and so are those of all its peers.
    pub founds: bool,
    /// 32 random bytes, fresh for this start.
    pub entropy: [u8; 32],
}

/// The settings of a cluster, unless others are asked for.
#[must_use]
pub fn default_settings() -> Settings {
    Settings {
        replicas: 2,
        lease_us: 200_000,
        backup_wait_us: 2_000_000,
        heartbeat_us: 100_000,
        suspect_us: 500_000,
        segment_size: u32::try_from(ramkeep_wire::limits::SEGMENT_SIZE)
            .expect("a segment's size fits u32"),
    }
}

/// What must happen outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Put these records into the journal for good, then call [`Coordinator::handle_persisted`]. In
    /// order with `SaveSnapshot`.
    Persist {
        /// Grows.
        seq: u64,
        /// The records.
        records: Vec<Record>,
    },
    /// Keep this snapshot for good, then begin a new journal with these records, then call
    /// [`Coordinator::handle_persisted`].
    SaveSnapshot {
        /// Grows.
        seq: u64,
        /// Replaces the last.
        snapshot: Snapshot,
        /// All that still counts beside it.
        records: Vec<Record>,
    },
    /// Send a message to another coordinator. May be lost.
    Send {
        /// Where it may be, the likeliest first; none if that is not known.
        addresses: Vec<String>,
        /// The message, with to whom.
        message: paxos::Envelope,
    },
    /// Answer the request that came with `token`, if who asked is still there.
    Reply {
        /// As given to [`Coordinator::handle_request`].
        token: u64,
        /// The answer.
        response: Response,
        /// If a clock that is read from now on has passed this: [`Coordinator::not_leader`] is the
        /// answer instead. `None`: it counts whenever it is given.
        until: Option<Micros>,
    },
    /// The same, with the tablet map as it is when this is carried out: [`Coordinator::map_response`]. It may
    /// be long and asked for by many, so that it is made once for each [`Coordinator::map_stamp`].
    ReplyMap {
        /// As given to [`Coordinator::handle_request`].
        token: u64,
        /// As above.
        until: Option<Micros>,
    },
    /// Send an order; its reply goes to [`Coordinator::handle_order_reply`]. May be lost; where there is no
    /// room for it, it goes to [`Coordinator::handle_no_room`].
    Order {
        /// To whom.
        server: ServerId,
        /// Where it listens.
        addresses: Vec<String>,
        /// The order.
        order: Order,
    },
    /// Ask a server's backup; what came of it, also when nothing did, goes to
    /// [`Coordinator::handle_backup_answer`].
    Ask {
        /// Whom.
        server: ServerId,
        /// Where it listens.
        addresses: Vec<String>,
        /// Names the question.
        token: u64,
        /// What.
        request: BackupRequest,
    },
    /// Another coordinator took this one's place: the process ends.
    Removed,
    /// This build can't go on: the process ends.
    Stop(Unreadable),
}

/// Why a journal does not make a coordinator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoverError {
    /// The snapshot or a record can't be read although its checksum fits: another build wrote it.
    #[error("{what} is not readable by this build: {why}")]
    Unreadable {
        /// Which.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// What it says makes no sense.
    #[error(transparent)]
    Restore(#[from] RestoreError),
}

/// Where a proposed command came from: what to do with its outcome.
#[derive(Clone, Debug)]
enum Origin {
    /// The coordinator itself.
    Own,
    /// A request to be answered.
    Request(u64),
    /// A request for a table.
    Create(u64, String, Option<Once>),
    /// A server was found crashed.
    Crash(ServerId),
    /// A server became ready, or its floor rose.
    Report(ServerId),
    /// A recovery of this master goes on.
    Recovery(ServerId),
    /// A server has taken or dropped these pieces.
    Confirmed(ServerId, Duty, BTreeSet<TabletGrant>),
    /// A crashed server is fenced.
    Fence(ServerId),
    /// A client's lease has run out.
    Expire(ClientId),
}

/// Things proposed on a server's behalf and not decided yet, so that no heartbeat proposes twice.
#[derive(Debug, Default)]
struct Reported {
    ready: bool,
    floor: Option<(SegmentId, ReplicationEpoch)>,
}

/// A request for another coordinator in the place of one, until it is so.
#[derive(Clone, Copy, Debug)]
struct Replacing {
    token: u64,
    lost: PeerId,
    by: PeerId,
}

/// No state has these versions.
const NOTHING_FOLLOWED: (ListVersion, MapVersion, u64) = (ListVersion(0), MapVersion(0), 0);

/// One peer's coordinator.
#[derive(Debug)]
pub struct Coordinator {
    config: Config,
    state: State,
    consensus: Consensus<Origin>,
    entropy: Entropy,
    /// Bytes of a crashed master's log for one recovery master.
    partition_bytes: u64,
    outputs: VecDeque<Output>,
    now: Micros,
    /// The ballot under which it leads, once that is decided and applied.
    leads: Option<Ballot>,
    /// A ballot above its own that a server has seen.
    deposed: Option<Ballot>,
    backlog: Backlog,
    /// Members that have this slot know who the members are.
    regrouped: u64,
    /// Bytes of commands applied since the last snapshot.
    unsaved: usize,
    /// So many of those make another.
    snapshot_after: usize,
    /// Syncs of the journal.
    syncs: u64,
    /// It can't go on.
    stopped: bool,
    watches: BTreeMap<ServerId, Watch>,
    reported: BTreeMap<ServerId, Reported>,
    fences: BTreeMap<ServerId, Micros>,
    leases: BTreeMap<ClientId, Micros>,
    leases_checked: Micros,
    duties: Duties,
    recoveries: Recoveries,
    damaged: Damaged,
    waiting: Waiting,
    replacing: Vec<Replacing>,
    claims: Vec<Claim>,
    /// The versions of servers, tables and recoveries that were followed last.
    followed: (ListVersion, MapVersion, u64),
    /// Something happened that may need action beyond what `next_look` waits for.
    look: bool,
    next_look: Option<Micros>,
}

impl Coordinator {
    /// A coordinator that goes on from what its disk has.
    ///
    /// # Errors
    /// When that makes no sense.
    pub fn new(now: Micros, config: Config, stored: Stored) -> Result<Self, RecoverError> {
        let mut entropy = Entropy::new(config.entropy);
        let peers = config.peers.iter();
        let setup = Setup {
            me: peer(config.peer),
            incarnation: paxos::Incarnation(config.incarnation),
            address: config.address.clone(),
            peers: peers.map(|(id, at)| (peer(*id), at.clone())).collect(),
            timing: config.timing,
            founds: config.founds || mutants::active(Mutant::FoundUnasked),
            seed: entropy.draw(),
        };
        let mut core = Self {
            consensus: Consensus::new(now, setup, stored)?,
            entropy,
            partition_bytes: crate::limits::PARTITION_BYTES,
            config,
            state: State::default(),
            outputs: VecDeque::new(),
            now,
            leads: None,
            deposed: None,
            backlog: Backlog::default(),
            regrouped: 0,
            unsaved: 0,
            snapshot_after: crate::limits::SNAPSHOT_AFTER,
            syncs: 0,
            stopped: false,
            watches: BTreeMap::new(),
            reported: BTreeMap::new(),
            fences: BTreeMap::new(),
            leases: BTreeMap::new(),
            leases_checked: now,
            duties: Duties::default(),
            recoveries: Recoveries::default(),
            damaged: Damaged::default(),
            waiting: Waiting::default(),
            replacing: Vec::new(),
            claims: Vec::new(),
            followed: NOTHING_FOLLOWED,
            look: false,
            next_look: None,
        };
        core.settle();
        match core
            .outputs
            .iter()
            .find(|output| matches!(output, Output::Stop(_)))
        {
            Some(Output::Stop(unreadable)) => Err(RecoverError::Unreadable {
                what: format!("slot {}", unreadable.slot),
                why: unreadable.why.clone(),
            }),
            _ => Ok(core),
        }
    }

    /// Which coordinator this is.
    #[must_use]
    pub fn peer_id(&self) -> PeerId {
        self.config.peer
    }

    /// Where this very disk was when it became a member of its group, if that is not here: another process
    /// may have it there (SAFETY 30).
    #[must_use]
    pub fn was_elsewhere(&self) -> Option<String> {
        let setup = self.consensus.node().setup();
        let group = self.consensus.node().group()?;
        let member = group.member(setup.me)?;
        let own = member.incarnation == setup.incarnation;
        let elsewhere = own && member.address != setup.address;
        let asks = elsewhere && !mutants::active(Mutant::StartCopies);
        asks.then(|| member.address.clone())
    }

    /// The replicated state.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The peer of the group.
    #[must_use]
    pub fn node(&self) -> &paxos::Node {
        self.consensus.node()
    }

    /// The ballot that answers and orders carry: this leader's, or the highest that led.
    #[must_use]
    pub fn ballot(&self) -> Ballot {
        self.leads.unwrap_or(self.state.ballot())
    }

    /// Whether requests are answered.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.leads.is_some() && self.deposed.is_none()
    }

    /// How often it suspected a living server, while it led.
    #[must_use]
    pub fn suspected(&self, server: ServerId) -> SuspicionCounts {
        let watch = self.watches.get(&server);
        watch.map(|watch| watch.counts).unwrap_or_default()
    }

    /// The next thing that must happen outside.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// All records and snapshots up to `seq` are on the disk for good.
    pub fn handle_persisted(&mut self, now: Micros, seq: u64) {
        self.wake(now);
        self.backlog.done(seq);
        self.syncs += 1;
        self.consensus.node_mut().handle_persisted(time(now), seq);
        self.settle();
    }

    /// Another coordinator's message came in.
    pub fn handle_message(&mut self, now: Micros, message: paxos::Envelope) {
        self.wake(now);
        if self.backlog.is_full() {
            tracing::debug!("the disk is far behind: a message is lost");
        } else {
            self.consensus.node_mut().handle_message(time(now), message);
        }
        self.settle();
    }

    /// No process listens where another coordinator was.
    pub fn handle_peer_gone(&mut self, now: Micros, gone: PeerId) {
        self.wake(now);
        let node = self.consensus.node_mut();
        node.handle_peer_gone(time(now), peer(gone));
        self.settle();
    }

    /// A server answered an order.
    pub fn handle_order_reply(
        &mut self,
        now: Micros,
        server: ServerId,
        command: &OrderCommand,
        reply: OrderReply,
    ) {
        self.wake(now);
        if let Some(watch) = self.watches.get_mut(&server) {
            watch.hear(now);
            if *command == OrderCommand::Probe {
                self.claim_is_refused(server);
            }
            self.order_answered(server, command, reply);
        }
        self.settle();
    }

    /// There is no room for an order on its way to a server: it is given again when there is.
    pub fn handle_no_room(&mut self, now: Micros, server: ServerId, command: &OrderCommand) {
        self.wake(now);
        if let Some(duty) = Duty::of(command) {
            self.duties.no_room(server, duty);
        }
        self.settle();
    }

    /// There is room for orders to a server again.
    pub fn handle_room(&mut self, now: Micros, server: ServerId) {
        self.wake(now);
        self.look |= self.duties.room(now, server);
        self.settle();
    }

    /// An order did not reach a server: `refused` when no process listens at its address, else it
    /// was lost or not answered in time.
    pub fn handle_probe_failed(&mut self, now: Micros, server: ServerId, refused: bool) {
        self.wake(now);
        if let Some(watch) = self.watches.get_mut(&server)
            && refused
        {
            watch.refused(now);
            self.look = true;
            self.claim_is_free(server);
        }
        self.settle();
    }

    /// A connection with a server closed, from whichever side it had been opened.
    pub fn handle_link_down(&mut self, now: Micros, server: ServerId) {
        self.wake(now);
        if let Some(watch) = self.watches.get_mut(&server) {
            watch.closed(now);
            self.look = true;
        }
        self.settle();
    }

    /// Time has passed.
    pub fn handle_tick(&mut self, now: Micros) {
        self.wake(now);
        self.consensus.node_mut().handle_timeout(time(now));
        self.settle();
    }

    /// When [`Coordinator::handle_tick`] is due.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Micros> {
        let group = self.consensus.node().next_timeout();
        let look = self.next_look.filter(|_| self.leads());
        group.map(|due| Micros(due.0)).into_iter().chain(look).min()
    }

    /// Notes the time. After a sleep of this very process, silence of others means nothing; while it
    /// was starved, as much less.
    fn wake(&mut self, now: Micros) {
        let promised = self.next_timeout().map_or(now, |due| due.max(self.now));
        let late = now.since(promised);
        if now.since(self.now) >= PAUSE_SEEN {
            for watch in self.watches.values_mut() {
                watch.afresh(now);
            }
            self.look = true;
        } else if late >= STARVED {
            let watches = self.watches.values_mut();
            watches.for_each(|watch| watch.starved(late));
        }
        self.now = self.now.max(now);
    }

    /// Answers from the state: counts while the lease runs.
    fn reply(&mut self, token: u64, answer: Answer) {
        let until = self.leased();
        self.push_reply(token, answer, until);
    }

    /// Answers with the tablet map: counts while the lease runs.
    fn reply_map(&mut self, token: u64) {
        let until = self.leased();
        self.outputs.push_back(Output::ReplyMap { token, until });
    }

    /// Until when an answer from the state counts.
    fn leased(&self) -> Option<Micros> {
        let until = Some(self.consensus.lease_until());
        until.filter(|_| !mutants::active(Mutant::AnswerWithoutLease))
    }

    /// The answer with the tablet map.
    #[must_use]
    pub fn map_response(&self) -> Response {
        let map = self.state.tablet_map();
        Response::new(self.ballot(), Answer::Map(Some(map)))
    }

    /// As long as this is the same, [`Coordinator::map_response`] is.
    #[must_use]
    pub fn map_stamp(&self) -> (Ballot, ListVersion, MapVersion) {
        let state = &self.state;
        (self.ballot(), state.list_version(), state.map_version())
    }

    /// Answers by what was decided.
    fn reply_decided(&mut self, token: u64, answer: Answer) {
        self.push_reply(token, answer, None);
    }

    fn push_reply(&mut self, token: u64, answer: Answer, until: Option<Micros>) {
        let ballot = self.ballot();
        self.outputs.push_back(Output::Reply {
            token,
            response: Response::new(ballot, answer),
            until,
        });
    }

    fn refuse(&mut self, token: u64, why: Refused) {
        self.reply(token, Answer::Refused(why));
    }

    /// Where a coordinator is, for those who ask.
    fn address_of(&self, id: paxos::PeerId) -> Option<String> {
        if id == peer(self.config.peer) {
            return Some(self.config.address.clone());
        }
        let addresses = self.consensus.node().addresses_of(id);
        addresses.first().map(|address| (*address).to_owned())
    }

    /// The answer of one who does not lead.
    #[must_use]
    pub fn not_leader(&self) -> Response {
        let node = self.consensus.node();
        let members = node.group().into_iter().flat_map(|group| &group.members);
        let leader = node.leader().filter(|id| *id != peer(self.config.peer));
        let leader = leader.and_then(|id| self.address_of(id));
        let coordinators = members.filter_map(|member| self.address_of(member.id));
        let mut coordinators: Vec<String> = coordinators.collect();
        if coordinators.is_empty() {
            coordinators = self.config.peers.iter().map(|(_, at)| at.clone()).collect();
        }
        let refused = Refused::NotLeader {
            leader,
            coordinators,
            why: None,
        };
        Response::new(self.ballot(), Answer::Refused(refused))
    }

    /// Who the coordinators are and where each may be reached, from one who leads.
    #[must_use]
    pub fn group_facts(&self) -> Option<GroupFacts> {
        let node = self.consensus.node();
        let group = node.group().filter(|_| self.leads())?;
        let own = self.config.address.as_str();
        let mut coordinators: Vec<String> = Vec::new();
        for member in &group.members {
            let addresses = match member.id == peer(self.config.peer) {
                true => vec![own],
                false => node.addresses_of(member.id),
            };
            for address in addresses {
                if !coordinators.iter().any(|known| known == address) {
                    coordinators.push(address.to_owned());
                }
            }
        }
        coordinators.truncate(MAX_COORDINATORS);
        Some(GroupFacts {
            generation: group.generation,
            coordinators,
        })
    }

    /// Whoever asked is to ask the leader.
    fn redirect(&mut self, token: u64) {
        let response = self.not_leader();
        self.outputs.push_back(Output::Reply {
            token,
            response,
            until: None,
        });
    }

    fn propose(&mut self, command: &Command, origin: Origin) {
        if let Err(origin) = self.consensus.propose(self.now, command, origin) {
            self.lost(&origin);
        }
    }

    fn wait(&mut self, token: u64, wanted: Wanted) {
        if !self.leads() {
            return self.redirect(token);
        }
        self.look = true;
        if let Err(why) = self.waiting.add(self.now, token, wanted) {
            self.refuse(token, why);
        }
    }

    fn order_answered(&mut self, server: ServerId, command: &OrderCommand, reply: OrderReply) {
        match (command, reply) {
            (_, OrderReply::StaleBallot(seen)) if seen > self.ballot() => {
                tracing::error!(%server, %seen, ours = %self.ballot(),
                    "a server has seen a higher ballot: this coordinator leads no more");
                self.deposed = Some(seen);
                self.redirect_all();
            }
            (OrderCommand::TakeTablets(grants), OrderReply::Taken(positions))
                if grants.len() == positions.len() =>
            {
                let taken = grants.iter().copied().zip(positions);
                self.tablets_taken(server, Duty::Take, taken);
            }
            (OrderCommand::TakeRecovered(recovered), OrderReply::Taken(positions))
                if recovered.len() == positions.len() =>
            {
                let taken = recovered.iter().map(|one| one.range).zip(positions);
                self.tablets_taken(server, Duty::TakeRecovered, taken);
            }
            (OrderCommand::DropTables(tables), OrderReply::Done) => {
                self.tables_dropped(server, tables);
            }
            (OrderCommand::UpdateServers(list), OrderReply::Done) => {
                self.list_confirmed(server, list.version);
            }
            (OrderCommand::Probe, _) | (_, OrderReply::StaleBallot(_)) => {}
            (OrderCommand::Recover(recovery), reply) => {
                self.recover_answered(server, recovery, reply);
            }
            (_, OrderReply::NotReady) => {}
            (command, reply) => {
                tracing::warn!(%server, ?command, ?reply, "reply does not fit its order");
            }
        }
    }
}
