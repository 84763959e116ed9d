//! What goes wrong with masters: they die.

use std::collections::BTreeSet;

use ramkeep_wire::ServerId;

use super::{Fault, Faults, is_master, process};
use crate::world::{Death, Event, World};
use crate::{inspect, promise};

impl Faults {
    pub(super) fn of_masters(&mut self, world: &mut World, fault: Fault) -> Option<()> {
        match fault {
            Fault::KillMaster => self.kill_master(world),
            Fault::KillEverything => self.kill_everything(world),
            _ => self.spoil_next(world),
        }
    }

    /// One dies, or with it another master, a backup or both.
    fn kill_master(&mut self, world: &mut World) -> Option<()> {
        let mut dying = vec![self.pick(world, is_master)?];
        for (percent, wanted) in [
            (self.pairs, is_master as fn(&World, usize) -> bool),
            (40, has_frames),
        ] {
            if self.rng.percent(percent) {
                dying.extend(
                    self.pick(world, wanted)
                        .filter(|also| !dying.contains(also)),
                );
            }
        }
        while !dying.is_empty() && !self.may_lose(world, &dying) {
            dying.pop();
        }
        let masters = dying.iter().filter(|machine| is_master(world, **machine));
        let masters = masters.count();
        if dying.is_empty() || !self.may_kill_masters(masters) {
            return None;
        }
        for machine in dying {
            let death = if self.rng.percent(30) {
                Death::PowerLoss
            } else {
                Death::Kill
            };
            world.kill(process(world, machine)?, death);
            self.restart_later(world, machine);
        }
        Some(())
    }

    /// Servers and coordinators, all at once: what they start again with is what their disks and
    /// their tmpfs have.
    fn kill_everything(&mut self, world: &mut World) -> Option<()> {
        if self.done.contains_key(&Fault::KillEverything)
            || !(self.beyond || promise::covers_a_cold_start(world))
        {
            return None;
        }
        world.say(format_args!("-- everything is killed"));
        let all: Vec<usize> = world
            .server_machines()
            .chain(world.coordinator_machines())
            .collect();
        for machine in all {
            if let Some(process) = process(world, machine) {
                world.kill(process, Death::Kill);
                let at = world.events.now() + self.rng.micros(1_000..2_000_000);
                world.events.at(at, Event::Restart(machine));
            }
        }
        Some(())
    }
}

pub(super) fn has_frames(world: &World, machine: usize) -> bool {
    world.has_frames(machine)
}

/// Masters with a log that are decided crashed or have no process.
pub(super) fn dead_with_logs(world: &World) -> usize {
    let Some(state) = inspect::recorded(world) else {
        return 0;
    };
    let running: BTreeSet<_> = world
        .server_machines()
        .filter_map(|m| Some(world.server(m)?.server()))
        .collect();
    let is_dead = |server: &ServerId| {
        let found = state.servers().by_id(*server);
        found.is_some_and(|found| found.is_crashed()) || !running.contains(server)
    };
    let all = promise::with_logs(world, &state);
    all.iter().filter(|server| is_dead(server)).count()
}
