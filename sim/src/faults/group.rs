//! What goes wrong with the coordinators.

use ramkeep_wire::PeerId;

use super::{Fault, Faults, is_coordinator, process};
use crate::network::Direction;
use crate::node::Node;
use crate::world::{Death, Event, World};

/// The faults of coordinators.
pub(super) const KINDS: &[Fault] = &[
    Fault::KillCoordinator,
    Fault::KillLeader,
    Fault::PauseCoordinator,
    Fault::CutCoordinator,
    Fault::SlowDisk,
    Fault::WipeCoordinator,
    Fault::LoseGroup,
];

impl Faults {
    pub(super) fn of_the_group(&mut self, world: &mut World, fault: Fault) -> Option<()> {
        match fault {
            Fault::KillLeader => {
                let machine = world.leader()?;
                self.kill_coordinator(world, machine)
            }
            Fault::PauseCoordinator => {
                let machine = self.pick(world, is_coordinator)?;
                let machine = if self.rng.percent(50) {
                    world.leader().unwrap_or(machine)
                } else {
                    machine
                };
                let time = self.rng.micros(1_000..2_000_000);
                world.pause(process(world, machine)?, time);
                Some(())
            }
            Fault::CutCoordinator => self.cut_coordinator(world),
            Fault::SlowDisk => {
                let machine = self.pick(world, is_coordinator)?;
                let factor = *self.rng.choose(&[1, 5, 50]);
                world.with(process(world, machine)?, |node, _| {
                    if let Node::Coordinator(node) = node {
                        node.disk_mut().slow_down(factor);
                    }
                })
            }
            Fault::WipeCoordinator => self.wipe(world),
            Fault::LoseGroup => self.lose_group(world),
            Fault::ReplaceCoordinator => self.replace_coordinator(world),
            _ => {
                let machine = self.pick(world, is_coordinator)?;
                self.kill_coordinator(world, machine)
            }
        }
    }

    pub(super) fn kill_coordinator(&mut self, world: &mut World, machine: usize) -> Option<()> {
        world.kill(process(world, machine)?, Death::Kill);
        let at = world.events.now() + self.rng.micros(1_000..2_000_000);
        world.events.at(at, Event::Restart(machine));
        Some(())
    }

    fn cut_coordinator(&mut self, world: &mut World) -> Option<()> {
        let machine = self.pick(world, is_coordinator)?;
        let others: Vec<usize> = world.coordinator_machines().collect();
        let time = self.rng.micros(1_000..2_500_000);
        for other in others {
            if other != machine && self.rng.percent(70) {
                let direction = *self.rng.choose(&[Direction::Both, Direction::OneWay]);
                self.cut_pair(world, machine, other, direction, time);
            }
        }
        Some(())
    }

    /// A coordinator has made up for its lost disk once it is a member again and has on its disk
    /// all that was decided by then.
    fn note_taken_in(&mut self, world: &World) {
        let slot = world.group.slot();
        self.wiped.retain(|machine| {
            world.coordinator(*machine).is_none_or(|node| {
                let peer = node.core().node();
                let whole = peer.is_member() && peer.decided().0 >= slot;
                !(whole && node.disk().is_synced())
            })
        });
    }

    /// One in a run at most: whoever asks nothing meanwhile still knows where others are.
    fn replace_coordinator(&mut self, world: &mut World) -> Option<()> {
        if self.done.contains_key(&Fault::ReplaceCoordinator) {
            return None;
        }
        self.note_taken_in(world);
        let leader = world.leader()?;
        let machine = self.pick(world, is_coordinator)?;
        let all: Vec<usize> = world.coordinator_machines().collect();
        let mut lost = self.wiped.clone();
        lost.extend(all.iter().filter(|m| world.machines[**m].process.is_none()));
        lost.insert(machine);
        if machine == leader || lost.len() > (all.len() - 1) / 2 {
            return None;
        }
        let number = u32::try_from(all.len()).ok()? + 1;
        let newcomer = world.replace_coordinator(machine, PeerId(number))?;
        self.wiped.insert(newcomer);
        Some(())
    }

    fn wipe(&mut self, world: &mut World) -> Option<()> {
        self.note_taken_in(world);
        let machine = self.pick(world, is_coordinator)?;
        // Before there is a leader there may be no group that it could be taken into.
        world.leader()?;
        let all: Vec<usize> = world.coordinator_machines().collect();
        let mut lost = self.wiped.clone();
        lost.extend(all.iter().filter(|m| world.machines[**m].process.is_none()));
        lost.insert(machine);
        if lost.len() > (all.len() - 1) / 2 {
            return None;
        }
        self.kill_coordinator(world, machine)?;
        world.wipe(machine);
        self.wiped.insert(machine);
        Some(())
    }

    fn lose_group(&mut self, world: &mut World) -> Option<()> {
        world.leader()?;
        let all: Vec<usize> = world.coordinator_machines().collect();
        let time = self.rng.micros(100_000..3_000_000);
        let how = self.rng.below(0..3);
        world.say(format_args!(
            "-- the group is lost for {} ms",
            time.as_millis()
        ));
        for machine in &all {
            let Some(process) = world.machines[*machine].process else {
                continue;
            };
            match how {
                0 => {
                    world.kill(process, Death::Kill);
                    let late = self.rng.micros(0..500_000);
                    let at = world.events.now() + time + late;
                    world.events.at(at, Event::Restart(*machine));
                }
                1 => world.pause(process, time),
                _ => {
                    for other in &all {
                        if other != machine {
                            self.cut_pair(world, *machine, *other, Direction::Both, time);
                        }
                    }
                }
            }
        }
        Some(())
    }
}
