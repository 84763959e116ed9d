//! One recovery, step by step.
//!
//! # Invariants
//! 1. While a command about it is under way it proposes no other.
//! 2. It begins to search only when its master gets nothing more from any living backup, and there is
//!    room for one search more.

use std::collections::{BTreeMap, BTreeSet};

use ramkeep_wire::coordinator::{Heartbeat, Loss};
use ramkeep_wire::order::TabletGrant;
use ramkeep_wire::{ListVersion, Micros, ServerId};

use super::View;
use super::end::{Dead, Finder, Found, Gone, Stuck};
use super::planning::Allotted;
use super::replay::{self, Replay};
use super::report::Moments;
use super::round::{Act, Round};
use super::search::{self, Looked, Search};
use crate::command::Command;
use crate::limits::{ASK_AGAIN, ASK_AT_LEAST, ASK_SOON, LOOK_AGAIN};
use crate::state::State;

/// The wait of one that can't go on doubles so often.
const MAX_STOPS: u32 = 8;

/// One recovery.
#[derive(Debug)]
pub(super) struct Walk {
    pub(super) since: Micros,
    pub(super) moments: Moments,
    /// Tablets that are not planned.
    pub(super) down: usize,
    /// Tablets that wait for the log, planned or not.
    pub(super) lost: usize,
    pub(super) finder: Finder,
    pub(super) gone: Gone,
    pub(super) search: Option<Search>,
    pub(super) found: Option<Found>,
    /// Commands proposed and not decided.
    pub(super) proposed: usize,
    /// Why it can't go on.
    pub(super) stuck: Option<String>,
    /// The last reason that was logged, without its figures.
    told: Option<String>,
    /// What it lacks.
    pub(super) missing: Option<Loss>,
    /// What it waits for before it is planned.
    pub(super) waits: Option<String>,
    /// What the tablets take that were given back, since they did not fit where they were to be replayed.
    pub(super) measured: Option<u64>,
    /// How often that was so, and when it was last.
    pub(super) refusals: u32,
    pub(super) refused: Micros,
    /// What a master has less room than it reports, as it turned out.
    pub(super) less: BTreeMap<ServerId, u64>,
    /// What its plan takes, if this leader made it.
    pub(super) allotted: Option<Allotted>,
    /// Not before this.
    pub(super) again: Micros,
    /// When to look whether those who replay have what they need, if some do.
    look_at: Option<Micros>,
    /// How often it could not go on since it last could.
    stops: u32,
    /// It waits for a backup that was there to hear of the crash.
    pub(super) unknown: bool,
    /// All of the log was there since a recovery master said that it can't.
    pub(super) checked: bool,
    /// The partitions, by the number of their try.
    pub(super) replays: BTreeMap<u32, Replay>,
    /// How often all had their turn and couldn't, since servers came or went.
    pub(super) turns: u32,
    members: ListVersion,
    /// Who couldn't replay a partition, by its first range.
    pub(super) failed: BTreeMap<TabletGrant, BTreeSet<ServerId>>,
}

impl Walk {
    pub(super) fn new(now: Micros) -> Self {
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
            told: None,
            missing: None,
            waits: None,
            measured: None,
            refusals: 0,
            refused: now,
            less: BTreeMap::new(),
            allotted: None,
            again: now,
            look_at: None,
            stops: 0,
            unknown: false,
            checked: false,
            replays: BTreeMap::new(),
            turns: 0,
            members: ListVersion(0),
            failed: BTreeMap::new(),
        }
    }

    pub(super) fn follow(&mut self, now: Micros, master: ServerId, state: &State) {
        if self.members != state.list_version() {
            self.members = state.list_version();
            self.turns = 0;
            self.trust_reports();
        }
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

    /// What masters refused is forgotten: their reports count alone.
    pub(super) fn trust_reports(&mut self) {
        self.refusals = 0;
        self.less.clear();
    }

    /// A recovery master said that it can't replay its partition.
    pub(super) fn cannot(&self) -> bool {
        self.replays.values().any(Replay::cannot)
    }

    pub(super) fn due(&self) -> Option<Micros> {
        let look = self.look_at.filter(|_| self.proposed == 0);
        self.step_due().into_iter().chain(look).min()
    }

    fn step_due(&self) -> Option<Micros> {
        // One that can't be replayed while all of its log is there waits for something to change.
        let searches = self.cannot() && !self.checked;
        let idle = self.down == 0 && !searches;
        if idle || self.proposed > 0 || self.unknown {
            return None;
        }
        match &self.search {
            Some(search) => search.due(),
            None => Some(self.again),
        }
    }

    /// It can't go on, and tries again after a while: a longer one each time, unless something changes.
    pub(super) fn stop(&mut self, now: Micros, master: ServerId, why: String) {
        // Figures change all the time: the reason is told once.
        let reason = why.replace(|c: char| c.is_ascii_digit(), "");
        if self.told.as_ref() != Some(&reason) {
            tracing::warn!(%master, %why, "tablets stay down");
            self.told = Some(reason);
        }
        self.search = None;
        self.stuck = Some(why);
        self.again = now + (ASK_AGAIN * (1 << self.stops)).min(ASK_AT_LEAST);
        self.stops = (self.stops + 1).min(MAX_STOPS);
    }

    /// Goes on as far as it can now.
    pub(super) fn go_on(
        &mut self,
        master: ServerId,
        report: Option<&Heartbeat>,
        round: &mut Round<'_>,
    ) {
        if self.proposed > 0 {
            return;
        }
        let view = round.view;
        replay::reassign(self, master, view, &round.budget, &mut round.acts);
        let record = view.state.recoveries().by_master(master);
        let replays = record.is_some_and(|record| !record.partitions.is_empty());
        self.look_at = replays.then_some(view.now + LOOK_AGAIN);
        // What can't be replayed is searched for again: something may have been lost since.
        let searches = record.map_or(self.found.is_none(), |_| self.cannot() && !self.checked);
        if (self.down == 0 && !searches) || self.again > view.now || self.proposed > 0 {
            return;
        }
        if let Some(record) = record {
            let end = record.end;
            self.found = Some(Found { end, bytes: 0 });
        }
        if searches {
            if !self.may_search(master, view, &mut round.room) {
                return;
            }
            let (questions, acts) = (&mut *round.questions, &mut round.acts);
            let mut ask = |server, request| questions.ask(master, server, request, acts);
            if let Some(command) = self.look(master, view, &mut ask) {
                self.proposed += 1;
                round.acts.push(Act::Propose(master, command));
                return;
            }
            replay::reassign(self, master, view, &round.budget, &mut round.acts);
        }
        if self.down > 0 && self.found.is_some() {
            self.plan(master, view, report, &mut round.budget, &mut round.acts);
        }
    }

    /// Begins a search if none is under way, and if it is time and there is room for one.
    fn may_search(&mut self, master: ServerId, view: &View<'_>, room: &mut usize) -> bool {
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
        self.search = Some(Search::new(view.now, view.lease()));
        self.finder.suspects.read_again();
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
        let backups = view.living_backups(master);
        let looked = search.look(view.now, &dead, &backups, finder, gone, ask);
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
                self.finder.suspects.clear();
                self.stops = 0;
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
                self.stops = 0;
                self.found = Some(found);
            }
        }
        None
    }
}

/// What is known of a dead master, if there is such a one.
pub(super) fn dead(state: &State, master: ServerId) -> Option<Dead> {
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
