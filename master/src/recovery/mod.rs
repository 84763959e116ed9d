//! Recoveries on this master: a crashed master's tablets, replayed from what the backups hold.
//!
//! Pure. A recovery has two halves: [`gather`] asks backups and decides what to fetch from whom;
//! [`Replayer`] proves segments and replays them, which takes a core for a while and belongs on a
//! thread of its own. The shell, or the simulator, carries what goes between them:
//!
//! ```text
//! order ─► Recoveries ─ poll_ask ─► backups ─ handle_answer ─► Recoveries
//!              │ poll_started                                  ▲   │
//!              ▼                                       outcomes│   │jobs
//!          Replayer ──────────────────── drive ────────────────┴───┘
//! ```
//!
//! # Invariants
//! 1. Nothing is replayed but what its certificate proves; the end by the one that was decided, all
//!    others by those that the end's digest names.
//! 2. It is said that tablets are recovered only when all segments that the digest names were
//!    replayed, and all that was appended is durable.
//! 3. Orders whose tablets overlap are attempts at the same: the highest counts, and ends the others.
//! 4. Memory, requests and recoveries under way are bounded.

pub mod gather;
mod inventory;
mod replayer;

use std::collections::{BTreeSet, VecDeque};

use ramkeep_wire::backup::{BackupRequest, BackupResponse};
use ramkeep_wire::coordinator::{DamagedReplica, ServerList, ServerState};
use ramkeep_wire::limits::MAX_DAMAGED_REPORTED;
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::order::{OrderReply, Recovery, TabletGrant};
use ramkeep_wire::{ClusterId, LogPosition, Micros, ServerId};

use crate::store::{Finished, ReplayId, Store};
use gather::Gather;
pub use gather::{AskId, Job};
pub use replayer::{Driven, Outcome, Replayer};

/// Recoveries that one master works on at a time.
pub const MAX_RECOVERIES: usize = 8;

/// Names a recovery of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecoveryId(u64);

/// A request to a backup. It is answered by [`Recoveries::handle_answer`], in any case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Whom.
    pub to: ServerId,
    /// Repeated in the answer.
    pub id: (RecoveryId, AskId),
    /// What.
    pub request: BackupRequest,
}

/// What a replayer does next.
#[derive(Debug)]
enum Next {
    /// This.
    Job(Job),
    /// Nothing yet.
    Nothing,
    /// The recovery was given up: it is to be abandoned.
    Ended,
}

#[derive(Debug)]
enum Progress {
    /// Under way.
    Running,
    /// All is in the log.
    Finished(Finished),
    /// It can't be done. Told once, then forgotten.
    Failed(String),
}

#[derive(Debug)]
struct Active {
    id: RecoveryId,
    order: Recovery,
    gather: Gather,
    replay: Option<ReplayId>,
    progress: Progress,
}

/// All recoveries of one master.
#[derive(Debug)]
pub struct Recoveries {
    cluster: ClusterId,
    last: u64,
    active: Vec<Active>,
    started: VecDeque<(RecoveryId, Replayer)>,
    bad: BTreeSet<DamagedReplica>,
}

impl Recoveries {
    /// None yet.
    #[must_use]
    pub fn new(cluster: ClusterId) -> Self {
        Self {
            cluster,
            last: 0,
            active: Vec::new(),
            started: VecDeque::new(),
            bad: BTreeSet::new(),
        }
    }

