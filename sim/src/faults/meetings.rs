//! What the processes of a seed meet beside what breaks: connections that are half open, listeners that are
//! full, strangers, addresses that are another's, directories that moved or come back as they were.
//!
//! # Invariants
//! 1. All of it is drawn from a stream of its own: nothing else that a seed draws changes by it.
//! 2. A seed has a few of these at most.

use std::time::Duration;

use ramkeep_backup::MemoryStore;
use ramkeep_wire::BootId;

use super::{Fault, Faults, is_coordinator};
use crate::rng::Rng;
use crate::world::World;

/// Seeds that have none of these, in a hundred.
const NONE: u64 = 25;
/// Most of them in one seed.
const MOST: u64 = 4;

const ALL: [Fault; 7] = [
    Fault::ReplaceCoordinator,
    Fault::HalfOpen,
    Fault::FullBacklog,
    Fault::Strangers,
    Fault::TakenAddress,
    Fault::MovedDirectory,
    Fault::RolledBack,
];

/// Those that harm no server.
const OF_THE_GROUP: [Fault; 4] = [
    Fault::ReplaceCoordinator,
    Fault::HalfOpen,
    Fault::FullBacklog,
    Fault::Strangers,
];

/// What is still to come of these in a run.
#[derive(Debug)]
pub(super) struct Meetings {
    rng: Rng,
    enabled: Vec<Fault>,
    left: u64,
    /// Only coordinators are harmed.
    group_only: bool,
    /// A machine's directory as it was in this boot.
    earlier: Option<(usize, BootId, MemoryStore)>,
}

impl Default for Meetings {
    fn default() -> Self {
        Self {
            rng: Rng::new(0),
            enabled: Vec::new(),
            left: 0,
            group_only: false,
            earlier: None,
        }
    }
}

impl Faults {
    /// A few of these happen as well, or none.
    pub fn may_meet(&mut self, mut rng: Rng, group_only: bool) {
        let all: &[Fault] = if group_only { &OF_THE_GROUP } else { &ALL };
        // Beyond the promise nobody can tell what is old from what was acknowledged.
        let may = |fault: &Fault| !(self.beyond && *fault == Fault::RolledBack);
        let left = match rng.percent(NONE) {
            true => 0,
            false => rng.below(1..MOST + 1),
        };
        self.meetings = Meetings {
            rng,
            enabled: all.iter().copied().filter(may).collect(),
            left,
            group_only,
            earlier: None,
        };
    }

    /// Time to the next one, if there is to be one.
    pub fn next_meeting(&mut self) -> Option<Duration> {
        let meetings = &mut self.meetings;
        (meetings.left > 0).then(|| meetings.rng.micros(20_000..1_200_000))
    }

    /// Lets one happen, if it may now.
    pub fn meet(&mut self, world: &mut World) {
        // Whatever follows is drawn from the stream of these.
        std::mem::swap(&mut self.rng, &mut self.meetings.rng);
        let fault = *self.rng.choose(&self.meetings.enabled);
        self.keep_a_directory(world);
        if self.happen(world, fault).is_some() {
            self.meetings.left -= 1;
            *self.done.entry(fault).or_default() += 1;
        }
        std::mem::swap(&mut self.rng, &mut self.meetings.rng);
    }

    /// Who may be harmed.
    pub(super) fn meets(&self) -> fn(&World, usize) -> bool {
        match self.meetings.group_only {
            true => is_coordinator,
            false => |_, _| true,
        }
    }

    /// The directory that may come back later.
    pub(super) fn earlier(&mut self) -> &mut Option<(usize, BootId, MemoryStore)> {
        &mut self.meetings.earlier
    }
}
