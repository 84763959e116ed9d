//! Whether a log can be replayed now, and by whom: memory, frames, and who is there.
//!
//! # Invariants
//! 1. What a plan will take is counted for the next one before anybody reports it. Another leader counts
//!    what the recovery masters say that they replay.
//! 2. Several logs are replayed at a time only while there are frames for the copies of all of them.
//!    Else it is one after the other: each frees its old replicas before the next begins (SAFETY 24).
//!    What nobody replays holds up nobody: a recovery that can't go on takes neither frames nor memory.
//! 3. A log is given out only if there is known to be room for it, shared as the room is; whether there is,
//!    its recovery masters say before they append anything. What did not fit is cut anew, by what they
//!    measured, with more to spare each time (SAFETY 26).

use std::collections::BTreeMap;

use ramkeep_wire::coordinator::{Heartbeat, ServerState, Tablet, TabletState};
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::{ServerId, TableId};

use super::View;
use super::plan::{self, Candidate};
use super::replay::Said;
use super::report::size;
use super::round::Act;
use super::walk::Walk;
use crate::command::Command;
use crate::limits::{ASK_SOON, JOIN_WAIT, REFUSAL_COUNTS};
use crate::state::Partition;

/// One part in 2^this more than is needed must be there: hashes cut a log only about evenly.
const SLACK: u32 = 4;
/// The part doubles with each time that it was not enough, so often.
const MAX_REFUSALS: u32 = 3;

/// What a master was given to replay.
#[derive(Clone, Copy, Debug)]
struct Share {
    by: ServerId,
    bytes: u64,
    /// What it had room for when it was given that, as far as was known.
    room: u64,
}

/// What a walk's plan takes.
#[derive(Clone, Debug, Default)]
pub(super) struct Allotted {
    shares: Vec<Share>,
    frames: u64,
}

/// What a walk's plan still takes, as far as is known.
pub(super) enum Takes {
    /// At most this.
    AtMost(Allotted),
    /// Nobody replays it now.
    Nothing,
    /// An earlier leader made the plan, and who replays it has not said yet how much it is.
    Unknown,
}

/// What the plans of all walks take.
#[derive(Debug, Default)]
pub(super) struct Budget {
    shares: Vec<Share>,
    frames: u64,
    /// The first of the others whose log is being replayed.
    first: Option<ServerId>,
    /// Of some it is not known what they take.
    unknown: bool,
}

impl Budget {
    /// Counts a recovery that is planned, or about to be.
    pub(super) fn add(&mut self, master: ServerId, takes: Takes) {
        match takes {
            Takes::Nothing => return,
            Takes::Unknown => self.unknown = true,
            Takes::AtMost(allotted) => {
                self.shares.extend(&allotted.shares);
                self.frames += allotted.frames;
            }
        }
        self.first.get_or_insert(master);
    }

    /// How many shares `by` was given, and the room that it will have when all of that is replayed.
    fn expected(&self, by: ServerId) -> (usize, u64) {
        let own = || self.shares.iter().filter(|share| share.by == by);
        let most = own().map(|share| share.room).max().unwrap_or(u64::MAX);
        let bytes: u64 = own().map(|share| share.bytes).sum();
        (own().count(), most.saturating_sub(bytes))
    }
}

impl View<'_> {
    /// The masters that can replay, the best first. `less` is what one has less room than it reports.
    pub(super) fn candidates(
        &self,
        budget: &Budget,
        less: &BTreeMap<ServerId, u64>,
    ) -> Vec<Candidate> {
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
                let (given, expected) = budget.expected(id);
                let less = less.get(&id).copied().unwrap_or(0);
                let room = self.room(id).unwrap_or(server.memory);
                Candidate {
                    server: id,
                    free: room.min(expected).saturating_sub(less),
                    copied: self.placeable_bytes(id),
                    busy: busy.get(&id).copied().unwrap_or(0).max(given),
                }
            })
            .collect();
        plan::rank(&mut all);
        all
    }

    fn is_joined(&self) -> bool {
        let mut servers = self.state.servers().iter();
        servers.all(|(_, one)| !one.roles.master || one.state != ServerState::Joining)
    }
}

