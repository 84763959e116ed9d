//! The store in one thread, without a network: log append, read and write, over far more objects
//! than the caches hold. `cargo run --release -p ramkeep-master --example in_process` prints the
//! figures of a run over ten million objects, with bytes per object.
//!
//! A log without a cleaner fills up: writes go to a fresh store when one is full, outside of the
//! measured time.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ramkeep_master::store::{Log, LogConfig, Owned, Store, StoreConfig, Tablets};
use ramkeep_memory::SegmentMemory;
use ramkeep_wire::certificate::CertificateKey;
use ramkeep_wire::data::{RejectRules, Status};
use ramkeep_wire::entry::{NewEntry, Object};
use ramkeep_wire::order::TabletGrant;
use ramkeep_wire::{ClusterId, KeyHash, ReplicationEpoch, SegmentId, ServerId, TableId, Version};

const TABLE: TableId = TableId(1);
const VALUE: [u8; 100] = [7; 100];
const SEGMENT_SIZE: u32 = 8 << 20;
/// Segments of the logs appended to.
const SEGMENTS: u32 = 32;
/// Objects read and overwritten: 300 MB.
const OBJECTS: u64 = 2_000_000;
/// Operations in flight at a time, as with a batch of requests.
const BATCH: usize = 16;

fn log(key: Option<CertificateKey>) -> Log {
    let memory = SegmentMemory::new(SEGMENTS, SEGMENT_SIZE as usize).expect("address space");
    memory.populate_all();
    let config = LogConfig {
        cluster: ClusterId([1; 16]),
        master: ServerId(1),
        key,
        segment_size: SEGMENT_SIZE,
        max_segments: SEGMENTS as usize,
    };
    Log::new(config, memory).expect("a log in fresh memory")
}

/// Appends objects of a 20-byte key, each as a group; with a key, certifies every 16 of them.
fn append(key: Option<CertificateKey>, iterations: u64) -> Duration {
    let mut spent = Duration::ZERO;
    let mut log = log(key);
    let object = NewEntry::Object(Object {
        table: TABLE,
        version: Version(1),
        expiry: None,
        key: &[3; 20],
        value: &VALUE,
    });
    let mut begin = Instant::now();
    for n in 0..iterations {
        if log.append(&[object], usize::MAX).is_err() {
            spent += begin.elapsed();
            log = self::log(key);
            begin = Instant::now();
        }
        if key.is_some() && n % 16 == 15 {
            black_box(log.certify(log.head(), ReplicationEpoch(1)));
            if let Some(previous) = log.previous_head() {
                log.predecessor_closed(previous);
            }
        }
    }
    spent + begin.elapsed()
}

fn appends(c: &mut Criterion) {
    let mut group = c.benchmark_group("log append of 144 bytes");
    group.throughput(Throughput::Elements(1));
    group.bench_function("unreplicated", |b| b.iter_custom(|n| append(None, n)));
    let key = Some(CertificateKey([1; 32]));
    group.bench_function("certified every 16", |b| b.iter_custom(|n| append(key, n)));
    group.finish();
}

/// A store with [`OBJECTS`] objects and room to overwrite all of them a few times.
fn full_store() -> Store {
    let store = Store::new(StoreConfig {
        cluster: ClusterId([1; 16]),
        master: ServerId(1),
        key: None,
        memory: 2 << 30,
        segment_size: SEGMENT_SIZE,
        first_segment: SegmentId(1),
    })
    .expect("address space");
    store.populate();
    let whole = TabletGrant {
        table: TABLE,
        first: KeyHash(0),
        last: KeyHash(u64::MAX),
    };
    store.take_tablets(&[whole]).expect("nothing is owned yet");
    let mut numbers = 0..OBJECTS;
    while write_batch(&store, || numbers.next().unwrap_or(0)) && !numbers.is_empty() {}
    store
}

fn key(n: u64) -> [u8; 20] {
    let mut key = *b"user0000000000000000";
    key[12..].copy_from_slice(&n.to_be_bytes());
    key
}

fn with_batch<R>(
    store: &Store,
    mut choose: impl FnMut() -> u64,
    work: impl FnOnce(&ramkeep_memory::Guard, &[Owned<'_>; BATCH]) -> R,
) -> R {
    let keys: [_; BATCH] = std::array::from_fn(|_| key(choose()));
    let (guard, tablets) = (store.pin(), store.tablets());
    let owned = keys.each_ref().map(|key| owned(&tablets, key));
    store.prefetch(&guard, &owned);
    work(&guard, &owned)
}

fn owned<'k>(tablets: &Tablets, key: &'k [u8]) -> Owned<'k> {
    tablets.owned(TABLE, key).expect("the whole table is owned")
}

/// False if the store is full.
fn write_batch(store: &Store, choose: impl FnMut() -> u64) -> bool {
    with_batch(store, choose, |guard, batch| {
        let mut writer = store.writer();
        batch.iter().all(|&owned| {
            let answer = writer.write(guard, owned, &VALUE, RejectRules::default());
            answer.status == Status::Ok
        })
    })
}

fn read_batch(store: &Store, choose: impl FnMut() -> u64) {
    with_batch(store, choose, |guard, batch| {
        for &owned in batch {
            black_box(store.read(guard, owned).object.expect("written").value[99]);
        }
    });
}

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state % OBJECTS
}

fn store_operations(c: &mut Criterion) {
    let mut store = full_store();
    let mut state = 1;
    let mut group = c.benchmark_group("store of 2M objects");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("read, 16 at a time", |b| {
        b.iter(|| read_batch(&store, || random(&mut state)));
    });
    group.bench_function("overwrite, 16 at a time", |b| {
        b.iter_custom(|iterations| {
            let mut spent = Duration::ZERO;
            for _ in 0..iterations {
                let begin = Instant::now();
                let written = write_batch(&store, || random(&mut state));
                spent += begin.elapsed();
                if !written {
                    store = full_store();
                }
            }
            spent
        });
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("read, one at a time", |b| {
        b.iter(|| {
            let key = key(random(&mut state));
            let owned = owned(&store.tablets(), &key);
            let guard = store.pin();
            black_box(store.read(&guard, owned).object.expect("written").value[99])
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(Duration::from_secs(3));
    targets = appends, store_operations
}
criterion_main!(benches);
