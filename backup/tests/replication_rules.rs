//! What a backup makes of each replication message.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is its failure")]

mod common;

use common::*;
use ramkeep_wire::limits::KEPT_OF_FRAMES;
use ramkeep_wire::replicate::ReplicateStatus::{self, *};
use ramkeep_wire::replicate::{Replicate, ReplicateAck, flags};
use ramkeep_wire::*;

fn status(ack: &ReplicateAck) -> (ReplicateStatus, u32, u32, u8) {
    (ack.status, ack.epoch.0, ack.length, ack.flags)
}

fn opened(length: usize) -> (Memory, Segment) {
    let (mut backup, mut segment) = (backup(4), Segment::new(MASTER, 1));
    segment.grow(length);
    let ack = send(&mut backup, &segment, 0, OPEN);
    assert_eq!(status(&ack), (Done, 1, length as u32, flags::COMPLETE));
    (backup, segment)
}

#[test]
fn a_replica_opens_grows_and_closes() {
    let (mut backup, mut segment) = opened(100);
    segment.grow(50);
    let ack = send(&mut backup, &segment, 100, MORE);
    assert_eq!(status(&ack), (Done, 1, 150, flags::COMPLETE));
    let ack = send(&mut backup, &segment, 150, CLOSE);
    assert_eq!(
        status(&ack),
        (Done, 1, 150, flags::COMPLETE | flags::CLOSED)
    );
    let info = proved(&mut backup, &segment).expect("a closed replica is shown");
    assert!(info.closed && info.length == 150 && !info.inherited && info.boot == BOOT);
}

#[test]
fn what_was_not_opened_is_unknown() {
    let (mut backup, mut segment) = (backup(1), Segment::new(MASTER, 1));
    segment.grow(10);
    assert_eq!(
        status(&send(&mut backup, &segment, 0, MORE)),
        (Unknown, 0, 0, 0)
    );
    assert_eq!(backup.stats().used, 0);
}

#[test]
fn without_a_free_frame_no_replica_opens_and_others_go_on() {
    let (mut backup, mut first) = (backup(1), Segment::new(MASTER, 1));
    first.grow(10);
    send(&mut backup, &first, 0, OPEN);
    let mut second = Segment::new(MASTER, 2);
    second.grow(10);
    assert_eq!(send(&mut backup, &second, 0, OPEN).status, NoFrame);
    first.grow(10);
    assert_eq!(send(&mut backup, &first, 10, MORE).status, Done);
}

#[test]
fn some_frames_are_kept_until_a_recovery_needs_them() {
    const FRAMES: u32 = 8;
    let mut backup = backup(FRAMES);
    let opens = |backup: &mut Memory, master, id| {
        let mut segment = Segment::new(master, id);
        segment.grow(10);
        send(backup, &segment, 0, OPEN).status
    };
    let dead = ServerId(6);
    assert_eq!(opens(&mut backup, dead, 1), Done);
    let kept = u64::from(FRAMES) / KEPT_OF_FRAMES as u64;
    let free = u64::from(FRAMES) - kept;
    for id in 2..=free {
        assert_eq!(opens(&mut backup, MASTER, id), Done, "{id}");
    }
    assert_eq!(opens(&mut backup, MASTER, 20), NoFrame);
    // A copy of the dead master's log needs them, as long as its replicas are here.
    backup.fence(dead);
    assert_eq!(opens(&mut backup, MASTER, 20), Done);
    backup.free_master(dead);
    assert_eq!(opens(&mut backup, MASTER, 21), NoFrame);
    let mut known = Segment::new(MASTER, 20);
    known.grow(30);
    assert_eq!(send(&mut backup, &known, 10, MORE).status, Done);
}

#[test]
fn without_memory_for_a_frame_no_replica_opens() {
    let (mut backup, mut segment) = (backup(2), Segment::new(MASTER, 1));
    backup.store_mut().limit_room(0);
    segment.grow(10);
    assert_eq!(send(&mut backup, &segment, 0, OPEN).status, NoFrame);
    backup.store_mut().limit_room(1);
    assert_eq!(send(&mut backup, &segment, 0, OPEN).status, Done);
}

#[test]
fn a_repeat_is_acknowledged_with_the_state_as_it_is() {
    let (mut backup, mut segment) = opened(100);
    let early = segment.clone();
    segment.grow(100);
    send(&mut backup, &segment, 100, MORE);
    let again = send(&mut backup, &early, 0, OPEN);
    assert_eq!(status(&again), (Done, 1, 200, flags::COMPLETE));
    assert_eq!(proved(&mut backup, &segment).map(|i| i.length), Some(200));
}

