//! What goes wrong in a run, drawn from its seed while it runs: within the promise, so that nothing
//! may be lost.
//!
//! # Invariants
//! 1. What is lost stays within the promise: the log of a dead master keeps a copy, and a living
//!    one, which has everything in memory, lacks at most `most_lost` copies (see [`promise`]).
//! 2. Of the coordinators, those whose disk is lost and not made up for, those that are down and
//!    those that are about to be wiped are a minority.
//! 3. No pause or cut but [`Fault::LoseMaster`] lasts long enough for a living master to be decided
//!    dead.
//! 4. A directory is never started while a process runs that has another copy of it.

mod directories;
mod frames;
mod group;
mod links;
mod masters;
mod meetings;
mod points;
mod strangers;

use meetings::Meetings;

pub use frames::{flip, spoil};
pub use points::Role as Dying;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ramkeep_wire::ServerId;
use ramkeep_wire::coordinator::ServerState;

use crate::crash_points::CrashPoint;
use crate::network::{Direction, ProcessId};
use crate::node::ServerNode;
use crate::promise;
use crate::rng::Rng;
use crate::world::{Death, Event, Role, World};

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A connection breaks.
    Sever,
    /// Two processes can't reach each other, one way or both.
    Cut,
    /// A process can't reach some of the others.
    Isolate,
    /// A link is slow.
    Slow,
    /// A backup is killed and started again with its frames.
    KillBackup,
    /// A backup is killed in the middle of a store.
    KillStoring,
    /// A backup's machine loses power and with it the frames, or gets old pages back.
    PowerLoss,
    /// A coordinator is killed and started again.
    KillCoordinator,
    /// The coordinator that leads is killed and started again.
    KillLeader,
    /// A backup stands still.
    PauseBackup,
    /// A master stands still.
    PauseMaster,
    /// A coordinator stands still.
    PauseCoordinator,
    /// A coordinator can't reach some of the others.
    CutCoordinator,
    /// A coordinator's disk is slow.
    SlowDisk,
    /// A coordinator is killed and its disk is lost.
    WipeCoordinator,
    /// All coordinators are killed, stand still, or can't reach each other.
    LoseGroup,
    /// Every process that only holds replicas is killed in the middle of a store.
    KillAllBackups,
    /// A master can't reach the coordinator for so long that it is decided dead.
    LoseMaster,
    /// A server with a master is killed or loses power, and is started again.
    KillMaster,
    /// Every server and every coordinator is killed at once.
    KillEverything,
    /// Bits of a backup's frames flip.
    DamageFrames,
    /// Frames of a backup are as they were earlier in the same boot of its machine.
    OldPages,
    /// A master dies, and all copies of its segments but one each are damaged.
    SpoilReplicas,
    /// One end of a connection is gone, and the other is not told for a time.
    HalfOpen,
    /// A listener's backlog is full: who connects is not answered.
    FullBacklog,
    /// Processes come that do not belong, and say what they must not.
    Strangers,
    /// The address of a server that is dead is another's for a time: one's of another cluster, or of an
    /// older life.
    TakenAddress,
    /// A server is killed, and its directory of frames started at another address, an empty one at its own.
    MovedDirectory,
    /// A coordinator is lost with its machine, and another at a new address takes its place.
    ReplaceCoordinator,
    /// A backup is killed and comes back with its whole directory as it was earlier in the same boot.
    RolledBack,
}

const ALL: [Fault; 23] = [
    Fault::Sever,
    Fault::Cut,
    Fault::Isolate,
    Fault::Slow,
    Fault::KillBackup,
    Fault::KillStoring,
    Fault::PowerLoss,
    Fault::KillCoordinator,
    Fault::KillLeader,
    Fault::CutCoordinator,
    Fault::SlowDisk,
    Fault::WipeCoordinator,
    Fault::LoseGroup,
    Fault::PauseBackup,
    Fault::PauseMaster,
    Fault::PauseCoordinator,
    Fault::KillAllBackups,
    Fault::LoseMaster,
    Fault::KillMaster,
    Fault::KillEverything,
    Fault::DamageFrames,
    Fault::OldPages,
    Fault::SpoilReplicas,
];

