//! Recoveries of crashed masters: where each log ends, and who replays what of it.
//!
//! # Invariants
//! 1. Where a log ends is decided before anything of it is replayed: every plan of a recovery has the same
//!    end (SAFETY 18). It is decided anew, for the tablets that are still down, only when nobody holds that
//!    end any more, or when an operator gives up what was lost since.
//! 2. A tablet is `Recovering` exactly while a partition has it. It keeps its crashed owner until a
//!    recovery master has replayed it.
//! 3. Each try of each partition has a number of its own, higher than any before. Who has not the
//!    last one of a partition gets nothing.
//! 4. A partition is there as long as one of its tablets is; a recovery, as long as a tablet waits
//!    for the log.

use std::collections::{BTreeMap, BTreeSet};

use ramkeep_wire::coordinator::{Refused, Tablet, TabletState};
use ramkeep_wire::limits::MAX_TABLETS_PER_TABLE;
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::order::{LogEnd, LostTablet, TabletGrant};
use ramkeep_wire::{HeldTry, LogPosition, ServerId, TableId, TryId};
use serde::{Deserialize, Serialize};

use super::tables::{Tables, grant};
use super::{Server, State};
use crate::command::{Applied, Outcome};
use crate::limits::MAX_PLANNED_TABLETS;

/// One recovery master's share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// Its recovery master.
    pub by: ServerId,
    /// The number of this try.
    pub attempt: u32,
    /// What it replays, as it was given out; tables may have been dropped since.
    pub tablets: Vec<LostTablet>,
}

/// A planned recovery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryRecord {
    /// Where the log ends.
    pub end: LogEnd,
    /// Tries so far, of all partitions.
    pub attempts: u32,
    /// What is not replayed yet.
    pub partitions: Vec<Partition>,
}

impl RecoveryRecord {
    /// The partition whose last try has this number.
    #[must_use]
    pub fn partition(&self, attempt: u32) -> Option<&Partition> {
        self.partitions.iter().find(|part| part.attempt == attempt)
    }
}

/// The planned recoveries, by crashed master.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recoveries {
    changes: u64,
    by_master: BTreeMap<ServerId, RecoveryRecord>,
    /// Tries of plans that were given up: numbers are not used twice.
    tried: BTreeMap<ServerId, u32>,
}

impl Recoveries {
    /// Grows with every change.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// The recovery of this master, once it is planned.
    #[must_use]
    pub fn by_master(&self, master: ServerId) -> Option<&RecoveryRecord> {
        self.by_master.get(&master)
    }

    /// All, by master.
    pub fn iter(&self) -> impl Iterator<Item = (ServerId, &RecoveryRecord)> + '_ {
        self.by_master.iter().map(|(id, record)| (*id, record))
    }
}

fn invalid(why: impl Into<String>) -> Refused {
    Refused::Invalid(why.into())
}

