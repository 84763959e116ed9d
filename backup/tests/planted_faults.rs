//! The checks bite: with a fault planted, what the other files assert does not hold.
#![cfg(feature = "mutants")]
#![allow(clippy::unwrap_used, reason = "a failed step of a test is its failure")]

mod common;

use common::*;
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::replicate::ReplicateStatus;
use ramkeep_wire::*;

/// What `story` says with `mutant` planted, and without.
fn with_and_without(mutant: Mutant, story: fn() -> bool) -> (bool, bool) {
    let without = story();
    let before = mutants::plant(Some(mutant));
    let with = story();
    mutants::plant(before);
    (with, without)
}

#[test]
fn a_certificate_rewritten_in_place_is_lost_by_a_kill() {
    fn some_kill_loses_the_replica() -> bool {
        let mut segment = Segment::new(MASTER, 1);
        let mut running = backup(1);
        segment.grow(40);
        send(&mut running, &segment, 0, OPEN);
        segment.grow(40);
        (0..400).any(|bytes| {
            let mut killed = running.clone();
            killed.store_mut().kill_after(bytes);
            send(&mut killed, &segment, 40, MORE);
            inventory(&mut restart(killed), MASTER).is_empty()
        })
    }
    let found = with_and_without(Mutant::CertificateInPlace, some_kill_loses_the_replica);
    assert_eq!(found, (true, false));
}

#[test]
fn an_early_acknowledgement_is_lost_by_a_kill() {
    fn acknowledged_is_lost() -> bool {
        let (mut running, mut segment) = (backup(1), Segment::new(MASTER, 1));
        let ack = send(&mut running, segment.grow(40), 0, OPEN);
        ack.status == ReplicateStatus::Done && inventory(&mut restart(running), MASTER).is_empty()
    }
    let found = with_and_without(Mutant::AckBeforeCertificate, acknowledged_is_lost);
    assert_eq!(found, (true, false));
}

#[test]
fn a_stale_epoch_is_taken() {
    fn takes_stale() -> bool {
        let (mut running, mut segment) = (backup(1), Segment::new(MASTER, 1));
        segment.epoch = ReplicationEpoch(2);
        send(&mut running, segment.grow(40), 0, OPEN);
        segment.epoch = ReplicationEpoch(1);
        send(&mut running, segment.grow(40), 40, MORE).status == ReplicateStatus::Done
    }
    let found = with_and_without(Mutant::AcceptStaleEpoch, takes_stale);
    assert_eq!(found, (true, false));
}

#[test]
fn a_copy_under_way_is_shown() {
    fn shows_copy() -> bool {
        let (mut running, mut segment) = (backup(1), Segment::new(MASTER, 1));
        send(&mut running, segment.grow(40), 0, COPY);
        !inventory(&mut running, MASTER).is_empty()
    }
    let found = with_and_without(Mutant::ShowIncomplete, shows_copy);
    assert_eq!(found, (true, false));
}

#[test]
fn a_fenced_master_is_heard() {
    fn hears_the_dead() -> bool {
        let (mut running, mut segment) = (backup(1), Segment::new(MASTER, 1));
        send(&mut running, segment.grow(40), 0, OPEN);
        running.fence(MASTER);
        send(&mut running, segment.grow(40), 40, MORE).status == ReplicateStatus::Done
    }
    let found = with_and_without(Mutant::HearFenced, hears_the_dead);
    assert_eq!(found, (true, false));
}
