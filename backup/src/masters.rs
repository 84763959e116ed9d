//! What a backup owes to masters: leases granted, and masters fenced.
//!
//! # Invariants
//! 1. A fenced master is fenced until this process ends, and is granted nothing any more.
//! 2. A grant counts from when its request was received, and is remembered until it has run out by
//!    the master's clock, whose rate may differ by one part in [`CLOCK_RATE_PARTS`].
//! 3. A process that has just started has forgotten its grants: it takes every master to hold one
//!    from just before the start.

use std::collections::BTreeMap;
use std::time::Duration;

use ramkeep_wire::limits::{CLOCK_RATE_PARTS, MAX_SERVERS};
use ramkeep_wire::{Micros, ServerId};

#[derive(Clone, Copy, Debug, Default)]
struct Master {
    fenced: bool,
    granted_until: Micros,
}

/// Leases and fences, by master.
#[derive(Clone, Debug)]
pub(crate) struct Masters {
    lease_us: u32,
    started: Micros,
    /// The longest lease that a former process with these frames, or this one, granted.
    longest_us: u32,
    known: BTreeMap<ServerId, Master>,
}

/// A lease as its grantor must wait for it.
fn waited_out(lease_us: u32) -> Duration {
    let lease = u64::from(lease_us);
    Duration::from_micros(lease + lease.div_ceil(CLOCK_RATE_PARTS))
}

impl Masters {
    pub(crate) fn new(started: Micros, former_lease_us: u32) -> Self {
        Self {
            lease_us: 0,
            started,
            longest_us: former_lease_us,
            known: BTreeMap::new(),
        }
    }

    pub(crate) fn set_lease(&mut self, lease_us: u32) {
        self.lease_us = lease_us;
        self.longest_us = self.longest_us.max(lease_us);
    }

    pub(crate) fn is_fenced(&self, master: ServerId) -> bool {
        self.known.get(&master).is_some_and(|known| known.fenced)
    }

    pub(crate) fn fence(&mut self, master: ServerId) {
        self.known.entry(master).or_default().fenced = true;
    }

    /// Grants a lease from `now`, in microseconds; the master is not fenced.
    pub(crate) fn grant(&mut self, now: Micros, master: ServerId) -> u32 {
        let until = now + waited_out(self.lease_us);
        if let Some(known) = self.known.get_mut(&master) {
            debug_assert!(!known.fenced, "a lease for a fenced master");
            known.granted_until = known.granted_until.max(until);
            return self.lease_us;
        }
        if self.known.len() >= 2 * MAX_SERVERS {
            self.known
                .retain(|_, known| known.fenced || known.granted_until > now);
        }
        let known = Master {
            fenced: false,
            granted_until: until,
        };
        self.known.insert(master, known);
        self.lease_us
    }

    /// How long the master may still hold a lease granted here.
    pub(crate) fn lease_left(&self, now: Micros, master: ServerId) -> Duration {
        let forgotten = self.started + waited_out(self.longest_us);
        let granted = self
            .known
            .get(&master)
            .map_or(Micros::default(), |known| known.granted_until);
        granted.max(forgotten).since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASTER: ServerId = ServerId(7);

    #[test]
    fn a_grant_is_waited_out_by_the_slower_clock() {
        let mut masters = Masters::new(Micros(0), 0);
        masters.set_lease(200_000);
        assert_eq!(masters.grant(Micros(1_000_000), MASTER), 200_000);
        let left = |now| masters.lease_left(Micros(now), MASTER).as_micros();
        assert_eq!(left(1_000_000), 202_000);
        assert_eq!(left(1_201_999), 1);
        assert_eq!(left(1_202_000), 0);
    }

    #[test]
    fn a_restarted_backup_waits_for_grants_it_has_forgotten() {
        let mut masters = Masters::new(Micros(5_000), 300_000);
        masters.set_lease(200_000);
        assert_eq!(
            masters.lease_left(Micros(5_000), MASTER).as_micros(),
            303_000
        );
        assert_eq!(masters.lease_left(Micros(308_000), MASTER).as_micros(), 0);
    }

    #[test]
    fn a_fence_outlives_the_grant() {
        let mut masters = Masters::new(Micros(0), 0);
        masters.set_lease(10);
        masters.grant(Micros(0), MASTER);
        masters.fence(MASTER);
        for id in 100..100 + 3 * MAX_SERVERS as u64 {
            masters.grant(Micros(id), ServerId(id));
        }
        assert!(masters.is_fenced(MASTER));
        assert!(masters.known.len() <= 2 * MAX_SERVERS, "memory is bounded");
    }
}
