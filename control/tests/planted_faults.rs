//! The checks bite: with a fault planted, what must hold does not hold.
#![cfg(feature = "mutants")]
#![allow(clippy::unwrap_used, reason = "a failed step of a test is its failure")]

#[path = "conversation/bench.rs"]
mod bench;
#[path = "conversation/clusters.rs"]
mod clusters;
#[path = "conversation/finding_the_leader.rs"]
mod finding_the_leader;
#[path = "conversation/group.rs"]
mod group;
#[path = "conversation/mutations.rs"]
mod mutations;
#[path = "conversation/random.rs"]
mod random;

use ramkeep_wire::mutants::{self, Mutant};

/// Seeds that a fault may take to be found.
const SEEDS: u64 = 500;

fn with<T>(mutant: Mutant, run: impl FnOnce() -> T) -> T {
    let before = mutants::plant(Some(mutant));
    let result = run();
    mutants::plant(before);
    result
}

fn seed_that_finds(mutant: Mutant) -> Option<(u64, String)> {
    let found = |seed| Some((seed, with(mutant, || random::play(seed)).err()?));
    (0..SEEDS).find_map(found)
}

#[test]
fn random_groups_find_every_fault() {
    for mutant in [
        Mutant::RedirectWithoutRest,
        Mutant::ForgetEarlierSend,
        Mutant::TakeOldBallot,
        Mutant::ResendAsAnother,
        Mutant::TakeOldCorrelation,
    ] {
        let found = seed_that_finds(mutant);
        println!("{}: {found:?}", mutant.name());
        let (seed, _) = found.unwrap_or_else(|| panic!("{mutant:?} is not caught"));
        assert_eq!(random::play(seed), Ok(()), "seed {seed}");
    }
}

#[test]
fn a_redirect_that_is_followed_without_a_rest_shows() {
    let play = finding_the_leader::asked_during_an_election;
    let [sound, with] =
        [play(), with(Mutant::RedirectWithoutRest, play)].map(|asked| asked.iter().sum::<u32>());
    assert!(with > 2 * sound, "{sound}, and {with}");
}

#[test]
fn a_retry_that_forgets_the_first_send_shows() {
    let play = mutations::mutation_whose_lease_was_lost;
    let sound = play().unwrap().unwrap_err();
    assert!(sound.maybe_applied);
    let with = with(Mutant::ForgetEarlierSend, play);
    assert_eq!(with, None, "it goes on as another");
}

#[test]
fn an_answer_under_an_older_ballot_shows() {
    let play = finding_the_leader::answer_of_an_old_leader;
    assert_eq!(play(), None);
    assert!(matches!(with(Mutant::TakeOldBallot, play), Some(Ok(_))));
}

#[test]
fn another_sequence_for_what_is_sent_again_shows() {
    let play = mutations::numbers_of_a_drop_that_is_sent_again;
    let [first, second] = play();
    assert_eq!(first, second);
    let [first, second] = with(Mutant::ResendAsAnother, play);
    assert_ne!(first, second);
}

#[test]
fn an_answer_to_a_send_that_was_given_up_shows() {
    let play = finding_the_leader::answer_to_a_lost_send;
    assert_eq!(play(), None);
    assert!(matches!(
        with(Mutant::TakeOldCorrelation, play),
        Some(Ok(_))
    ));
}

#[test]
fn a_cluster_joined_on_any_word_shows() {
    assert!(clusters::first_met_is_another_clusters().is_some());
    let with = with(
        Mutant::JoinOnAnyWord,
        clusters::first_met_is_another_clusters,
    );
    assert_eq!(with, None, "the own coordinators are strangers now");
}

#[test]
fn a_group_that_is_only_added_to_shows() {
    let play = group::known_after_many_replacements;
    assert_eq!(play(), 3);
    assert!(with(Mutant::OnlyLearnCoordinators, play) > 3);
}
