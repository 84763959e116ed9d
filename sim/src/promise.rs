//! The promise, to the machine: what a master acknowledged survives the loss of all but one of its
//! replicas, and its own death beside all but one of them.
//!
//! # Invariants
//! 1. A master's replicas are never on its own machine: what is lost there is no loss to it.
//! 2. A replica is lost while its machine has no process, for good once its frames were lost or damaged.
//!    A living master makes up for that; nobody does for a dead one.
//! 3. Each loss of frames counts: before a master hears of it, it may have placed another replica of the
//!    same segment on the next process there. Until that is back, it counts once.

use std::collections::BTreeSet;

use ramkeep_coordinator::state::{Server, State};
use ramkeep_wire::ServerId;

use crate::faults;
use crate::inspect;
use crate::world::World;

/// A loss of a machine's frames.
#[derive(Clone, Debug)]
pub struct FramesLost {
    /// The machine.
    pub machine: usize,
    /// The servers whose frames they were.
    pub owners: Vec<ServerId>,
}

/// What was lost of a master's replicas, as machines.
#[derive(Clone, Debug, Default)]
pub struct Lost {
    /// Until their processes are back.
    pub down: BTreeSet<usize>,
    /// Times that some were lost for good, and not made up for.
    pub gone: usize,
    /// Replicas that the recorded sets of its heads are short of (SAFETY 9), or that are damaged wherever
    /// they are.
    pub shortfall: usize,
}

impl Lost {
    /// Copies that may be lacking.
    #[must_use]
    pub fn copies(&self) -> usize {
        self.down.len() + self.gone + self.shortfall
    }

    /// Copies that may be lacking once all processes are back.
    #[must_use]
    pub fn for_good(&self) -> usize {
        self.gone + self.shortfall
    }
}

/// Where a server runs, or ran.
#[must_use]
pub fn machine_of(world: &World, state: &State, server: ServerId) -> Option<usize> {
    let found = state.servers().by_id(server)?;
    let is_there = |machine: &usize| found.addresses.contains(&world.machines[*machine].address);
    world.server_machines().find(is_there)
}

/// What a living master lacks. For one that died the losses are those since then, and those that were
/// not made up for then.
#[must_use]
pub fn lost(world: &World, state: &State, master: ServerId, losses: &BTreeSet<usize>) -> Lost {
    let own = machine_of(world, state, master);
    let elsewhere = |machine: &usize| Some(*machine) != own;
    let wiped = losses.iter().map(|number| world.losses[*number].machine);
    let gone = wiped.chain(world.damaged.iter().copied());
    let is_counted = |machine: &usize| {
        let last = world.machines[*machine].lost;
        world.damaged.contains(machine) || last.is_some_and(|number| losses.contains(&number))
    };
    let down = faults::down(world).into_iter();
    Lost {
        down: (down.filter(|machine| world.has_frames(*machine)))
            .filter(|machine| elsewhere(machine) && !is_counted(machine))
            .collect(),
        gone: gone.filter(elsewhere).count(),
        shortfall: match world.spoiled.contains(&master) {
            true => replicas(state).saturating_sub(1),
            false => inspect::shortfall(state, master),
        },
    }
}

/// Whether the promise still covers everything when the processes on some machines die and the frames of
/// others are damaged: the log of each master that is dead then keeps a copy. One that lives has it in
/// memory, and may lack `most` copies.
#[must_use]
pub fn covers(
    world: &World,
    dying: &BTreeSet<usize>,
    damaged: &BTreeSet<usize>,
    most: usize,
) -> bool {
    let Some(state) = inspect::recorded(world) else {
        return false;
    };
    let running = running(world, |machine| !dying.contains(&machine));
    with_logs(world, &state).into_iter().all(|master| {
        let mut lost = lost(world, &state, master, &world.wiped);
        let own = machine_of(world, &state, master);
        let hit = |machine: &&usize| Some(**machine) != own && world.has_frames(**machine);
        let counted = |machine: &&usize| !world.damaged.contains(machine);
        lost.down.extend(dying.iter().filter(hit).filter(counted));
        lost.gone += damaged.iter().filter(hit).count();
        let found = state.servers().by_id(master);
        let lives = running.contains(&master) && found.is_none_or(|found| !found.is_crashed());
        let bound = match lives {
            true => most,
            false => replicas(&state).saturating_sub(1),
        };
        lost.copies() <= bound
    })
}

