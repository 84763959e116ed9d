//! Scans: every object that stays exactly once, nothing that is not durable.

use std::collections::{BTreeMap, BTreeSet};

use ramkeep_master::store::{MAX_SCANS, Store};
use ramkeep_wire::bytes::Reader;
use ramkeep_wire::data::{Op, ScanCursor, ScanObject, Status};
use ramkeep_wire::limits::{MAX_SCAN_PAGE, MAX_VALUE};
use ramkeep_wire::order::TabletGrant;
use ramkeep_wire::{KeyHash, TableId, key_hash};

use crate::support::{Connection, TABLE, ask, make_durable, store, whole};

const EVERYTHING: (u64, u64) = (0, u64::MAX);

fn cursor(range: (u64, u64), after: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let hash = if after.is_empty() {
        KeyHash(range.0)
    } else {
        key_hash(TABLE, after)
    };
    ScanCursor {
        hash,
        until: KeyHash(range.1),
        after,
    }
    .write(&mut bytes);
    bytes
}

struct Page {
    more: bool,
    objects: Vec<(Vec<u8>, Vec<u8>)>,
    len: usize,
}

fn page(store: &Store, connection: &mut Connection, cursor: &[u8]) -> Page {
    let id = connection.send(store, &[ask(Op::Scan, b"", cursor)])[0];
    for _ in 0..100_000 {
        connection.release(store);
        if let Some(reply) = connection.replies().remove(&id) {
            assert_eq!(reply.status, Status::Ok);
            return read_page(&reply.value);
        }
    }
    panic!("the scan never ends");
}

fn read_page(bytes: &[u8]) -> Page {
    let mut reader = Reader(&bytes[1..]);
    let mut objects = Vec::new();
    while let Some(object) = ScanObject::read(&mut reader).unwrap() {
        objects.push((object.key.to_vec(), object.value.to_vec()));
    }
    Page {
        more: bytes[0] == 1,
        objects,
        len: bytes.len(),
    }
}

/// Scans a range to its end; between pages, `meanwhile` may change the store.
fn scan(
    store: &Store,
    range: (u64, u64),
    mut meanwhile: impl FnMut(&Store, usize),
) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut connection = Connection::default();
    let mut all: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for pages in 0.. {
        let after = all.last().map(|(key, _)| key.clone()).unwrap_or_default();
        let page = page(store, &mut connection, &cursor(range, &after));
        assert!(page.len <= MAX_SCAN_PAGE || page.objects.len() == 1);
        all.extend(page.objects);
        if !page.more {
            break;
        }
        meanwhile(store, pages);
    }
    let places: Vec<_> = all
        .iter()
        .map(|(key, _)| (key_hash(TABLE, key), key))
        .collect();
    assert!(places.is_sorted(), "in the order of hash and key");
    all
}

fn keys(objects: &[(Vec<u8>, Vec<u8>)]) -> BTreeSet<Vec<u8>> {
    let set: BTreeSet<_> = objects.iter().map(|(key, _)| key.clone()).collect();
    assert_eq!(set.len(), objects.len(), "an object is shown twice");
    set
}

fn write(store: &Store, table: TableId, n: u32, value: &[u8]) {
    let key = n.to_le_bytes();
    let tablets = store.tablets();
    let owned = tablets.owned(table, &key).unwrap();
    let answer = store
        .writer()
        .write(&store.pin(), owned, value, Default::default());
    assert_eq!(answer.status, Status::Ok);
}

#[test]
fn a_scan_shows_each_object_once_with_its_value() {
    let store = store(false, 1 << 20, 6);
    for n in 0..9000u32 {
        write(&store, TABLE, n, &n.to_be_bytes().repeat(10));
    }
    let shown: BTreeMap<_, _> = scan(&store, EVERYTHING, |_, _| ()).into_iter().collect();
    assert_eq!(shown.len(), 9000);
    for n in 0..9000u32 {
        assert_eq!(shown[&n.to_le_bytes()[..]], n.to_be_bytes().repeat(10));
    }
}

#[test]
fn objects_that_stay_are_shown_once_while_others_come_and_go_and_the_index_grows() {
    let store = store(false, 1 << 20, 40);
    let value = [5; 400];
    for n in 0..6000u32 {
        write(&store, TABLE, n, &value);
    }
    let mut next = 6000u32;
    let before = store.stats().index;
    let shown = scan(&store, EVERYTHING, |store, pages| {
        let mut connection = Connection::default();
        for _ in 0..3000 {
            write(store, TABLE, next, &value[..10]);
            next += 1;
        }
        for n in (pages as u32 * 10..6000).step_by(7) {
            // Overwritten, which moves it in the log, or removed.
            if n % 2 == 0 {
                write(store, TABLE, n, &value);
            } else {
                connection.remove(store, &n.to_le_bytes()).unwrap();
            }
        }
    });
    assert!(
        store.stats().index > before,
        "the index has grown meanwhile"
    );
    let shown = keys(&shown);
    let mut connection = Connection::default();
    for n in 0..6000u32 {
        let key = n.to_le_bytes();
        let stayed = connection.read(&store, &key).unwrap().status == Status::Ok;
        assert!(!stayed || shown.contains(&key[..]), "{n} was missed");
    }
}

