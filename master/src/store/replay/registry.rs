//! The ranges that are recovered here: which replay may still append, and where it began.
//!
//! # Invariants
//! 1. Ranges of different replays do not overlap, nor do they overlap a tablet that is owned.
//! 2. A replay that was ended appends nothing more; what it has put into the index is swept.
//! 3. A range is handed over only as a whole, and only when its replay is finished.

use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::order::TabletGrant;
use ramkeep_wire::{LogPosition, TableId};

use super::ReplayError;
use crate::store::account::Need;
use crate::store::tablets::{Overlap, Tablets, overlap};
use crate::store::writer::Writer;

/// Names a replay of this store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReplayId(u64);

/// How far a replay is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// What the index holds of its ranges is being swept.
    Purging,
    /// Entries are taken in; the log stood here when that began.
    Replaying(LogPosition),
    /// All is in the log, and the log stood there when it began.
    Finished(LogPosition),
}

#[derive(Debug)]
struct Known {
    id: ReplayId,
    ranges: Vec<TabletGrant>,
    phase: Phase,
    /// Bytes that it keeps beside the log.
    kept: u64,
    /// What it may still append, once it is admitted.
    promised: Need,
}

/// All replays whose ranges were not taken yet.
#[derive(Debug, Default)]
pub struct Replays {
    last: u64,
    known: Vec<Known>,
}

impl Replays {
    /// Where the log stood when the replay of just this range began; none if it is not under
    /// recovery.
    pub(in crate::store) fn takeover(
        &self,
        grant: &TabletGrant,
    ) -> Result<Option<LogPosition>, Overlap> {
        let overlapping = |known: &&Known| known.ranges.iter().any(|one| overlap(one, grant));
        match self.known.iter().find(overlapping) {
            None => Ok(None),
            Some(Known {
                phase: Phase::Finished(at),
                ranges,
                ..
            }) if ranges.contains(grant) => Ok(Some(*at)),
            Some(_) => Err(Overlap { grant: *grant }),
        }
    }

    fn known_mut(&mut self, id: ReplayId) -> Option<&mut Known> {
        self.known.iter_mut().find(|known| known.id == id)
    }
}

impl Writer {
    /// Registers a replay. Others with ranges that overlap are ended.
    pub(super) fn register_replay(
        &mut self,
        ranges: &[TabletGrant],
        served: &Tablets,
    ) -> Result<ReplayId, ReplayError> {
        for range in ranges {
            if served.iter().any(|owned| overlap(&owned.range, range)) {
                return Err(ReplayError::Served(*range));
            }
        }
        let overlapping = |known: &&Known| {
            let mine = |one: &TabletGrant| ranges.iter().any(|range| overlap(one, range));
            known.ranges.iter().any(mine)
        };
        let ended: Vec<ReplayId> = self
            .replays
            .known
            .iter()
            .filter(overlapping)
            .map(|k| k.id)
            .collect();
        ended.into_iter().for_each(|id| self.end_replay(id));
        ranges.iter().for_each(|range| self.sweep.add_range(*range));
        // What an earlier attempt or stay left stands in the log before the takeover.
        self.completions.forget_where(ranges);
        self.replays.last += 1;
        let id = ReplayId(self.replays.last);
        self.replays.known.push(Known {
            id,
            ranges: ranges.to_vec(),
            phase: Phase::Purging,
            kept: 0,
            promised: Need::default(),
        });
        Ok(id)
    }

    /// How far a replay is that was not ended.
    pub(super) fn replay_phase(&self, id: ReplayId) -> Result<Phase, ReplayError> {
        let known = self.replays.known.iter().find(|known| known.id == id);
        known.map(|known| known.phase).ok_or(ReplayError::Ended)
    }

    /// Goes over to the replay proper if nothing of its ranges is left to be swept.
    pub(super) fn begin_replaying(&mut self, id: ReplayId) -> Option<LogPosition> {
        let now = self.log.appended_position();
        let known = self.replays.known_mut(id)?;
        if known
            .ranges
            .iter()
            .any(|range| self.sweep.is_pending(range))
        {
            return None;
        }
        known.phase = Phase::Replaying(now);
        Some(now)
    }

    /// The replay has appended all.
    pub(super) fn finish_replaying(&mut self, id: ReplayId) {
        if let Some(known) = self.replays.known_mut(id)
            && let Phase::Replaying(takeover) = known.phase
        {
            known.phase = Phase::Finished(takeover);
            known.promised = Need::default();
            self.sum_promised();
        }
    }

