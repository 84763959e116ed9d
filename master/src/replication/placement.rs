//! Placement: which backups get a segment's replicas.
//!
//! At random among the living servers that run a backup, never the master's own and never one
//! that holds the segment already (RAMCloud, TOCS'15, 3.2). The random numbers come from a seed
//! given by the shell, so that a simulated run repeats.

use std::collections::BTreeMap;

use ramkeep_wire::{Micros, ServerId};

/// splitmix64: good enough for spreading load, and the same everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next_u64() % n as u64) as usize
    }
}

/// How a backup is, as far as its master knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Answers, or nothing else is known.
    Good,
    /// There is no connection to it; not chosen until there is.
    Away,
    /// It let a message wait too long, or refused one; not chosen until `until`.
    Suspect {
        /// When it may be chosen again.
        until: Micros,
    },
    /// Has no free frame; not chosen until `until`.
    Full {
        /// When it may be asked again.
        until: Micros,
    },
    /// Decided dead by the coordinator.
    Crashed,
}

/// The backups that replicas may be placed on.
#[derive(Debug)]
pub struct Backups {
    health: BTreeMap<ServerId, Health>,
    random: Random,
}

impl Backups {
    /// None yet.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            health: BTreeMap::new(),
            random: Random::new(seed),
        }
    }

    /// There is a connection to a backup; true if there was none before.
    pub fn connected(&mut self, server: ServerId) -> bool {
        let health = self.health.entry(server).or_insert(Health::Away);
        let new = *health == Health::Away;
        if new {
            *health = Health::Good;
        }
        new
    }

    /// Sets the health of a known backup; the dead stay dead.
    pub fn set(&mut self, server: ServerId, health: Health) {
        if let Some(known) = self.health.get_mut(&server)
            && *known != Health::Crashed
        {
            *known = health;
        }
    }

    /// Leaves a backup alone for a while, if it is connected.
    pub fn doubt(&mut self, server: ServerId, health: Health) {
        if self.is_connected(server) {
            self.set(server, health);
        }
    }

    /// Whether there is a connection to a backup.
    #[must_use]
    pub fn is_connected(&self, server: ServerId) -> bool {
        !matches!(self.health(server), Health::Away | Health::Crashed)
    }

    /// How a backup is; an unknown one counts as dead.
    #[must_use]
    pub fn health(&self, server: ServerId) -> Health {
        self.health.get(&server).copied().unwrap_or(Health::Crashed)
    }

    /// The backups not decided dead.
    pub fn living(&self) -> impl Iterator<Item = ServerId> + '_ {
        self.health
            .iter()
            .filter(|(_, health)| **health != Health::Crashed)
            .map(|(id, _)| *id)
    }

    /// A backup for one more replica of a segment, other than those that have it already.
    pub fn choose(
        &mut self,
        now: Micros,
        taken: impl Fn(ServerId) -> bool + Copy,
    ) -> Option<ServerId> {
        let count = self.spares(now, taken).count();
        if count == 0 {
            return None;
        }
        let chosen = self.random.below(count);
        self.spares(now, taken).nth(chosen)
    }

    /// Whether there is one to choose.
    #[must_use]
    pub fn has_spare(&self, now: Micros, taken: impl Fn(ServerId) -> bool) -> bool {
        self.spares(now, taken).next().is_some()
    }

    fn spares<'a>(
        &'a self,
        now: Micros,
        taken: impl Fn(ServerId) -> bool + 'a,
    ) -> impl Iterator<Item = ServerId> + 'a {
        let usable = move |health: &Health| match health {
            Health::Good => true,
            Health::Suspect { until } | Health::Full { until } => *until <= now,
            Health::Away | Health::Crashed => false,
        };
        let usable = self.health.iter().filter(move |(_, health)| usable(health));
        usable.map(|(id, _)| *id).filter(move |id| !taken(*id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_spread_over_all_that_are_well() {
        let mut backups = Backups::new(7);
        assert!((1..=4).all(|id| backups.connected(ServerId(id))));
        backups.set(ServerId(4), Health::Suspect { until: Micros(100) });
        backups.set(ServerId(3), Health::Crashed);
        let mut seen = [0; 5];
        for _ in 0..1000 {
            let chosen = backups
                .choose(Micros(0), |id| id == ServerId(2))
                .map_or(0, |id| id.0 as usize);
            seen[chosen] += 1;
        }
        assert_eq!(seen, [0, 1000, 0, 0, 0]);
        (0..1000).for_each(|_| {
            seen[backups
                .choose(Micros(100), |id| id == ServerId(2))
                .map_or(0, |id| id.0 as usize)] += 1;
        });
        assert!(seen[4] > 300 && seen[1] > 1300, "{seen:?}");
        backups.set(ServerId(3), Health::Good);
        assert_eq!(
            backups.health(ServerId(3)),
            Health::Crashed,
            "the dead stay dead"
        );
    }
}
