//! Readers in other threads while one writes and the durable position moves on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use ramkeep_master::store::Store;
use ramkeep_wire::data::{RejectRules, Status};

use crate::support::{make_durable, owned, store};

const KEYS: u64 = 500;
const WRITES: u64 = 60_000;

/// A value that shows whose it is: the key's number and the version, over and over.
fn value(key: u64, version: u64, len: usize) -> Vec<u8> {
    [key.to_le_bytes(), version.to_le_bytes()]
        .concat()
        .repeat(len)
}

/// Reads all keys again and again; returns the reads whose answer could be shown.
fn read_until(store: &Store, done: &AtomicBool, durable: &[AtomicU64]) -> u64 {
    let (mut shown, mut newest) = (0, BTreeMap::<u64, u64>::new());
    while !done.load(Ordering::Acquire) {
        let (guard, tablets) = (store.pin(), store.tablets());
        for number in 0..KEYS {
            let key = number.to_le_bytes();
            let before = durable[number as usize].load(Ordering::Acquire);
            let read = store.read(&guard, owned(&tablets, &key));
            if let Some(object) = read.object {
                let version = object.version.0;
                let expected = value(number, version, object.value.len() / 16);
                assert_eq!(object.value, expected, "bytes of another object or version");
                if read.shown.is_ok() {
                    assert!(version >= before, "older than what was durable before");
                    let newest = newest.entry(number).or_default();
                    assert!(version >= *newest, "a version went back");
                    *newest = version;
                    shown += 1;
                }
            } else {
                assert_eq!(before, 0, "an object is lost");
            }
        }
    }
    shown
}

#[test]
fn readers_see_whole_objects_whose_versions_never_go_back() {
    let store = store(true, 256 << 10, 200);
    let done = AtomicBool::new(false);
    let durable: Vec<AtomicU64> = (0..KEYS).map(|_| AtomicU64::new(0)).collect();
    let shown = thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| read_until(&store, &done, &durable)))
            .collect();
        let mut versions = BTreeMap::new();
        for n in 0..WRITES {
            let number = n * n % KEYS;
            let key = number.to_le_bytes();
            let version = versions.get(&number).map_or(1, |version| version + 1);
            let answer = store.writer().write(
                &store.pin(),
                owned(&store.tablets(), &key),
                &value(number, version, 1 + (n % 9) as usize),
                RejectRules::default(),
            );
            if answer.status == Status::Ok {
                assert_eq!(answer.version.0, version);
                versions.insert(number, version);
            } else {
                assert_eq!(answer.status, Status::RetryLater);
            }
            if n % 64 == 63 || answer.status == Status::RetryLater {
                make_durable(&store);
                for (number, version) in &versions {
                    durable[*number as usize].store(*version, Ordering::Release);
                }
            }
        }
        done.store(true, Ordering::Release);
        readers
            .into_iter()
            .map(|reader| reader.join().unwrap())
            .sum::<u64>()
    });
    assert!(shown > 0, "nothing was ever shown");
}

#[test]
fn new_keys_are_found_while_the_index_grows_beside_readers() {
    let store = store(false, 1 << 20, 24);
    let published = AtomicU64::new(0);
    const OBJECTS: u64 = 60_000;
    thread::scope(|scope| {
        for reader in 0..2u64 {
            let (store, published) = (&store, &published);
            scope.spawn(move || {
                let mut seed = reader;
                loop {
                    let there = published.load(Ordering::Acquire);
                    let (guard, tablets) = (store.pin(), store.tablets());
                    for _ in 0..there.min(1000) {
                        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        let number = (seed >> 33) % there;
                        let key = number.to_le_bytes();
                        let read = store.read(&guard, owned(&tablets, &key));
                        let object = read.object.expect("written before");
                        assert_eq!(object.value, value(number, 1, 1));
                    }
                    if there == OBJECTS {
                        return;
                    }
                }
            });
        }
        for number in 0..OBJECTS {
            let key = number.to_le_bytes();
            let tablets = store.tablets();
            let value = value(number, 1, 1);
            let rules = RejectRules::default();
            let answer = store
                .writer()
                .write(&store.pin(), owned(&tablets, &key), &value, rules);
            assert_eq!(answer.status, Status::Ok);
            published.store(number + 1, Ordering::Release);
        }
    });
}
