//! The frame directory in real files, and the service over it.
#![cfg(feature = "shell")]
#![allow(clippy::unwrap_used, reason = "a failed step of a test is its failure")]

mod common;

use std::fs;
use std::path::Path;

use common::*;
use ramkeep_backup::Geometry;
use ramkeep_backup::shell::{BackupService, OpenError};
use ramkeep_rpc::{Batch, Peer, Service, Session, Wake};
use ramkeep_wire::backup::{BackupRequest, BackupResponse};
use ramkeep_wire::envelope::{self, Header, Kind};
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::limits::KEPT_OF_FRAMES;
use ramkeep_wire::replicate::{ReplicateAck, ReplicateStatus, flags};
use ramkeep_wire::*;

fn open(directory: &Path) -> Result<BackupService, OpenError> {
    BackupService::open(directory, geometry(3), Micros(0))
}

fn enlisted(directory: &Path, server: ServerId) -> BackupService {
    let backup = open(directory).unwrap();
    backup.assign(CLUSTER, server, LEASE_US).unwrap();
    backup
}

fn session(backup: &BackupService) -> Box<dyn Session> {
    let peer = Peer {
        party: Party::server(MASTER),
        cluster: CLUSTER,
        address: "test".to_owned(),
    };
    Service::open(backup, &peer, Wake::new())
}

/// Sends payloads in one batch and gives the payloads of the replies, in order.
fn exchange(
    backup: &BackupService,
    to: Party,
    payloads: &[(Kind, Vec<u8>)],
) -> Result<Vec<Vec<u8>>, Refusal> {
    let mut bytes = Vec::new();
    for (correlation, (kind, payload)) in (10..).zip(payloads) {
        let header = Header::new(*kind, correlation, to, Party::server(MASTER));
        envelope::append(&mut bytes, header, payload);
    }
    let mut out = Vec::new();
    session(backup).handle_batch(Micros(5), &mut Batch::new(&bytes), &mut out)?;
    let (mut replies, mut rest) = (Vec::new(), &out[..]);
    while let Some((reply, len)) = envelope::parse(rest).unwrap() {
        assert_eq!(reply.header.correlation, 10 + replies.len() as u64);
        assert_eq!(
            (reply.header.from, reply.header.to),
            (to, Party::server(MASTER))
        );
        replies.push(reply.payload.to_vec());
        rest = &rest[len..];
    }
    Ok(replies)
}

fn replicate(segment: &Segment, offset: u32, flags: u8) -> (Kind, Vec<u8>) {
    let mut payload = Vec::new();
    segment.message(offset, flags).write(&mut payload);
    (Kind::Replicate, payload)
}

fn request(request: &BackupRequest) -> (Kind, Vec<u8>) {
    (Kind::BackupRequest, postcards::encode(request))
}

const TO: Party = Party(BACKUP.0);

#[test]
fn a_coordinators_directory_is_refused_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join(directory::JOURNAL);
    fs::write(&journal, b"journal").unwrap();
    let refused = open(folder.path()).unwrap_err();
    assert!(matches!(refused, OpenError::Coordinators(_)), "{refused}");
    assert!(
        refused
            .to_string()
            .contains("the directory of a coordinator")
    );
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    // One that both had before goes on.
    fs::remove_file(&journal).unwrap();
    drop(open(folder.path()).unwrap());
    fs::write(&journal, b"journal").unwrap();
    assert!(open(folder.path()).is_ok());
}

#[test]
fn a_restarted_process_has_its_replicas_and_names_the_former_server() {
    let folder = tempfile::tempdir().unwrap();
    let mut segment = Segment::new(MASTER, 1);
    segment.grow(500);
    {
        let backup = open(folder.path()).unwrap();
        assert_eq!((backup.replaces(), backup.cluster()), (None, None));
        backup.assign(CLUSTER, BACKUP, LEASE_US).unwrap();
        let lease = OPEN | flags::LEASE;
        let replies = exchange(&backup, TO, &[replicate(&segment, 0, lease)]).unwrap();
        let ack = ReplicateAck::read(&replies[0]).unwrap();
        assert_eq!((ack.status, ack.length), (ReplicateStatus::Done, 500));
        assert_eq!(ack.lease_us, LEASE_US);
    }
    let backup = open(folder.path()).unwrap();
    assert_eq!(backup.replaces(), Some(BACKUP));
    assert_eq!(backup.cluster(), Some(CLUSTER));
    backup.assign(CLUSTER, ServerId(91), LEASE_US).unwrap();
    assert_eq!((backup.stats().used, backup.stats().inherited), (1, 1));
    let fetch = BackupRequest::Fetch {
        master: MASTER,
        segment: SEGMENT,
        offset: 0,
        length: 8192,
    };
    let replies = exchange(&backup, Party(91), &[request(&fetch)]).unwrap();
    let (response, bytes) = BackupResponse::read(&replies[0]).unwrap();
    let BackupResponse::Bytes { replica, .. } = response else {
        panic!("{response:?}")
    };
    assert!(replica.inherited && segment.proves(&replica, bytes));
    assert_eq!(bytes, &segment.bytes);
}

#[test]
fn a_batch_is_answered_in_order_in_one_piece() {
    let folder = tempfile::tempdir().unwrap();
    let backup = enlisted(folder.path(), BACKUP);
    let mut segment = Segment::new(MASTER, 1);
    let mut batch = Vec::new();
    for step in 0..10 {
        segment.grow(100);
        batch.push(replicate(&segment, step * 100, OPEN));
    }
    let list = BackupRequest::Inventory {
        master: MASTER,
        after: None,
    };
    batch.push(request(&list));
    let replies = exchange(&backup, TO, &batch).unwrap();
    assert_eq!(replies.len(), 11);
    for (reply, length) in replies
        .iter()
        .zip([100, 200, 300, 400, 500, 600, 700, 800, 900, 1000])
    {
        assert_eq!(ReplicateAck::read(reply).unwrap().length, length);
    }
    let (response, _) = BackupResponse::read(&replies[10]).unwrap();
    assert!(matches!(response, BackupResponse::Inventory(shown) if shown[0].length == 1000));
}

