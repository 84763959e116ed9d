//! What goes wrong with masters: they die, and what backups hold of them is damaged.

use std::collections::BTreeSet;

use ramkeep_backup::{Area, FrameStore};

use super::{Fault, Faults, is_master, process};
use crate::node::Node;
use crate::world::{Death, Event, World};
use crate::{inspect, promise};

/// Master deaths of one run at most: what is replayed fills memory, and nothing is cleaned.
const MOST_DEATHS: usize = 4;

impl Faults {
    pub(super) fn of_masters(&mut self, world: &mut World, fault: Fault) -> Option<()> {
        match fault {
            Fault::KillMaster => self.kill_master(world),
            Fault::KillEverything => self.kill_everything(world),
            _ => self.damage(world),
        }
    }

    /// One dies, or with it another master, a backup or both.
    fn kill_master(&mut self, world: &mut World) -> Option<()> {
        let mut dying = vec![self.pick(world, is_master)?];
        for (percent, wanted) in [
            (30, is_master as fn(&World, usize) -> bool),
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
        if dying.is_empty() || self.masters_killed + masters > MOST_DEATHS {
            return None;
        }
        self.masters_killed += masters;
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

    /// Bits of the frames of one backup flip. From then on it is taken for lost.
    fn damage(&mut self, world: &mut World) -> Option<()> {
        let machine = self.pick(world, |world, m| {
            world.server(m).is_some_and(|node| node.backup().is_some())
        })?;
        if !self.may_damage(world, machine) {
            return None;
        }
        world.damaged.insert(machine);
        let flips = self.rng.below(1..40);
        let rng = &mut self.rng;
        world.with(process(world, machine)?, |node, _| {
            let Node::Server(node) = node else { return };
            let Some(backup) = node.backup_mut() else {
                return;
            };
            let geometry = backup.store().geometry();
            let used = (backup.stats().used + 2).min(geometry.frames());
            for _ in 0..flips {
                let frame = Area::Frame(rng.below(0..u64::from(used)) as u32);
                let offset = rng.index(geometry.frame_len());
                let bit = rng.below(0..8) as u8;
                backup.store_mut().flip(frame, offset, bit);
            }
        })?;
        let address = world.machines[machine].address.clone();
        world.say(format_args!("-- {flips} bits of {address}'s frames flip"));
        Some(())
    }
}

fn has_frames(world: &World, machine: usize) -> bool {
    world.has_frames(machine)
}

/// Masters that own tablets, and are decided crashed or have no process.
pub(super) fn dead_with_tablets(world: &World) -> usize {
    let Some(state) = inspect::recorded(world) else {
        return 0;
    };
    let running: BTreeSet<_> = world
        .server_machines()
        .filter_map(|m| Some(world.server(m)?.server()))
        .collect();
    let dead = state.servers().iter().filter(|(server, found)| {
        (found.is_crashed() || !running.contains(server))
            && !inspect::tablets(&state, *server).is_empty()
    });
    dead.count()
}
