//! Servers that die just after they have enlisted, again and again, faster than they are found dead.

use ramkeep_wire::ServerId;
use ramkeep_wire::coordinator::Answer;

use crate::recovery::cast;
use crate::world::*;

/// Milliseconds until it is started again: a port that refuses is found dead after 150.
const LIFE: u64 = 100;

/// A process that is started again whenever it has died, which it does as soon as it is enlisted.
struct Restarting {
    last: Option<ServerId>,
    lives: u8,
}

impl Restarting {
    fn begin(world: &mut World) -> Self {
        let mut process = Self {
            last: None,
            lives: 100,
        };
        process.live(world);
        process
    }

    fn live(&mut self, world: &mut World) {
        self.lives += 1;
        let server = world.serve_unaware(self.lives);
        world.vanish(server);
        self.last = Some(server);
    }

    /// Lives and dies until it is so; how long that took, milliseconds.
    fn until(&mut self, world: &mut World, done: impl Fn(&World) -> bool) -> u64 {
        for turn in 0..60 {
            for ms in 0..LIFE {
                if done(world) {
                    return LIFE * turn + ms;
                }
                world.run(1);
            }
            let last = self.last.expect("it has lived");
            let listed = world.state().living(last).is_ok();
            assert!(listed, "it is found dead before it is back");
            self.live(world);
        }
        panic!("it never came to this: {:?}", world.reports());
    }
}

#[test]
fn one_that_dies_as_soon_as_it_is_enlisted_holds_up_no_recovery() {
    let (mut world, [m, ..], _) = cast();
    let mut process = Restarting::begin(&mut world);
    world.kill(m);
    let is_over = |world: &World| world.all_served() && world.is_recovered(m);
    let took = process.until(&mut world, is_over);
    assert!(took < 5_000, "{took} ms");
}

#[test]
fn one_that_dies_as_soon_as_it_is_enlisted_holds_up_no_drop() {
    let (mut world, [m, ..], table) = cast();
    world.kill(m);
    let is_dead = |world: &World| world.state().living(m).is_err();
    world.until("dead", is_dead);
    let mut process = Restarting::begin(&mut world);
    let drop = world.ask(drop_table("t", None));
    let took = process.until(&mut world, |world| world.state().table(table).is_none());
    assert!(took < 1_500, "{took} ms");
    assert_eq!(world.given(drop), Some(Answer::Dropped));
}

#[cfg(feature = "mutants")]
#[test]
fn planted_faults_of_fences_are_caught() {
    use ramkeep_wire::mutants::{self, Mutant};

    let stories: [fn(); 2] = [
        one_that_dies_as_soon_as_it_is_enlisted_holds_up_no_recovery,
        one_that_dies_as_soon_as_it_is_enlisted_holds_up_no_drop,
    ];
    for story in stories {
        assert!(mutants::fails(Mutant::NewcomersHaveHeardNothing, story));
    }
}
