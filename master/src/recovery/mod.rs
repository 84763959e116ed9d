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
//!    replayed, all that was appended is durable, and all was heard of client leases that had ended
//!    when the try began: nothing runs here that the crashed master would have refused.
//! 3. Orders whose tablets overlap are attempts at the same: the highest counts, and ends the others.
//! 4. A try is named by its [`TryId`] alone. It begins once, and what became of it stays: a repeated
//!    order, whatever else it says by then, neither begins it anew nor takes away what is finished
//!    (SAFETY 25).
//! 5. Memory, requests and recoveries under way are bounded, and so are tries that are remembered.

pub mod gather;
mod inventory;
mod replayer;

use std::collections::{BTreeSet, VecDeque};

use ramkeep_wire::backup::{BackupRequest, BackupResponse};
use ramkeep_wire::coordinator::{DamagedReplica, ServerList, ServerState};
use ramkeep_wire::limits::{MAX_DAMAGED_REPORTED, MAX_TRIES_HELD};
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::order::{OrderReply, Recovery, TabletGrant};
use ramkeep_wire::{
    ClusterId, EndedClients, EndedRound, HeldTry, LogPosition, Micros, ServerId, TryId,
};

use crate::store::{Finished, ReplayId, Store};
pub use gather::{AskId, Job};
use gather::{Failure, Gather};
pub use replayer::{Driven, Outcome, Replayer};

/// Recoveries that one master works on at a time.
pub const MAX_RECOVERIES: usize = 8;

const _: () = assert!(MAX_RECOVERIES < MAX_TRIES_HELD);

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
    /// It can't be done, and nothing of it is left here but dead entries of the log.
    Failed(Failure),
}

#[derive(Debug)]
struct Active {
    id: RecoveryId,
    order: Recovery,
    gather: Gather,
    replay: Option<ReplayId>,
    progress: Progress,
    /// The leases that have ended, as far as the orders told; none once they told all.
    untold: Option<EndedRound>,
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

    /// Takes on an order, or says how far its try is.
    pub fn handle_order(
        &mut self,
        store: &Store,
        order: Recovery,
        list: &ServerList,
    ) -> OrderReply {
        self.forget_served(store);
        let durable = store.durability().position();
        if let Some(known) = self.active.iter_mut().find(|active| active.is_of(&order)) {
            known.hear(&order.ended);
            return known.report(durable);
        }
        if let Some(reply) = served(store, &order) {
            return reply;
        }
        if let Err(reason) = self.check_room_for(&order, list) {
            return OrderReply::CannotRecover(reason);
        }
        let others: Vec<_> = self
            .active
            .extract_if(.., |active| overlaps(&active.order, &order))
            .collect();
        others.iter().for_each(|active| end(store, active));
        self.start(order, list).report(durable)
    }

    /// Whether a try that is not known here may begin. Nothing has changed if not.
    fn check_room_for(&mut self, order: &Recovery, list: &ServerList) -> Result<(), String> {
        let same = |active: &&Active| overlaps(&active.order, order);
        let newest = self.active.iter().filter(same).map(|a| a.order.attempt);
        if newest.max().is_some_and(|newest| newest > order.attempt) {
            return Err("a later attempt is under way".into());
        }
        if is_over(list, order.master) {
            return Err(format!("nothing of {:?} is left", order.master));
        }
        let others = self.active.iter().filter(|active| !same(active));
        if others.filter(|active| active.is_running()).count() >= MAX_RECOVERIES {
            return Err(format!("{MAX_RECOVERIES} recoveries are under way here"));
        }
        if self.active.len() >= MAX_TRIES_HELD {
            // Should it come to be ordered again, it is one try more, as it would be elsewhere.
            let failed = |active: &Active| matches!(active.progress, Progress::Failed(_));
            let Some(oldest) = self.active.iter().position(failed) else {
                return Err(format!("{MAX_TRIES_HELD} tries wait here to be taken"));
            };
            self.active.remove(oldest);
        }
        Ok(())
    }

    fn start(&mut self, order: Recovery, list: &ServerList) -> &Active {
        self.last += 1;
        let id = RecoveryId(self.last);
        let mut gather = Gather::new(self.cluster, &order);
        gather.take_list(list);
        let replayer = Replayer::new(&order);
        let TryId { master, attempt } = order.id();
        tracing::info!(%master, tablets = order.tablets.len(), attempt, "replay begins");
        self.started.push_back((id, replayer));
        self.active.push_mut(Active {
            id,
            gather,
            replay: None,
            progress: Progress::Running,
            untold: left_of(EndedRound::default(), &order.ended),
            order,
        })
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
        // Nobody waits for what is not finished; what is, may have been given out and not taken yet.
        let is_needed = |active: &Active| {
            matches!(active.progress, Progress::Finished(_)) || !is_over(list, active.order.master)
        };
        self.active.retain(is_needed);
        for active in &mut self.active {
            active.gather.take_list(list);
        }
    }