/// Master deaths of one run at most: what is replayed fills memory, and nothing is cleaned.
const MOST_DEATHS: usize = 4;

/// Longest that a master is paused or cut off from the coordinator, microseconds.
const MASTER_AWAY: u64 = 600_000;

/// The faults of one run.
#[derive(Debug)]
pub struct Faults {
    rng: Rng,
    enabled: Vec<Fault>,
    /// Mean time between two, microseconds.
    gap: u64,
    most_lost: usize,
    beyond: bool,
    masters_killed: usize,
    /// How often another master dies with one, percent.
    pairs: u64,
    /// Snapshots that pages may come back from.
    older: frames::Older,
    /// The next master that is decided dead keeps one copy of each segment.
    spoils: bool,
    /// Coordinators whose disk was lost, until they have everything again.
    wiped: BTreeSet<usize>,
    /// What processes meet beside what breaks.
    meetings: Meetings,
    /// The moment of a recovery in which somebody dies.
    at: Option<CrashPoint>,
    /// How often who died in which moment.
    pub struck: BTreeMap<(CrashPoint, Dying), u32>,
    /// How many of each there were.
    pub done: BTreeMap<Fault, u32>,
}

impl Faults {
    /// A random selection of kinds, so that some runs have much of few kinds.
    #[must_use]
    pub fn new(mut rng: Rng, most_lost: usize) -> Self {
        let share = rng.below(20..101);
        let rare = |fault| {
            let rare = [
                Fault::KillAllBackups,
                Fault::LoseMaster,
                Fault::KillEverything,
            ];
            rare.contains(&fault)
        };
        let enabled = (ALL.into_iter())
            .filter(|fault| rng.percent(if rare(*fault) { share / 6 } else { share }))
            .collect();
        let gap = *rng.choose(&[20_000, 60_000, 150_000, 400_000]);
        Self {
            rng,
            enabled,
            gap,
            most_lost,
            beyond: false,
            masters_killed: 0,
            pairs: 30,
            older: frames::Older::new(),
            spoils: false,
            wiped: BTreeSet::new(),
            meetings: Meetings::default(),
            at: None,
            struck: BTreeMap::new(),
            done: BTreeMap::new(),
        }
    }

    /// Faults of the coordinators alone.
    #[must_use]
    pub fn of_the_group_only(rng: Rng) -> Self {
        let mut faults = Self::new(rng, 1);
        faults.enabled = group::KINDS.to_vec();
        faults
    }

    /// Whether masters die.
    #[must_use]
    pub fn kills_masters(&self) -> bool {
        let kills = [
            Fault::KillMaster,
            Fault::LoseMaster,
            Fault::KillEverything,
            Fault::SpoilReplicas,
        ];
        self.enabled.iter().any(|fault| kills.contains(fault))
    }

    /// Whatever the promise says. Then nobody can tell old pages from what was acknowledged: where they
    /// are all that is left, nothing is refused.
    pub fn go_beyond(&mut self) {
        self.beyond = true;
        self.enabled.retain(|fault| *fault != Fault::OldPages);
    }

    /// Masters die, and mostly two at once.
    pub fn kill_in_pairs(&mut self) {
        self.pairs = 80;
        self.enable(Fault::KillMaster);
    }

    /// This happens, too.
    fn enable(&mut self, fault: Fault) {
        if !self.enabled.contains(&fault) {
            self.enabled.push(fault);
        }
    }

    /// So many copies may a living master lack.
    pub fn may_lack(&mut self, most: usize) {
        self.most_lost = most;
    }

    /// Time to the next one.
    pub fn next_gap(&mut self) -> Duration {
        self.rng.micros(1_000..self.gap * 2)
    }

    /// Lets one happen, if any may now.
    pub fn strike(&mut self, world: &mut World) {
        if self.enabled.is_empty() {
            return;
        }
        let fault = *self.rng.choose(&self.enabled);
        if self.happen(world, fault).is_some() {
            *self.done.entry(fault).or_default() += 1;
        }
    }

