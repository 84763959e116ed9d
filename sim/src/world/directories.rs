//! Directories of frames as data: copied, rolled back, lost, or started twice.

use ramkeep_backup::{FrameStore, MemoryStore};
use ramkeep_wire::ServerId;

use super::{Disk, World};
use crate::node::ServerNode;
use crate::promise::FramesLost;

impl World {
    /// The whole directory of frames on a machine as it is at this moment, whether a process has it open
    /// or not.
    #[must_use]
    pub fn copy_frames(&self, machine: usize) -> Option<MemoryStore> {
        if let Some(node) = self.server(machine) {
            return Some(node.backup()?.store().clone());
        }
        match &self.machines[machine].disk {
            Disk::Frames(frames) => Some(frames.clone()),
            Disk::Journal(_) | Disk::None => None,
        }
    }

    /// Puts a directory of frames on a machine on which no process runs: an older one of its own, an
    /// empty one, or another's. False: a process has the directory there open.
    pub fn put_frames(&mut self, machine: usize, frames: MemoryStore) -> bool {
        let place = &mut self.machines[machine];
        if place.process.is_none() {
            place.disk = Disk::Frames(frames);
        }
        place.process.is_none()
    }

    /// A machine's directory of frames moves to an address of its own on the same host, and an empty one
    /// takes its place; on neither a process runs. The machine that has it now.
    pub fn move_frames(&mut self, from: usize) -> Option<usize> {
        let place = &self.machines[from];
        let (boot, role) = (place.boot, place.role.clone());
        let Disk::Frames(frames) = &place.disk else {
            return None;
        };
        let empty = self.empty_frames(frames.geometry().frames(), boot);
        let moved = std::mem::replace(&mut self.machines[from].disk, Disk::Frames(empty));
        let address = format!("server{}", self.machines.len());
        Some(self.add_machine(role, address, moved, boot))
    }

    /// A machine's frames, on which no process runs, are as they were earlier in the same boot: whatever
    /// they held since then is lost.
    pub fn roll_back_frames(&mut self, machine: usize, owners: Vec<ServerId>, older: MemoryStore) {
        if self.put_frames(machine, older) {
            self.lose_frames(FramesLost { machine, owners });
            self.rolled_back.insert(machine);
        }
    }

    /// What a machine's frames held counts as lost until it is made up for.
    pub(super) fn lose_frames(&mut self, lost: FramesLost) {
        self.wiped.insert(self.losses.len());
        self.machines[lost.machine].lost = Some(self.losses.len());
        self.losses.push(lost);
    }
}

/// The servers whose frames a process has: those of one that was not enlisted yet are its predecessor's.
pub(crate) fn owners_of(node: &ServerNode) -> Vec<ServerId> {
    let former = node.backup().and_then(|backup| backup.replaces());
    former.into_iter().chain([node.server()]).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use paxos::limits::Timing;
    use ramkeep_wire::ServerId;
    use ramkeep_wire::coordinator::Roles;

    use super::*;
    use crate::network::Delays;
    use crate::rng::Rng;
    use crate::run::{FRAMES, SEGMENTS, settings};
    use crate::trace::Lines;
    use crate::world::{Death, Event, WorldConfig};

    fn pass(world: &mut World, seconds: u64) {
        let until = world.events.now() + Duration::from_secs(seconds);
        world.events.at(until, Event::Step(0));
        while world.step() == Some(None) {}
    }

    fn identity(world: &World, machine: usize) -> ServerId {
        world.server(machine).unwrap().server()
    }

    #[test]
    fn a_directory_is_copied_while_it_is_open_and_opened_elsewhere_as_its_owners() {
        let mut world = World::new(WorldConfig {
            seed: 1,
            settings: settings(&mut Rng::new(1), 1),
            delays: Delays::default(),
            sync: vec![(100, 500)],
            timing: Timing::default(),
            partition_bytes: 1 << 30,
            snapshot_after: 1 << 10,
            reconnect: Duration::from_millis(1),
            lines: Lines::No,
        });
        world.add_coordinators(1);
        let memory = SEGMENTS * u64::from(world.config.settings.segment_size);
        let roles = Roles {
            master: false,
            backup: true,
        };
        let machines = [(); 2].map(|()| world.add_server(roles, FRAMES, memory));
        pass(&mut world, 2);
        let [original, other] = machines;
        let owner = identity(&world, original);
        assert_ne!(owner, ServerId(0));
        let copy = world.copy_frames(original).unwrap();
        assert!(!world.put_frames(other, copy.clone()), "it is in use");
        let process = world.machines[other].process.unwrap();
        world.kill(process, Death::Kill);
        assert!(world.put_frames(other, copy));
        world.start(other);
        let replaces = world.server(other).unwrap().backup().unwrap().replaces();
        assert_eq!(replaces, Some(owner));
    }
}
