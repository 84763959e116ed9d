//! Partitions and their recovery masters: who says what, and who is next when one can't.
//!
//! # Invariants
//! 1. A partition leaves its recovery master only when that one crashed, has lacked backups or frames for
//!    [`STARVED_WAIT`] while another lacks none, or said that it can't while all of the log is there. While something of the log is missing, or can't be proved, nobody tries.
//! 2. What does not fit where it was to be replayed is given back, and planned anew when it would fit.
//! 3. Every ready master had its turn before one that couldn't is tried anew. It is another try then, of
//!    another number, and the more turns all had since servers came or went, the later it begins.

use std::collections::{BTreeMap, BTreeSet};

use ramkeep_wire::order::{LastReport, OrderReply, Recovery};
use ramkeep_wire::{ClientId, EndedRound, Micros, SegmentId, ServerId, TryId, order};

use super::planning::Budget;
use super::round::Act;
use super::walk::Walk;
use super::{Recoveries, View};
use crate::command::Command;
use crate::core::duties::Duty;
use crate::core::{Coordinator, Origin};
use crate::limits::{ASK_AGAIN, STARVED_WAIT};
use crate::state::State;

/// How often a recovery master says that it can't when no other is left, until all have another turn.
const TRIES: u32 = 4;
/// That doubles with each turn that all had, so often.
const MAX_TURNS: u32 = 6;

/// What a recovery master said of its try last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Said {
    /// Nothing yet.
    #[default]
    Nothing,
    /// It can't begin yet: its own log is not open on backups.
    NotReady,
    /// Segments are replayed.
    Replays {
        /// So many are.
        done: u32,
        /// In all; 0 while that is not known.
        of: u32,
    },
    /// It can't, and why.
    Cannot(String),
    /// It has no room for what it takes: bytes.
    NoRoom {
        /// It takes.
        needs: u64,
    },
}

/// What the leader knows of one try.
#[derive(Debug, Default)]
pub(super) struct Replay {
    pub(super) said: Said,
    tries: u32,
    /// The leases that have ended, as far as its recovery master was told by this leader.
    told: EndedRound,
    /// Since when its recovery master lacks backups, or frames on them.
    pub(super) starves: Option<Micros>,
    /// A command about it is under way.
    pub(super) proposed: bool,
}

impl Replay {
    pub(super) fn cannot(&self) -> bool {
        matches!(self.said, Said::Cannot(_))
    }
}

/// Gives the partitions of those who crashed, or can't, to others.
pub(super) fn reassign(
    walk: &mut Walk,
    master: ServerId,
    view: &View<'_>,
    budget: &Budget,
    acts: &mut Vec<Act>,
) {
    let Some(record) = view.state.recoveries().by_master(master) else {
        return;
    };
    for part in &record.partitions {
        let Some(replay) = walk.replays.get_mut(&part.attempt) else {
            continue;
        };
        let lives = view.state.living(part.by).is_ok();
        let lacks = view.lacks_backups(part.by).filter(|_| lives);
        if let (Some(lacks), None) = (&lacks, replay.starves) {
            tracing::warn!(%master, why = %lacks.text, "a replay waits");
        }
        replay.starves = lacks.map(|_| replay.starves.unwrap_or(view.now));
        let starved = replay
            .starves
            .is_some_and(|since| since + STARVED_WAIT <= view.now);
        // Whether it is for the log that it can't is found out first: nobody can then.
        let is_known = match replay.cannot() {
            true => walk.checked,
            false => !lives || starved,
        };
        if replay.proposed || !is_known {
            continue;
        }
        let first = part.tablets.first().map(|lost| lost.range);
        let failed = first.map(|range| walk.failed.entry(range).or_default());
        let Some(failed) = failed else { continue };
        if lives {
            failed.insert(part.by);
        }
        let mut candidates = view.candidates(budget, &BTreeMap::new());
        if starved {
            candidates.retain(|one| one.copied > 0);
        }
        let mut fresh = candidates
            .iter()
            .filter(|one| !failed.contains(&one.server));
        let mut next = fresh.next();
        if next.is_none() && (!lives || replay.tries >= TRIES << walk.turns) {
            failed.clear();
            walk.turns = (walk.turns + 1).min(MAX_TURNS);
            let other = candidates.iter().find(|one| one.server != part.by);
            // Alone, it tries anew: what has failed once stays so under its number.
            next = other.or(candidates.first());
        }
        let Some(next) = next else { continue };
        replay.proposed = true;
        walk.proposed += 1;
        let command = Command::AssignRecovery {
            master,
            attempt: part.attempt,
            by: next.server,
        };
        acts.push(Act::Propose(master, command));
    }
}

impl Recoveries {
    fn last_report(&self, master: ServerId) -> Option<LastReport> {
        let stats = self.reports.get(&master)?.master?;
        Some(LastReport {
            reserved: stats.reserved,
            objects: stats.objects,
        })
    }