#[test]
fn frames_are_prepared_ahead_and_all_of_them_can_be_used() {
    let folder = tempfile::tempdir().unwrap();
    let backup = BackupService::open(folder.path(), geometry(9), Micros(0)).unwrap();
    backup.assign(CLUSTER, BACKUP, LEASE_US).unwrap();
    // But for those that are kept for recovery.
    let usable = 9 - 9 / KEPT_OF_FRAMES as u32;
    for id in 1..=u64::from(usable) {
        let mut segment = Segment::new(MASTER, id);
        segment.grow(SIZE as usize);
        let status = loop {
            // A frame may be out to be prepared for a moment; a master asks again.
            let replies = exchange(&backup, TO, &[replicate(&segment, 0, OPEN)]).unwrap();
            let status = ReplicateAck::read(&replies[0]).unwrap().status;
            if status != ReplicateStatus::NoFrame {
                break status;
            }
            std::thread::yield_now();
        };
        assert_eq!(status, ReplicateStatus::Done);
    }
    assert_eq!(backup.stats().used, usable);
}

#[test]
fn what_is_meant_for_another_server_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut segment = Segment::new(MASTER, 1);
    let message = [replicate(segment.grow(10), 0, OPEN)];
    let fresh = open(folder.path()).unwrap();
    let refused = exchange(&fresh, Party::NONE, &message).unwrap_err();
    assert_eq!(refused, Refusal::Party(Party::NONE), "not enlisted yet");
    fresh.assign(CLUSTER, BACKUP, LEASE_US).unwrap();
    for to in [Party::NONE, Party(89), Party::client(ClientId(BACKUP.0))] {
        let refused = exchange(&fresh, to, &message).unwrap_err();
        assert_eq!(refused, Refusal::Party(TO));
    }
    assert_eq!(fresh.stats().used, 0);
}

#[test]
fn payloads_that_are_none_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let backup = enlisted(folder.path(), BACKUP);
    for wrong in [
        (Kind::Replicate, vec![1; 20]),
        (Kind::BackupRequest, vec![200; 9]),
        (Kind::DataRequest, vec![]),
    ] {
        let refused = exchange(&backup, TO, &[wrong]).unwrap_err();
        assert!(matches!(refused, Refusal::Malformed(_)), "{refused:?}");
    }
}

#[test]
fn two_processes_never_share_a_directory() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path()).unwrap();
    let refused = open(folder.path()).unwrap_err();
    assert!(matches!(refused, OpenError::InUse(_)), "{refused}");
    let held = session(&first);
    drop(first);
    assert!(open(folder.path()).is_err(), "a connection still uses it");
    drop(held);
    open(folder.path()).unwrap();
}

#[test]
fn a_file_that_is_not_ours_is_refused_and_left_alone() {
    let foreign: [(&[u8], &str); 4] = [
        (b"", "nothing is there"),
        (b"#!/bin/sh\n", "not a Ramkeep frame file"),
        (&[0; 10_000], "nothing is there"),
        (b"RKFRAMES\x02\0\0\0", "format 2"),
    ];
    for (bytes, reason) in foreign {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("frames");
        fs::write(&file, bytes).unwrap();
        let refused = open(folder.path()).unwrap_err();
        assert!(matches!(refused, OpenError::NotOurs { .. }), "{refused}");
        assert!(refused.to_string().contains(reason), "{refused}");
        assert_eq!(fs::read(&file).unwrap(), bytes);
    }
}

#[test]
fn a_cut_off_file_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    drop(enlisted(folder.path(), BACKUP));
    let file = folder.path().join("frames");
    let whole = fs::metadata(&file).unwrap().len();
    for length in [whole - 1, whole / 2, 8192] {
        let opened = fs::File::options().write(true).open(&file).unwrap();
        opened.set_len(length).unwrap();
        let refused = open(folder.path()).unwrap_err();
        assert!(
            matches!(refused, OpenError::Truncated { found, wanted, .. }
                if found == length && wanted == whole),
            "{refused}"
        );
        assert_eq!(fs::metadata(&file).unwrap().len(), length);
    }
}

#[test]
fn frames_of_another_cluster_or_size_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    drop(enlisted(folder.path(), BACKUP));
    let other = ClusterId([9; 16]);
    let backup = open(folder.path()).unwrap();
    assert!(backup.assign(other, ServerId(91), LEASE_US).is_err());
    drop(backup);
    for (frames, size) in [(2, SIZE), (3, SIZE / 2)] {
        let wanted = Geometry::new(frames, size).unwrap();
        let refused = BackupService::open(folder.path(), wanted, Micros(0)).unwrap_err();
        assert!(matches!(refused, OpenError::NotOurs { .. }), "{refused}");
    }
    let more = BackupService::open(folder.path(), geometry(5), Micros(0)).unwrap();
    assert_eq!((more.stats().frames, more.replaces()), (5, Some(BACKUP)));
}

#[test]
fn a_kill_while_the_file_was_made_leaves_nothing_in_the_way() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("frames.new"), [1; 100_000]).unwrap();
    assert_eq!(open(folder.path()).unwrap().stats().frames, 3);
    assert!(!folder.path().join("frames.new").exists());
}

#[test]
fn the_directory_is_made_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let nested = folder.path().join("a/b");
    drop(open(&nested).unwrap());
    let mode = fs::metadata(&nested).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}
