//! Those who do not belong, and addresses that are another's for a time.

use super::{Death, Role, World};
use crate::node::Node;
use crate::strangers::{StrangerConfig, StrangerNode};

impl World {
    /// Adds the machine of one who does not belong, and starts it.
    pub fn add_stranger(&mut self, config: StrangerConfig) -> usize {
        let address = format!("stranger{}", config.number);
        let node = Node::Stranger(Box::new(StrangerNode::new(config)));
        self.add_process(Role::Stranger, address, node)
    }

    /// Whether a machine is one's who does not belong.
    #[must_use]
    pub fn is_strangers(&self, machine: usize) -> bool {
        matches!(self.machines[machine].role, Role::Stranger)
    }

    /// Those who do not belong end, and addresses belong to their machines again.
    pub fn dismiss_strangers(&mut self) {
        for machine in 0..self.machines.len() {
            if self.is_strangers(machine)
                && let Some(process) = self.machines[machine].process
            {
                self.kill(process, Death::Kill);
            }
        }
    }

    /// An address belongs to the process on another machine from now on: who connects reaches that.
    pub fn occupy(&mut self, address: &str, by: usize) {
        if let Some(process) = self.machines[by].process {
            self.listeners.insert(address.to_owned(), process);
        }
    }

    /// An address belongs to its machine again.
    pub fn vacate(&mut self, address: &str) {
        let rightful = self.machines.iter().find(|place| place.address == address);
        match rightful.and_then(|place| place.process) {
            Some(process) => self.listeners.insert(address.to_owned(), process),
            None => self.listeners.remove(address),
        };
    }

    /// Those who do not belong.
    pub fn strangers(&self) -> impl Iterator<Item = &StrangerNode> {
        let nodes = self.processes.values().map(|running| &running.node);
        nodes.filter_map(|node| match node {
            Node::Stranger(node) => Some(&**node),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use paxos::limits::Timing;
    use ramkeep_coordinator::limits::SNAPSHOT_AFTER;
    use ramkeep_rpc::Identity;
    use ramkeep_wire::{ClusterId, Party, ServerId};

    use super::*;
    use crate::network::Delays;
    use crate::rng::Rng;
    use crate::run::settings;
    use crate::strangers::Manner;
    use crate::trace::Lines;
    use crate::world::{Death, WorldConfig};

    fn world() -> World {
        World::new(WorldConfig {
            seed: 1,
            settings: settings(&mut Rng::new(1), 1),
            delays: Delays::default(),
            sync: vec![(100, 500)],
            timing: Timing::default(),
            partition_bytes: 1 << 30,
            snapshot_after: SNAPSHOT_AFTER,
            reconnect: Duration::from_millis(1),
            lines: Lines::No,
        })
    }

    /// One of a cluster, which looks for server 2 at these addresses.
    fn stranger(number: u32, cluster: u8, visits: &[&str]) -> StrangerConfig {
        StrangerConfig {
            number,
            identity: Identity::new(None)
                .with_cluster(ClusterId([cluster; 16]))
                .with_party(Party::server(ServerId(number.into()))),
            manner: Manner::ForAnother(Party::server(ServerId(2))),
            visits: visits.iter().map(|text| (*text).to_owned()).collect(),
            rest: Duration::from_millis(5),
        }
    }

    fn pass(world: &mut World, milliseconds: u64) {
        let until = world.events.now() + Duration::from_millis(milliseconds);
        world.events.at(until, crate::world::Event::Step(0));
        while world.step() == Some(None) {}
    }

    /// Visits of the first stranger that it ended itself, and that the visited ended, meanwhile.
    fn visits(world: &mut World) -> (u64, u64) {
        let ended = |world: &World| world.strangers().next().map_or((0, 0), |node| node.ended);
        let before = ended(world);
        pass(world, 1_000);
        let after = ended(world);
        let by_the_visited = after.1 - before.1;
        (after.0 - before.0 - by_the_visited, by_the_visited)
    }

    #[test]
    fn who_occupies_an_address_is_found_there_until_it_is_vacated() {
        let mut world = world();
        world.add_stranger(stranger(1, 1, &["stranger2"]));
        let rightful = world.add_stranger(stranger(2, 1, &[]));
        let other = world.add_stranger(stranger(3, 9, &[]));
        let (let_in, refused) = visits(&mut world);
        assert!(let_in > 50 && refused == 0, "server 2 is there");

        world.occupy("stranger2", other);
        pass(&mut world, 10);
        let (let_in, refused) = visits(&mut world);
        assert!(let_in == 0 && refused > 50, "another cluster is there");

        world.vacate("stranger2");
        pass(&mut world, 10);
        assert_eq!(visits(&mut world).1, 0);

        world.occupy("stranger2", other);
        let process = world.machines[rightful].process.unwrap();
        world.kill(process, Death::Kill);
        assert!(visits(&mut world).1 > 50, "the occupier stays");
        world.vacate("stranger2");
        pass(&mut world, 10);
        assert_eq!(visits(&mut world).1, 0, "nobody is there");
        assert_eq!(world.wrongs, [] as [String; 0]);
        world.occupy("stranger2", other);
        world.dismiss_strangers();
        assert_eq!(world.strangers().count(), 0);
    }
}