    /// Takes on an order, or says how far it is.
    pub fn handle_order(
        &mut self,
        store: &Store,
        order: Recovery,
        list: &ServerList,
    ) -> OrderReply {
        self.forget_served(store);
        let repeated = |active: &Active| active.order.is_repeated_by(&order);
        if let Some(at) = self.active.iter().position(repeated) {
            return self.report(at, store.durability().position());
        }
        if let Some(reply) = served(store, &order) {
            return reply;
        }
        let overlapping = |active: &&Active| overlaps(&active.order, &order);
        let newest = self
            .active
            .iter()
            .filter(overlapping)
            .map(|active| active.order.attempt)
            .max();
        if newest.is_some_and(|newest| newest > order.attempt) {
            return OrderReply::CannotRecover("a later attempt is under way".into());
        }
        if is_over(list, order.master) {
            return OrderReply::CannotRecover(format!("nothing of {:?} is left", order.master));
        }
        let ended: Vec<_> = self
            .active
            .extract_if(.., |active| overlaps(&active.order, &order))
            .collect();
        ended.iter().for_each(|active| end(store, active));
        if self.active.len() >= MAX_RECOVERIES {
            let reason = format!("{MAX_RECOVERIES} recoveries are under way here");
            return OrderReply::CannotRecover(reason);
        }
        self.start(order, list);
        self.report(self.active.len() - 1, store.durability().position())
    }

    fn start(&mut self, order: Recovery, list: &ServerList) {
        self.last += 1;
        let id = RecoveryId(self.last);
        let mut gather = Gather::new(self.cluster, &order);
        gather.take_list(list);
        let replayer = Replayer::new(&order);
        let (master, tablets) = (order.master, order.tablets.len());
        tracing::info!(%master, tablets, attempt = order.attempt, "replay begins");
        self.started.push_back((id, replayer));
        self.active.push(Active {
            id,
            order,
            gather,
            replay: None,
            progress: Progress::Running,
        });
    }

    fn report(&mut self, at: usize, durable: LogPosition) -> OrderReply {
        let active = &self.active[at];
        match &active.progress {
            Progress::Finished(finished)
                if finished.end <= durable || mutants::active(Mutant::RecoveredBeforeDurable) =>
            {
                tracing::info!(master = %active.order.master, "all that was replayed is durable");
                OrderReply::Recovered(vec![finished.takeover; active.order.tablets.len()])
            }
            Progress::Running | Progress::Finished(_) => {
                let (segments, of, bytes) = active.gather.progress();
                OrderReply::Recovering {
                    segments,
                    of,
                    bytes,
                }
            }
            Progress::Failed(reason) => {
                let reply = OrderReply::CannotRecover(reason.clone());
                self.active.remove(at);
                reply
            }
        }
    }

    /// Recoveries whose tablets are all served are done with.
    pub fn forget_served(&mut self, store: &Store) {
        let tablets = store.tablets();
        self.active.retain(|active| {
            let mut ranges = active.order.tablets.iter();
            !ranges.all(|lost| tablets.iter().any(|owned| owned.range == lost.range))
                || active.order.tablets.is_empty()
        });
    }

    /// Servers have come or gone.
    pub fn take_list(&mut self, list: &ServerList) {
        // Of tables that were dropped meanwhile nothing is ever served; what is finished and not taken
        // yet is the store's.
        self.active
            .retain(|active| !is_over(list, active.order.master));
        for active in &mut self.active {
            active.gather.take_list(list);
        }
    }

    /// The next request to send.
    pub fn poll_ask(&mut self, now: Micros) -> Option<Ask> {
        let running = |active: &&mut Active| matches!(active.progress, Progress::Running);
        for active in self.active.iter_mut().filter(running) {
            match active.gather.poll_ask(now) {
                Ok(Some((to, id, request))) => {
                    let id = (active.id, id);
                    return Some(Ask { to, id, request });
                }
                Ok(None) => {}
                Err(reason) => active.progress = Progress::Failed(reason),
            }
        }
        None
    }

    /// The answer to a request with the bytes that followed it; none if there was none.
    pub fn handle_answer(
        &mut self,
        now: Micros,
        id: (RecoveryId, AskId),
        answer: Option<(BackupResponse, &[u8])>,
    ) {
        if let Some(active) = self.active.iter_mut().find(|active| active.id == id.0) {
            active.gather.handle_answer(now, id.1, answer);
            note_bad(&mut self.bad, &mut active.gather);
        }
    }

