//! Processes that stand still and processes that die, and what they leave.

use std::time::Duration;

use ramkeep_backup::{Area, MemoryStore};
use ramkeep_wire::BootId;

use super::directories::owners_of;
use super::{Death, Disk, Event, Role, World};
use crate::network::ProcessId;
use crate::node::Node;
use crate::promise::FramesLost;

impl World {
    /// A process handles nothing for a time.
    pub fn pause(&mut self, process: ProcessId, time: Duration) {
        if let Some(running) = self.processes.get_mut(&process)
            && !running.paused
        {
            running.paused = true;
            // It may have read its clock just before it fell asleep; what it does then, on waking,
            // it does at another time than it thinks.
            if matches!(running.node, Node::Coordinator(_)) {
                running.asleep_since = Some(running.clock.shows(self.events.now()));
            }
            let until = self.events.now() + time;
            self.events.at(until, Event::Resume(process));
            self.say(format_args!(
                "-- process {} pauses for {} ms",
                process.0,
                time.as_millis()
            ));
        }
    }

    /// A paused process goes on.
    pub fn resume(&mut self, process: ProcessId) {
        let Some(running) = self.processes.get_mut(&process) else {
            return;
        };
        running.paused = false;
        self.say(format_args!("-- process {} goes on", process.0));
        loop {
            let Some(running) = self.processes.get_mut(&process) else {
                return;
            };
            let Some(event) = running.inbox.pop_front() else {
                return;
            };
            self.give(process, event);
        }
    }

    /// A backup dies within its next stores, after `bytes` of them.
    pub fn kill_while_storing(&mut self, process: ProcessId, bytes: usize) {
        if let Some(running) = self.processes.get_mut(&process) {
            running.dies_after = Some(bytes);
        }
    }

    /// Ends a process.
    pub fn kill(&mut self, process: ProcessId, death: Death) {
        let Some(running) = self.processes.remove(&process) else {
            return;
        };
        let machine = running.machine;
        self.deaths += 1;
        self.listeners.retain(|_, listening| *listening != process);
        let notice = match death {
            Death::Kill => (50, 2_000),
            Death::PowerLoss => (1_000_000, 3_000_000),
        };
        self.network.process_gone(&mut self.events, process, notice);
        let address = self.machines[machine].address.clone();
        self.say(format_args!(
            "-- {address}: {death:?} of process {}",
            process.0
        ));
        let disk = match running.node {
            Node::Coordinator(node) => {
                self.group.gone(process);
                let mut disk = node.into_disk();
                disk.crash(&mut self.rng);
                Disk::Journal(disk)
            }
            Node::Server(node) => {
                let owners = owners_of(&node);
                let had = node.master().map(|master| (master.me(), master.stats()));
                self.left.extend(had);
                match node.into_frames() {
                    Some(frames) if death == Death::PowerLoss => {
                        self.lose_frames(FramesLost { machine, owners });
                        self.after_power_loss(machine, frames)
                    }
                    Some(frames) => Disk::Frames(frames),
                    None => Disk::None,
                }
            }
            Node::Client(node) => {
                self.departed.push(node.books);
                Disk::None
            }
            Node::Admin(_) | Node::Stranger(_) => Disk::None,
        };
        let place = &mut self.machines[machine];
        place.process = None;
        place.disk = disk;
    }

    /// A coordinator's disk is lost while no process runs there; a new one is in its place.
    pub fn wipe(&mut self, machine: usize) {
        if let Disk::Journal(disk) = &mut self.machines[machine].disk {
            disk.lose(self.rng.bytes());
            if let Role::Coordinator(config) = &mut self.machines[machine].role {
                config.core.founds = false;
            }
        }
    }

    /// A process that can't go on is gone.
    pub(super) fn end(&mut self, process: ProcessId) {
        let running = self.processes.get(&process).map(|running| &running.node);
        if let Some(Node::Coordinator(node)) = running
            && node.has_ended()
        {
            self.kill(process, Death::Kill);
        }
    }

    /// A machine's memory is lost, or old pages of it come back from its disk; it boots anew.
    pub(super) fn after_power_loss(&mut self, machine: usize, mut frames: MemoryStore) -> Disk {
        let boot = BootId(self.rng.bytes());
        self.machines[machine].boot = boot;
        let geometry = ramkeep_backup::FrameStore::geometry(&frames);
        if self.rng.percent(50) {
            return Disk::Frames(self.empty_frames(geometry.frames(), boot));
        }
        let empty = MemoryStore::new(geometry);
        for frame in 0..geometry.frames() {
            if self.rng.percent(40) {
                frames.bring_back(&empty, Area::Frame(frame));
            }
        }
        Disk::Frames(frames)
    }

    /// Whether the process on a machine is paused.
    #[must_use]
    pub fn is_paused(&self, machine: usize) -> bool {
        self.machines[machine]
            .process
            .and_then(|process| self.processes.get(&process))
            .is_some_and(|running| running.paused)
    }

    /// Whether the process on a machine is about to be killed in a store.
    #[must_use]
    pub fn is_dying(&self, machine: usize) -> bool {
        self.machines[machine]
            .process
            .and_then(|process| self.processes.get(&process))
            .is_some_and(|running| running.dies_after.is_some())
    }
}