    /// The next request to send.
    pub fn poll_ask(&mut self, now: Micros) -> Option<Ask> {
        for active in self.active.iter_mut().filter(|active| active.is_running()) {
            match active.gather.poll_ask(now) {
                Ok(Some((to, id, request))) => {
                    let id = (active.id, id);
                    return Some(Ask { to, id, request });
                }
                Ok(None) => {}
                Err(reason) => active.come_to(Progress::Failed(reason)),
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
            Outcome::Digest { items, admitted } => {
                tracing::info!(segments = items.len(), admitted, "the end is proved");
                active.gather.handle_digest(items, admitted)
            }
            Outcome::Admitted => {
                active.gather.handle_admitted();
                Ok(())
            }
            Outcome::NoRoom { needs, room } => {
                active.come_to(Progress::Failed(Failure::no_room(needs, room)));
                Ok(())
            }
            Outcome::Proved { segment, memory } => {
                active.gather.handle_proved(segment, memory);
                Ok(())
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
                active.come_to(Progress::Finished(finished));
                Ok(())
            }
            Outcome::Failed(reason) => Err(reason),
        };
        note_bad(&mut self.bad, &mut active.gather);
        if let Err(reason) = result {
            active.come_to(Progress::Failed(reason.into()));
        }
    }

    /// The tries that are here, for reports.
    #[must_use]
    pub fn held(&self) -> Vec<HeldTry> {
        self.active.iter().map(Active::held).collect()
    }

    /// Ends those of the tries that nobody will take over, as the coordinator says of what was reported:
    /// what they replayed is swept. One that has come to its end since was perhaps given out since.
    pub fn end_over(&mut self, store: &Store, over: &[HeldTry]) {
        let is_over = |active: &mut Active| {
            let known = active.held();
            let old = mutants::active(Mutant::OldVerdictsEndTries);
            let mut said = over.iter();
            said.any(|said| *said == known || (old && said.id == known.id))
        };
        for active in self.active.extract_if(.., is_over) {
            let TryId { master, attempt } = active.order.id();
            tracing::info!(%master, attempt, "a try is wanted no more");
            end(store, &active);
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
        !self.active.iter().any(Active::is_running) && self.started.is_empty()
    }
}

impl Active {
    /// It is over with: what it worked with goes.
    fn come_to(&mut self, progress: Progress) {
        self.progress = progress;
        self.gather.rest();
    }

    fn held(&self) -> HeldTry {
        HeldTry {
            id: self.order.id(),
            takeover: match &self.progress {
                Progress::Finished(finished) => Some(finished.takeover),
                Progress::Running | Progress::Failed(_) => None,
            },
        }
    }

    fn is_running(&self) -> bool {
        matches!(self.progress, Progress::Running)
    }

    /// Whether this is the try that the order names.
    fn is_of(&self, order: &Recovery) -> bool {
        let failed = matches!(self.progress, Progress::Failed(_));
        self.order.id() == order.id()
            && (self.order == *order || !mutants::active(Mutant::RestartOnNews))
            && (!failed || !mutants::active(Mutant::FailedTryBeginsAnew))
    }

    /// More was told of leases that have ended. The store has learned it before.
    fn hear(&mut self, ended: &EndedClients) {
        self.untold = self.untold.and_then(|round| left_of(round, ended));
    }

    fn report(&self, durable: LogPosition) -> OrderReply {
        let told = self.untold.is_none() || mutants::active(Mutant::RecoveredBeforeTold);
        match &self.progress {
            Progress::Finished(finished)
                if (finished.end <= durable && told)
                    || mutants::active(Mutant::RecoveredBeforeDurable) =>
            {
                OrderReply::Recovered(vec![finished.takeover; self.order.tablets.len()])
            }
            Progress::Running | Progress::Finished(_) => {
                let (segments, of, bytes) = self.gather.progress();
                OrderReply::Recovering {
                    segments,
                    of,
                    bytes,
                }
            }
            Progress::Failed(failure) => failure.reply(),
        }
    }
}

/// The round, unless this page is what was left of it.
fn left_of(mut round: EndedRound, page: &EndedClients) -> Option<EndedRound> {
    round.took(page);
    (!round.is_complete()).then_some(round)
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
