//! Whether a log can be replayed now, and by whom: memory, frames, and who is there.
//!
//! # Invariants
//! 1. What a plan will take is counted for the next one before anybody reports it.
//! 2. Several logs are replayed at a time only while there are frames for the copies of all of them.
//!    Else it is one after the other: each frees its old replicas before the next begins (SAFETY 24).
//! 3. A log whose live bytes are known is not given to masters that are known not to have the memory.

use std::collections::BTreeMap;

use ramkeep_wire::coordinator::{BackupStats, Heartbeat, ServerState, Tablet, TabletState};
use ramkeep_wire::{ServerId, TableId};

use super::View;
use super::plan::{self, Candidate};
use super::round::Act;
use super::walk::Walk;
use crate::command::Command;
use crate::limits::{ASK_SOON, JOIN_WAIT};

/// What a master was given to replay.
#[derive(Clone, Copy, Debug)]
struct Share {
    by: ServerId,
    bytes: u64,
    /// What it used already when it was given that, as far as was known.
    used: u64,
}

/// What a walk's plan takes.
#[derive(Clone, Debug, Default)]
pub(super) struct Allotted {
    shares: Vec<Share>,
    frames: u64,
}

/// What the plans of all walks take.
#[derive(Debug, Default)]
pub(super) struct Budget {
    shares: Vec<Share>,
    /// Frames of those whose plan this leader made.
    frames: u64,
    /// The first of the others whose log is being replayed.
    first: Option<ServerId>,
    /// Of some the plan was made by an earlier leader.
    unknown: bool,
}

impl Budget {
    /// Counts a recovery that is planned, or about to be.
    pub(super) fn add(&mut self, master: ServerId, allotted: Option<&Allotted>) {
        self.first.get_or_insert(master);
        match allotted {
            None => self.unknown = true,
            Some(allotted) => {
                self.shares.extend(&allotted.shares);
                self.frames += allotted.frames;
            }
        }
    }

    /// What `by` will use when all it was given is replayed.
    fn expected(&self, by: ServerId) -> (usize, u64) {
        let own = || self.shares.iter().filter(|share| share.by == by);
        let least = own().map(|share| share.used).min().unwrap_or(0);
        let bytes: u64 = own().map(|share| share.bytes).sum();
        (own().count(), least.saturating_add(bytes))
    }
}

impl View<'_> {
    /// The masters that can replay, the best first.
    pub(super) fn candidates(&self, budget: &Budget) -> Vec<Candidate> {
        let mut busy: BTreeMap<ServerId, usize> = BTreeMap::new();
        for (_, record) in self.state.recoveries().iter() {
            for part in &record.partitions {
                *busy.entry(part.by).or_default() += 1;
            }
        }
        let servers = self.state.servers().iter();
        let ready = servers.filter(|(_, server)| server.is_ready_master());
        let mut all: Vec<_> = ready
            .map(|(id, server)| {
                let (memory, used) = self.memory(id, server.memory);
                let (given, expected) = budget.expected(id);
                Candidate {
                    server: id,
                    free: memory.saturating_sub(used.max(expected)),
                    busy: busy.get(&id).copied().unwrap_or(0).max(given),
                }
            })
            .collect();
        plan::rank(&mut all);
        all
    }

    /// Memory of a master and what it uses of it, as far as is known.
    fn memory(&self, server: ServerId, enlisted: u64) -> (u64, u64) {
        let watch = self.watches.get(&server);
        let stats = watch.and_then(|watch| watch.heartbeat.as_ref()?.master);
        stats.map_or((enlisted, 0), |stats| (stats.memory, stats.used))
    }

    /// Frames that are known to be free.
    fn free_frames(&self) -> u64 {
        let reports = self.watches.values().filter_map(|w| w.heartbeat.as_ref());
        let free = |stats: BackupStats| u64::from(stats.frames.saturating_sub(stats.used));
        reports.filter_map(|report| report.backup).map(free).sum()
    }

    /// Frames that copies of so many bytes take, replayed by so many masters.
    fn frames_for(&self, bytes: u64, masters: usize) -> u64 {
        let settings = self.state.constants().map(|constants| &constants.settings);
        let Some(settings) = settings else { return 0 };
        let segments = bytes.div_ceil(u64::from(settings.segment_size).max(1));
        (segments + masters as u64) * u64::from(settings.replicas)
    }

    fn is_joined(&self) -> bool {
        let mut servers = self.state.servers().iter();
        servers.all(|(_, one)| !one.roles.master || one.state != ServerState::Joining)
    }
}

