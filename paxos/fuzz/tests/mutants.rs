//! Each planted fault is caught, and by the check that is there for it.
#![cfg(feature = "mutants")]
// A test fails by panicking, in its helpers too.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "../../tests/lab/mod.rs"]
mod lab;

use std::sync::Mutex;

use paxos::mutants::{self, Mutant};
use paxos_fuzz::{Check, hunt};

/// Seeds within which a fault shows.
const SEEDS: u64 = 4_000;

/// The check that catches a fault; none where no seed is likely to, and a scenario does.
fn caught_by(mutant: Mutant) -> Option<Check> {
    Some(match mutant {
        Mutant::VoteBeforeDisk | Mutant::HalfIsEnough | Mutant::CountWipedMember => {
            Check::QuorumOnDisk
        }
        Mutant::AnswerBeforeDisk | Mutant::BallotBeforeDisk => Check::PersistFirst,
        Mutant::ForgetPromise | Mutant::AcceptLower => Check::PromiseKept,
        Mutant::ForgetGrant
        | Mutant::LeaseFromReceipt
        | Mutant::PromiseInGrant
        | Mutant::ReadWithoutLease => Check::LeaseExclusive,
        Mutant::AdoptLowestBallot | Mutant::CommitAnyBallot => Check::Agreement,
        Mutant::TrimPastSnapshot | Mutant::SkipNoop => Check::Progress,
        Mutant::ApplyOutOfOrder => Check::Order,
        Mutant::SkipOpening => Check::StaleRead,
        Mutant::DoubleApply => Check::ExactlyOnce,
        Mutant::SkipBarrier => Check::OneChange,
        Mutant::SkipPrepareOfNewGroup => return None,
    })
}

#[test]
fn every_planted_fault_is_caught_by_its_check() {
    // Some faults make the code panic on the way.
    std::panic::set_hook(Box::new(|_| {}));
    let left = Mutex::new(Mutant::ALL.to_vec());
    let missed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some(mutant) = left.lock().unwrap().pop() else {
                        return;
                    };
                    let Some(check) = caught_by(mutant) else {
                        continue;
                    };
                    match hunt(mutant, check, 0..SEEDS) {
                        Some(seed) => println!("{mutant:?}: {check} in seed {seed}"),
                        None => missed.lock().unwrap().push((mutant, check)),
                    }
                }
            });
        }
    });
    let _ = std::panic::take_hook();
    assert_eq!(missed.into_inner().unwrap(), []);
}

#[test]
fn a_leader_without_promises_of_the_new_group_overrules_what_that_has_decided() {
    assert_eq!(caught_by(Mutant::SkipPrepareOfNewGroup), None);
    let before = mutants::plant(Some(Mutant::SkipPrepareOfNewGroup));
    let (decided, then) = lab::decided_in_the_new_group_before_another_leads();
    mutants::plant(before);
    assert_eq!(decided, ["x"]);
    assert_ne!(then, decided, "the fault shows");
}