#[test]
fn bytes_that_start_too_late_leave_a_gap_and_change_nothing() {
    let (mut backup, mut segment) = opened(100);
    segment.grow(100);
    let ack = send(&mut backup, &segment, 150, MORE);
    assert_eq!(status(&ack), (Gap, 1, 100, flags::COMPLETE));
    assert_eq!(proved(&mut backup, &segment).map(|i| i.length), Some(100));
}

#[test]
fn an_overlap_must_be_what_is_held() {
    let (mut backup, mut segment) = opened(100);
    segment.grow(100);
    segment.bytes[60] ^= 1;
    assert_eq!(send(&mut backup, &segment, 50, MORE).status, Refused);
    segment.bytes[60] ^= 1;
    assert_eq!(send(&mut backup, &segment, 50, MORE).status, Done);
    assert_eq!(proved(&mut backup, &segment).map(|i| i.length), Some(200));
}

#[test]
fn a_lower_epoch_is_refused_and_a_higher_one_adopted_without_a_byte() {
    let (mut backup, mut segment) = opened(100);
    let old = segment.clone();
    segment.epoch = ReplicationEpoch(3);
    let ack = send(&mut backup, &segment, 100, MORE);
    assert_eq!(status(&ack), (Done, 3, 100, flags::COMPLETE));
    assert_eq!(proved(&mut backup, &segment).map(|i| i.epoch.0), Some(3));
    let stale = send(&mut backup, &old, 100, MORE);
    assert_eq!(status(&stale), (StaleEpoch, 3, 100, flags::COMPLETE));
}

#[test]
fn an_epoch_adopted_without_a_certificate_is_not_complete() {
    let (mut backup, mut segment) = opened(100);
    let old = segment.clone();
    segment.epoch = ReplicationEpoch(2);
    assert_eq!(
        status(&send(&mut backup, &segment, 100, 0)),
        (Done, 2, 100, 0)
    );
    assert_eq!(send(&mut backup, &old, 100, MORE).status, StaleEpoch);
    let shown = proved(&mut backup, &old).expect("the certified state stays");
    assert_eq!(shown.epoch.0, 1);
}

#[test]
fn a_copy_under_way_is_invisible_until_it_is_complete() {
    let (mut backup, mut segment) = (backup(1), Segment::new(MASTER, 1));
    segment.grow(1000);
    for (from, to) in [(0, 400), (400, 999)] {
        let ack = backup.handle_replicate(NOW, MASTER, &segment.part(from, to, COPY));
        assert_eq!(status(&ack), (Done, 1, to, 0));
        assert_eq!(proved(&mut backup, &segment), None);
    }
    let ack = send(&mut backup, &segment, 999, MORE);
    assert_eq!(status(&ack), (Done, 1, 1000, flags::COMPLETE));
    assert_eq!(proved(&mut backup, &segment).map(|i| i.length), Some(1000));
}

#[test]
fn bytes_after_the_certificate_leave_the_last_complete_state() {
    let (mut backup, mut segment) = opened(100);
    segment.grow(300);
    let ack = backup.handle_replicate(NOW, MASTER, &segment.part(100, 300, 0));
    assert_eq!(status(&ack), (Done, 1, 300, 0));
    assert_eq!(proved(&mut backup, &segment).map(|i| i.length), Some(100));
}

#[test]
fn a_closed_replica_takes_only_identical_repeats() {
    let (mut backup, mut segment) = opened(100);
    let open = segment.clone();
    send(&mut backup, &segment, 100, CLOSE);
    let closed = flags::CLOSED | flags::COMPLETE;
    assert_eq!(
        status(&send(&mut backup, &segment, 0, CLOSE)),
        (Done, 1, 100, closed)
    );
    assert_eq!(
        status(&send(&mut backup, &open, 0, OPEN)),
        (Done, 1, 100, closed),
        "a late repeat from before the close"
    );
    let mut other = segment.message(100, CLOSE);
    other.certificate.hash[0] ^= 1;
    assert_eq!(backup.handle_replicate(NOW, MASTER, &other).status, Closed);
    segment.grow(1);
    assert_eq!(send(&mut backup, &segment, 100, MORE).status, Closed);
    assert_eq!(send(&mut backup, &segment, 101, CLOSE).status, Closed);
    segment.bytes[0] ^= 1;
    segment.bytes.truncate(100);
    assert_eq!(send(&mut backup, &segment, 0, CLOSE).status, Refused);
    assert!(proved(&mut backup, &open).is_some_and(|info| info.closed));
}

