//! The index alone: lookup and insert over far more entries than the caches hold.
//!
//! Keys are numbers and references encode them, so nothing here touches a log; what a read costs
//! with its object is measured with the store.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ramkeep_master::index::{Index, IndexWriter, Reference};
use ramkeep_memory::Slot;
use ramkeep_wire::KeyHash;

/// Entries for lookups: 155 MB of index.
const ENTRIES: u64 = 10_000_000;
/// Lookups in flight at a time when batched, as with a batch of requests.
const BATCH: u64 = 16;
const MAX_BUCKETS: usize = 1 << 24;

fn scramble(number: u64) -> KeyHash {
    let mut x = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^= x >> 32;
    x = x.wrapping_mul(0xd6e8_feb8_6659_fd93);
    KeyHash(x ^ (x >> 32))
}

fn reference(number: u64) -> Reference {
    Reference::new(
        Slot((number >> 20) as u32),
        (number & 0xf_ffff) as usize + 1,
    )
}

fn number(reference: Reference) -> u64 {
    (u64::from(reference.slot().0) << 20) | (reference.offset() as u64 - 1)
}

fn hash_of(reference: Reference) -> KeyHash {
    scramble(number(reference))
}

fn insert(writer: &mut IndexWriter, n: u64) {
    writer
        .insert(scramble(n), reference(n), &hash_of)
        .expect("the index has room");
}

fn lookups(c: &mut Criterion) {
    let (index, mut writer) = Index::new(MAX_BUCKETS).expect("address space");
    (0..ENTRIES).for_each(|n| insert(&mut writer, n));
    let mut group = c.benchmark_group("index lookup in 10M");
    group.throughput(Throughput::Elements(1));
    let mut next = 0;
    let mut key = move || {
        next = (next + 7_368_787) % ENTRIES;
        next
    };
    group.bench_function("hit", |b| {
        b.iter(|| {
            let n = key();
            black_box(index.lookup(scramble(n), |seen| number(seen) == n)).expect("it is there")
        });
    });
    group.bench_function("miss", |b| {
        b.iter(|| black_box(index.lookup(scramble(key() + ENTRIES), |_| false)).is_none());
    });
    group.throughput(Throughput::Elements(BATCH));
    group.bench_function("16 hits, prefetched", |b| {
        b.iter(|| {
            let keys: [u64; BATCH as usize] = std::array::from_fn(|_| key());
            keys.iter().for_each(|&n| index.prefetch(scramble(n)));
            for n in keys {
                black_box(index.lookup(scramble(n), |seen| number(seen) == n))
                    .expect("it is there");
            }
        });
    });
    group.finish();
}

/// Inserts go on in one index until it has [`ENTRIES`], then in a new one.
struct Growing {
    writer: IndexWriter,
    next: u64,
    /// The longest that a single insert took.
    longest: Duration,
}

impl Growing {
    fn new() -> Self {
        let (_, writer) = Index::new(MAX_BUCKETS).expect("address space");
        Self {
            writer,
            next: 0,
            longest: Duration::ZERO,
        }
    }

    /// The time that `count` inserts take.
    fn run(&mut self, count: u64, prefetch: bool) -> Duration {
        let mut taken = Duration::ZERO;
        let mut left = count;
        while left > 0 {
            if self.next == ENTRIES {
                let longest = self.longest;
                *self = Self::new();
                self.longest = longest;
            }
            let upto = (self.next + left.min(BATCH)).min(ENTRIES);
            let start = Instant::now();
            if prefetch {
                (self.next..upto).for_each(|n| self.writer.index().prefetch(scramble(n)));
            }
            (self.next..upto).for_each(|n| insert(&mut self.writer, n));
            let elapsed = start.elapsed();
            self.longest = self.longest.max(elapsed);
            taken += elapsed;
            left -= upto - self.next;
            self.next = upto;
        }
        taken
    }
}

fn inserts(c: &mut Criterion) {
    let mut group = c.benchmark_group("index insert, growing to 10M");
    group.throughput(Throughput::Elements(1));
    for (name, prefetch) in [("one by one", false), ("prefetched by 16", true)] {
        let mut growing = Growing::new();
        group.bench_function(name, |b| {
            b.iter_custom(|count| growing.run(count, prefetch));
        });
        println!("longest pause in {BATCH} inserts: {:?}", growing.longest);
    }
    group.finish();
}

/// Prints the most bytes per entry that the index takes while it grows.
fn bytes_per_entry(_: &mut Criterion) {
    let (index, mut writer) = Index::new(MAX_BUCKETS).expect("address space");
    let mut worst = (0.0, 0);
    for n in 0..ENTRIES {
        insert(&mut writer, n);
        let per_entry = index.bytes() as f64 / (n + 1) as f64;
        if n > 16_384 && per_entry > worst.0 {
            worst = (per_entry, n + 1);
        }
    }
    println!(
        "index bytes per entry: at most {:.2} (at {} entries)",
        worst.0, worst.1
    );
}

criterion_group!(benches, lookups, inserts, bytes_per_entry);
criterion_main!(benches);
