//! Directories as data, those with frames and those of coordinators: copied, rolled back, lost, or
//! started twice.

use std::time::Duration;

use ramkeep_backup::{FrameStore, MemoryStore};
use ramkeep_wire::coordinator::Request;
use ramkeep_wire::{BootId, PeerId, ServerId};

use super::{Death, Disk, Event, Role, World};
use crate::disk::CoordinatorDisk;
use crate::node::coordinator::{CoordinatorConfig, CoordinatorNode};
use crate::node::{Node, ServerNode};
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

    /// The directory of the coordinator on a machine as a copy has it that is made at this moment.
    #[must_use]
    pub fn copy_journal(&mut self, machine: usize) -> Option<CoordinatorDisk> {
        if let Some(node) = self.coordinator(machine) {
            let disk = node.disk().clone();
            return Some(disk.copied(&mut self.rng));
        }
        match &self.machines[machine].disk {
            Disk::Journal(disk) => Some(disk.clone()),
            Disk::Frames(_) | Disk::None => None,
        }
    }

    /// Starts a coordinator with another's directory, at an address of its own and beside the original
    /// if that runs; its machine.
    pub fn start_journal(&mut self, original: usize, disk: CoordinatorDisk) -> Option<usize> {
        let Role::Coordinator(config) = &self.machines[original].role else {
            return None;
        };
        let mut config: CoordinatorConfig = config.clone();
        config.core.address = format!("copy{}", self.machines.len());
        let address = config.core.address.clone();
        let (role, disk) = (Role::Coordinator(config), Disk::Journal(disk));
        Some(self.add(role, address, disk, BootId::default()))
    }

    /// The directory of a coordinator that does not run is started at an address of its own, which that one's
    /// configuration has; nobody starts it where it was. Its machine now.
    pub fn move_journal(&mut self, from: usize) -> Option<usize> {
        let disk = self.copy_journal(from)?;
        let (me, address) = self.coordinator_of(from, format!("moved{}", self.machines.len()))?;
        self.tell_coordinator(from, me, &address);
        let place = &mut self.machines[from];
        let role = std::mem::replace(&mut place.role, Role::Client);
        Some(self.add(role, address, Disk::Journal(disk), BootId::default()))
    }

    /// The number of the coordinator on a machine, which is at this address from its next start on.
    fn coordinator_of(&mut self, machine: usize, address: String) -> Option<(PeerId, String)> {
        let Role::Coordinator(config) = &mut self.machines[machine].role else {
            return None;
        };
        config.core.address.clone_from(&address);
        Some((config.core.peer, address))
    }

    /// From its next start on the configuration of the coordinator on a machine has another at this address.
    pub fn tell_coordinator(&mut self, machine: usize, other: PeerId, at: &str) {
        if let Role::Coordinator(config) = &mut self.machines[machine].role {
            let named = config.core.peers.iter_mut().filter(|(id, _)| *id == other);
            named.for_each(|(_, address)| at.clone_into(address));
        }
    }

    /// Starts a server with another's frames, at an address of its own and beside the original if that runs.
    pub fn start_frames(&mut self, original: usize, frames: MemoryStore) -> usize {
        let (boot, role) = (
            self.machines[original].boot,
            self.machines[original].role.clone(),
        );
        let address = format!("copy{}", self.machines.len());
        self.add(role, address, Disk::Frames(frames), boot)
    }

    /// Starts a coordinator of this number with an empty directory, at an address of its own, with the flags
    /// of another; its machine.
    pub fn add_newcomer(&mut self, like: usize, peer: PeerId) -> Option<usize> {
        let Role::Coordinator(config) = &self.machines[like].role else {
            return None;
        };
        let mut config: CoordinatorConfig = config.clone();
        let address = format!("newcomer{}", peer.0);
        (config.core.peer, config.core.address) = (peer, address.clone());
        config.core.founds = false;
        let takes = self.config.sync[0];
        let disk = Disk::Journal(CoordinatorDisk::new(self.rng.bytes(), takes));
        let role = Role::Coordinator(config);
        Some(self.add(role, address, disk, BootId::default()))
    }

    /// A coordinator is lost for good, with its machine, and another at an address of its own is to take its
    /// place: an operator asks for it from now on. The newcomer's machine.
    pub fn replace_coordinator(&mut self, lost: usize, by: PeerId) -> Option<usize> {
        let gone = self.coordinator(lost)?.core().peer_id();
        self.kill(self.machines[lost].process?, Death::Kill);
        let newcomer = self.add_newcomer(lost, by)?;
        // Nobody starts it any more.
        self.machines[lost].role = Role::Client;
        let (old, new) = (
            self.machines[lost].address.clone(),
            self.machines[newcomer].address.clone(),
        );
        self.say(format_args!("-- {old} is lost, {new} is to take its place"));
        let named = self.coordinators.iter_mut().filter(|named| **named == old);
        named.for_each(|named| named.clone_from(&new));
        self.ask_to_replace(gone, by, newcomer);
        Some(newcomer)
    }

    pub(super) fn ask_to_replace(&mut self, lost: PeerId, by: PeerId, newcomer: usize) {
        let is_member = |node: &CoordinatorNode| node.core().node().is_member();
        if self.coordinator(newcomer).is_some_and(is_member) {
            return;
        }
        if let Some(leader) = self
            .leader()
            .and_then(|machine| self.machines[machine].process)
        {
            let request = Request::ReplaceCoordinator { lost, by };
            self.with(leader, |node, context| {
                if let Node::Coordinator(node) = node {
                    node.ask(context, &request);
                }
            });
        }
        let again = self.events.now() + Duration::from_millis(100);
        self.events.at(again, Event::Replace { lost, by, newcomer });
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
    use paxos::limits::Timing;
    use ramkeep_coordinator::limits::SNAPSHOT_AFTER;
    use ramkeep_wire::ServerId;
    use ramkeep_wire::coordinator::Roles;

    use super::*;
    use crate::network::Delays;
    use crate::rng::Rng;
    use crate::run::{FRAMES, SEGMENTS, settings};
    use crate::trace::Lines;
    use crate::world::WorldConfig;

    fn pass(world: &mut World, seconds: u64) {
        let until = world.events.now() + Duration::from_secs(seconds);
        world.events.at(until, Event::Step(0));
        while world.step() == Some(None) {}
    }

    fn identity(world: &World, machine: usize) -> ServerId {
        world.server(machine).unwrap().server()
    }

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

    #[test]
    fn a_coordinators_directory_is_copied_while_it_is_open_and_started_beside_its_original() {
        let mut world = world();
        let machines = world.add_coordinators(3);
        pass(&mut world, 2);
        let original = machines[0];
        let disk = world.copy_journal(original).unwrap();
        let copy = world.start_journal(original, disk).unwrap();
        let [node, original] = [copy, original].map(|machine| world.coordinator(machine).unwrap());
        assert_eq!(node.disk().incarnation, original.disk().incarnation);
        assert!(!node.disk().stored().records.is_empty());
    }

    #[test]
    fn a_directory_is_copied_while_it_is_open_and_opened_elsewhere_as_its_owners() {
        let mut world = world();
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
