//! Segments, digests, roll over and certificates.

use ramkeep_master::store::{AppendError, Log, LogConfig};
use ramkeep_memory::SegmentMemory;
use ramkeep_wire::certificate::{Claim, verify};
use ramkeep_wire::data::{Op, Status};
use ramkeep_wire::entry::{Entry, NewEntry, Object};
use ramkeep_wire::segment::{UnverifiedSegment, entries};
use ramkeep_wire::{
    Certificate, LogPosition, ReplicationEpoch, SegmentId, SegmentKind, TableId, Version,
};

use crate::support::{
    CLUSTER, Connection, KEY, MASTER, ask, each_entry, make_durable, segments, store,
};

const SIZE: u32 = 4096;

fn log(replicated: bool, segments: u32) -> Log {
    let config = LogConfig {
        cluster: CLUSTER,
        master: MASTER,
        key: replicated.then_some(KEY),
        segment_size: SIZE,
        max_segments: segments as usize,
    };
    Log::new(config, SegmentMemory::new(segments, SIZE as usize).unwrap()).unwrap()
}

fn object(value: &[u8]) -> NewEntry<'_> {
    let (table, version) = (TableId(1), Version(1));
    NewEntry::Object(Object {
        table,
        version,
        expiry: None,
        key: b"key",
        value,
    })
}

/// Appends until the head is another; returns how many groups there were.
fn fill_head(log: &mut Log) -> usize {
    let head = log.head();
    let mut groups = 0;
    while log.head() == head {
        log.append(&[object(&[1; 500])], usize::MAX).unwrap();
        groups += 1;
    }
    groups
}

fn bytes(log: &Log, id: SegmentId) -> Vec<u8> {
    let guard = log.memory().pin();
    log.bytes(&guard, id, 0..log.info(id).unwrap().length)
        .unwrap()
        .to_vec()
}

#[test]
fn the_first_head_begins_with_header_digest_safe_version_and_is_active() {
    let log = log(true, 4);
    let bytes = bytes(&log, SegmentId(1));
    let entries: Vec<_> = entries(&bytes).map(|entry| entry.unwrap().1).collect();
    let [
        Entry::SegmentHeader(header),
        Entry::Digest(digest),
        safe,
        active,
    ] = entries[..]
    else {
        panic!("unexpected entries {entries:?}");
    };
    assert_eq!((header.cluster, header.master), (CLUSTER, MASTER));
    assert_eq!(
        (header.segment, header.kind, header.size),
        (SegmentId(1), SegmentKind::Head, SIZE)
    );
    let only = digest.iter().next().unwrap();
    assert_eq!(digest.len(), 1);
    assert_eq!((only.segment, only.length), (SegmentId(1), 0));
    assert_eq!(only.certificate, Certificate::NONE);
    assert_eq!(
        (safe, active),
        (Entry::SafeVersion(Version(1)), Entry::Active(SegmentId(0)))
    );
    assert_eq!(log.active_end(SegmentId(1)), Some(bytes.len() as u32));
    assert_eq!(
        log.appended_position(),
        LogPosition::new(SegmentId(1), bytes.len() as u32)
    );
}

#[test]
fn no_third_head_opens_before_the_first_is_durably_closed() {
    let mut log = log(true, 8);
    fill_head(&mut log);
    assert_eq!(
        (log.head(), log.previous_head()),
        (SegmentId(2), Some(SegmentId(1)))
    );
    assert_eq!(log.active_end(SegmentId(2)), None);
    let refused = loop {
        let before = log.appended_position();
        if let Err(error) = log.append(&[object(&[1; 500])], usize::MAX) {
            assert_eq!(
                log.appended_position(),
                before,
                "a refused group changes nothing"
            );
            break error;
        }
    };
    assert_eq!(refused, AppendError::Rolling);
    // The mark has its room in the full head.
    log.predecessor_closed(SegmentId(1));
    assert_eq!(log.previous_head(), None);
    let full = bytes(&log, SegmentId(2));
    assert_eq!(log.active_end(SegmentId(2)), Some(full.len() as u32));
    let last = entries(&full).last().unwrap().unwrap().1;
    assert_eq!(last, Entry::Active(SegmentId(1)));
    log.append(&[object(&[1; 500])], usize::MAX).unwrap();
    assert_eq!(log.head(), SegmentId(3));
    // Said again, it changes nothing.
    let position = log.appended_position();
    log.predecessor_closed(SegmentId(1));
    assert_eq!(log.appended_position(), position);
}