    fn happen(&mut self, world: &mut World, fault: Fault) -> Option<()> {
        match fault {
            Fault::Sever => self.sever(world),
            Fault::Cut => self.cut(world),
            Fault::Isolate => self.isolate(world),
            Fault::Slow => self.slow(world),
            Fault::KillBackup => self.kill(world, Death::Kill),
            Fault::PowerLoss => self.kill(world, Death::PowerLoss),
            Fault::KillStoring => self.kill_storing(world),
            Fault::KillCoordinator
            | Fault::KillLeader
            | Fault::PauseCoordinator
            | Fault::CutCoordinator
            | Fault::SlowDisk
            | Fault::WipeCoordinator
            | Fault::ReplaceCoordinator
            | Fault::LoseGroup => self.of_the_group(world, fault),
            Fault::PauseBackup => {
                let machine = self.backup(world)?;
                let time = self.rng.micros(1_000..1_500_000);
                world.pause(world.machines[machine].process?, time);
                Some(())
            }
            Fault::PauseMaster => {
                let machine = self.pick(world, is_master)?;
                let time = self.rng.micros(1_000..MASTER_AWAY);
                world.pause(world.machines[machine].process?, time);
                Some(())
            }
            Fault::KillAllBackups => self.kill_all(world),
            Fault::LoseMaster => self.lose_master(world),
            Fault::KillMaster | Fault::KillEverything | Fault::SpoilReplicas => {
                self.of_masters(world, fault)
            }
            Fault::DamageFrames | Fault::OldPages => self.of_frames(world, fault),
            Fault::HalfOpen => self.half_open(world),
            Fault::FullBacklog => self.full_backlog(world),
            Fault::Strangers => self.strangers_come(world),
            Fault::TakenAddress => self.taken_address(world),
            Fault::MovedDirectory => self.moved_directory(world),
            Fault::RolledBack => self.rolled_back(world),
        }
    }

    fn kill_all(&mut self, world: &mut World) -> Option<()> {
        if !down(world).is_empty() || self.done.contains_key(&Fault::KillAllBackups) {
            return None;
        }
        let backups: Vec<usize> = (world.server_machines())
            .filter(|m| is_backup_only(world, *m))
            .collect();
        for machine in backups {
            let bytes = self.rng.index(200);
            world.kill_while_storing(process(world, machine)?, bytes);
            self.restart_later(world, machine);
        }
        Some(())
    }

    fn lose_master(&mut self, world: &mut World) -> Option<()> {
        if self.done.contains_key(&Fault::LoseMaster) {
            return None;
        }
        let master = self.pick(world, is_master)?;
        let server = world.server(master)?.server();
        let time = self.rng.micros(2_500_000..6_000_000);
        world.doomed.push((server, world.events.now() + time));
        if !self.may_lose(world, &[]) {
            world.doomed.pop();
            return None;
        }
        for coordinator in world.coordinator_machines().collect::<Vec<_>>() {
            self.cut_pair(world, master, coordinator, Direction::Both, time);
        }
        Some(())
    }

    fn pick(&mut self, world: &World, wanted: fn(&World, usize) -> bool) -> Option<usize> {
        let machines: Vec<usize> = (0..world.machines.len())
            .filter(|m| wanted(world, *m) && world.machines[*m].process.is_some())
            .filter(|m| !world.is_strangers(*m))
            .collect();
        (!machines.is_empty()).then(|| *self.rng.choose(&machines))
    }

    fn backup(&mut self, world: &World) -> Option<usize> {
        self.pick(world, is_backup_only)
    }

    fn may_lose(&self, world: &World, machines: &[usize]) -> bool {
        let machines = machines.iter().copied().collect();
        self.beyond || promise::covers(world, &machines, &BTreeSet::new(), self.most_lost)
    }

    /// Whether so many more masters may be killed in this run; they are counted.
    fn may_kill_masters(&mut self, masters: usize) -> bool {
        let may = self.masters_killed + masters <= MOST_DEATHS;
        if may {
            self.masters_killed += masters;
        }
        may
    }

    fn may_damage(&self, world: &World, machine: usize) -> bool {
        let damaged = BTreeSet::from([machine]);
        self.beyond
            || world.damaged.contains(&machine)
            || promise::covers(world, &BTreeSet::new(), &damaged, self.most_lost)
    }

