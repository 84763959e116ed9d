//! Recoveries, as the leader sees to them: it looks for the end of each crashed master's log, plans,
//! and has the partitions replayed until none is left.
//!
//! # Invariants
//! 1. All of this is soft: what is decided is in the replicated state, and a new leader finds the rest
//!    again.
//! 2. Backups are asked only once every living one is known to have heard of the crash, and so refuses
//!    the master (SAFETY 5, 12).
//! 3. A log whose end is decided is searched again only when a recovery master can't replay it. If
//!    nobody holds that end any more, and another is proved, the plan is given up.
//! 4. Searches and questions under way are bounded.

mod end;
mod plan;
mod planning;
mod replay;
mod report;
mod search;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ramkeep_wire::backup::{BackupRequest, BackupResponse};
use ramkeep_wire::coordinator::{DamagedReplica, Heartbeat, Loss, TabletState};
use ramkeep_wire::order::TabletGrant;
use ramkeep_wire::{BootId, ListVersion, Micros, ServerId};

use super::detector::Watch;
use super::{Coordinator, Origin, Output};
use crate::command::Command;
use crate::limits::{ASK_AGAIN, ASK_SOON, MAX_ASKED, MAX_SEARCHES};
use crate::state::State;
use end::{Dead, Finder, Found, Gone, Stuck};
use planning::{Allotted, Budget};
use replay::Replay;
use report::{Ended, Moments};
use search::{Looked, Search};

pub(super) use replay::{order, under_way};

/// All recoveries with what only the leader knows of them.
#[derive(Debug, Default)]
pub(super) struct Recoveries {
    walks: BTreeMap<ServerId, Walk>,
    /// Questions under way: about whose log, and whom.
    asked: BTreeMap<u64, (ServerId, ServerId)>,
    /// Last token given; grows over all times of leading, so that no late answer fits.
    tokens: u64,
    /// The last reports of crashed masters.
    reports: BTreeMap<ServerId, Heartbeat>,
    /// The last ones that came to their end.
    ended: VecDeque<Ended>,
}

/// One recovery.
#[derive(Debug)]
struct Walk {
    since: Micros,
    moments: Moments,
    /// Tablets that are not planned.
    down: usize,
    /// Tablets that wait for the log, planned or not.
    lost: usize,
    finder: Finder,
    gone: Gone,
    search: Option<Search>,
    found: Option<Found>,
    /// Commands proposed and not decided.
    proposed: usize,
    /// Why it can't go on.
    stuck: Option<String>,
    /// What it lacks.
    missing: Option<Loss>,
    /// What it waits for before it is planned.
    waits: Option<String>,
    /// What its plan takes, if this leader made it.
    allotted: Option<Allotted>,
    /// Not before this.
    again: Micros,
    /// It waits for a backup to hear of the crash.
    unknown: bool,
    /// All of the log was there since a recovery master said that it can't.
    checked: bool,
    /// The partitions, by the number of their try.
    replays: BTreeMap<u32, Replay>,
    /// Who couldn't replay a partition, by its first range.
    failed: BTreeMap<TabletGrant, BTreeSet<ServerId>>,
}

/// What a step of a recovery wants done.
enum Act {
    Ask {
        server: ServerId,
        token: u64,
        request: BackupRequest,
    },
    /// Of the recovery of this master.
    Propose(ServerId, Command),
}

/// What all recoveries look at.
struct View<'a> {
    state: &'a State,
    watches: &'a BTreeMap<ServerId, Watch>,
    now: Micros,
    /// The newest list that all living backups are known to have.
    known: Option<ListVersion>,
    backups: BTreeMap<ServerId, BootId>,
    partition_bytes: u64,
}

impl Recoveries {
    /// As a new leader begins.
    pub(super) fn forget(&mut self) {
        *self = Self {
            tokens: self.tokens,
            ..Self::default()
        };
    }

    /// A server crashed: its last report says how much it had.
    pub(super) fn note_report(&mut self, server: ServerId, report: Heartbeat) {
        self.reports.insert(server, report);
    }

