//! What recoveries under way leave to later ones, under the leader that planned them and under another.

use ramkeep_wire::ServerId;

use crate::recovery::cast;
use crate::world::*;

/// The first of two that crash is planned, and goes on or can't; the second crashes after that.
struct Two {
    world: World,
    first: ServerId,
    second: ServerId,
}

impl Two {
    fn begin(behaviour: fn(ServerId) -> Behaviour, frames: u32) -> Self {
        let (mut world, [m, b, ..], _) = cast();
        for fake in world.servers.values_mut() {
            fake.frames = frames;
        }
        world.run(200);
        world.behave(&behaviour(m));
        world.kill(m);
        world.until("planned", |world| is_planned(world, m));
        world.run(600);
        Self {
            world,
            first: m,
            second: b,
        }
    }

    /// Whether the second is planned while the first is not done.
    fn is_second_planned(&mut self) -> bool {
        self.world.kill(self.second);
        self.world.run(3_000);
        assert!(is_planned(&self.world, self.first), "it can't be done");
        let found = self.world.ends.contains_key(&self.second);
        let reports = self.world.reports();
        assert!(found || reports.len() == 2, "{reports:?}");
        found
    }
}

fn is_planned(world: &World, master: ServerId) -> bool {
    world.state().recoveries().by_master(master).is_some()
}

#[test]
fn a_recovery_that_nobody_can_finish_holds_up_no_other_whoever_leads() {
    for restarts in [false, true] {
        // For both at a time there are no frames.
        let mut two = Two::begin(Behaviour::CannotFor, 4);
        if restarts {
            two.world.restart();
            two.world.run(600);
        }
        assert!(two.is_second_planned(), "another leader: {restarts}");
    }
}

#[test]
fn what_an_earlier_leader_planned_takes_what_its_recovery_masters_say() {
    for (frames, fits) in [(1_000, true), (4, false)] {
        let mut two = Two::begin(Behaviour::GoesFor, frames);
        two.world.restart();
        two.world.run(600);
        assert_eq!(two.is_second_planned(), fits, "{frames} frames");
    }
}

#[cfg(feature = "mutants")]
#[test]
fn planted_faults_of_budgets_are_caught() {
    use ramkeep_wire::mutants::{self, Mutant};

    let faults: [(Mutant, fn()); 2] = [
        (
            Mutant::PlansOfOthersAreUnknown,
            what_an_earlier_leader_planned_takes_what_its_recovery_masters_say,
        ),
        (
            Mutant::StuckPlansTakeFrames,
            a_recovery_that_nobody_can_finish_holds_up_no_other_whoever_leads,
        ),
    ];
    for (mutant, story) in faults {
        assert!(mutants::fails(mutant, story), "{mutant:?}");
        story();
    }
}
