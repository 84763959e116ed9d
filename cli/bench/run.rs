//! Runs a workload: `clients` connections with `depth` operations under way on each.
//!
//! Closed loop: each of the `clients * depth` tasks starts its next operation when its last is
//! done. Open loop: operations have intended times, `rate` a second in all, and latency counts from
//! these, so that a stall is charged to every operation it delayed (no coordinated omission).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ramkeep_client::{Client, Error, Table};
use tokio::task::JoinSet;

use super::keys::{Keys, Random, key_text};
use super::report::Measured;
use super::workload::{Action, Workload};

/// Keys in one batch while the table is filled.
const FILL_BATCH: u64 = 500;
/// Most objects that a scan of workload e takes; YCSB's.
const MAX_SCAN: u64 = 100;
/// Sleeps shorter than this are polled: timers are coarse.
const COARSE: Duration = Duration::from_millis(2);

/// What to run.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) workload: Workload,
    pub(super) keys: u64,
    pub(super) value_size: usize,
    pub(super) depth: usize,
    /// Operations a second in all; `None`: closed loop.
    pub(super) rate: Option<f64>,
    pub(super) duration: Duration,
    pub(super) seed: u64,
}

struct Shared {
    plan: Plan,
    keys: Keys,
    /// Keys that exist: inserts add to it.
    newest: AtomicU64,
    /// Number of the next intended operation, in an open loop.
    ticket: AtomicU64,
    stop: AtomicBool,
    start: Instant,
}

/// Puts every key into the table.
pub(super) async fn fill(
    table: &Table,
    plan: &Plan,
    mut progress: impl FnMut(u64),
) -> Result<(), Error> {
    let value = vec![b'v'; plan.value_size];
    let mut first = 0;
    while first < plan.keys {
        let last = (first + FILL_BATCH).min(plan.keys);
        let keys: Vec<_> = (first..last).map(key_text).collect();
        let items: Vec<(&[u8], &[u8])> = keys
            .iter()
            .map(|key| (key.as_slice(), value.as_slice()))
            .collect();
        for result in table.multi_write(&items).await {
            result?;
        }
        first = last;
        progress(first);
    }
    Ok(())
}

/// Runs the plan over these connections; returns what was measured and how long it took.
pub(super) async fn run(
    clients: Vec<Client>,
    table: &str,
    plan: Plan,
) -> Result<(Measured, Duration), Error> {
    let shared = Arc::new(Shared {
        keys: Keys::new(plan.workload.distribution, plan.keys),
        newest: AtomicU64::new(plan.keys.saturating_sub(1)),
        ticket: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        start: Instant::now(),
        plan,
    });
    let mut tasks = JoinSet::new();
    for (number, client) in clients.iter().enumerate() {
        let table = client.table(table).await?;
        for slot in 0..shared.plan.depth {
            let seed = shared.plan.seed + (number * shared.plan.depth + slot) as u64 + 1;
            tasks.spawn(work(shared.clone(), table.clone(), seed));
        }
    }
    tokio::time::sleep(shared.plan.duration.saturating_sub(shared.start.elapsed())).await;
    shared.stop.store(true, Ordering::Release);
    let elapsed = shared.start.elapsed();
    let mut all = Measured::default();
    while let Some(measured) = tasks.join_next().await {
        all.merge(measured.unwrap_or_default());
    }
    Ok((all, elapsed))
}

async fn work(shared: Arc<Shared>, table: Table, seed: u64) -> Measured {
    let mut random = Random::new(seed);
    let mut value = vec![b'v'; shared.plan.value_size];
    let mut measured = Measured::default();
    while !shared.stop.load(Ordering::Acquire) {
        let Some(begun) = shared.next_start().await else {
            break;
        };
        let action = shared.plan.workload.next(&mut random);
        match shared.act(&table, action, &mut random, &mut value).await {
            Ok(()) => measured.done(action, begun.elapsed()),
            Err(error) => measured.failed(&error),
        }
    }
    measured
}

/// Takes up to `count` objects from a key's place on.
async fn scan(table: &Table, key: &[u8], count: u64) -> Result<(), Error> {
    let mut objects = table.scan_from(key);
    for _ in 0..count {
        match objects.next().await {
            Some(object) => drop(object?),
            None => break,
        }
    }
    Ok(())
}

impl Shared {
    /// When the next operation is meant to start; `None`: after the end of the run.
    async fn next_start(&self) -> Option<Instant> {
        let Some(rate) = self.plan.rate else {
            return Some(Instant::now());
        };
        let ticket = self.ticket.fetch_add(1, Ordering::Relaxed);
        let intended = Duration::from_secs_f64(ticket as f64 / rate);
        if intended >= self.plan.duration {
            return None;
        }
        let intended = self.start + intended;
        loop {
            let left = intended.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Some(intended);
            }
            if left > COARSE {
                tokio::time::sleep(left - COARSE).await;
            } else {
                tokio::task::yield_now().await;
            }
        }
    }

    async fn act(
        &self,
        table: &Table,
        action: Action,
        random: &mut Random,
        value: &mut [u8],
    ) -> Result<(), Error> {
        let newest = self.newest.load(Ordering::Relaxed);
        let number = self.keys.choose(random, newest);
        let key = key_text(number);
        if let Some(stamp) = value.first_chunk_mut::<8>() {
            *stamp = random.next_u64().to_le_bytes();
        }
        match action {
            Action::Read => self.read(table, &key).await,
            Action::Update => table.write(&key, value).await.map(drop),
            Action::Insert => {
                let key = key_text(self.newest.fetch_add(1, Ordering::Relaxed) + 1);
                table.write(&key, value).await.map(drop)
            }
            Action::Scan => scan(table, &key, 1 + random.below(MAX_SCAN)).await,
            Action::ReadModifyWrite => {
                self.read(table, &key).await?;
                table.write(&key, value).await.map(drop)
            }
        }
    }

    async fn read(&self, table: &Table, key: &[u8]) -> Result<(), Error> {
        let found = table.read(key).await?;
        // A key being inserted by another task may not be there yet; none is ever of another size.
        match found {
            Some(object) if object.value.len() != self.plan.value_size => Err(Error::Protocol(
                "a value of another size than was written".into(),
            )),
            _ => Ok(()),
        }
    }
}
