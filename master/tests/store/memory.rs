//! Full memory: an error to writers, and no obstacle to removing.

use proptest::prelude::*;
use ramkeep_master::store::{Store, StoreConfig, StoreError};
use ramkeep_wire::data::{Op, Status};
use ramkeep_wire::{SegmentId, entry};

use crate::support::{CLUSTER, Connection, MASTER, Reply, ask, make_durable, store};

/// Calls until the answer is another than to try later; everything is durable at once.
fn call(store: &Store, connection: &mut Connection, op: Op, key: &[u8], value: &[u8]) -> Reply {
    loop {
        connection.send(store, &[ask(op, key, value)]);
        make_durable(store);
        connection.release(store);
        let reply = connection
            .replies()
            .into_values()
            .next()
            .expect("all is durable");
        if reply.status != Status::RetryLater {
            return reply;
        }
    }
}

fn fill(store: &Store, connection: &mut Connection, value: &[u8]) -> u32 {
    let mut written = 0u32;
    loop {
        let reply = call(store, connection, Op::Write, &written.to_le_bytes(), value);
        match reply.status {
            Status::Ok => written += 1,
            Status::OutOfMemory => return written,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_full_master_refuses_writes_and_removes_everything() {
    for replicated in [false, true] {
        let store = store(replicated, 16 << 10, 20);
        let mut connection = Connection::default();
        let written = fill(&store, &mut connection, &[7; 100]);
        assert!(written > 1000, "only {written} objects fit");
        let full = store.stats();
        assert!(full.used <= full.memory);
        assert_eq!(full.objects, u64::from(written));
        for n in (0..written).rev() {
            let key = n.to_le_bytes();
            let removed = call(&store, &mut connection, Op::Remove, &key, b"");
            assert_eq!(removed, Reply::new(Status::Ok, 1, b""));
            assert!(store.stats().used <= full.memory);
        }
        let empty = store.stats();
        assert_eq!(
            (empty.objects, empty.live, empty.payload, empty.reserved),
            (0, 0, 0, 0)
        );
        for n in 0..written {
            let read = call(&store, &mut connection, Op::Read, &n.to_le_bytes(), b"");
            assert_eq!(read.status, Status::Absent);
        }
    }
}

#[test]
fn a_refused_write_leaves_the_old_object() {
    let store = store(false, 16 << 10, 6);
    let mut connection = Connection::default();
    fill(&store, &mut connection, &[7; 100]);
    let large = vec![8; 3000];
    let refused = call(
        &store,
        &mut connection,
        Op::Write,
        &3u32.to_le_bytes(),
        &large,
    );
    assert_eq!(refused, Reply::new(Status::OutOfMemory, 0, b""));
    let read = call(&store, &mut connection, Op::Read, &3u32.to_le_bytes(), b"");
    assert_eq!(read, Reply::new(Status::Ok, 1, &[7; 100]));
}

#[test]
fn figures_are_those_of_the_objects() {
    let store = store(false, 64 << 10, 4);
    let mut connection = Connection::default();
    call(&store, &mut connection, Op::Write, b"a", b"12345");
    call(&store, &mut connection, Op::Write, b"bc", b"");
    call(&store, &mut connection, Op::Write, b"a", b"123");
    call(
        &store,
        &mut connection,
        Op::Increment,
        b"n",
        &1i64.to_le_bytes(),
    );
    call(&store, &mut connection, Op::Write, b"gone", b"x");
    call(&store, &mut connection, Op::Remove, b"gone", b"");
    let stats = store.stats();
    assert_eq!(stats.objects, 3);
    assert_eq!(stats.payload, 1 + 3 + 2 + 1 + 8);
    assert_eq!(stats.live, stats.payload + 3 * 24);
    let tombstones = [1, 2, 1].map(entry::tombstone_len);
    assert_eq!(stats.reserved, tombstones.iter().sum::<usize>() as u64);
    // Live in the segment: the objects, and the tombstones while their objects' segment is there.
    let dead = (entry::tombstone_len(1) + entry::tombstone_len(4)) as u64;
    assert_eq!(
        store.writer().log().live_bytes(SegmentId(1)),
        Some(stats.live + dead)
    );
}

#[test]
fn too_small_a_budget_is_refused() {
    let config = StoreConfig {
        cluster: CLUSTER,
        master: MASTER,
        key: None,
        memory: 64 << 10,
        segment_size: 64 << 10,
        first_segment: SegmentId(1),
    };
    let error = Store::new(config).expect_err("no room for index and segments");
    assert!(
        matches!(error, StoreError::TooSmall { memory: 65536, .. }),
        "{error}"
    );
}

#[derive(Clone, Debug)]
enum Step {
    Write { key: u8, key_len: u8, len: u16 },
    Remove { key: u8, key_len: u8 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let write = (0..40u8, 1..200u8, 0..3000u16).prop_map(|(key, key_len, len)| Step::Write {
        key,
        key_len,
        len,
    });
    let remove = (0..40u8, 1..200u8).prop_map(|(key, key_len)| Step::Remove { key, key_len });
    prop::collection::vec(prop_oneof![5 => write, 1 => remove], 1..300)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn whatever_was_written_can_be_removed(steps in steps(), replicated: bool) {
        let store = store(replicated, 16 << 10, 8);
        let mut connection = Connection::default();
        // Key lengths vary with the key's number so that tombstones of all sizes meet.
        let key = |key: u8, key_len: u8| vec![key; usize::from(key_len / 40) * 40 + 1];
        let mut alive = std::collections::BTreeSet::new();
        for step in steps {
            match step {
                Step::Write { key: k, key_len, len } => {
                    let (key, value) = (key(k, key_len), vec![1; usize::from(len)]);
                    let reply = call(&store, &mut connection, Op::Write, &key, &value);
                    match reply.status {
                        Status::Ok => { alive.insert(key); }
                        status => prop_assert_eq!(status, Status::OutOfMemory),
                    }
                }
                Step::Remove { key: k, key_len } => {
                    let key = key(k, key_len);
                    let reply = call(&store, &mut connection, Op::Remove, &key, b"");
                    prop_assert_eq!(reply.status, Status::Ok);
                    prop_assert_eq!(reply.version.0 != 0, alive.remove(&key));
                }
            }
            prop_assert!(store.stats().used <= store.stats().memory);
        }
        for key in alive {
            let reply = call(&store, &mut connection, Op::Remove, &key, b"");
            prop_assert_eq!(reply.status, Status::Ok);
            prop_assert!(reply.version.0 != 0);
        }
        let stats = store.stats();
        prop_assert_eq!((stats.objects, stats.live, stats.reserved), (0, 0, 0));
    }
}
