//! What certificates cost: a segment of 8 MiB fills up by appends of one size, and each append is
//! hashed and certified, as a master does for every replication message.
//!
//! `cargo run --release -p ramkeep-backup --example certificate_cost`

use std::hint::black_box;
use std::time::{Duration, Instant};

use ramkeep_wire::certificate::{Certifier, Claim};
use ramkeep_wire::limits::SEGMENT_SIZE;
use ramkeep_wire::*;

fn claim(length: u32) -> Claim {
    Claim {
        cluster: ClusterId([1; 16]),
        master: ServerId(2),
        segment: SegmentId(3),
        kind: SegmentKind::Head,
        epoch: ReplicationEpoch(1),
        length,
        closed: false,
    }
}

/// Time to hash the appends of a whole segment, and to certify after each.
fn fill(append: usize, contents: &[u8]) -> (Duration, Duration, u32) {
    let mut certifier = Certifier::new(&CertificateKey([7; 32]));
    let (mut hashing, mut certifying) = (Duration::ZERO, Duration::ZERO);
    let mut appends = 0;
    for bytes in contents.chunks(append) {
        let start = Instant::now();
        certifier.update(bytes);
        let hashed = Instant::now();
        black_box(certifier.certify(&claim(certifier.length())));
        certifying += hashed.elapsed();
        hashing += hashed - start;
        appends += 1;
    }
    (hashing, certifying, appends)
}

fn main() {
    let contents: Vec<u8> = (0..SEGMENT_SIZE).map(|at| (at * 31 / 7) as u8).collect();
    let start = Instant::now();
    let end = (0..100_000).fold(start, |_, _| black_box(Instant::now()));
    let read = (end - start).as_nanos() as f64 / 100_000.0;
    println!("reading the clock costs {read:.0} ns, taken off below");
    println!("append bytes | hash ns | certify ns | both, ns a byte | appends a second");
    for append in [150, 300, 1_024, 4_096, 10_240, 65_536, 1 << 20] {
        let runs = (0..5).map(|_| fill(append, &contents));
        let (hashing, certifying, appends) = runs
            .min_by_key(|(hashing, certifying, _)| *hashing + *certifying)
            .expect("there are five runs");
        let each = |total: Duration| total.as_nanos() as f64 / f64::from(appends) - read;
        let (hash, certify) = (each(hashing), each(certifying));
        println!(
            "{append:12} | {hash:7.0} | {certify:10.0} | {:15.2} | {:.0}",
            (hash + certify) / append as f64,
            1e9 / (hash + certify)
        );
    }
}