/// Whether the promise still covers everything when all processes die and come back.
#[must_use]
pub fn covers_a_cold_start(world: &World) -> bool {
    let Some(state) = inspect::recorded(world) else {
        return false;
    };
    let keeps = |master| lost(world, &state, master, &world.wiped).for_good() < replicas(&state);
    with_logs(world, &state).into_iter().all(keeps)
}

fn replicas(state: &State) -> usize {
    state
        .constants()
        .map_or(0, |c| usize::from(c.settings.replicas))
}

/// Masters that own tablets, or did when they died, or may get some: who has died since, before anybody
/// has decided so, may be given a table.
#[must_use]
pub fn with_logs(world: &World, state: &State) -> Vec<ServerId> {
    let may_get = |found: &Server| found.roles.master && !found.is_crashed();
    let all = state.servers().iter();
    let has_log = |server, found: &_| may_get(found) || !inspect::tablets(state, server).is_empty();
    let mut found: Vec<_> = all
        .filter(|(server, found)| has_log(*server, found))
        .map(|(server, _)| server)
        .collect();
    // What is recovered may be taken over before that is decided.
    found.extend(running(world, |machine| faults::is_master(world, machine)));
    found.sort_unstable();
    found.dedup();
    found
}

/// Servers that live, and go on living.
fn running(world: &World, stays: impl Fn(usize) -> bool) -> BTreeSet<ServerId> {
    let now = world.events.now();
    let is_doomed = |server: ServerId| {
        let mut doomed = world.doomed.iter();
        doomed.any(|(one, until)| *one == server && *until > now)
    };
    (world.server_machines())
        .filter(|machine| stays(*machine) && !world.is_dying(*machine))
        .filter_map(|machine| world.server(machine))
        .filter(|node| !node.stopped() && !is_doomed(node.server()))
        .map(|node| node.server())
        .filter(|server| *server != ServerId(0))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use paxos::limits::Timing;
    use ramkeep_coordinator::limits::SNAPSHOT_AFTER;
    use ramkeep_wire::coordinator::Roles;

    use super::with_logs;
    use crate::inspect;
    use crate::network::Delays;
    use crate::rng::Rng;
    use crate::run::{FRAMES, SEGMENTS, settings};
    use crate::trace::Lines;
    use crate::world::{Death, World, WorldConfig};

    fn world() -> World {
        World::new(WorldConfig {
            seed: 1,
            settings: settings(&mut Rng::new(1), 1),
            delays: Delays {
                usual: (10, 50),
                late_per_mille: 0,
                late: (500, 8_000),
            },
            sync: vec![(100, 500)],
            timing: Timing::default(),
            partition_bytes: 1 << 30,
            snapshot_after: SNAPSHOT_AFTER,
            reconnect: Duration::from_millis(1),
            lines: Lines::No,
        })
    }

    #[test]
    fn a_master_that_died_without_a_tablet_counts_until_it_is_decided_dead() {
        let mut world = world();
        world.add_coordinators(1);
        let memory = SEGMENTS * u64::from(world.config.settings.segment_size);
        let [master, backup] = [(true, false), (false, true)];
        let add = |world: &mut World, (master, backup)| {
            world.add_server(Roles { master, backup }, FRAMES, memory)
        };
        add(&mut world, backup);
        let machine = add(&mut world, master);
        let until = |world: &mut World, is: &dyn Fn(&World) -> bool| {
            for _ in 0..1_000_000 {
                if is(world) {
                    return;
                }
                world.step();
            }
            panic!("it does not come to that");
        };
        let enlisted = |world: &World| {
            let server = world.server(machine).map(|node| node.server());
            let state = inspect::recorded(world);
            state.is_some_and(|state| server.is_some_and(|s| state.servers().by_id(s).is_some()))
        };
        until(&mut world, &enlisted);
        let server = world.server(machine).map(|node| node.server()).unwrap();
        let process = world.machines[machine].process.unwrap();
        world.kill(process, Death::Kill);

        let counts = |world: &World| {
            let state = inspect::recorded(world).unwrap();
            assert!(inspect::tablets(&state, server).is_empty());
            with_logs(world, &state).contains(&server)
        };
        assert!(counts(&world), "it may be given a table");
        until(&mut world, &|world| {
            let state = inspect::recorded(world).unwrap();
            state.servers().by_id(server).unwrap().is_crashed()
        });
        assert!(!counts(&world), "nothing of it is needed");
    }
}
