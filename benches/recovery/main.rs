//! Crash recovery on one core: replay alone, and the whole of it beside. Figures are per second of the
//! core's time, which other processes on the machine do not lengthen.
//!
//! `cargo bench -p ramkeep-benches --bench recovery -- [objects]`
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod pipeline;
mod replay;

use std::time::Duration;

use ramkeep_wire::certificate::CertificateKey;
use ramkeep_wire::order::TabletGrant;
use ramkeep_wire::{ClusterId, KeyHash, ServerId, TableId};
use rustix::time::{ClockId, clock_gettime};

const OBJECTS: u64 = 2_000_000;
/// When it is only tried whether all of this runs.
const OBJECTS_IN_TESTS: u64 = 20_000;
const KEY: usize = 20;
const VALUE: [u8; 100] = [7; 100];
const TABLE: TableId = TableId(1);
const CLUSTER: ClusterId = ClusterId([1; 16]);
const DEAD: ServerId = ServerId(1);
/// Proves the replicas of the dead.
const DEAD_KEY: CertificateKey = CertificateKey([3; 32]);

fn main() {
    let given: Vec<_> = std::env::args().skip(1).collect();
    let is_bench = given.iter().any(|argument| argument == "--bench");
    let objects = given.iter().find(|argument| !argument.starts_with("--"));
    let usual = if is_bench { OBJECTS } else { OBJECTS_IN_TESTS };
    let objects = objects.map_or(usual, |n| n.parse().unwrap());
    let value = VALUE.len();
    println!("{objects} objects of {KEY}-byte keys and {value}-byte values, one thread\n");
    replay::report(objects);
    pipeline::report(objects);
}

/// A moment by this thread's own clock.
#[derive(Clone, Copy)]
struct CpuTime(Duration);

impl CpuTime {
    fn now() -> Self {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        Self(Duration::new(now.tv_sec as u64, now.tv_nsec as u32))
    }

    fn elapsed(self) -> Duration {
        Self::now().0 - self.0
    }
}

fn key_of(n: u64) -> [u8; KEY] {
    let mut key = *b"user0000000000000000";
    key[12..].copy_from_slice(&n.to_be_bytes());
    key
}

fn whole() -> TabletGrant {
    TabletGrant {
        table: TABLE,
        first: KeyHash(0),
        last: KeyHash(u64::MAX),
    }
}
