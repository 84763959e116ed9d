//! Reads and writes of one store in one thread, with no network: what the data structures can do.
//!
//! `cargo run --release -p ramkeep-master --example in_process -- [objects]`
#![allow(clippy::unwrap_used)]

use std::alloc::System;
use std::hint::black_box;
use std::time::Instant;

use ramkeep_master::store::{DataSession, MasterLease, Owned, Store, StoreConfig};
use ramkeep_memory::Guard;
use ramkeep_wire::data::{self, Item, Op, RejectRules};
use ramkeep_wire::envelope::{Header, Kind};
use ramkeep_wire::order::TabletGrant;
use ramkeep_wire::{ClientId, ClusterId, KeyHash, Party, RpcId, SegmentId, ServerId, TableId};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const KEY: usize = 20;
const VALUE: [u8; 100] = [7; 100];
const TABLE: TableId = TableId(1);
const BATCH: u64 = 100;
const IN_PROCESS_BATCH: usize = 16;

fn main() {
    let objects: u64 = std::env::args()
        .nth(1)
        .map_or(10_000_000, |n| n.parse().unwrap());
    let store = store_for(objects);
    store.populate();
    println!(
        "{objects} objects of {KEY}-byte keys and {}-byte values, one thread",
        VALUE.len()
    );

    let operations = objects.min(10_000_000);
    report("insert", objects, || {
        in_batches(&store, Work::Write, 0..objects);
    });
    let stats = store.stats();
    let overhead = (stats.live + stats.index - stats.payload) as f64 / stats.objects as f64;
    println!("{overhead:.1} bytes per object above key and value, index included");

    let mut random = Random(1);
    let mut chosen = |n: u64| (0..n).map(|_| random.below(objects)).collect::<Vec<_>>();
    let keys = chosen(operations);
    report("overwrite", operations, || {
        in_batches(&store, Work::Write, keys);
    });
    let keys = chosen(operations);
    report("read", operations, || in_batches(&store, Work::Read, keys));
    let keys = chosen(operations);
    report("read, one at a time", operations, || {
        keys.iter().for_each(|&n| read_one(&store, n));
    });

    let mut session = Session::new(&store);
    for (name, op, client) in [
        ("session read", Op::Read, ClientId(0)),
        ("session overwrite", Op::Write, ClientId(0)),
        ("session overwrite, once", Op::Write, ClientId(1)),
    ] {
        session.client = client;
        let batches = operations / BATCH;
        let region = Region::new(ALLOCATOR);
        report(
            &format!("{name}, batches of {BATCH}"),
            batches * BATCH,
            || {
                (0..batches).for_each(|_| session.batch(op, || random.below(objects)));
            },
        );
        println!("{:28} {} allocations", "", region.change().allocations);
    }
}

fn store_for(objects: u64) -> Store {
    let each = (KEY + VALUE.len() + 128) as u64;
    let store = Store::new(StoreConfig {
        cluster: ClusterId([1; 16]),
        master: ServerId(1),
        key: None,
        memory: objects * each * 3 + (256 << 20),
        segment_size: 8 << 20,
        first_segment: SegmentId(1),
    });
    let store = store.unwrap();
    let everything = TabletGrant {
        table: TABLE,
        first: KeyHash(0),
        last: KeyHash(u64::MAX),
    };
    store.take_tablets(&[everything]).unwrap();
    store
}

fn report(name: &str, operations: u64, work: impl FnOnce()) {
    let begin = Instant::now();
    work();
    let seconds = begin.elapsed().as_secs_f64();
    let (rate, each) = (
        operations as f64 / seconds / 1e6,
        seconds / operations as f64 * 1e9,
    );
    println!("{name:28} {rate:6.2} million/s {each:6.0} ns each");
}

fn key_of(n: u64) -> [u8; KEY] {
    let mut key = *b"key-0000000000000000";
    let mut rest = n;
    for digit in key[4..].iter_mut().rev() {
        *digit = b"0123456789abcdef"[(rest & 15) as usize];
        rest >>= 4;
    }
    key
}

#[derive(Clone, Copy, PartialEq)]
enum Work {
    Read,
    Write,
}

/// One guard and one lock per batch; the memory of a batch is fetched at the same time.
fn in_batches(store: &Store, work: Work, numbers: impl IntoIterator<Item = u64>) {
    let mut numbers = numbers.into_iter();
    let mut keys = [[0; KEY]; IN_PROCESS_BATCH];
    loop {
        let mut count = 0;
        for (key, n) in keys.iter_mut().zip(numbers.by_ref()) {
            *key = key_of(n);
            count += 1;
        }
        if count == 0 {
            return;
        }
        let (guard, tablets) = (store.pin(), store.tablets());
        let owned = keys
            .each_ref()
            .map(|key| tablets.owned(TABLE, key).unwrap());
        store.prefetch(&guard, &owned[..count]);
        if work == Work::Read {
            owned[..count]
                .iter()
                .for_each(|owned| read(store, &guard, *owned));
        } else {
            let mut writer = store.writer();
            for owned in &owned[..count] {
                let answer = writer.write(&guard, *owned, &VALUE, RejectRules::default());
                assert!(answer.status == data::Status::Ok && answer.shown.is_ok());
            }
        }
    }
}

#[inline]
fn read(store: &Store, guard: &Guard, owned: Owned<'_>) {
    let read = store.read(guard, owned);
    assert!(read.shown.is_ok());
    black_box(read.object.unwrap().value[99]);
}

fn read_one(store: &Store, n: u64) {
    let key = key_of(n);
    let owned = store.tablets().owned(TABLE, &key).unwrap();
    read(store, &store.pin(), owned);
}

/// A connection's session with its buffers.
struct Session<'s> {
    store: &'s Store,
    session: DataSession,
    request: Vec<u8>,
    out: Vec<u8>,
    /// Whose calls; they are remembered unless 0.
    client: ClientId,
    calls: u64,
}

impl<'s> Session<'s> {
    fn new(store: &'s Store) -> Self {
        let mut this = Self {
            store,
            session: DataSession::new(),
            request: Vec::new(),
            out: Vec::new(),
            client: ClientId(0),
            calls: 0,
        };
        // Grows the buffers.
        this.batch(Op::Write, || 0);
        this.batch(Op::Read, || 0);
        this
    }

    fn batch(&mut self, op: Op, mut choose: impl FnMut() -> u64) {
        self.request.clear();
        self.out.clear();
        let start = data::begin_request(&mut self.request, self.client, RpcId(self.calls));
        for id in 0..BATCH as u32 {
            let key = key_of(choose());
            let value = if op == Op::Write { &VALUE[..] } else { &[] };
            let rules = RejectRules::default();
            self.calls += u64::from(op == Op::Write);
            let item = Item {
                op,
                id,
                table: TABLE,
                rpc: RpcId(if op == Op::Write { self.calls } else { 0 }),
                rules,
                key: &key,
                value,
            };
            item.write(&mut self.request);
        }
        data::set_count(&mut self.request, start, BATCH as u32);
        let header = Header::new(Kind::DataRequest, 1, Party::NONE, Party::NONE);
        let mut batch = self.session.begin(self.store, &mut self.out);
        batch.envelope(&header, &self.request).unwrap();
        batch.end(|| MasterLease::Held);
        assert!(self.out.len() as u64 > BATCH * 20 && !self.session.holds());
    }
}

/// Splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((u128::from(z ^ z >> 31) * u128::from(bound)) >> 64) as u64
    }
}
