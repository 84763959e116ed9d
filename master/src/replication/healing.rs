//! The pace of healing: copies of closed segments leave most of the machines to clients.
//!
//! # Invariants
//! 1. Of paced copies one message is unanswered at most, and after its answer they rest [`REST`] times
//!    as long as it took: on a loaded machine answers take longer, and healing slows down with it.
//! 2. A segment of which no closed copy is left is not paced: its only other copy is in memory.

use std::time::Duration;

use ramkeep_wire::Micros;

use super::Replication;
use super::segment::Replicated;

/// Copies rest so many times as long as their last message took: they have a quarter of the way to
/// backups at most.
const REST: u32 = 3;
/// Longest rest: an answer that was held up once does not hold up healing.
const MAX_REST: Duration = Duration::from_millis(50);

/// Whether copies may go on.
#[derive(Debug, Default)]
pub(super) struct Pace {
    rests_until: Micros,
}

impl Pace {
    /// A message of a copy, sent at `sent`, is answered.
    pub(super) fn answered(&mut self, now: Micros, sent: Micros) {
        let rest = (now.since(sent) * REST).min(MAX_REST);
        self.rests_until = self.rests_until.max(now + rest);
    }
}

impl Replicated {
    /// Whether its copies leave way to clients.
    pub(super) fn is_paced(&self) -> bool {
        self.closed_everywhere && self.replicas.iter().any(|one| one.acked.closed)
    }
}

impl Replication {
    /// Whether a message of a paced copy may be sent.
    pub(super) fn may_copy(&self, now: Micros) -> bool {
        let active = self.active.iter().filter_map(|id| self.segments.get(id));
        let mut paced = active.filter(|segment| segment.is_paced());
        now >= self.pace.rests_until
            && paced.all(|segment| segment.replicas.iter().all(|one| one.in_flight.is_empty()))
    }

    /// Whether copies are to be made or under way: then [`pump`](Self::pump) is to be called more
    /// often than time passes otherwise.
    #[must_use]
    pub fn is_healing(&self) -> bool {
        !self.lacking.is_empty() || self.active.len() > self.heads().count()
    }
}