    /// Follows the state: recoveries begin and end.
    pub(super) fn follow(&mut self, now: Micros, state: &State) {
        let mut counts: BTreeMap<ServerId, (usize, usize)> = BTreeMap::new();
        for tablet in state.tables().lost() {
            let (down, lost) = counts.entry(tablet.owner).or_default();
            *down += usize::from(tablet.state == TabletState::Down);
            *lost += 1;
        }
        let over = |master: &ServerId, _: &mut Walk| !counts.contains_key(master);
        for (master, walk) in self.walks.extract_if(.., over) {
            report::note_ended(&mut self.ended, now, master, &walk);
        }
        self.reports.retain(|master, _| counts.contains_key(master));
        for (master, (down, lost)) in counts {
            let walk = self.walks.entry(master).or_insert_with(|| Walk::new(now));
            (walk.down, walk.lost) = (down, lost);
            if walk.stuck.is_some() {
                // A backup or a master may have come.
                walk.again = walk.again.min(now);
            }
            walk.follow(now, master, state);
        }
    }

    /// When something is due by time alone.
    pub(super) fn due(&self) -> Option<Micros> {
        self.walks.values().filter_map(Walk::due).min()
    }
}

impl Walk {
    fn new(now: Micros) -> Self {
        Self {
            since: now,
            moments: Moments::default(),
            down: 0,
            lost: 0,
            finder: Finder::default(),
            gone: Gone::default(),
            search: None,
            found: None,
            proposed: 0,
            stuck: None,
            missing: None,
            waits: None,
            allotted: None,
            again: now,
            unknown: false,
            checked: false,
            replays: BTreeMap::new(),
            failed: BTreeMap::new(),
        }
    }

    fn follow(&mut self, now: Micros, master: ServerId, state: &State) {
        let record = state.recoveries().by_master(master);
        let parts = record.map_or(&[][..], |record| &record.partitions);
        let mut old = std::mem::take(&mut self.replays);
        for part in parts {
            let replay = old.remove(&part.attempt);
            self.replays
                .insert(part.attempt, replay.unwrap_or_default());
        }
        match record {
            Some(_) if self.moments.planned.is_none() => {
                self.moments.planned = Some(now);
                self.missing = None;
            }
            // What can't be replayed is looked for whatever else happens.
            Some(_) if self.cannot() => return,
            Some(_) => {}
            // Its plan was given up with what it lacked.
            None if self.moments.planned.take().is_some() => {
                self.found = None;
                self.missing = None;
                self.allotted = None;
            }
            None => return,
        }
        self.search = None;
        self.stuck = None;
    }

    /// A recovery master said that it can't replay its partition.
    fn cannot(&self) -> bool {
        self.replays.values().any(|replay| replay.cannot.is_some())
    }

    fn due(&self) -> Option<Micros> {
        let idle = self.down == 0 && !self.cannot();
        if idle || self.proposed > 0 || self.unknown {
            return None;
        }
        match &self.search {
            Some(search) => search.due(),
            None => Some(self.again),
        }
    }

    /// It can't go on, and tries again after a while.
    fn stop(&mut self, now: Micros, master: ServerId, why: String) {
        if self.stuck.as_ref() != Some(&why) {
            tracing::warn!(%master, %why, "tablets stay down");
        }
        self.search = None;
        self.stuck = Some(why);
        self.again = now + ASK_AGAIN;
    }
}

fn dead(state: &State, master: ServerId) -> Option<Dead> {
    let found = state.servers().by_id(master)?;
    let epochs = found.epochs.iter();
    Some(Dead {
        cluster: state.constants()?.cluster,
        master,
        key: found.key,
        floor: found.floor,
        epochs: epochs.map(|(id, recorded)| (*id, recorded.epoch)).collect(),
        accepted: state.losses().of(master).cloned(),
        decided: state
            .recoveries()
            .by_master(master)
            .map(|record| record.end),
    })
}

impl View<'_> {
    /// Whether every living backup is known to refuse this master.
    fn is_known_crashed(&self, master: ServerId) -> bool {
        let found = self.state.servers().by_id(master);
        found.is_some_and(|dead| dead.crashed_in <= self.known)
    }

    /// Crashed backups whose frames no living server has taken over, and that may hold something of
    /// this master: who crashed before it joined does not.
    fn crashed_backups(&self, master: ServerId) -> Vec<ServerId> {
        let servers = self.state.servers();
        let joined = servers.by_id(master).map(|dead| dead.enlisted_in);
        let may_hold = |server: &ServerId| {
            let crashed = servers.by_id(*server).and_then(|one| one.crashed_in);
            *server != master && joined.is_none_or(|joined| crashed > Some(joined))
        };
        servers.away().into_iter().filter(may_hold).collect()
    }
}