impl Walk {
    /// What its plan still takes.
    pub(super) fn takes(&self, master: ServerId, view: &View<'_>) -> Takes {
        let record = view.state.recoveries().by_master(master);
        let Some(record) = record.filter(|_| self.proposed == 0) else {
            // It is about to be planned, or given to others.
            let allotted = self.allotted.clone();
            return allotted.map_or(Takes::Nothing, Takes::AtMost);
        };
        if self.allotted.is_none() && mutants::active(Mutant::PlansOfOthersAreUnknown) {
            return Takes::Unknown;
        }
        let mut all = Allotted::default();
        for part in record
            .partitions
            .iter()
            .filter(|part| self.goes_on(part, view))
        {
            let Some(share) = self.share(part, record.partitions.len(), view) else {
                return Takes::Unknown;
            };
            all.frames += view.frames_for(share.bytes, 1);
            all.shares.push(share);
        }
        if all.shares.is_empty() {
            return Takes::Nothing;
        }
        Takes::AtMost(all)
    }

    /// Whether a partition is being replayed, as far as is known, or about to be.
    fn goes_on(&self, part: &Partition, view: &View<'_>) -> bool {
        let said = self.replays.get(&part.attempt).map(|replay| &replay.said);
        let asked = view.now < self.since + JOIN_WAIT;
        view.state.living(part.by).is_ok()
            && match said {
                Some(Said::Replays { of, .. }) => *of > 0 || asked || self.allotted.is_some(),
                Some(Said::NotReady | Said::Cannot(_) | Said::NoRoom { .. }) => {
                    mutants::active(Mutant::StuckPlansTakeFrames)
                }
                Some(Said::Nothing) | None => asked || self.allotted.is_some(),
            }
    }

    /// What a recovery master takes for one of so many partitions; none while that is not known. It
    /// appends its share of the segments that it reads.
    fn share(&self, part: &Partition, parts: usize, view: &View<'_>) -> Option<Share> {
        if let Some(allotted) = &self.allotted {
            let own = allotted.shares.iter().find(|share| share.by == part.by);
            let any = own.or(allotted.shares.first())?;
            return Some(Share {
                by: part.by,
                ..*any
            });
        }
        let said = self.replays.get(&part.attempt).map(|replay| &replay.said);
        let Some(Said::Replays { of: of @ 1.., .. }) = said else {
            return None;
        };
        let settings = &view.state.constants()?.settings;
        let bytes = u64::from(*of) * u64::from(settings.segment_size);
        Some(Share {
            by: part.by,
            bytes: bytes.div_ceil(parts as u64),
            room: view.room(part.by).unwrap_or(0),
        })
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
        if self.refused + REFUSAL_COUNTS <= view.now {
            self.trust_reports();
        }
        let known = self.measured.or(stats.map(|stats| stats.takes()));
        let bytes = known.unwrap_or(found.bytes);
        let bytes = bytes + (bytes >> (SLACK - self.refusals.min(MAX_REFUSALS)));
        let objects = stats.map_or(0, |stats| stats.objects);
        let candidates = view.candidates(budget, &self.less);
        if candidates.is_empty() {
            return self.stop(view.now, master, "no master is ready to replay".into());
        }
        let masters = plan::choose(&candidates, bytes, objects, view.partition_bytes);
        let free: u64 = candidates.iter().map(|one| one.free).sum();
        if known.is_some() && free < bytes {
            let why = format!(
                "its tablets take {} of memory, and {} masters have room for {}: \
                 another server is needed",
                size(bytes),
                candidates.len(),
                size(free)
            );
            return self.stop(view.now, master, why);
        }
        let frames = view.frames_for(bytes, masters.len());
        let begun = view.state.recoveries().by_master(master).is_some();
        if let Some(first) = budget.first.filter(|_| !begun) {
            let free = view.free_frames();
            if budget.unknown || free < budget.frames + frames {
                let taken = budget.frames;
                return self.wait(
                    view,
                    format!(
                        "it waits for {first:?}: {free} frames are free, {taken} are being filled, {frames} are needed"
                    ),
                );
            }
        }
        let weights: u128 = masters.iter().map(|share| u128::from(share.weight)).sum();
        let part = |weight: u64| u128::from(bytes) * u128::from(weight) / weights.max(1);
        let shares = masters.iter().map(|share| Share {
            by: share.by,
            bytes: u64::try_from(part(share.weight)).unwrap_or(u64::MAX),
            room: view.room(share.by).unwrap_or(u64::MAX),
        });
        let allotted = Allotted {
            shares: shares.collect(),
            frames,
        };
        budget.add(master, Takes::AtMost(allotted.clone()));
        self.allotted = Some(allotted);
        self.stuck = None;
        self.waits = None;
        self.measured = None;
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
        masters: &[plan::Share],
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
