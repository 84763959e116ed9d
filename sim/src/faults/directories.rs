//! What becomes of directories of frames: they are started elsewhere, and they come back as they were.
//!
//! # Invariants
//! 1. What moved away is never started at its old address again.
//! 2. A directory that comes back as it was counts as lost, as after a loss of power; what it holds is shown
//!    to who recovers all the same.

use super::masters::has_frames;
use super::{Faults, is_backup_only, is_master, process};
use crate::world::directories::owners_of;
use crate::world::{Death, World};

impl Faults {
    /// A server dies; its directory is started at another address, before or after it is found dead.
    pub(super) fn moved_directory(&mut self, world: &mut World) -> Option<()> {
        let machine = self.pick(world, has_frames)?;
        let dies = usize::from(is_master(world, machine));
        if !self.may_lose(world, &[machine]) || !self.may_kill_masters(dies) {
            return None;
        }
        world.kill(process(world, machine)?, Death::Kill);
        let moved = world.move_frames(machine)?;
        self.older.remove(&machine);
        self.earlier().take_if(|(of, ..)| *of == machine);
        self.restart_later(world, moved);
        self.restart_later(world, machine);
        let (old, new) = (
            &world.machines[machine].address,
            &world.machines[moved].address,
        );
        let text = format!("-- the directory of {old} moves to {new}");
        world.say(format_args!("{text}"));
        Some(())
    }

    /// Keeps a directory as it is now, of one that may come back as it was.
    pub(super) fn keep_a_directory(&mut self, world: &World) {
        if self.earlier().is_none()
            && let Some(machine) = self.pick(world, is_backup_only)
            && let Some(frames) = world.copy_frames(machine)
        {
            *self.earlier() = Some((machine, world.boot(machine), frames));
        }
    }

    /// A backup dies, and its directory is as it was.
    pub(super) fn rolled_back(&mut self, world: &mut World) -> Option<()> {
        let (machine, boot, older) = self.earlier().take()?;
        let owners = owners_of(world.server(machine)?);
        if world.boot(machine) != boot || !self.may_lose(world, &[machine]) {
            return None;
        }
        world.kill(process(world, machine)?, Death::Kill);
        world.roll_back_frames(machine, owners, older);
        self.restart_later(world, machine);
        let address = world.machines[machine].address.clone();
        world.say(format_args!("-- the directory of {address} is as it was"));
        Some(())
    }
}