impl Walk {
    /// What its plan takes, if this leader made it.
    pub(super) fn allotted(&self) -> Option<&Allotted> {
        self.allotted.as_ref()
    }

    /// Plans what is down of a log whose end is known, if it can be replayed now.
    pub(super) fn plan(
        &mut self,
        master: ServerId,
        view: &View<'_>,
        report: Option<&Heartbeat>,
        budget: &mut Budget,
        acts: &mut Vec<Act>,
    ) {
        let Some(found) = self.found else { return };
        if !view.is_joined() && view.now < self.since + JOIN_WAIT {
            return self.wait(view, "masters are about to join".into());
        }
        let stats = report.and_then(|report| report.master);
        let bytes = stats.map_or(found.bytes, |stats| stats.live);
        let objects = stats.map_or(0, |stats| stats.objects);
        let candidates = view.candidates(budget);
        if candidates.is_empty() {
            return self.stop(view.now, master, "no master is ready to replay".into());
        }
        let masters = plan::choose(&candidates, bytes, objects, view.partition_bytes);
        let free: u64 = candidates.iter().map(|one| one.free).sum();
        if stats.is_some() && free < bytes {
            let why = format!(
                "{} masters have {free} bytes of memory together, {bytes} are to be replayed",
                candidates.len()
            );
            return self.stop(view.now, master, why);
        }
        let frames = view.frames_for(bytes, masters.len());
        let begun = view.state.recoveries().by_master(master).is_some();
        if let Some(first) = budget.first.filter(|_| !begun) {
            let free = view.free_frames();
            if budget.unknown || free < budget.frames + frames {
                return self.wait(
                    view,
                    format!(
                        "it waits for {first:?}: {free} frames are free, {frames} are to be filled"
                    ),
                );
            }
        }
        let share = bytes.div_ceil(masters.len().max(1) as u64);
        let shares = masters.iter().map(|by| Share {
            by: *by,
            bytes: share,
            used: view.memory(*by, 0).1,
        });
        let allotted = Allotted {
            shares: shares.collect(),
            frames,
        };
        budget.add(master, Some(&allotted));
        self.allotted = Some(allotted);
        self.stuck = None;
        self.waits = None;
        self.propose_plan(master, view, &masters, acts);
    }

    fn wait(&mut self, view: &View<'_>, why: String) {
        self.stuck = None;
        self.waits = Some(why);
        self.again = view.now + ASK_SOON;
    }

    fn propose_plan(
        &mut self,
        master: ServerId,
        view: &View<'_>,
        masters: &[ServerId],
        acts: &mut Vec<Act>,
    ) {
        let Some(found) = self.found else { return };
        let tables = view.state.tables();
        let own = tables.lost().filter(|tablet| tablet.owner == master);
        let own = own.filter(|tablet| tablet.state == TabletState::Down);
        let down: Vec<Tablet> = own.copied().collect();
        let size = |tablet: &Tablet| -> (TableId, usize) {
            let record = view.state.table(tablet.table);
            (tablet.table, record.map_or(0, |r| r.table.tablets.len()))
        };
        let sizes = down.iter().map(size).collect();
        for parts in plan::plan(&down, masters, &sizes, tables.room()) {
            self.proposed += 1;
            let end = found.end;
            acts.push(Act::Propose(
                master,
                Command::PlanRecovery { master, end, parts },
            ));
        }
    }
}
