//! The process is killed after every single byte that it stores: what was acknowledged is there,
//! proved, and nothing else is (SAFETY 15).
#![allow(clippy::unwrap_used, reason = "a failed step of a test is its failure")]

mod common;

use common::*;
use ramkeep_backup::{Area, FrameStore, Frames, MemoryStore};
use ramkeep_wire::backup::{BackupRequest, ReplicaInfo};
use ramkeep_wire::*;

/// More than any one step stores.
const ENOUGH: usize = 4096;

type Step<'a> = (&'a str, &'a dyn Fn(&mut Memory));

/// What a step answers is of no matter here.
fn ignore<T>(_: T) {}

/// Kills a copy of `before` after each number of bytes that `step` stores, and hands what a new
/// process finds to `check`, with whether the step was through.
fn kill_everywhere(before: &Memory, step: Step<'_>, check: &dyn Fn(&str, Memory, bool)) {
    let through = |store: MemoryStore| {
        let mut backup = reopen_as_running(before, store);
        step.1(&mut backup);
        backup.into_store()
    };
    let done = through(before.store().clone());
    for bytes in 0..ENOUGH {
        let mut store = before.store().clone();
        store.kill_after(bytes);
        let store = through(store);
        let all = (0..store.geometry().frames())
            .all(|frame| store.bytes(Area::Frame(frame)) == done.bytes(Area::Frame(frame)));
        check(
            &format!("{}, killed after {bytes} bytes", step.0),
            reopen(store),
            all,
        );
        if all {
            return;
        }
    }
    panic!("{} stores more than {ENOUGH} bytes", step.0);
}

/// `before` as it runs, but on `store`.
fn reopen_as_running(before: &Memory, store: MemoryStore) -> Memory {
    let mut copy = before.clone();
    *copy.store_mut() = store;
    copy
}

fn check_one_of(
    name: &str,
    backup: &mut Memory,
    segment: &Segment,
    through: bool,
    states: [Option<ReplicaInfo>; 2],
) {
    let as_found = |info: Option<ReplicaInfo>| {
        info.map(|i| ReplicaInfo {
            inherited: true,
            ..i
        })
    };
    let [before, after] = states.map(as_found);
    let found = proved(backup, segment);
    if through {
        assert_eq!(found, after, "{name}: acknowledged, but not there");
    } else {
        assert!(found == before || found == after, "{name}: found {found:?}");
    }
}

#[test]
fn a_kill_at_any_byte_leaves_the_last_complete_state() {
    let mut segment = Segment::new(MASTER, 1);
    let mut running = backup(2);
    let (first, second) = (segment.grow(40).clone(), segment.grow(60).clone());
    let third = Segment {
        epoch: ReplicationEpoch(2),
        ..second.clone()
    };
    let fourth = {
        segment = third.clone();
        segment.grow(30).clone()
    };
    let steps: [Step<'_>; 6] = [
        ("open", &|b| ignore(send(b, &first, 0, OPEN))),
        ("append", &|b| ignore(send(b, &second, 40, MORE))),
        ("append again", &|b| ignore(send(b, &second, 0, MORE))),
        ("next epoch", &|b| ignore(send(b, &third, 100, MORE))),
        ("append to it", &|b| ignore(send(b, &fourth, 100, MORE))),
        ("close", &|b| ignore(send(b, &fourth, 130, CLOSE))),
    ];
    for step in steps {
        let before = proved(&mut running, &fourth);
        let mut done = running.clone();
        step.1(&mut done);
        let after = proved(&mut done, &fourth);
        kill_everywhere(&running, step, &|name, mut found, through| {
            check_one_of(name, &mut found, &fourth, through, [before, after]);
        });
        running = done;
    }
}