    /// Admits a replay that will append no more than this, all of which is kept free for it from now on.
    pub(super) fn admit(&mut self, id: ReplayId, need: Need) -> Result<(), ReplayError> {
        self.replay_phase(id)?;
        self.promise(id, Need::default());
        let index = self.index.index().bytes();
        let beside = index + need.beside;
        let room = self.account.room(&self.log, beside, need.longest) + need.beside;
        let needs = need.total();
        if needs > room && !mutants::active(Mutant::AdmitUnmeasured) {
            return Err(ReplayError::NoRoom { needs, room });
        }
        if !mutants::active(Mutant::PromiseNothing) {
            self.promise(id, need);
        }
        Ok(())
    }

    fn promise(&mut self, id: ReplayId, need: Need) {
        if let Some(known) = self.replays.known_mut(id) {
            known.promised = need;
        }
        self.sum_promised();
    }

    fn sum_promised(&mut self) {
        let mut sum = Need::default();
        for known in &self.replays.known {
            sum.bytes += known.promised.bytes;
            sum.beside += known.promised.beside;
            sum.longest = sum.longest.max(known.promised.longest);
        }
        self.account.promised = sum;
    }

    /// Does something for a replay that takes so much of what is promised to it, if it takes it.
    pub(super) fn spend<E>(
        &mut self,
        id: ReplayId,
        bytes: u64,
        place: impl FnOnce(&mut Self) -> Result<bool, E>,
    ) -> Result<(), E> {
        let Some(known) = self.replays.known_mut(id) else {
            return place(self).map(drop);
        };
        let taken = known.promised.bytes.min(bytes);
        known.promised.bytes -= taken;
        self.account.promised.bytes -= taken;
        let index = self.index.index().bytes();
        let placed = place(self);
        let grown = self.index.index().bytes() - index;
        if let Some(known) = self.replays.known_mut(id) {
            // What the index grew by is taken from what was promised for it.
            let grown = known.promised.beside.min(grown);
            known.promised.beside -= grown;
            self.account.promised.beside -= grown;
            if !matches!(placed, Ok(true)) {
                known.promised.bytes += taken;
                self.account.promised.bytes += taken;
            }
        }
        placed.map(drop)
    }

    /// The replay keeps this many bytes beside the log. False if there is no memory for them.
    pub(super) fn set_kept(&mut self, id: ReplayId, bytes: u64) -> bool {
        let Some(known) = self.replays.known_mut(id) else {
            return true;
        };
        let before = std::mem::replace(&mut known.kept, bytes);
        self.account.kept = self.account.kept + bytes - before;
        let promised = known.promised.beside.min(bytes.saturating_sub(before));
        known.promised.beside -= promised;
        self.account.promised.beside -= promised;
        bytes <= before || self.account.is_sound(&self.log, self.index.index().bytes())
    }

    /// Ends a replay; what it has put into the index is swept in time.
    pub(in crate::store) fn end_replay(&mut self, id: ReplayId) {
        let Some(at) = self.replays.known.iter().position(|known| known.id == id) else {
            return;
        };
        let ended = self.replays.known.swap_remove(at);
        self.account.kept -= ended.kept;
        self.sum_promised();
        self.completions.forget_where(&ended.ranges);
        ended
            .ranges
            .into_iter()
            .for_each(|range| self.sweep.add_range(range));
    }

    /// A range is a tablet from now on, if its replay is finished.
    pub(in crate::store) fn replay_taken(&mut self, range: &TabletGrant) {
        let finished = |known: &&mut Known| matches!(known.phase, Phase::Finished(_));
        for known in self.replays.known.iter_mut().filter(finished) {
            known.ranges.retain(|one| one != range);
        }
        self.replays.known.retain(|known| !known.ranges.is_empty());
    }

    /// A table is dropped. A finished replay keeps what it has of other tables: it was said that this
    /// is recovered. One under way ends as a whole.
    pub(in crate::store) fn drop_replays(&mut self, table: TableId) {
        let mut dropped = Vec::new();
        for known in &mut self.replays.known {
            let finished = matches!(known.phase, Phase::Finished(_));
            if finished && !mutants::active(Mutant::DropEndsFinishedReplay) {
                let of_table = |range: &mut TabletGrant| range.table == table;
                dropped.extend(known.ranges.extract_if(.., of_table));
            }
        }
        let of_table = |known: &&Known| known.ranges.iter().any(|range| range.table == table);
        let known = self.replays.known.iter();
        let ended: Vec<ReplayId> = known.filter(of_table).map(|known| known.id).collect();
        ended.into_iter().for_each(|id| self.end_replay(id));
        self.replays.known.retain(|known| !known.ranges.is_empty());
        self.completions.forget_where(&dropped);
        dropped
            .into_iter()
            .for_each(|range| self.sweep.add_range(range));
    }
}
