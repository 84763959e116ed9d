//! Whether this master may answer: what its control side publishes, and every reader compares with
//! the clock after it has looked (SAFETY 1).
//!
//! # Invariants
//! 1. What is published never reaches past what is granted: it is lowered before a message leaves
//!    after which more grants are needed.
//! 2. Once fenced, a master never holds the lease again.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_utils::CachePadded;
use ramkeep_wire::Micros;
use ramkeep_wire::mutants::{self, Mutant};

use crate::store::MasterLease;

/// The end of the lease, shared with readers. Written by who holds the control lock.
#[derive(Debug, Default)]
pub(crate) struct LeaseEnd {
    /// The lease is held before this time, microseconds.
    until: CachePadded<AtomicU64>,
    /// Without a lease, replies wait for it until this time.
    patience: AtomicU64,
    fenced: AtomicBool,
}

impl LeaseEnd {
    /// The lease at `now`, which was read after looking.
    #[inline]
    pub(crate) fn at(&self, now: Micros) -> MasterLease {
        let held = now.0 < self.until.load(Ordering::Acquire) && !self.is_fenced();
        if held || mutants::active(Mutant::ReadWithoutLease) {
            MasterLease::Held
        } else if now.0 < self.patience.load(Ordering::Acquire) && !self.is_fenced() {
            MasterLease::Lost
        } else {
            MasterLease::Gone
        }
    }

    /// Publishes a lease at `now`. Replies wait for so long from the time it ends before others are
    /// asked instead.
    pub(crate) fn publish(&self, now: Micros, until: Micros, patience: Duration) {
        let before = Micros(self.until.load(Ordering::Relaxed));
        if before == until {
            return;
        }
        let ends = until.max(now);
        if before > now || until > now {
            self.patience.store((ends + patience).0, Ordering::Release);
        }
        self.until.store(until.0, Ordering::Release);
    }

    #[inline]
    pub(crate) fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Acquire)
    }

    pub(crate) fn fence(&self) {
        self.fenced.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_micros(200);

    #[test]
    fn a_lease_is_held_then_waited_for_then_given_up() {
        let end = LeaseEnd::default();
        assert_eq!(end.at(Micros(5)), MasterLease::Gone, "none was ever held");
        end.publish(Micros(10), Micros(110), PATIENCE);
        assert_eq!(end.at(Micros(109)), MasterLease::Held);
        assert_eq!(end.at(Micros(110)), MasterLease::Lost);
        assert_eq!(end.at(Micros(310)), MasterLease::Gone);
        end.publish(Micros(400), Micros(500), PATIENCE);
        assert_eq!(end.at(Micros(499)), MasterLease::Held);
    }

    #[test]
    fn a_lease_that_is_cut_short_is_waited_for_from_then_on() {
        let end = LeaseEnd::default();
        end.publish(Micros(10), Micros(110), PATIENCE);
        end.publish(Micros(50), Micros(0), PATIENCE);
        assert_eq!(end.at(Micros(50)), MasterLease::Lost);
        assert_eq!(end.at(Micros(249)), MasterLease::Lost);
        // Nothing new: no more patience.
        end.publish(Micros(240), Micros(1), PATIENCE);
        assert_eq!(end.at(Micros(250)), MasterLease::Gone);
    }

    #[test]
    fn the_fenced_hold_no_lease() {
        let end = LeaseEnd::default();
        end.publish(Micros(10), Micros(110), PATIENCE);
        end.fence();
        assert_eq!(end.at(Micros(50)), MasterLease::Gone);
        end.publish(Micros(60), Micros(160), PATIENCE);
        assert_eq!(end.at(Micros(70)), MasterLease::Gone);
    }
}