impl State {
    pub(super) fn plan_recovery(
        &mut self,
        master: ServerId,
        end: &LogEnd,
        parts: &[(Vec<TabletGrant>, ServerId)],
    ) -> Outcome {
        self.check_crashed(master)?;
        let planned = self.recoveries.by_master.get(&master);
        if planned.is_some_and(|record| record.end != *end) {
            return Err(invalid("where this log ends is decided"));
        }
        let given: usize = parts.iter().map(|(grants, _)| grants.len()).sum();
        let full = parts.iter().all(|(grants, _)| !grants.is_empty());
        if !(1..=MAX_PLANNED_TABLETS).contains(&given) || !full {
            return Err(invalid(format!("{given} tablets in a plan")));
        }
        for (_, by) in parts {
            self.check_recovery_master(*by)?;
        }
        let tried = self.recoveries.tried.get(&master).copied().unwrap_or(0);
        let attempts = planned.map_or(tried, |record| record.attempts);
        let Some(last) = u32::try_from(parts.len())
            .ok()
            .and_then(|parts| attempts.checked_add(parts))
        else {
            return Err(Refused::Limit("tries of a recovery".into()));
        };
        let cut = self.cut_lost(master, parts)?;
        let partitions = parts.iter().zip(attempts + 1..=last);
        let partitions: Vec<_> = partitions
            .map(|((grants, by), attempt)| Partition {
                by: *by,
                attempt,
                tablets: grants.iter().filter_map(|g| cut.lost(g)).collect(),
            })
            .collect();
        for (table, tablets) in cut.tables {
            if let Some(record) = self.tables.by_id_mut(table) {
                record.table.tablets = tablets;
            }
        }
        let record = self.recoveries.by_master.entry(master);
        let record = record.or_insert_with(|| RecoveryRecord {
            end: *end,
            attempts: 0,
            partitions: Vec::new(),
        });
        record.attempts = last;
        record.partitions.extend(partitions);
        self.recoveries.changes += 1;
        if mutants::active(Mutant::FreedEarly) {
            self.recovered(master);
        }
        self.map_changed();
        Ok(Applied::Done)
    }

    /// The tables with their lost tablets cut as the plan says, if the plan's ranges tile whole
    /// tablets of `master` that are down, and limits allow it.
    fn cut_lost(
        &self,
        master: ServerId,
        parts: &[(Vec<TabletGrant>, ServerId)],
    ) -> Result<Cut, Refused> {
        let mut by_table: BTreeMap<TableId, Vec<TabletGrant>> = BTreeMap::new();
        for grant in parts.iter().flat_map(|(grants, _)| grants) {
            by_table.entry(grant.table).or_default().push(*grant);
        }
        let mut cut = Cut::default();
        let mut added = 0;
        for (table, mut pieces) in by_table {
            let old = match self.tables.by_id(table) {
                Some(record) if record.dropping.is_none() => &record.table.tablets,
                _ => return Err(invalid(format!("{table:?} is gone"))),
            };
            pieces.sort_unstable();
            let new = tile(master, old, &pieces)?;
            if new.len() > MAX_TABLETS_PER_TABLE {
                let limit = format!("{MAX_TABLETS_PER_TABLE} tablets of a table");
                return Err(Refused::Limit(limit));
            }
            added += new.len() - old.len();
            cut.tables.insert(table, new);
        }
        if added > self.tables.room() {
            return Err(Refused::Limit("the tablet map's size".into()));
        }
        Ok(cut)
    }

    pub(super) fn check_crashed(&self, master: ServerId) -> Result<(), Refused> {
        match self.servers.by_id(master) {
            Some(found) if found.is_crashed() => Ok(()),
            Some(_) => Err(invalid(format!("{master:?} is not crashed"))),
            None => Err(Refused::Unknown),
        }
    }

    fn check_recovery_master(&self, by: ServerId) -> Result<(), Refused> {
        if self.living(by)?.is_ready_master() {
            Ok(())
        } else {
            Err(invalid(format!("{by:?} is no master that is ready")))
        }
    }

    pub(super) fn assign_recovery(
        &mut self,
        master: ServerId,
        attempt: u32,
        by: ServerId,
    ) -> Outcome {
        self.check_recovery_master(by)?;
        let record = self.recoveries.by_master.get_mut(&master);
        let record = record.ok_or(Refused::Unknown)?;
        let last = record.attempts.checked_add(1);
        let next = last.ok_or_else(|| Refused::Limit("tries of a recovery".into()))?;
        let mut parts = record.partitions.iter_mut();
        let Some(part) = parts.find(|part| part.attempt == attempt) else {
            return Err(invalid(format!("try {attempt} was given up")));
        };
        part.by = by;
        part.attempt = next;
        record.attempts = next;
        self.recoveries.changes += 1;
        Ok(Applied::Done)
    }

