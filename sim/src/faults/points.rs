//! Deaths in named moments of a recovery.

use ramkeep_wire::ServerId;

use super::{Faults, is_backup_only, is_master, process};
use crate::crash_points::{CrashPoint, Reached};
use crate::world::{Death, World};
use crate::{inspect, promise};

/// Deaths in moments of recoveries of one run, at most.
const MOST: u32 = 4;

impl Faults {
    /// From now on somebody dies in such a moment, now and then.
    pub fn strike_at(&mut self, point: CrashPoint) {
        self.at = Some(point);
        self.enable(super::Fault::KillMaster);
    }

    /// Whether somebody does.
    #[must_use]
    pub fn strikes_at_points(&self) -> bool {
        self.at.is_some()
    }

    /// A moment has come.
    pub fn reached(&mut self, world: &mut World, reached: Reached) {
        let so_far: u32 = self.struck.values().sum();
        if self.at != Some(reached.point) || so_far >= MOST || !self.rng.percent(60) {
            return;
        }
        let first = self.rng.index(Role::ALL.len());
        let roles = Role::ALL.iter().cycle().skip(first);
        for role in roles.take(Role::ALL.len()) {
            let died = match role {
                Role::Leader => self.the_leader_dies(world),
                Role::RecoveryMaster => self.the_recovery_master_dies(world, reached.machine),
                Role::Backup => self.a_backup_dies(world, reached.machine),
            };
            if died.is_some() {
                world.say(format_args!(
                    "-- the {role:?} died when {:?}",
                    reached.point
                ));
                *self.struck.entry((reached.point, *role)).or_default() += 1;
                return;
            }
        }
    }

    fn the_leader_dies(&mut self, world: &mut World) -> Option<()> {
        let machine = world.leader()?;
        self.kill_coordinator(world, machine)
    }

    fn the_recovery_master_dies(&mut self, world: &mut World, here: Option<usize>) -> Option<()> {
        let state = inspect::recorded(world)?;
        let replays = |server: ServerId| {
            let mut all = state.recoveries().iter();
            all.any(|(_, record)| record.partitions.iter().any(|part| part.by == server))
        };
        let replays_on = |machine: &usize| {
            let node = world.server(*machine);
            node.is_some_and(|node| replays(node.server()))
        };
        let busy = world.server_machines().find(replays_on);
        let here = here.filter(|machine| is_master(world, *machine));
        let machine = here.or(busy)?;
        self.dies(world, machine)
    }

    fn a_backup_dies(&mut self, world: &mut World, here: Option<usize>) -> Option<()> {
        let here = here.filter(|machine| is_backup_only(world, *machine));
        let machine = here.or_else(|| self.backup(world))?;
        self.dies(world, machine)
    }

    fn dies(&mut self, world: &mut World, machine: usize) -> Option<()> {
        let running = process(world, machine)?;
        // A killed process comes back with its frames: it is enough that nothing is lost for good.
        let death = match self.rng.percent(30) {
            true if self.may_lose(world, &[machine]) => Death::PowerLoss,
            _ if self.beyond || promise::covers_a_cold_start(world) => Death::Kill,
            _ => return None,
        };
        if is_master(world, machine) && !self.may_kill_masters(1) {
            return None;
        }
        world.kill(running, death);
        self.restart_later(world, machine);
        Some(())
    }
}

/// Who dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The coordinator that leads.
    Leader,
    /// Who replays.
    RecoveryMaster,
    /// Who has replicas.
    Backup,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Leader, Self::RecoveryMaster, Self::Backup];
}
