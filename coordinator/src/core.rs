//! The coordinator of one peer: requests, replies and time in; things to persist, answers and
//! orders out.
//!
//! Call any `handle_*`, then drain [`Coordinator::poll_output`]; call [`Coordinator::handle_tick`]
//! at [`Coordinator::next_timeout`] at the latest.
//!
//! # Invariants
//! 1. An answer that depends on a command is given only after the command was decided and applied.
//! 2. What is ordered follows from the replicated state: after a restart it goes on by itself.
//!    Orders are repeated until they are confirmed, and carry this start's ballot.
//! 3. Nothing is answered but `NotLeader` before this start's ballot is decided, or after a server
//!    has seen a higher one.
//! 4. After a start all timers start afresh (SAFETY 8).

mod detector;
mod duties;
mod follow;
mod requests;
mod waiting;

use std::collections::{BTreeMap, VecDeque};

use ramkeep_wire::coordinator::{Answer, Refused, Response, Settings};
use ramkeep_wire::order::{Command as OrderCommand, Order, OrderReply};
use ramkeep_wire::{
    Ballot, ClientId, ClusterId, ListVersion, MapVersion, Micros, PeerId, ReplicationEpoch,
    SegmentId, ServerId, TableId,
};

use crate::command::{Applied, Command};
use crate::consensus::{Consensus, Slot};
use crate::entropy::Entropy;
use crate::limits::{CLIENT_LEASE, PAUSE_SEEN, SNAPSHOT_AFTER};
use crate::state::State;
use detector::Watch;
use duties::Duties;
use waiting::{Waiting, Wanted};

/// What a coordinator is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which peer this is.
    pub peer: PeerId,
    /// Where clients and servers reach it.
    pub address: String,
    /// Constants of the cluster, in case this start makes it.
    pub settings: Settings,
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
    /// Put this record into the journal for good, then call [`Coordinator::handle_persisted`].
    Persist {
        /// Its slot. One above the last.
        index: u64,
        /// Its payload.
        bytes: Vec<u8>,
    },
    /// Keep this snapshot of the state for good; then all records up to `index` can go. Comes
    /// before any `Persist` of a higher index; needs no answer.
    Snapshot {
        /// The last slot in it.
        index: u64,
        /// The state.
        bytes: Vec<u8>,
    },
    /// Answer the request that came with `token`, if who asked is still there.
    Reply {
        /// As given to [`Coordinator::handle_request`].
        token: u64,
        /// The answer.
        response: Response,
    },
    /// Send an order; its reply goes to [`Coordinator::handle_order_reply`]. May be lost.
    Order {
        /// To whom.
        server: ServerId,
        /// Where it listens.
        addresses: Vec<String>,
        /// The order.
        order: Order,
    },
}

/// Why a journal does not make a coordinator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoverError {
    /// The snapshot or a record can't be read although its checksum fits: another build wrote it.
    #[error("{what} of slot {index} is not readable by this build: {why}")]
    Unreadable {
        /// Snapshot or record.
        what: &'static str,
        /// Which.
        index: u64,
        /// What is wrong.
        why: String,
    },
    /// A slot is missing.
    #[error("the journal goes from slot {after} to slot {found}: slots between are lost")]
    Gap {
        /// The last before the gap.
        after: u64,
        /// The first after it.
        found: u64,
    },
}

/// Where a proposed command came from: what to do with its outcome.
#[derive(Clone, Debug)]
enum Origin {
    /// The coordinator itself.
    Own,
    /// A request to be answered.
    Request(u64),
    /// A request for a table.
    Create(u64, String),
    /// A server was found crashed.
    Crash(ServerId),
    /// A server became ready, or its floor rose.
    Report(ServerId),
}

/// Things proposed on a server's behalf and not decided yet, so that no heartbeat proposes twice.
#[derive(Debug, Default)]
struct Reported {
    ready: bool,
    floor: Option<(SegmentId, ReplicationEpoch)>,
}

/// One peer's coordinator.
pub struct Coordinator {
    config: Config,
    state: State,
    consensus: Consensus<Origin>,
    entropy: Entropy,
    outputs: VecDeque<Output>,
    now: Micros,
    leads: bool,
    deposed: Option<Ballot>,
    unsaved: usize,
    watches: BTreeMap<ServerId, Watch>,
    reported: BTreeMap<ServerId, Reported>,
    fences: BTreeMap<ServerId, Micros>,
    leases: BTreeMap<ClientId, Micros>,
    leases_checked: Micros,
    duties: Duties,
    waiting: Waiting,
    followed: (ListVersion, MapVersion),
    /// Something happened that may need action beyond what `next_look` waits for.
    look: bool,
    next_look: Option<Micros>,
}