    pub(super) fn partition_recovered(
        &mut self,
        master: ServerId,
        attempt: u32,
        by: ServerId,
        taken: &[(TabletGrant, LogPosition)],
    ) -> Outcome {
        self.living(by)?;
        let record = self.recoveries.by_master.get(&master);
        let part = record.and_then(|record| record.partition(attempt));
        let part = part.filter(|part| part.by == by);
        let late = record.filter(|_| mutants::active(Mutant::TakeLateRecovered));
        let part = part.or_else(|| late.and_then(|record| record.partitions.first()));
        let Some(part) = part else {
            return Err(invalid(format!("try {attempt} is not {by:?}'s, or over")));
        };
        let given = part.tablets.iter().map(|lost| &lost.range);
        let placed = taken.iter().all(|(_, at)| *at != LogPosition::ZERO);
        if !given.eq(taken.iter().map(|(range, _)| range)) || !placed {
            return Err(invalid("these are not the tablets that were given"));
        }
        let taken: BTreeMap<_, _> = taken.iter().copied().collect();
        self.tables.replayed(master, by, &taken);
        self.settle_recovery(master);
        self.map_changed();
        Ok(Applied::Done)
    }

    pub(super) fn replace_plan(&mut self, master: ServerId, end: &LogEnd) -> Outcome {
        let planned = self.recoveries.by_master.get(&master);
        let planned = planned.ok_or(Refused::Unknown)?;
        if planned.end != *end {
            return Err(invalid("its plan has another end"));
        }
        self.give_up_plan(master);
        Ok(Applied::Done)
    }

    /// Whether what `by` has of a try is still wanted: it has the last try of a partition, or was given
    /// tablets with it that it has not taken yet. What was wanted and is not will never be again: no
    /// number of a try is used twice, and no tablet is given out twice with one replay.
    #[must_use]
    pub fn wants_try(&self, by: ServerId, held: &HeldTry) -> bool {
        let TryId { master, attempt } = held.id;
        let record = self.recoveries.by_master.get(&master);
        let part = record.and_then(|record| record.partition(attempt));
        let is_tried = part.is_some_and(|part| part.by == by);
        let is_given = |takeover: LogPosition| {
            let mut tablets = self.tables.tablets();
            let given = tablets.any(|tablet| {
                (tablet.owner, tablet.takeover) == (by, takeover)
                    && tablet.state == TabletState::Assigning
            });
            given && !mutants::active(Mutant::DecidedTriesAreOver)
        };
        is_tried
            || held.takeover.is_some_and(is_given)
            || mutants::active(Mutant::UnwantedTriesStay)
    }

    /// A partition's tablets are down again, to be planned anew.
    pub(super) fn give_back_partition(&mut self, master: ServerId, attempt: u32) -> Outcome {
        let record = self.recoveries.by_master.get_mut(&master);
        let parts = &mut record.ok_or(Refused::Unknown)?.partitions;
        let Some(at) = parts.iter().position(|part| part.attempt == attempt) else {
            return Err(invalid(format!("try {attempt} was given up")));
        };
        let given_back = parts.remove(at).tablets;
        self.recoveries.changes += 1;
        self.tables.down_again(master, |range| {
            given_back.iter().any(|lost| lost.range == range)
        });
        self.map_changed();
        Ok(Applied::Done)
    }

    /// A plan is given up: what is not replayed is down again. The leader has to look anew in any case.
    pub(super) fn give_up_plan(&mut self, master: ServerId) {
        self.recoveries.changes += 1;
        if let Some(record) = self.recoveries.by_master.remove(&master) {
            self.recoveries.tried.insert(master, record.attempts);
            self.tables.down_again(master, |_| true);
            self.map_changed();
        }
    }

