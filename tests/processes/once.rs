//! Each increment that is acknowledged was applied exactly once, whoever died meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use ramkeep_client::Client;

use crate::harness::Cluster;

const CALLERS: usize = 16;
const COUNTERS: usize = 8;
/// Increments by all callers together before the server is killed, and by each after it.
const BEFORE: i64 = 2_000;
const AFTER: i64 = 200;

/// What each caller adds to; all callers share them, so that a repeated one can't hide.
fn counter(number: usize) -> Vec<u8> {
    format!("counter {}", number % COUNTERS).into_bytes()
}

#[tokio::test]
async fn counters_are_what_was_acknowledged_after_a_server_was_killed_under_increments() {
    let cluster = Cluster::start(&["--servers", "4", "--replicas", "2"]);
    let client = Client::connect(&cluster.addresses).await.unwrap();
    let table = client.create_table("t").await.unwrap();
    let owner = cluster.json(&["status"])["tablets"][0]["owner"].as_u64();
    let servers = cluster.of_role("server");
    let victim = servers
        .iter()
        .find(|server| Some(server.id) == owner)
        .unwrap();
    let done = Arc::new(AtomicI64::new(0));
    let killed = Arc::new(AtomicI64::new(0));
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let (table, done, killed) = (table.clone(), done.clone(), killed.clone());
            tokio::spawn(async move {
                let mut sums = [0; COUNTERS];
                let (mut number, mut left) = (caller, AFTER);
                while left > 0 {
                    table.increment(&counter(number), 1).await.unwrap();
                    sums[number % COUNTERS] += 1;
                    number += 1;
                    done.fetch_add(1, Ordering::Relaxed);
                    left -= killed.load(Ordering::Relaxed);
                }
                sums
            })
        })
        .collect();
    while done.load(Ordering::Relaxed) < BEFORE {
        tokio::task::yield_now().await;
    }
    victim.kill();
    killed.store(1, Ordering::Relaxed);
    let mut acknowledged = [0; COUNTERS];
    for caller in callers {
        let sums = caller.await.unwrap();
        (0..COUNTERS).for_each(|number| acknowledged[number] += sums[number]);
    }
    for (number, wanted) in acknowledged.iter().enumerate() {
        let found = table.increment(&counter(number), 0).await.unwrap();
        assert_eq!(found, *wanted, "counter {number}");
    }
}
