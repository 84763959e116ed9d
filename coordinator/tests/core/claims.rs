//! Copies of servers' directories, started beside their originals or after them (SAFETY 30).

use ramkeep_wire::ServerId;
use ramkeep_wire::coordinator::{Answer, Enlist, Refused, Request, ServerState};

use crate::world::*;

/// A server that has the directory of `original`.
fn copy(nonce: u8, original: ServerId) -> Request {
    Request::Enlist(Enlist {
        replaces: Some(original),
        ..enlistment(nonce)
    })
}

fn cluster() -> (World, ServerId) {
    let mut world = World::with_servers();
    let [original, _, _] = [1, 2, 3].map(|nonce| world.serve(nonce, None));
    world.run(300);
    (world, original)
}

fn a_copy_beside_its_living_original_is_refused() {
    let (mut world, original) = cluster();
    let tokens = [4, 5, 6, 7].map(|nonce| world.ask(copy(nonce, original)));
    world.run(1_000);
    for token in tokens {
        let refused = Refused::Claimed {
            server: original,
            address: enlistment(1).addresses[0].clone(),
        };
        assert_eq!(world.given(token), Some(Answer::Refused(refused)));
    }
    assert_eq!(world.state_of(original), ServerState::Up);
    assert_eq!(world.state().servers().iter().count(), 3);
}

#[test]
fn four_copies_of_a_living_servers_directory_are_refused_and_it_lives_on() {
    a_copy_beside_its_living_original_is_refused();
}

#[test]
fn a_directory_of_a_server_that_is_gone_goes_on_elsewhere_at_once() {
    let (mut world, original) = cluster();
    world.vanish(original);
    let token = world.ask(copy(4, original));
    world.run(2);
    assert!(matches!(world.given(token), Some(Answer::Enlisted { .. })));
    assert_eq!(world.state_of(original), ServerState::Crashed);
}

#[test]
fn who_listens_where_the_original_did_is_not_beside_it() {
    let (mut world, original) = cluster();
    let mut restarted = enlistment(4);
    restarted.addresses = enlistment(1).addresses;
    restarted.replaces = Some(original);
    let answer = world.answer(Request::Enlist(restarted));
    assert!(matches!(answer, Answer::Enlisted { .. }), "{answer:?}");
}

#[test]
fn what_the_original_said_before_it_died_does_not_keep_its_directory_from_going_on() {
    let (mut world, original) = cluster();
    let token = world.ask(copy(4, original));
    world.run(100);
    world.vanish(original);
    world.run(300);
    assert!(matches!(world.given(token), Some(Answer::Enlisted { .. })));
}

#[cfg(feature = "mutants")]
#[test]
fn planted_faults_of_claims_are_caught() {
    use ramkeep_wire::mutants::{self, Mutant};
    assert!(mutants::fails(
        Mutant::KillTheOriginal,
        a_copy_beside_its_living_original_is_refused
    ));
}