impl Coordinator {
    /// Takes every recovery as far as it goes now.
    pub(super) fn see_to_recoveries(&mut self) {
        if self.recoveries.walks.is_empty() {
            return;
        }
        let mut recoveries = std::mem::take(&mut self.recoveries);
        let view = View {
            state: &self.state,
            watches: &self.watches,
            now: self.now,
            known: self.known_to_backups(),
            backups: self.living_backups(),
            partition_bytes: self.partition_bytes,
        };
        let acts = recoveries.go_on(&view);
        self.recoveries = recoveries;
        self.carry_out(acts);
    }

    /// Has logs of so many bytes go to one recovery master, if there are enough of those: for tests with
    /// small ones.
    #[must_use]
    pub fn with_partitions_of(mut self, bytes: u64) -> Self {
        self.partition_bytes = bytes;
        self
    }

    /// The crashed masters the end of whose logs is known here.
    #[must_use]
    pub fn ends_found(&self) -> Vec<ServerId> {
        let walks = self.recoveries.walks.iter();
        let found = walks.filter(|(_, walk)| walk.found.is_some());
        found.map(|(master, _)| *master).collect()
    }

    fn living_backups(&self) -> BTreeMap<ServerId, BootId> {
        let servers = self.state.servers().iter();
        let living = servers.filter(|(_, s)| s.roles.backup && !s.is_crashed());
        living.map(|(id, server)| (id, server.boot)).collect()
    }

    fn carry_out(&mut self, acts: Vec<Act>) {
        for act in acts {
            match act {
                Act::Ask {
                    server,
                    token,
                    request,
                } => {
                    let addresses = self.state.living(server).map(|s| s.addresses.clone());
                    self.outputs.push_back(Output::Ask {
                        server,
                        addresses: addresses.unwrap_or_default(),
                        token,
                        request,
                    });
                }
                Act::Propose(master, command) => {
                    self.propose(&command, Origin::Recovery(master));
                }
            }
        }
    }

    /// A server answered what [`Output::Ask`] asked, with the bytes that a fetch brings; or the
    /// question or its answer was lost.
    pub fn handle_backup_answer(
        &mut self,
        now: Micros,
        server: ServerId,
        token: u64,
        answer: Option<(BackupResponse, Vec<u8>)>,
    ) {
        self.wake(now);
        if answer.is_some()
            && let Some(watch) = self.watches.get_mut(&server)
        {
            watch.hear(now);
        }
        if let Some((master, _)) = self.recoveries.asked.remove(&token)
            && let Some(walk) = self.recoveries.walks.get_mut(&master)
            && let Some(dead) = dead(&self.state, master)
            && let Some(search) = &mut walk.search
        {
            let finder = &mut walk.finder;
            search.answered(self.now, &dead, finder, server, token, answer);
            for (backup, segment) in finder.aside() {
                self.damaged.note(DamagedReplica {
                    backup,
                    master,
                    segment,
                });
            }
            self.look = true;
        }
        self.settle();
    }

    /// A command for a recovery is decided, or lost.
    pub(super) fn recovery_decided(&mut self, master: ServerId, refused: bool) {
        let now = self.now;
        if let Some(walk) = self.recoveries.walks.get_mut(&master) {
            walk.proposed = walk.proposed.saturating_sub(1);
            if refused {
                walk.again = now + ASK_SOON;
            }
            if walk.proposed == 0 {
                let replays = walk.replays.values_mut();
                replays.for_each(|replay| replay.proposed = false);
            }
            self.look = true;
        }
    }
}