    /// The order for one try, as long as it counts. Of the leases that have ended it says what was not
    /// told with those that arrived.
    pub(in crate::core) fn order(
        &self,
        state: &State,
        by: ServerId,
        id: TryId,
    ) -> Option<order::Command> {
        let TryId { master, attempt } = id;
        let record = state.recoveries().by_master(master)?;
        let part = record.partition(attempt).filter(|part| part.by == by)?;
        let walk = self.walks.get(&master);
        let replay = walk.and_then(|walk| walk.replays.get(&attempt));
        let from = replay.map_or(ClientId(0), |replay| replay.told.wants());
        Some(order::Command::Recover(Recovery {
            master,
            key: state.servers().by_id(master)?.key,
            end: record.end,
            attempt,
            tablets: part.tablets.clone(),
            given_up: state.losses().of(master).map(|loss| loss.segments.clone()),
            ended: state.clients().ended_from(from),
            last: self.last_report(master),
        }))
    }
}

/// The tries that are under way with their recovery masters. One has one partition of a log at a time.
pub(in crate::core) fn under_way(state: &State) -> Vec<(ServerId, TryId)> {
    let mut all = Vec::new();
    for (master, record) in state.recoveries().iter() {
        let mut having = BTreeSet::new();
        let mut parts: Vec<_> = record.partitions.iter().collect();
        parts.sort_unstable_by_key(|part| part.attempt);
        for part in parts {
            if state.living(part.by).is_ok() && having.insert(part.by) {
                let attempt = part.attempt;
                all.push((part.by, TryId { master, attempt }));
            }
        }
    }
    all
}

impl Coordinator {
    /// A recovery master said how far it is.
    pub(in crate::core) fn recover_answered(
        &mut self,
        server: ServerId,
        recovery: &Recovery,
        reply: OrderReply,
    ) {
        let Recovery {
            master, attempt, ..
        } = *recovery;
        let record = self.state.recoveries().by_master(master);
        let part = record.and_then(|record| record.partition(attempt));
        if part.is_none_or(|part| part.by != server) {
            // Of a try that was given up.
            return;
        }
        let Some(walk) = self.recoveries.walks.get_mut(&master) else {
            return;
        };
        let Some(replay) = walk.replays.get_mut(&attempt) else {
            return;
        };
        if reply != OrderReply::NotReady {
            replay.told.took(&recovery.ended);
        }
        match reply {
            OrderReply::Recovering { segments, of, .. } => {
                replay.said = Said::Replays { done: segments, of };
            }
            OrderReply::NotReady => replay.said = Said::NotReady,
            OrderReply::Recovered(at) if at.len() == recovery.tablets.len() => {
                if replay.proposed {
                    return;
                }
                replay.proposed = true;
                walk.proposed += 1;
                tracing::info!(%server, %master, attempt, "a partition is recovered");
                walk.moments.replayed = Some(self.now);
                let ranges = recovery.tablets.iter().map(|lost| lost.range);
                let command = Command::PartitionRecovered {
                    master,
                    attempt,
                    by: server,
                    taken: ranges.zip(at).collect(),
                };
                self.propose(&command, Origin::Recovery(master));
            }
            OrderReply::CannotRecover(why) => self.cannot(server, recovery.id(), why, &[]),
            OrderReply::NoRoom { needs, room } => self.no_room(server, recovery.id(), needs, room),
            OrderReply::CannotProve { segments, why } => {
                self.cannot(server, recovery.id(), why, &segments);
            }
            reply => tracing::warn!(%server, ?reply, "reply does not fit its order"),
        }
    }

    /// A recovery master has no room for its partition, and has appended nothing: what is down is cut anew.
    fn no_room(&mut self, server: ServerId, id: TryId, needs: u64, room: u64) {
        let TryId { master, attempt } = id;
        let reports = self.watches.get(&server).and_then(|w| w.heartbeat.as_ref());
        let reported = reports.and_then(|report| report.master);
        let Some(walk) = self.recoveries.walks.get_mut(&master) else {
            return;
        };
        let Some(replay) = walk.replays.get_mut(&attempt) else {
            return;
        };
        if std::mem::replace(&mut replay.proposed, true) {
            return;
        }
        tracing::warn!(%server, %master, needs, room, "a partition does not fit");
        replay.said = Said::NoRoom { needs };
        walk.measured = Some(walk.measured.unwrap_or(0) + needs);
        walk.refusals += 1;
        walk.refused = self.now;
        if let Some(stats) = reported {
            walk.less.insert(server, stats.room.saturating_sub(room));
        }
        walk.proposed += 1;
        let command = Command::GiveBackPartition { master, attempt };
        self.propose(&command, Origin::Recovery(master));
    }

    /// A recovery master said that it can't, since it could not prove these segments if it names some.
    fn cannot(&mut self, server: ServerId, id: TryId, why: String, unproved: &[SegmentId]) {
        let TryId { master, attempt } = id;
        let walk = self.recoveries.walks.get_mut(&master);
        let Some(walk) = walk else { return };
        let Some(replay) = walk.replays.get_mut(&attempt) else {
            return;
        };
        replay.tries += 1;
        if !replay.cannot() {
            tracing::warn!(%server, %master, %why, "a partition can't be replayed");
            walk.finder.suspects.add(unproved);
            walk.checked = false;
        }
        replay.said = Said::Cannot(why);
        let duty = Duty::Recover(id);
        self.duties.put_off(server, duty, self.now + ASK_AGAIN);
        self.look = true;
    }
}
