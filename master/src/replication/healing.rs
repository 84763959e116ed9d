//! Healing: closed segments that lack a replica are copied, at a pace that leaves most of the machines
//! to clients.
//!
//! # Invariants
//! 1. A segment that lacks a replica waits in its turn; those of which no closed replica is left come
//!    first and are not paced, for their only other copy is in memory.
//! 2. Of paced copies one message is unanswered at most, and after its answer they rest [`REST`] times
//!    as long as it took: on a loaded machine answers take longer, and healing slows down with it.
//! 3. A backup that does not answer holds up others for [`STALLED`] at most, and gets no further copy.

use std::collections::BTreeSet;
use std::time::Duration;

use ramkeep_wire::{Micros, SegmentId, ServerId};

use super::replica::Replica;
use super::segment::Replicated;
use super::{COPY_TRIES, MAX_COPIES, MAX_PACED, Replication};

/// Copies rest so many times as long as their last message took: they have a sixth of the way to
/// backups at most.
const REST: u32 = 5;
/// Longest rest: an answer that was held up once does not hold up healing.
const MAX_REST: Duration = Duration::from_millis(50);
/// Other copies do not wait longer for an answer.
const STALLED: Duration = Duration::from_millis(500);

/// Closed segments that have lost a replica and wait for their turn to be copied.
#[derive(Debug, Default)]
pub(super) struct Lacking {
    /// Without any closed replica.
    bare: Turns,
    others: Turns,
}

#[derive(Debug, Default)]
struct Turns {
    waiting: BTreeSet<SegmentId>,
    /// The last of them that was looked at.
    looked_at: SegmentId,
}

/// Whether copies may go on.
#[derive(Debug, Default)]
pub(super) struct Pace {
    rests_until: Micros,
}

impl Lacking {
    /// It lacks a replica, and all of them if it is `bare`.
    pub(super) fn put(&mut self, id: SegmentId, bare: bool) {
        self.remove(id);
        self.turns(bare).waiting.insert(id);
    }

    pub(super) fn remove(&mut self, id: SegmentId) {
        self.bare.waiting.remove(&id);
        self.others.waiting.remove(&id);
    }

    pub(super) fn contains(&self, id: SegmentId) -> bool {
        self.bare.waiting.contains(&id) || self.others.waiting.contains(&id)
    }

    pub(super) fn len(&self) -> usize {
        self.bare.waiting.len() + self.others.waiting.len()
    }

    fn turns(&mut self, bare: bool) -> &mut Turns {
        match bare {
            true => &mut self.bare,
            false => &mut self.others,
        }
    }
}

impl Turns {
    fn next(&mut self) -> Option<SegmentId> {
        let after = SegmentId(self.looked_at.0 + 1);
        let next = self.waiting.range(after..).next();
        self.looked_at = *next.or_else(|| self.waiting.first())?;
        Some(self.looked_at)
    }
}

impl Pace {
    /// A message of a copy, sent at `sent`, is answered.
    pub(super) fn answered(&mut self, now: Micros, sent: Micros) {
        let rest = (now.since(sent) * REST).min(MAX_REST);
        self.rests_until = self.rests_until.max(now + rest);
    }
}

impl Replicated {
    /// Whether a backup holds it closed.
    pub(super) fn has_copy(&self) -> bool {
        self.replicas.iter().any(|one| one.acked.closed)
    }

    /// Whether its copies leave way to clients.
    pub(super) fn is_paced(&self) -> bool {
        self.closed_everywhere && self.has_copy()
    }
}

impl Replication {
    /// Has closed segments that lack a replica copied, a few at a time, in turns.
    pub(super) fn begin_copies(&mut self, now: Micros) {
        if self.lacking.len() == 0 {
            return;
        }
        let going_on = |segment: &&Replicated| {
            segment.closed_everywhere && !segment.replicas.iter().any(|one| is_stalled(now, one))
        };
        let active = self.active.iter().filter_map(|id| self.segments.get(id));
        let copied = active.filter(going_on);
        let (paced, bare): (Vec<_>, Vec<_>) = copied.partition(|segment| segment.has_copy());
        let (paced, bare) = (paced.len(), bare.len());
        self.begin(now, true, MAX_COPIES.saturating_sub(bare));
        if !self.is_recovering() {
            self.begin(now, false, MAX_PACED.saturating_sub(paced));
        }
    }

    fn begin(&mut self, now: Micros, bare: bool, mut room: usize) {
        let tries = COPY_TRIES.min(self.lacking.turns(bare).waiting.len());
        for _ in 0..tries {
            let next = self.lacking.turns(bare).next().filter(|_| room > 0);
            let Some(id) = next else { return };
            self.place(now, id);
            let segment = self.segments.get(&id);
            if segment.is_none_or(Replicated::copying) {
                self.lacking.remove(id);
                self.active.insert(id);
                room -= 1;
            }
        }
    }

    /// Whether a message of a paced copy may be sent.
    pub(super) fn may_copy(&self, now: Micros) -> bool {
        if now < self.pace.rests_until {
            return false;
        }
        let active = self.active.iter().filter_map(|id| self.segments.get(id));
        let paced = active.filter(|segment| segment.is_paced());
        let mut replicas = paced.flat_map(|segment| &segment.replicas);
        replicas.all(|one| one.in_flight.is_empty() || is_stalled(now, one))
    }

    /// The backups that let copies wait: they are not given more.
    pub(super) fn stalled(&self, now: Micros) -> BTreeSet<ServerId> {
        let active = self.active.iter().filter_map(|id| self.segments.get(id));
        let copied = active.filter(|segment| segment.closed_everywhere);
        let replicas = copied.flat_map(|segment| &segment.replicas);
        let stalled = replicas.filter(|one| is_stalled(now, one));
        stalled.map(|one| one.backup).collect()
    }

    /// Whether copies are under way: then [`pump`](Self::pump) is to be called more often than time
    /// passes otherwise.
    #[must_use]
    pub fn is_healing(&self) -> bool {
        self.active.len() > self.heads().count()
    }
}

/// Whether it has let a message wait for so long that others do not wait with it.
fn is_stalled(now: Micros, replica: &Replica) -> bool {
    !replica.in_flight.is_empty() && now.since(replica.waiting_since) >= STALLED
}