    fn restart_later(&mut self, world: &mut World, machine: usize) {
        let most = *self.rng.choose(&[20_000, 300_000, 3_000_000]);
        let at = world.events.now() + self.rng.micros(1_000..most);
        world.events.at(at, Event::Restart(machine));
    }

    fn kill(&mut self, world: &mut World, death: Death) -> Option<()> {
        self.kill_backup(world, death).map(drop)
    }

    /// A backup dies and is started again later: its machine.
    fn kill_backup(&mut self, world: &mut World, death: Death) -> Option<usize> {
        let machine = self.backup(world)?;
        if !self.may_lose(world, &[machine]) {
            return None;
        }
        world.kill(process(world, machine)?, death);
        self.restart_later(world, machine);
        Some(machine)
    }

    fn kill_storing(&mut self, world: &mut World) -> Option<()> {
        let machine = self.backup(world)?;
        if !self.may_lose(world, &[machine]) {
            return None;
        }
        let bytes = self.rng.index(*self.rng.clone().choose(&[60, 300, 3_000]));
        world.kill_while_storing(process(world, machine)?, bytes);
        self.restart_later(world, machine);
        Some(())
    }
}

fn process(world: &World, machine: usize) -> Option<ProcessId> {
    world.machines[machine].process
}

/// Whether a master runs there.
#[must_use]
pub fn is_master(world: &World, machine: usize) -> bool {
    matches!(&world.machines[machine].role, Role::Server(config) if config.roles.master)
}

/// Whether a backup and no master runs there.
#[must_use]
pub fn is_backup_only(world: &World, machine: usize) -> bool {
    matches!(&world.machines[machine].role, Role::Server(config) if !config.roles.master)
}

/// Whether a coordinator runs there.
#[must_use]
pub fn is_coordinator(world: &World, machine: usize) -> bool {
    matches!(world.machines[machine].role, Role::Coordinator(_))
}

/// Machines without a process, or with one that is about to die.
#[must_use]
pub fn down(world: &World) -> BTreeSet<usize> {
    world
        .server_machines()
        .filter(|m| world.machines[*m].process.is_none() || world.is_dying(*m))
        .collect()
}

/// Whether a server has heard that another was decided crashed.
fn knows_crashed(node: &ServerNode, server: ServerId) -> bool {
    let list = node.core.list();
    let listed = list.and_then(|list| list.servers.iter().find(|e| e.server == server));
    // A process that dies before it is enlisted holds nothing under its own name.
    server == ServerId(0) || listed.is_some_and(|e| e.state == ServerState::Crashed)
}

/// Forgets losses that every master has made up for.
pub fn note_recovered(world: &mut World) {
    let masters: Vec<usize> = world
        .server_machines()
        .filter(|m| is_master(world, *m))
        .collect();
    let whole = |world: &World, old: &[ServerId]| {
        masters.iter().all(|m| {
            world.server(*m).is_none_or(|node| {
                node.master().is_none_or(|master| {
                    old.iter().all(|old| knows_crashed(node, *old))
                        && master.stats().under_replicated == 0
                })
            })
        })
    };
    if masters::dead_with_logs(world) > 0 {
        return;
    }
    let mut wiped = std::mem::take(&mut world.wiped);
    wiped.retain(|number| !whole(world, &world.losses[*number].owners));
    world.wiped = wiped;
}

/// Servers that stopped because they were decided dead are started again, as new ones.
pub fn restart_stopped(world: &mut World) {
    let machines: Vec<usize> = world.server_machines().collect();
    for machine in machines {
        let stopped = world.server(machine).is_some_and(|node| node.stopped());
        if let Some(process) = world.machines[machine].process
            && stopped
        {
            world.kill(process, Death::Kill);
            world.start(machine);
        }
    }
}

/// Everything works again: links, processes, machines.
pub fn end(world: &mut World) {
    world.dismiss_strangers();
    world.network.heal(&mut world.events);
    restart_stopped(world);
    for machine in 0..world.machines.len() {
        if let Some(process) = world.machines[machine].process {
            if world.is_paused(machine) {
                world.resume(process);
            }
        } else if !matches!(world.machines[machine].role, Role::Client | Role::Stranger) {
            world.start(machine);
        }
    }
}
