//! What a backup owes to masters: leases granted, and masters fenced.
//!
//! # Invariants
//! 1. A fenced master is fenced until this process ends, and is granted nothing any more.
//! 2. A grant counts from when its request was received, and is remembered until it has run out by
//!    the master's clock, whose rate may differ by one part in [`CLOCK_RATE_PARTS`].
//! 3. Once a connection of a master was heard, earlier ones of it are not heard any more.
//! 4. A process that has just started has forgotten its grants: it takes every master to hold one
//!    from just before the start.

use std::collections::BTreeMap;
use std::time::Duration;

use ramkeep_wire::limits::{CLOCK_RATE_PARTS, MAX_SERVERS};
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::{Micros, ServerId};

#[derive(Clone, Copy, Debug, Default)]
struct Master {
    fenced: bool,
    granted_until: Micros,
    /// The number of its newest connection.
    link: u64,
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
    if mutants::active(Mutant::NoClockMargin) {
        return Duration::from_micros(lease);
    }
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
        let known = self.remember(now, master);
        debug_assert!(!known.fenced, "a lease for a fenced master");
        known.granted_until = known.granted_until.max(until);
        self.lease_us
    }

    /// Whether nothing was heard of the master on a later connection than `link`.
    pub(crate) fn is_newest(&mut self, now: Micros, master: ServerId, link: u64) -> bool {
        let known = self.remember(now, master);
        known.link = known.link.max(link);
        known.link == link
    }

    fn remember(&mut self, now: Micros, master: ServerId) -> &mut Master {
        if self.known.len() >= 2 * MAX_SERVERS && !self.known.contains_key(&master) {
            self.known
                .retain(|_, known| known.fenced || known.granted_until > now);
        }
        self.known.entry(master).or_default()
    }

    /// How long the master may still hold a lease granted here.
    pub(crate) fn lease_left(&self, now: Micros, master: ServerId) -> Duration {
        let mut forgotten = self.started + waited_out(self.longest_us);
        if mutants::active(Mutant::ForgetGrants) {
            forgotten = Micros::default();
        }
        let known = self.known.get(&master);
        let mut granted = known.map_or(Micros::default(), |known| known.granted_until);
        if mutants::active(Mutant::InventoryBeforeWaiting) {
            granted = Micros::default();
        }
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
    fn what_is_left_of_an_earlier_connection_is_not_heard() {
        let mut masters = Masters::new(Micros(0), 0);
        let mut heard = |link| masters.is_newest(Micros(1), MASTER, link);
        assert!(heard(3) && heard(3) && heard(5));
        assert!(!heard(4) && !heard(3));
        assert!(heard(5));
        assert!(masters.is_newest(Micros(1), ServerId(8), 1));
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