impl Coordinator {
    /// A coordinator with nothing in its journal.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self::with_state(config, State::default(), 0)
    }

    /// A coordinator that goes on from its journal: the last snapshot, if any, with the slot that
    /// it ends with, and the records with their slots in order.
    pub fn recover(
        config: Config,
        snapshot: Option<(u64, &[u8])>,
        records: impl IntoIterator<Item = (u64, Vec<u8>)>,
    ) -> Result<Self, RecoverError> {
        let (mut decided, mut state) = match snapshot {
            None => (0, State::default()),
            Some((index, bytes)) => (index, read("the snapshot", index, bytes)?),
        };
        let mut unsaved = 0;
        for (index, bytes) in records {
            if index <= decided {
                continue;
            }
            if index != decided + 1 {
                return Err(RecoverError::Gap {
                    after: decided,
                    found: index,
                });
            }
            let slot: Slot = read("the record", index, &bytes)?;
            for command in &slot.commands {
                // Refusals were answered when they happened; they happen again alike.
                let _ = state.apply(command);
            }
            decided = index;
            unsaved += bytes.len();
        }
        let mut recovered = Self::with_state(config, state, decided);
        recovered.unsaved = unsaved;
        Ok(recovered)
    }

    fn with_state(config: Config, state: State, decided: u64) -> Self {
        Self {
            consensus: Consensus::new(config.peer, state.ballot(), decided),
            entropy: Entropy::new(config.entropy),
            config,
            state,
            outputs: VecDeque::new(),
            now: Micros(0),
            leads: false,
            deposed: None,
            unsaved: 0,
            watches: BTreeMap::new(),
            reported: BTreeMap::new(),
            fences: BTreeMap::new(),
            leases: BTreeMap::new(),
            leases_checked: Micros(0),
            duties: Duties::default(),
            waiting: Waiting::default(),
            followed: (ListVersion(0), MapVersion(0)),
            look: false,
            next_look: None,
        }
    }

    /// Begins: proposes to lead, and to make the cluster if there is none. Call once.
    pub fn start(&mut self, now: Micros) {
        self.now = now;
        if self.state.constants().is_none() {
            let bootstrap = Command::Bootstrap {
                cluster: ClusterId(self.entropy.draw()),
                settings: self.config.settings.clone(),
            };
            self.consensus.propose(bootstrap, Origin::Own);
        }
        let ballot = self.consensus.ballot();
        let lead = Command::Lead { ballot };
        self.consensus.propose(lead, Origin::Own);
        self.settle();
    }

    /// Where clients and servers reach this coordinator, now that it is known.
    pub fn announce(&mut self, address: String) {
        self.config.address = address;
    }

    /// The replicated state.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The ballot that answers and orders carry.
    #[must_use]
    pub fn ballot(&self) -> Ballot {
        self.consensus.ballot()
    }

    /// Whether requests are answered.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.leads && self.deposed.is_none()
    }

    /// The next thing that must happen outside.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// All records up to slot `up_to` are in the journal for good.
    pub fn handle_persisted(&mut self, now: Micros, up_to: u64) {
        self.wake(now);
        self.persisted(up_to);
        self.settle();
    }

    fn persisted(&mut self, up_to: u64) {
        let Some(decided) = self.consensus.handle_persisted(up_to) else {
            return;
        };
        for (command, origin) in decided.commands {
            let outcome = self.state.apply(&command);
            self.decided(&command, origin, outcome);
        }
        if self.unsaved >= SNAPSHOT_AFTER {
            self.unsaved = 0;
            self.outputs.push_back(Output::Snapshot {
                index: decided.index,
                bytes: ramkeep_wire::postcards::encode(&self.state),
            });
        }
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
            self.order_answered(server, command, reply);
        }
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
        self.settle();
    }

    /// When [`Coordinator::handle_tick`] is due.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Micros> {
        self.next_look
    }

    /// Notes the time. After a sleep of this very process, silence of others means nothing.
    fn wake(&mut self, now: Micros) {
        if now.since(self.now) >= PAUSE_SEEN {
            for watch in self.watches.values_mut() {
                watch.afresh(now);
            }
            self.look = true;
        }
        self.now = self.now.max(now);
    }

    fn reply(&mut self, token: u64, answer: Answer) {
        let ballot = self.ballot();
        self.outputs.push_back(Output::Reply {
            token,
            response: Response { ballot, answer },
        });
    }

    fn refuse(&mut self, token: u64, why: Refused) {
        self.reply(token, Answer::Refused(why));
    }

    fn propose(&mut self, command: Command, origin: Origin) {
        self.consensus.propose(command, origin);
    }

    /// A command is decided and applied: the leader's own side of it.
    fn decided(&mut self, command: &Command, origin: Origin, outcome: crate::command::Outcome) {
        match origin {
            Origin::Own => self.decided_own(command),
            Origin::Request(token) => self.answer_decided(token, command, outcome),
            Origin::Create(token, name) => self.create_decided(token, name, outcome),
            Origin::Crash(server) => tracing::warn!(%server, "server decided crashed"),
            Origin::Report(server) => {
                self.reported.remove(&server);
            }
        }
    }

    fn decided_own(&mut self, command: &Command) {
        match command {
            Command::Lead { ballot } if *ballot == self.ballot() => {
                self.leads = true;
                self.look = true;
                self.leases_checked = self.now;
                let until = self.now + CLIENT_LEASE;
                self.leases = self.state.clients().iter().map(|id| (id, until)).collect();
                tracing::info!(%ballot, "leading");
            }
            Command::Fenced { server } => {
                self.fences.remove(server);
            }
            _ => {}
        }
    }

    fn answer_decided(&mut self, token: u64, command: &Command, outcome: crate::command::Outcome) {
        match (outcome, command) {
            (Err(why), _) => self.refuse(token, why),
            (Ok(Applied::Server(server)), _) => self.answer_enlisted(token, server),
            (Ok(Applied::Client(client)), _) => self.answer_lease(token, client),
            (Ok(Applied::Table(table)), _) => self.wait(token, Wanted::Gone(table)),
            (Ok(Applied::Done), Command::RecordEpoch { .. }) => {
                self.reply(token, Answer::EpochRecorded);
            }
            (Ok(Applied::Done), _) => self.reply(token, Answer::Noted),
        }
    }

    fn create_decided(&mut self, token: u64, name: String, outcome: crate::command::Outcome) {
        match outcome {
            Ok(Applied::Table(table)) => self.wait(token, Wanted::Served(table)),
            Ok(_) => self.reply(token, Answer::Noted),
            Err(_) if self.is_dropping(&name) => self.wait(token, Wanted::Room(name)),
            Err(why) => self.refuse(token, why),
        }
    }

    fn is_dropping(&self, name: &str) -> bool {
        let record = self.state.tables().by_name(name);
        record.is_some_and(|record| record.dropping.is_some())
    }

    fn wait(&mut self, token: u64, wanted: Wanted) {
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
            }
            (OrderCommand::TakeTablets(grants), OrderReply::Taken(positions))
                if grants.len() == positions.len() =>
            {
                let tables: Vec<TableId> = grants.iter().map(|grant| grant.table).collect();
                let taken = grants.iter().copied().zip(positions).collect();
                self.propose_taken(server, &tables, taken);
            }
            (OrderCommand::DropTable(table), OrderReply::Done) => {
                self.duties.done(server, duties::Duty::Drop(*table));
                let dropped = Command::TableDropped {
                    table: *table,
                    owner: server,
                };
                self.propose(dropped, Origin::Own);
            }
            (OrderCommand::UpdateServers(list), OrderReply::Done) => {
                self.list_confirmed(server, list.version);
            }
            (OrderCommand::Probe, _) | (_, OrderReply::NotReady | OrderReply::StaleBallot(_)) => {}
            (command, reply) => {
                tracing::warn!(%server, ?command, ?reply, "reply does not fit its order");
            }
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(
    what: &'static str,
    index: u64,
    bytes: &[u8],
) -> Result<T, RecoverError> {
    ramkeep_wire::postcards::decode(bytes).map_err(|why| RecoverError::Unreadable {
        what,
        index,
        why: why.to_string(),
    })
}
