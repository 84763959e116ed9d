//! What goes wrong with frames: bits flip, old pages come back, and of a dead master's segments but one
//! copy each is left.
//!
//! # Invariants
//! 1. A machine whose frames were damaged is taken for lost from then on.
//! 2. Where all copies but one of a master's segments are damaged, nothing else of it is lost until it is
//!    recovered.

use std::collections::BTreeMap;

use ramkeep_backup::layout::HEADER;
use ramkeep_backup::{Area, FrameStore, MemoryStore};
use ramkeep_wire::backup::ReplicaInfo;
use ramkeep_wire::{BootId, SegmentId, ServerId};

use super::masters::has_frames;
use super::{Fault, Faults, is_master, process};
use crate::node::Node;
use crate::rng::Rng;
use crate::world::{Death, Disk, World};
use crate::{inspect, promise};

/// Frames as they were, by machine.
pub(super) type Older = BTreeMap<usize, (BootId, MemoryStore)>;

impl Faults {
    pub(super) fn of_frames(&mut self, world: &mut World, fault: Fault) -> Option<()> {
        match fault {
            Fault::OldPages => self.old_pages(world),
            _ => self.damage(world),
        }
    }

    /// Bits of the frames of one backup flip. From then on it is taken for lost. Beyond the promise they
    /// are of segments, not of certificates: the certificate before is as valid, and where that is all
    /// that is left of a head nobody can tell it from what was acknowledged last (seed 3523).
    fn damage(&mut self, world: &mut World) -> Option<()> {
        let machine = self.pick(world, |world, m| {
            world.server(m).is_some_and(|node| node.backup().is_some())
        })?;
        if !self.may_damage(world, machine) {
            return None;
        }
        world.damaged.insert(machine);
        let flips = self.rng.below(1..40);
        let beyond = self.beyond;
        let rng = &mut self.rng;
        world.with(process(world, machine)?, |node, _| {
            let Node::Server(node) = node else { return };
            let Some(mut backup) = node.backup() else {
                return;
            };
            let geometry = backup.store().geometry();
            let used = (backup.stats().used + 2).min(geometry.frames());
            for _ in 0..flips {
                let frame = Area::Frame(rng.below(0..u64::from(used)) as u32);
                let mut offset = rng.index(geometry.frame_len());
                if beyond && offset < HEADER {
                    offset += HEADER;
                }
                let bit = rng.below(0..8) as u8;
                backup.store_mut().flip(frame, offset, bit);
            }
        })?;
        let address = world.machines[machine].address.clone();
        world.say(format_args!("-- {flips} bits of {address}'s frames flip"));
        Some(())
    }

    /// A backup is killed and comes back, in the same boot, with some frames as they were earlier.
    fn old_pages(&mut self, world: &mut World) -> Option<()> {
        let machine = self.pick(world, has_frames)?;
        let boot = world.boot(machine);
        let known = self.older.get(&machine).is_some_and(|(of, _)| *of == boot);
        if !known || self.rng.percent(30) {
            let store = world.copy_frames(machine)?;
            self.older.insert(machine, (boot, store));
            return None;
        }
        if !self.may_lose(world, &[machine]) || !self.may_damage(world, machine) {
            return None;
        }
        world.damaged.insert(machine);
        world.kill(process(world, machine)?, Death::Kill);
        self.restart_later(world, machine);
        let (_, older) = self.older.get(&machine)?;
        let Disk::Frames(frames) = &mut world.machines[machine].disk else {
            return None;
        };
        let all = (0..frames.geometry().frames()).map(Area::Frame);
        let changed: Vec<Area> = all
            .filter(|area| frames.bytes(*area) != older.bytes(*area))
            .collect();
        let percent = *self.rng.choose(&[5, 30, 100]);
        let mut count = 0;
        for area in changed {
            if self.rng.percent(percent) {
                frames.bring_back(older, area);
                count += 1;
            }
        }
        let address = world.machines[machine].address.clone();
        world.say(format_args!(
            "-- {count} frames of {address} are as they were"
        ));
        Some(())
    }

    /// The next master that is decided dead keeps one copy of each segment.
    pub(super) fn spoil_next(&mut self, world: &mut World) -> Option<()> {
        self.spoils = true;
        let machine = self.pick(world, is_master)?;
        if !self.may_lose(world, &[machine]) || !self.may_kill_masters(1) {
            return None;
        }
        world.kill(process(world, machine)?, Death::Kill);
        self.restart_later(world, machine);
        Some(())
    }

    /// A master was decided dead.
    pub fn crash_decided(&mut self, world: &mut World, master: ServerId) {
        let Some(state) = inspect::recorded(world) else {
            return;
        };
        let lost = promise::lost(world, &state, master, &world.wiped);
        let whole = lost.copies() == 0 && !inspect::tablets(&state, master).is_empty();
        if std::mem::take(&mut self.spoils) && whole {
            spoil(world, &mut self.rng, master);
        }
    }
}

/// Damages all replicas of a master but an honest one of each segment.
pub fn spoil(world: &mut World, rng: &mut Rng, master: ServerId) {
    let Some(record) =
        inspect::recorded(world).and_then(|state| inspect::master_record(&state, master))
    else {
        return;
    };
    let mut copies: BTreeMap<SegmentId, Vec<(usize, ReplicaInfo)>> = BTreeMap::new();
    for held in inspect::held(world, master) {
        for (info, _) in held.replicas {
            copies
                .entry(info.segment)
                .or_default()
                .push((held.machine, info));
        }
    }
    let mut count = 0;
    for (segment, copies) in copies {
        let closed = copies.iter().any(|(_, info)| info.closed);
        let recorded = record.epochs.get(&segment).copied().unwrap_or_default();
        let counts = |(machine, info): &&(usize, ReplicaInfo)| match closed {
            true => info.closed,
            false => info.epoch >= recorded && info.boot == world.boot(*machine),
        };
        let honest: Vec<usize> = copies.iter().filter(counts).map(|(at, _)| *at).collect();
        if honest.is_empty() {
            continue;
        }
        let survivor = *rng.choose(&honest);
        for (machine, info) in copies.iter().filter(|(at, _)| *at != survivor) {
            count += usize::from(flip_replica(world, rng, *machine, info).is_some());
        }
    }
    world.spoiled.insert(master);
    world.say(format_args!(
        "-- {count} replicas of {master:?} are damaged, one of each segment is left"
    ));
}

fn flip_replica(
    world: &mut World,
    rng: &mut Rng,
    machine: usize,
    info: &ReplicaInfo,
) -> Option<()> {
    let flips = (0..rng.below(1..4)).map(|_| {
        let offset = rng.index(info.length.max(1) as usize);
        (offset, rng.below(0..8) as u8)
    });
    let flips: Vec<(usize, u8)> = flips.collect();
    flip(world, machine, (info.master, info.segment), &flips)
}

/// Flips bits of the replica of a segment on a machine, if there is one: offset in the segment, and bit.
pub fn flip(
    world: &mut World,
    machine: usize,
    (master, segment): (ServerId, SegmentId),
    bits: &[(usize, u8)],
) -> Option<()> {
    world.with(process(world, machine)?, |node, _| {
        let Node::Server(node) = node else { return };
        let Some(mut backup) = node.backup() else {
            return;
        };
        let Some(area) = backup.area_of(master, segment) else {
            return;
        };
        for (offset, bit) in bits {
            backup.store_mut().flip(area, HEADER + offset, *bit);
        }
    })
}
