//! The master lease: until when this master may answer reads.
//!
//! # Invariants
//! 1. A grant counts from when the request that it answers was *sent*, by the master's own clock.
//!    The margin for the rates of two clocks is on the side of the backup, which waits longer than
//!    it granted (`wire::limits::CLOCK_RATE_PARTS`): nothing is taken off here.
//! 2. The lease is held as long as it is from every witness of every head that is not durably
//!    closed: from each backup that recovery could have the head from. A backup becomes one with
//!    the first message that would make its copy whole, and is one until an epoch is recorded whose
//!    set is without it. So old and new backups count together while a change is under way
//!    (SAFETY 3), and old and new head while the log rolls over.
//! 3. Copies of closed segments don't count: nobody takes them for the log's end.
//!
//! With k = 0 there is no backup to ask; the coordinator grants the lease (SAFETY 7, `core.rs`).

use std::collections::BTreeMap;
use std::time::Duration;

use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::{Micros, ServerId};

use super::Replication;

/// A lease is renewed after one part in so many of its length without a message that does as well.
pub const RENEWALS_PER_LEASE: u64 = 8;
/// A backup is suspected that lets a message wait for so many eighths of a lease: early enough that
/// a backup in its place is recorded before the lease of the old set runs out.
pub const SUSPECT_EIGHTHS: u64 = 3;

// The last grant counts from one renewal before the message that is not answered; half of the lease
// is left for the change itself.
const _: () = assert!((1 + SUSPECT_EIGHTHS) * 2 <= RENEWALS_PER_LEASE && RENEWALS_PER_LEASE == 8);

/// What one backup has granted.
#[derive(Clone, Copy, Debug, Default)]
struct Grant {
    /// When it was last asked.
    asked: Micros,
    /// The lease from it is over then.
    until: Micros,
}

/// Grants by backup.
#[derive(Debug, Default)]
pub(super) struct Leases(BTreeMap<ServerId, Grant>);

impl Leases {
    /// A message goes out that asks for a grant.
    pub(super) fn asked(&mut self, now: Micros, backup: ServerId) {
        if !self.0.contains_key(&backup) {
            // What has run out says nothing any more.
            self.0
                .retain(|_, grant| grant.until > now || grant.asked >= now);
        }
        self.0.entry(backup).or_default().asked = now;
    }

    /// Whether a backup was not asked for `every` microseconds.
    pub(super) fn due(&self, now: Micros, backup: ServerId, every: u64) -> bool {
        let grant = self.0.get(&backup).copied().unwrap_or_default();
        now.since(grant.asked) >= Duration::from_micros(every)
    }

    /// A backup granted `lease_us` in answer to what was sent at `sent`.
    pub(super) fn granted(&mut self, now: Micros, backup: ServerId, sent: Micros, lease_us: u32) {
        let from = if mutants::active(Mutant::LeaseFromReceipt) {
            now
        } else {
            sent
        };
        if let Some(grant) = self.0.get_mut(&backup)
            && lease_us > 0
        {
            let until = from + Duration::from_micros(lease_us.into());
            grant.until = grant.until.max(until);
        }
    }

    pub(super) fn until(&self, backup: ServerId) -> Micros {
        self.0.get(&backup).map_or(Micros(0), |grant| grant.until)
    }
}

impl Replication {
    /// The master may answer reads before this time; [`Micros`] 0: it may not. For k > 0.
    #[must_use]
    pub fn lease_until(&self) -> Micros {
        let newest = self.active.last().copied();
        let old = |id| mutants::active(Mutant::LeaseIgnoresOldHead) && Some(id) != newest;
        let heads = self.heads().filter(|(id, _)| !old(*id));
        let until = heads.flat_map(|(_, head)| {
            let gone = |backup| mutants::active(Mutant::LeaseIgnoresOldSet) && !head.is_on(backup);
            let witnesses = head.witnesses.iter().copied();
            witnesses
                .filter(move |backup| !gone(*backup))
                .map(|backup| self.leases.until(backup))
        });
        until.min().unwrap_or_default()
    }
}
