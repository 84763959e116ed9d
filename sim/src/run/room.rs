//! Where memory or frames are short: what can't be held is not promised, but it must be said.

use ramkeep_coordinator::state::State;
use ramkeep_wire::ServerId;
use ramkeep_wire::coordinator::ShortageKind;

use super::durability::width;
use super::{FRAMES, Run};
use crate::inspect;

/// A dead master's tablets must be served again if so many times the memory that they took is free, in
/// hundredths: they are cut by hashes, which fall unevenly where there are few keys.
const FITS: u128 = 150;
/// Frames that are few.
const FEW: u32 = 8;

impl Run {
    /// Whether the living have memory for what is down of a dead master, with [`FITS`] to spare.
    pub(super) fn fits(&self, state: &State, dead: ServerId) -> bool {
        let had = (self.dead.get(&dead))
            .and_then(|dead| Some((dead.width, *self.world.left.get(&dead.record.master)?)));
        let Some((width_then, stats)) = had else {
            return true;
        };
        let takes =
            u128::from(stats.takes()) * (width(state, dead) >> 32) / (width_then >> 32).max(1);
        let living = inspect::living_masters(&self.world, state).into_iter();
        let nodes = living.filter_map(|(machine, _)| self.world.server(machine)?.master());
        let room: u64 = nodes.map(|master| master.stats().room).sum();
        u128::from(room) * 100 >= takes * FITS
    }

    /// Dead masters whose tablets are down, since there is no memory for them.
    pub(super) fn too_full(&self) -> usize {
        let Some(state) = inspect::recorded(&self.world) else {
            return 0;
        };
        let down = |server: &&ServerId| !inspect::tablets(&state, **server).is_empty();
        let dead = self.dead.keys().filter(down);
        dead.filter(|server| !self.fits(&state, **server)).count()
    }

    /// Masters that have no memory left for what is written at the end.
    pub(super) fn full_masters(&self, state: &State) -> Vec<ServerId> {
        let least = 3 * u64::from(self.world.config.settings.segment_size);
        let is_full = |machine: usize| {
            let master = self.world.server(machine).and_then(|node| node.master());
            master.is_none_or(|master| master.stats().room < least)
        };
        let masters = inspect::living_masters(&self.world, state).into_iter();
        let full = masters.filter(|(machine, _)| is_full(*machine));
        full.map(|(_, server)| server).collect()
    }

    /// How many frames are free on which living backup.
    pub(super) fn free_frames(&self) -> Vec<(ServerId, u32)> {
        let nodes = self.world.server_machines();
        let nodes = nodes.filter_map(|machine| self.world.server(machine));
        let free = nodes.filter_map(|node| {
            let stats = node.backup()?.stats();
            Some((node.server(), stats.frames - stats.used - stats.kept))
        });
        free.collect()
    }

    /// Frames are free on too few backups for another copy of a segment; somebody says so.
    pub(super) fn frames_are_short(&mut self) -> bool {
        if self.frames == FRAMES {
            return false;
        }
        let free = self.free_frames();
        // A master's own is none for it.
        let is_short = free.iter().filter(|(_, free)| *free >= FEW).count() <= self.replicas;
        let leader = self.world.leader();
        let leader = leader.and_then(|machine| self.world.coordinator(machine));
        let shortages = leader.map_or_else(Vec::new, |leader| leader.core().shortages());
        let is_said = (shortages.iter()).any(|one| one.is_now && one.kind == ShortageKind::Frames);
        if is_short && !is_said {
            self.find("something waits for frames, and the leader does not say so");
        }
        is_short
    }
}