impl Recoveries {
    fn go_on(&mut self, view: &View<'_>) -> Vec<Act> {
        let mut acts = Vec::new();
        let searches = self.walks.values().filter(|walk| walk.search.is_some());
        let mut room = MAX_SEARCHES.saturating_sub(searches.count());
        let Self {
            walks,
            asked,
            tokens,
            reports,
            ..
        } = self;
        let mut budget = Budget::default();
        for (master, walk) in walks.iter() {
            let planned = view.state.recoveries().by_master(*master).is_some();
            if planned || walk.proposed > 0 {
                budget.add(*master, walk.allotted());
            }
        }
        // Nobody listens to what the dead answer.
        asked.retain(|_, (_, server)| view.backups.contains_key(server));
        for (master, walk) in walks {
            if walk.proposed > 0 {
                continue;
            }
            replay::reassign(walk, *master, view, &budget, &mut acts);
            let record = view.state.recoveries().by_master(*master);
            // What can't be replayed is searched for again: something may have been lost since.
            let searches = record.map_or(walk.found.is_none(), |_| walk.cannot() && !walk.checked);
            if (walk.down == 0 && !searches) || walk.again > view.now || walk.proposed > 0 {
                continue;
            }
            if let Some(record) = record {
                let end = record.end;
                walk.found = Some(Found { end, bytes: 0 });
            }
            if searches {
                if !walk.may_search(*master, view, &mut room) {
                    continue;
                }
                let mut ask = |server, request| {
                    if asked.len() >= MAX_ASKED {
                        return None;
                    }
                    *tokens += 1;
                    asked.insert(*tokens, (*master, server));
                    acts.push(Act::Ask {
                        server,
                        token: *tokens,
                        request,
                    });
                    Some(*tokens)
                };
                if let Some(command) = walk.look(*master, view, &mut ask) {
                    walk.proposed += 1;
                    acts.push(Act::Propose(*master, command));
                    continue;
                }
                replay::reassign(walk, *master, view, &budget, &mut acts);
            }
            if walk.down == 0 {
                continue;
            }
            if walk.found.is_some() {
                let report = reports.get(master);
                walk.plan(*master, view, report, &mut budget, &mut acts);
            }
        }
        acts
    }
}

impl Walk {
    /// Begins a search if none is under way, and if it is time and there is room for one.
    fn may_search(&mut self, master: ServerId, view: &View<'_>, room: &mut usize) -> bool {
        // One that has just joined is asked like all others: once it is known to refuse.
        self.unknown = !view.is_known_crashed(master);
        if self.unknown {
            return false;
        }
        if self.search.is_some() {
            return true;
        }
        if *room == 0 {
            self.again = view.now + ASK_SOON;
            return false;
        }
        *room -= 1;
        self.search = Some(Search::default());
        if self.moments.planned.is_some() {
            // It can't be replayed: what was read before may have been damaged since.
            self.finder.read_again();
        }
        true
    }

    /// Goes on with its search. Gives what is to be decided if a plan can't be carried out any more.
    fn look(
        &mut self,
        master: ServerId,
        view: &View<'_>,
        ask: &mut search::Ask<'_>,
    ) -> Option<Command> {
        let (dead, search) = (dead(view.state, master)?, self.search.as_mut()?);
        self.gone.backups = view.crashed_backups(master);
        let (finder, gone) = (&self.finder, &mut self.gone);
        let looked = search.look(view.now, &dead, &view.backups, finder, gone, ask);
        if search.is_listed() {
            self.moments.fenced.get_or_insert(view.now);
        }
        match looked {
            Looked::Waits => {}
            Looked::Stuck(Stuck { why, missing }) => {
                self.missing = missing;
                self.stop(view.now, master, why);
            }
            Looked::Found(found) if dead.decided.is_some() => {
                self.search = None;
                self.stuck = None;
                self.missing = None;
                let end = dead.decided.filter(|end| *end != found.end);
                if let Some(end) = end {
                    tracing::warn!(%master, ?end, new = ?found.end, "the end of a log is lost: another is decided");
                    return Some(Command::GiveUpPlan { master, end });
                }
                // It is for something else that it can't be replayed.
                self.checked = true;
                self.again = view.now + ASK_AGAIN;
            }
            Looked::Found(found) => {
                tracing::info!(%master, end = ?found.end, bytes = found.bytes, "end of a log");
                self.moments.end = Some(view.now);
                self.search = None;
                self.stuck = None;
                self.missing = None;
                self.waits = None;
                self.found = Some(found);
            }
        }
        None
    }
}
