//! What goes wrong between processes: connections break, links are cut or slow.

use std::time::Duration;

use super::{Faults, MASTER_AWAY, is_coordinator, is_master, process};
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
            if other != machine && self.rng.percent(60) {
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
}