    /// What is left of a master's recovery after something that it waited for came, or went.
    pub(super) fn settle_recovery(&mut self, master: ServerId) {
        if self.check_crashed(master).is_err() {
            return;
        }
        let own = self.tables.lost().filter(|tablet| tablet.owner == master);
        let (mut waits, mut recovering) = (false, BTreeSet::new());
        for tablet in own {
            waits = true;
            if tablet.state == TabletState::Recovering {
                recovering.insert(grant(tablet));
            }
        }
        if let Some(record) = self.recoveries.by_master.get_mut(&master) {
            let before = record.partitions.len();
            let needed = |lost: &LostTablet| recovering.contains(&lost.range);
            record
                .partitions
                .retain(|part| part.tablets.iter().any(needed));
            if record.partitions.len() != before {
                self.recoveries.changes += 1;
            }
        }
        if !waits {
            self.recoveries.tried.remove(&master);
            if self.recoveries.by_master.remove(&master).is_some() {
                self.recoveries.changes += 1;
            }
            self.recovered(master);
        }
    }
}

impl Tables {
    /// A recovery master has replayed these tablets and owns what is left of them.
    fn replayed(
        &mut self,
        master: ServerId,
        by: ServerId,
        taken: &BTreeMap<TabletGrant, LogPosition>,
    ) {
        let tables: BTreeSet<_> = taken.keys().map(|range| range.table).collect();
        for table in tables {
            let Some(record) = self.by_id_mut(table) else {
                continue;
            };
            for tablet in &mut record.table.tablets {
                let waits = tablet.owner == master && tablet.state == TabletState::Recovering;
                if let Some(position) = taken.get(&grant(tablet)).filter(|_| waits) {
                    tablet.owner = by;
                    tablet.takeover = *position;
                    tablet.state = TabletState::Assigning;
                }
            }
        }
    }
}

/// Tables as a plan leaves them.
#[derive(Default)]
struct Cut {
    tables: BTreeMap<TableId, Vec<Tablet>>,
}

impl Cut {
    fn lost(&self, range: &TabletGrant) -> Option<LostTablet> {
        let tablets = self.tables.get(&range.table)?;
        let at = tablets.binary_search_by_key(&range.first, |tablet| tablet.first);
        let takeover = tablets.get(at.ok()?)?.takeover;
        Some(LostTablet {
            range: *range,
            takeover,
        })
    }
}

/// `old` with the tablets that `pieces` tile replaced by them, recovering.
fn tile(master: ServerId, old: &[Tablet], pieces: &[TabletGrant]) -> Result<Vec<Tablet>, Refused> {
    let mut new = Vec::with_capacity(old.len() + pieces.len());
    let mut pieces = pieces.iter().peekable();
    for tablet in old {
        let mut next = Some(tablet.first);
        let begins = |piece: &&TabletGrant| piece.first == tablet.first;
        if pieces.peek().is_some_and(begins) {
            if tablet.owner != master || tablet.state != TabletState::Down {
                return Err(invalid("a tablet of the plan is not down"));
            }
            while let Some(first) = next {
                let fits = |piece: &&TabletGrant| {
                    piece.first == first && (first..=tablet.last).contains(&piece.last)
                };
                let piece = pieces.next_if(fits);
                let piece = piece.ok_or_else(|| invalid("the plan leaves a gap in a tablet"))?;
                new.push(Tablet {
                    first,
                    last: piece.last,
                    state: TabletState::Recovering,
                    ..*tablet
                });
                let more = piece.last < tablet.last;
                next = more.then(|| ramkeep_wire::KeyHash(piece.last.0 + 1));
            }
        } else {
            new.push(*tablet);
        }
    }
    match pieces.next() {
        None => Ok(new),
        Some(_) => Err(invalid("the plan's ranges are not those of tablets")),
    }
}

impl Server {
    /// The recorded epoch of a segment: open replicas below it never count.
    #[must_use]
    pub fn recorded_epoch(
        &self,
        segment: ramkeep_wire::SegmentId,
    ) -> Option<ramkeep_wire::ReplicationEpoch> {
        self.epochs.get(&segment).map(|recorded| recorded.epoch)
    }
}
