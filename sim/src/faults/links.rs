//! What goes wrong between processes: connections break or are half open, links are cut or slow, listeners
//! are full.

use std::time::Duration;

use super::{Faults, MASTER_AWAY, is_backup_only, is_coordinator, is_master, process};
use crate::network::Direction;
use crate::world::World;

impl Faults {
    fn pair(&mut self, world: &World) -> Option<(usize, usize)> {
        let one = self.pick(world, |_, _| true)?;
        let two = self.pick(world, |_, _| true)?;
        (one != two).then_some((one, two))
    }

    pub(super) fn sever(&mut self, world: &mut World) -> Option<()> {
        let machine = self.pick(world, |_, _| true)?;
        let connections = world
            .network
            .connections_of(world.machines[machine].process?);
        if connections.is_empty() {
            return None;
        }
        let all = self.rng.percent(20);
        let one = *self.rng.choose(&connections);
        let late = *self.rng.choose(&[100, 2_000, 50_000]);
        for connection in connections {
            if all || connection == one {
                world
                    .network
                    .sever(&mut world.events, connection, (0, late));
            }
        }
        world.say(format_args!(
            "-- connections of {} break",
            world.machines[machine].address.clone()
        ));
        Some(())
    }

    /// How long two machines may be apart.
    pub(super) fn apart(&mut self, world: &World, one: usize, two: usize) -> Duration {
        let delicate = is_master(world, one) && is_coordinator(world, two)
            || is_master(world, two) && is_coordinator(world, one);
        let most = if delicate { MASTER_AWAY } else { 2_500_000 };
        self.rng.micros(1_000..most)
    }

    pub(super) fn cut(&mut self, world: &mut World) -> Option<()> {
        let (one, two) = self.pair(world)?;
        let time = self.apart(world, one, two);
        let direction = if self.rng.percent(50) {
            Direction::OneWay
        } else {
            Direction::Both
        };
        self.cut_pair(world, one, two, direction, time)
    }

    pub(super) fn cut_pair(
        &self,
        world: &mut World,
        one: usize,
        two: usize,
        direction: Direction,
        time: Duration,
    ) -> Option<()> {
        let (from, to) = (process(world, one)?, process(world, two)?);
        let until = world.events.now() + time;
        world
            .network
            .cut(&mut world.events, from, to, direction, until);
        let (one, two) = (&world.machines[one].address, &world.machines[two].address);
        let text = format!(
            "-- cut {one} to {two}, {direction:?}, {} ms",
            time.as_millis()
        );
        world.say(format_args!("{text}"));
        Some(())
    }

    pub(super) fn isolate(&mut self, world: &mut World) -> Option<()> {
        let machine = self.pick(world, |_, _| true)?;
        for other in 0..world.machines.len() {
            if other != machine && !world.is_strangers(other) && self.rng.percent(60) {
                let time = self.apart(world, machine, other);
                self.cut_pair(world, machine, other, Direction::Both, time);
            }
        }
        Some(())
    }

    pub(super) fn slow(&mut self, world: &mut World) -> Option<()> {
        let (one, two) = self.pair(world)?;
        let (from, to) = (process(world, one)?, process(world, two)?);
        let factor = self.rng.below(5..80);
        let until = world.events.now() + self.rng.micros(10_000..1_000_000);
        world.network.slow_down(from, to, factor, until);
        Some(())
    }

    /// One end of a connection is gone, and the other goes on until the system gives it up.
    pub(super) fn half_open(&mut self, world: &mut World) -> Option<()> {
        let machine = self.pick(world, self.meets())?;
        let one = process(world, machine)?;
        let connections = world.network.connections_of(one);
        if connections.is_empty() {
            return None;
        }
        let connection = *self.rng.choose(&connections);
        let other = world.network.other_end(connection, one)?;
        let peer = world.machine_of(other)?;
        let time = self.apart(world, machine, peer);
        let (gone, deceived) = match self.rng.percent(50) {
            true => (one, peer),
            false => (other, machine),
        };
        let notice = world.events.now() + time;
        (world.network).leave_half_open(&mut world.events, connection, gone, notice);
        let deceived = world.machines[deceived].address.clone();
        world.say(format_args!(
            "-- {deceived} is not told for {} ms that a connection is gone",
            time.as_millis()
        ));
        Some(())
    }

    /// A listener takes no more connections for a time; those that it has go on.
    pub(super) fn full_backlog(&mut self, world: &mut World) -> Option<()> {
        let listens = self.meets();
        let machine = self.pick(world, listens)?;
        let most = match is_backup_only(world, machine) {
            true => 2_500_000,
            false => MASTER_AWAY,
        };
        let time = self.rng.micros(1_000..most);
        let until = world.events.now() + time;
        world.network.fill_backlog(process(world, machine)?, until);
        let address = world.machines[machine].address.clone();
        world.say(format_args!(
            "-- {address} takes no connections for {} ms",
            time.as_millis()
        ));
        Some(())
    }
}