#[test]
fn a_kill_while_freeing_brings_no_older_state_back() {
    let mut segment = Segment::new(MASTER, 1);
    let mut running = backup(1);
    for offset in [0, 100, 200] {
        segment.grow(100);
        send(&mut running, &segment, offset, OPEN);
    }
    let last = proved(&mut running, &segment);
    let request = || BackupRequest::Free {
        master: MASTER,
        segments: vec![SEGMENT],
    };
    let free: Step<'_> = ("free", &|b| ignore(ask(b, MASTER, request())));
    kill_everywhere(&running, free, &|name, mut found, through| {
        check_one_of(name, &mut found, &segment, through, [last, None]);
    });
}

#[test]
fn a_frame_used_again_never_shows_its_former_replica() {
    let (mut old, mut new) = (Segment::new(MASTER, 1), Segment::new(MASTER, 2));
    let mut running = backup(1);
    old.grow(500);
    send(&mut running, &old, 0, OPEN);
    ask(
        &mut running,
        MASTER,
        BackupRequest::Free {
            master: MASTER,
            segments: vec![SEGMENT],
        },
    );
    new.grow(70);
    let mut done = running.clone();
    send(&mut done, &new, 0, OPEN);
    let after = proved(&mut done, &new);
    let open: Step<'_> = ("open", &|b| ignore(send(b, &new, 0, OPEN)));
    kill_everywhere(&running, open, &|name, mut found, through| {
        assert_eq!(proved(&mut found, &old), None, "{name}");
        check_one_of(name, &mut found, &new, through, [None, after]);
    });
}

#[test]
fn a_kill_while_the_superblock_is_written_leaves_one_of_the_two() {
    let before = backup(1);
    for bytes in 0..200 {
        let mut copy = before.clone();
        copy.store_mut().kill_after(bytes);
        copy.assign(CLUSTER, ServerId(91), LEASE_US).unwrap();
        let found = reopen(copy.into_store()).replaces();
        assert!(
            found == Some(BACKUP) || found == Some(ServerId(91)),
            "after {bytes} bytes"
        );
        assert_eq!(
            found == Some(ServerId(91)),
            bytes >= 80,
            "after {bytes} bytes"
        );
    }
}

#[test]
fn a_flipped_bit_is_never_shown_as_the_state() {
    let mut segment = Segment::new(MASTER, 1);
    let mut running = backup(1);
    segment.grow(100);
    send(&mut running, &segment, 0, OPEN);
    segment.grow(100);
    send(&mut running, &segment, 100, MORE);
    for bit in 0..8 * 128 {
        // The second certificate went to the second slot.
        let mut store = running.store().clone();
        store.flip(Area::Frame(0), 2048 + bit / 8, (bit % 8) as u8);
        let mut found = reopen(store);
        let shown = proved(&mut found, &segment).expect("the slot before still counts");
        // The number is 2: without that bit it is that of a slot that was cleared.
        let damaged = u32::from(bit != 1);
        assert_eq!((shown.length, found.damaged()), (100, damaged), "bit {bit}");
    }
}

#[test]
fn a_torn_number_is_not_used_again() {
    let mut segment = Segment::new(MASTER, 1);
    let mut running = backup(1);
    segment.grow(10);
    send(&mut running, &segment, 0, OPEN);
    segment.grow(10);
    send(&mut running, &segment, 10, MORE);
    // Damage the newest slot's body: its number stays, and must not come back with another body.
    running.store_mut().flip(Area::Frame(0), 2048 + 60, 0);
    let (mut frames, found) = Frames::open(running.into_store(), BOOT).unwrap();
    let (frame, slot) = found.replicas[0];
    let identity = ramkeep_backup::Identity {
        master: MASTER,
        segment: SEGMENT,
        kind: slot.kind,
    };
    let state = ramkeep_backup::Certified {
        epoch: slot.epoch,
        length: slot.length,
        closed: false,
        certificate: slot.certificate,
    };
    frames.certify(frame, &identity, &state);
    let (_, found) = Frames::open(frames.into_store(), BOOT).unwrap();
    assert_eq!(found.replicas[0].1.sequence, 3);
}