    /// A recovery that has begun, with the replayer that is to be driven for it.
    pub fn poll_started(&mut self) -> Option<(RecoveryId, Replayer)> {
        self.started.pop_front()
    }

    /// What the replayer of a recovery is to do next.
    fn next_job(&mut self, id: RecoveryId) -> Next {
        match self.active.iter_mut().find(|active| active.id == id) {
            None => Next::Ended,
            Some(Active {
                progress: Progress::Failed(_),
                ..
            }) => Next::Ended,
            Some(active) => active.gather.next_job().map_or(Next::Nothing, Next::Job),
        }
    }

    /// What came of a replayer's work.
    pub fn handle_outcome(&mut self, id: RecoveryId, outcome: Outcome) {
        let Some(active) = self.active.iter_mut().find(|active| active.id == id) else {
            return;
        };
        let result = match outcome {
            Outcome::Begun(replay) => {
                active.replay = Some(replay);
                Ok(())
            }
            Outcome::Digest(items) => {
                tracing::info!(segments = items.len(), "the end is proved");
                active.gather.handle_digest(items)
            }
            Outcome::Replayed { segment, memory } => {
                active.gather.handle_replayed(segment, memory);
                Ok(())
            }
            Outcome::Bad { segment, from } => {
                active.gather.handle_bad(segment, from);
                Ok(())
            }
            Outcome::Finished(finished) => {
                active.progress = Progress::Finished(finished);
                Ok(())
            }
            Outcome::Failed(reason) => Err(reason),
        };
        note_bad(&mut self.bad, &mut active.gather);
        if let Err(reason) = result {
            active.progress = Progress::Failed(reason);
        }
    }

    /// Replicas that were found damaged, for status and reports.
    #[must_use]
    pub fn bad_replicas(&self) -> Vec<DamagedReplica> {
        self.bad.iter().copied().collect()
    }

    /// Whether there is something to drive.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.active.is_empty() && self.started.is_empty()
    }
}

fn note_bad(all: &mut BTreeSet<DamagedReplica>, gather: &mut Gather) {
    for bad in gather.take_bad() {
        if all.len() < MAX_DAMAGED_REPORTED && all.insert(bad) {
            let DamagedReplica {
                backup,
                master,
                segment,
            } = bad;
            tracing::warn!(%backup, %master, %segment, "a replica is damaged; another is used");
        }
    }
}

fn end(store: &Store, active: &Active) {
    // One that has not begun finds that it was ended when it asks for work.
    if let Some(replay) = active.replay {
        store.end_replay(replay);
    }
}

/// The answer if the tablets, or some of them, are served here.
fn served(store: &Store, order: &Recovery) -> Option<OrderReply> {
    let tablets = store.tablets();
    let taken = |range: &TabletGrant| {
        let owned = tablets.iter().find(|owned| owned.range == *range);
        owned.map(|owned| owned.takeover)
    };
    let positions: Option<Vec<_>> = order
        .tablets
        .iter()
        .map(|lost| taken(&lost.range))
        .collect();
    positions
        .filter(|all| !all.is_empty())
        .map(OrderReply::Recovered)
}

fn overlaps(one: &Recovery, other: &Recovery) -> bool {
    let meets = |a: &TabletGrant, b: &TabletGrant| {
        a.table == b.table && a.first <= b.last && b.first <= a.last
    };
    let of_other = |a: &TabletGrant| other.tablets.iter().any(|b| meets(a, &b.range));
    one.master == other.master && one.tablets.iter().any(|a| of_other(&a.range))
}

/// Whether nothing of the master is needed any more, so that an order is a late one.
fn is_over(list: &ServerList, master: ServerId) -> bool {
    let entry = list.servers.iter().find(|entry| entry.server == master);
    entry.is_some_and(|entry| entry.recovered && entry.state == ServerState::Crashed)
}