#[test]
fn a_closed_replica_follows_the_epoch() {
    let (mut backup, mut segment) = opened(100);
    send(&mut backup, &segment, 100, CLOSE);
    segment.epoch = ReplicationEpoch(9);
    let ack = send(&mut backup, &segment, 100, CLOSE);
    assert_eq!(ack.epoch.0, 9);
    let mut backup = restart(backup);
    let info = proved(&mut backup, &segment).expect("closed replicas are shown");
    assert_eq!((info.epoch.0, info.closed), (9, true));
}

#[test]
fn a_certificate_never_covers_less_than_the_one_before() {
    let (mut backup, mut segment) = opened(100);
    segment.bytes.truncate(50);
    segment.epoch = ReplicationEpoch(2);
    assert_eq!(send(&mut backup, &segment, 0, MORE).status, Refused);
    segment.epoch = ReplicationEpoch(1);
    assert_eq!(send(&mut backup, &segment, 0, CLOSE).status, Refused);
    segment.grow(50);
    assert_eq!(proved(&mut backup, &segment).map(|i| i.length), Some(100));
}

#[test]
fn another_certificate_for_the_same_state_is_refused() {
    let (mut backup, segment) = opened(100);
    let mut message = segment.message(100, MORE);
    message.certificate.hash[31] ^= 0x80;
    assert_eq!(
        backup.handle_replicate(NOW, MASTER, &message).status,
        Refused
    );
    assert!(proved(&mut backup, &segment).is_some());
}

#[test]
fn messages_that_make_no_sense_are_refused_and_take_no_frame() {
    let mut backup = backup(1);
    let mut segment = Segment::new(MASTER, 1);
    segment.grow(SIZE as usize + 1);
    let good = segment.part(0, 10, OPEN);
    let wrong = [
        Replicate {
            flags: OPEN | 0x40,
            ..good
        },
        Replicate {
            flags: flags::OPEN | flags::CLOSED,
            ..good
        },
        Replicate {
            certificate: Certificate::NONE,
            ..good
        },
        Replicate {
            segment: SegmentId(0),
            ..good
        },
        Replicate { length: 11, ..good },
        segment.message(0, OPEN),
        Replicate {
            offset: u32::MAX,
            length: 9,
            ..good
        },
    ];
    for message in wrong {
        let ack = backup.handle_replicate(NOW, MASTER, &message);
        assert_eq!(ack.status, Refused, "{message:?}");
    }
    let nobody = backup.handle_replicate(NOW, ServerId(0), &good);
    assert_eq!(nobody.status, Refused);
    assert_eq!(backup.stats().used, 0);
    assert_eq!(backup.handle_replicate(NOW, MASTER, &good).status, Done);
    let other_kind = Replicate {
        kind: SegmentKind::Side,
        ..good
    };
    assert_eq!(
        backup.handle_replicate(NOW, MASTER, &other_kind).status,
        Refused
    );
}

#[test]
fn a_full_segment_fits_its_frame() {
    let (mut backup, mut segment) = (backup(2), Segment::new(MASTER, 1));
    segment.grow(SIZE as usize);
    assert_eq!(send(&mut backup, &segment, 0, OPEN).length, SIZE);
    assert_eq!(proved(&mut backup, &segment).map(|i| i.length), Some(SIZE));
}

#[test]
fn a_lease_is_granted_when_asked_for_and_done() {
    let (mut backup, mut segment) = opened(10);
    assert_eq!(send(&mut backup, &segment, 10, MORE).lease_us, 0);
    let lease = MORE | flags::LEASE;
    assert_eq!(send(&mut backup, &segment, 10, lease).lease_us, LEASE_US);
    segment.grow(10);
    assert_eq!(send(&mut backup, &segment, 15, lease).lease_us, 0, "a gap");
    backup.fence(MASTER);
    let ack = send(&mut backup, &segment, 10, lease);
    assert_eq!((ack.status, ack.lease_us), (Fenced, 0));
    assert_eq!(proved_length_after_wait(&mut backup, &segment), 10);
}

/// The fenced master's replica, seen by recovery once the grant has run out.
fn proved_length_after_wait(backup: &mut Memory, segment: &Segment) -> u32 {
    use ramkeep_wire::backup::{BackupRequest, BackupResponse};
    let request = BackupRequest::Inventory {
        master: segment.master,
        after: None,
    };
    let later = Micros(NOW.0 + 10 * u64::from(LEASE_US));
    let answer = backup.handle_request(later, Party::server(ServerId(77)), request);
    match answer.response {
        BackupResponse::Inventory(shown) => shown[0].length,
        other => panic!("no inventory: {other:?}"),
    }
}