#[test]
fn a_range_is_scanned_within_its_bounds() {
    let store = store(false, 1 << 20, 6);
    for n in 0..5000u32 {
        write(&store, TABLE, n, b"v");
    }
    let (first, last) = (1 << 62, 3 << 62);
    let shown = keys(&scan(&store, (first, last), |_, _| ()));
    for n in 0..5000u32 {
        let key = n.to_le_bytes();
        let inside = (first..=last).contains(&key_hash(TABLE, &key).0);
        assert_eq!(shown.contains(&key[..]), inside);
    }
}

#[test]
fn a_page_is_held_until_the_newest_object_and_removal_on_it_are_durable() {
    let store = store(true, 64 << 10, 4);
    write(&store, TABLE, 1, b"v");
    let mut connection = Connection::default();
    let all = cursor(EVERYTHING, b"");
    let scan = |connection: &mut Connection| {
        for _ in 0..100 {
            connection.release(&store);
        }
        connection.replies()
    };
    let id = connection.send(&store, &[ask(Op::Scan, b"", &all)])[0];
    assert!(
        scan(&mut connection).is_empty(),
        "the object is not durable"
    );
    make_durable(&store);
    assert_eq!(
        read_page(&scan(&mut connection)[&id].value).objects.len(),
        1
    );

    let removal = connection.send(&store, &[ask(Op::Remove, &1u32.to_le_bytes(), b"")])[0];
    let id = connection.send(&store, &[ask(Op::Scan, b"", &all)])[0];
    assert!(
        scan(&mut connection).is_empty(),
        "the removal is not durable"
    );
    make_durable(&store);
    let replies = scan(&mut connection);
    assert_eq!(replies[&removal].status, Status::Ok);
    assert!(read_page(&replies[&id].value).objects.is_empty());
}

#[test]
fn a_scan_of_a_sparse_table_gives_way_to_others() {
    let store = store(false, 1 << 20, 20);
    let sparse = TableId(2);
    store.take_tablets(&[whole(sparse)]).unwrap();
    for n in 0..30_000u32 {
        write(&store, sparse, n, b"v");
    }
    write(&store, TABLE, 5, b"five");
    let mut connection = Connection::default();
    let all = cursor(EVERYTHING, b"");
    let ids = connection.send(
        &store,
        &[ask(Op::Scan, b"", &all), ask(Op::Read, b"absent", b"")],
    );
    let replies = connection.replies();
    assert_eq!(
        replies.keys().copied().collect::<Vec<_>>(),
        [ids[1]],
        "the read went first"
    );
    assert!(connection.session.holds());
    let shown = scan(&store, EVERYTHING, |_, _| ());
    assert_eq!(shown, [(5u32.to_le_bytes().to_vec(), b"five".to_vec())]);
}

#[test]
fn a_first_object_over_the_page_has_a_page_of_its_own() {
    let store = store(false, 8 << 20, 3);
    let value = vec![1; MAX_VALUE];
    for n in 0..3 {
        write(&store, TABLE, n, &value);
    }
    assert_eq!(keys(&scan(&store, EVERYTHING, |_, _| ())).len(), 3);
}

#[test]
fn scans_that_cannot_be_are_refused() {
    let store = store(false, 64 << 10, 4);
    let tablet = |first, last| TabletGrant {
        table: TableId(9),
        first: KeyHash(first),
        last: KeyHash(last),
    };
    store.take_tablets(&[tablet(0, 99)]).unwrap();
    let mut connection = Connection::default();
    let status = |connection: &mut Connection, cursor: &[u8]| {
        connection.call(&store, ask(Op::Scan, b"", cursor)).status
    };
    assert_eq!(status(&mut connection, b"short"), Status::Invalid);
    assert_eq!(
        status(&mut connection, &cursor((5, 4), b"")),
        Status::Invalid
    );
    store.drop_table(TABLE);
    assert_eq!(
        status(&mut connection, &cursor(EVERYTHING, b"")),
        Status::WrongServer
    );
    let all = cursor(EVERYTHING, b"");
    let asks: Vec<_> = (0..MAX_SCANS + 3)
        .map(|_| ask(Op::Scan, b"", &all))
        .collect();
    connection.send(&store, &asks);
    let put_off = |status: &Status| *status == Status::RetryLater;
    let statuses: Vec<_> = connection
        .replies()
        .into_values()
        .map(|reply| reply.status)
        .collect();
    assert_eq!(statuses.iter().filter(|status| put_off(status)).count(), 3);
}
