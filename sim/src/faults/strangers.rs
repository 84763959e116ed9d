//! Those who do not belong: they come, and they have the addresses of the dead.
//!
//! # Invariants
//! 1. Nobody has the address of a process that lives.
//! 2. Nobody says that it is a server of this cluster that lives, or may yet be started again.

use std::time::Duration;

use ramkeep_coordinator::state::State;
use ramkeep_rpc::Identity;
use ramkeep_wire::{ClusterId, Party, ServerId};

use super::Faults;
use crate::inspect;
use crate::strangers::{Manner, StrangerConfig, VISITOR};
use crate::world::{Death, World};

/// Of nobody.
const NOBODY: ServerId = ServerId(1_000_000);

impl Faults {
    /// A few come and visit everybody, again and again.
    pub(super) fn strangers_come(&mut self, world: &mut World) -> Option<()> {
        let state = inspect::recorded(world)?;
        let ours = state.constants()?.cluster;
        let listens = world.coordinator_machines().chain(world.server_machines());
        let visits: Vec<String> = listens
            .map(|machine| world.machines[machine].address.clone())
            .collect();
        for _ in 0..self.rng.below(1..4) {
            let dead = Party::server(self.one_dead(&state, |_| true).unwrap_or(NOBODY));
            let manner = *self.rng.choose(&[
                Manner::Hello,
                Manner::ForAnother(dead),
                Manner::AsAnother(dead),
                Manner::ToAnother(dead),
                Manner::WrongKinds,
                Manner::Garbage,
                Manner::NoHello,
                Manner::Silent,
            ]);
            let cluster = match manner {
                Manner::Hello => self.another_cluster(),
                _ => ours,
            };
            let identity = Identity::new(None)
                .with_cluster(cluster)
                .with_party(Party::client(VISITOR));
            let rest = *self.rng.choose(&[20, 50, 300]);
            let rest = Duration::from_millis(rest);
            self.stranger(world, identity, manner, visits.clone(), rest);
        }
        Some(())
    }

    /// While a server is dead its address is one's of another cluster, or of an older life.
    pub(super) fn taken_address(&mut self, world: &mut World) -> Option<()> {
        let state = inspect::recorded(world)?;
        let ours = state.constants()?.cluster;
        let machine = match self.one_down(world) {
            Some(machine) if self.rng.percent(50) => machine,
            _ => self.kill_backup(world, Death::Kill)?,
        };
        let address = world.machines[machine].address.clone();
        let owner = last_at(&state, &address).unwrap_or(NOBODY);
        let older = self.one_dead(&state, |server| server != owner);
        let identity = match older {
            Some(older) if self.rng.percent(50) => Identity::new(None)
                .with_cluster(ours)
                .with_party(Party::server(older)),
            // By its number it could be the one that is looked for.
            _ => Identity::new(None)
                .with_cluster(self.another_cluster())
                .with_party(Party::server(owner)),
        };
        let manners = [Manner::Hello, Manner::WrongKinds, Manner::Silent];
        let manner = *self.rng.choose(&manners);
        let by = self.stranger(world, identity, manner, Vec::new(), Duration::ZERO);
        world.occupy(&address, by);
        world.say(format_args!("-- {address} is a stranger's, {manner:?}"));
        Some(())
    }

    fn stranger(
        &mut self,
        world: &mut World,
        identity: Identity,
        manner: Manner,
        visits: Vec<String>,
        rest: Duration,
    ) -> usize {
        world.add_stranger(StrangerConfig {
            number: world.machines.len() as u32,
            identity,
            manner,
            visits,
            rest,
        })
    }

    fn another_cluster(&mut self) -> ClusterId {
        ClusterId(self.rng.bytes())
    }

    /// A machine of a server on which no process runs.
    fn one_down(&mut self, world: &World) -> Option<usize> {
        let machines: Vec<usize> = world
            .server_machines()
            .filter(|machine| world.machines[*machine].process.is_none())
            .collect();
        (!machines.is_empty()).then(|| *self.rng.choose(&machines))
    }

    /// A server that was decided crashed.
    fn one_dead(&mut self, state: &State, wanted: impl Fn(ServerId) -> bool) -> Option<ServerId> {
        let dead: Vec<ServerId> = (state.servers().iter())
            .filter(|(server, found)| found.is_crashed() && wanted(*server))
            .map(|(server, _)| server)
            .collect();
        (!dead.is_empty()).then(|| *self.rng.choose(&dead))
    }
}

/// The last server that was at an address.
fn last_at(state: &State, address: &str) -> Option<ServerId> {
    let is_there = |addresses: &[String]| addresses.iter().any(|known| known == address);
    (state.servers().iter())
        .filter(|(_, found)| is_there(&found.addresses))
        .map(|(server, _)| server)
        .max()
}