#[test]
fn a_digest_names_every_segment_with_what_proves_it() {
    let mut log = log(true, 8);
    for closed in 1..5 {
        fill_head(&mut log);
        log.predecessor_closed(SegmentId(closed));
    }
    let head = bytes(&log, SegmentId(5));
    let (_, Entry::Digest(digest)) = entries(&head).nth(1).unwrap().unwrap() else {
        panic!("the second entry is the digest");
    };
    let named: Vec<_> = digest.iter().collect();
    assert_eq!(
        named.iter().map(|item| item.segment.0).collect::<Vec<_>>(),
        [1, 2, 3, 4, 5]
    );
    for item in &named[..4] {
        let contents = bytes(&log, item.segment);
        assert_eq!(item.length as usize, contents.len());
        let claim = Claim::closed(
            CLUSTER,
            MASTER,
            item.segment,
            SegmentKind::Head,
            item.length,
        );
        let segment = UnverifiedSegment::new(claim, item.certificate, &contents);
        segment
            .verify(&KEY)
            .expect("a closed segment fits its certificate");
        assert_eq!(
            log.info(item.segment).unwrap().sealed,
            Some(item.certificate)
        );
    }
    assert_eq!(
        (named[4].length, named[4].certificate),
        (0, Certificate::NONE)
    );
}

#[test]
fn a_head_is_certified_at_whatever_length_it_has() {
    let mut log = log(true, 4);
    for epoch in 1..6 {
        log.append(&[object(b"value")], usize::MAX).unwrap();
        let epoch = ReplicationEpoch(epoch);
        let (length, certificate) = log.certify(SegmentId(1), epoch);
        let contents = bytes(&log, SegmentId(1));
        assert_eq!(length as usize, contents.len());
        let claim = Claim {
            cluster: CLUSTER,
            master: MASTER,
            segment: SegmentId(1),
            kind: SegmentKind::Head,
            epoch,
            length,
            closed: false,
        };
        assert!(verify(&KEY, &claim, &contents, &certificate));
        assert_eq!(log.certify(SegmentId(1), epoch), (length, certificate));
    }
    fill_head(&mut log);
    let (length, certificate) = log.certify(SegmentId(1), ReplicationEpoch(9));
    assert_eq!(
        length,
        log.info(SegmentId(1)).unwrap().length,
        "a sealed head has its last length"
    );
    assert!(certificate.is_some());
}

#[test]
fn a_log_without_a_key_hashes_nothing_and_goes_on_at_once() {
    let mut log = log(false, 4);
    for _ in 0..2 {
        fill_head(&mut log);
        assert_eq!(log.previous_head(), None);
        assert_eq!(log.durability().position(), log.appended_position());
    }
    assert_eq!(
        log.certify(SegmentId(3), ReplicationEpoch(1)).1,
        Certificate::NONE
    );
    assert_eq!(
        log.info(SegmentId(1)).unwrap().sealed,
        Some(Certificate::NONE)
    );
}

#[test]
fn a_full_log_and_a_group_over_a_segment_are_refused() {
    let mut log = log(false, 2);
    let huge = vec![1; SIZE as usize];
    assert_eq!(log.append(&[object(&huge)], 9), Err(AppendError::TooLarge));
    assert_eq!(log.segment_count(), 1);
    fill_head(&mut log);
    let refused = loop {
        if let Err(error) = log.append(&[object(&[1; 500])], usize::MAX) {
            break error;
        }
    };
    assert_eq!((refused, log.segment_count()), (AppendError::Full, 2));
    assert_eq!(
        log.append(&[object(&[1; 2000])], 1),
        Err(AppendError::Full),
        "over the budget"
    );
}

#[test]
fn an_object_and_the_tombstone_of_the_one_before_are_in_one_segment() {
    let store = store(true, SIZE, 12);
    let mut connection = Connection::default();
    let mut written = 0;
    for n in 0..200u32 {
        let value = vec![n as u8; n as usize * 7 % 300];
        connection.send(&store, &[ask(Op::Write, b"one key", &value)]);
        make_durable(&store);
        connection.release(&store);
        let reply = connection.replies().into_values().next().unwrap();
        if reply.status == Status::OutOfMemory {
            break;
        }
        assert_eq!(reply.status, Status::Ok);
        written += 1;
    }
    assert!(segments(&store).len() > 3, "rolled over while overwriting");
    let (mut objects, mut tombstones) = (Vec::new(), Vec::new());
    each_entry(&store, LogPosition(u64::MAX), |end, entry| match entry {
        Entry::Tombstone(dead) => tombstones.push((dead.version, dead.segment, end.segment())),
        Entry::Object(object) => {
            if let Some((dead, _, segment)) = tombstones.last() {
                assert_eq!(dead.next(), object.version, "the group is torn apart");
                assert_eq!(*segment, end.segment(), "the group is torn apart");
            }
            objects.push((object.version, end.segment()));
        }
        _ => {}
    });
    assert_eq!(objects.len(), written);
    // Every tombstone names the segment in which the object stands that it kills.
    let dead: Vec<_> = tombstones
        .iter()
        .map(|(version, segment, _)| (*version, *segment))
        .collect();
    assert_eq!(dead, objects[..written - 1]);
}
