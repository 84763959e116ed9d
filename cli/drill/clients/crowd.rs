//! Many clients at once, each with connections and a lease of its own, that stay.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use ramkeep_client::{Client, PollMode, Table};
use tokio::task::JoinSet;

use crate::drill::background::{Background, Stop};
use crate::drill::workload::TABLE;
use crate::failure::Failure;
use crate::process;

/// Clients that connect, or write, at the same time.
const AT_ONCE: usize = 64;
/// After so many refusals no more is tried: the rest counts as refused.
const ENOUGH: u64 = 128;
/// How long one may take to connect, and to write.
const DEADLINE: Duration = Duration::from_secs(10);
/// Between two looks at whether the crowd is there, or is to go.
const LOOK: Duration = Duration::from_millis(20);
/// Files that each client has open in this process: to a coordinator, to another when the leader is
/// looked for, and to a server.
const FILES_EACH: u64 = 3;
/// Files for everything else.
const FILES_BESIDE: u64 = 512;

/// The clients. They live on a thread of their own.
#[derive(Debug)]
pub(super) struct Crowd {
    background: Background<Written>,
    seen: Arc<Seen>,
}

/// What is seen of them from outside while they come.
#[derive(Debug, Default)]
struct Seen {
    connected: AtomicU64,
    refused: AtomicU64,
    complete: AtomicBool,
}

/// What came of the write that each does before it goes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Written {
    pub(super) failed: u64,
    pub(super) slowest: Duration,
}

impl Crowd {
    /// So many begin to connect.
    pub(super) fn start(addresses: &[String], clients: u64) -> Self {
        let seen = Arc::new(Seen::default());
        let (addresses, counted) = (addresses.to_vec(), seen.clone());
        let background = Background::start(move |stop| async move {
            let tables = gather(addresses, clients, &counted, &stop).await?;
            counted.complete.store(true, Relaxed);
            while !stop.is_set() {
                tokio::time::sleep(LOOK).await;
            }
            Ok(write_all(tables).await)
        });
        Self { background, seen }
    }

    /// Waits until all have connected or were refused. How many of each.
    pub(super) async fn complete(&self) -> (u64, u64) {
        while !self.seen.complete.load(Relaxed) {
            tokio::time::sleep(LOOK).await;
        }
        let read = |count: &AtomicU64| count.load(Relaxed);
        (read(&self.seen.connected), read(&self.seen.refused))
    }

    /// Has each write once more, and go.
    pub(super) async fn finish(self) -> Result<Written, Failure> {
        self.background.finish().await
    }
}

async fn gather(
    addresses: Vec<String>,
    clients: u64,
    seen: &Seen,
    stop: &Stop,
) -> Result<Vec<Table>, Failure> {
    let mut tables = Vec::new();
    let mut coming = JoinSet::new();
    let mut next = 0;
    loop {
        let more = next < clients && seen.refused.load(Relaxed) < ENOUGH && !stop.is_set();
        if more && coming.len() < AT_ONCE {
            coming.spawn(come(addresses.clone(), next));
            next += 1;
            continue;
        }
        let Some(came) = coming.join_next().await else {
            seen.refused.fetch_add(clients - next, Relaxed);
            return Ok(tables);
        };
        match came.map_err(Failure::new)? {
            Ok(table) => {
                seen.connected.fetch_add(1, Relaxed);
                tables.push(table);
            }
            Err(error) => {
                if seen.refused.fetch_add(1, Relaxed) == 0 {
                    let connected = tables.len();
                    tracing::warn!(connected, %error, "a client was refused");
                }
            }
        }
    }
}

/// Connects, and writes once: from then on it has a lease, and a connection to a server.
async fn come(addresses: Vec<String>, number: u64) -> Result<Table, ramkeep_client::Error> {
    let builder = Client::builder().coordinators(addresses).deadline(DEADLINE);
    let client = builder.poll_mode(PollMode::Never).connect().await?;
    let table = client.table(TABLE).await?;
    write(&table, number as usize).await?;
    Ok(table)
}

async fn write(table: &Table, number: usize) -> Result<Duration, ramkeep_client::Error> {
    let began = Instant::now();
    table.write(format!("crowd {number}"), b"is here").await?;
    Ok(began.elapsed())
}

async fn write_all(tables: Vec<Table>) -> Written {
    let mut written = Written::default();
    for (part, tables) in tables.chunks(AT_ONCE).enumerate() {
        let mut writing = JoinSet::new();
        for (at, table) in tables.iter().enumerate() {
            let table = table.clone();
            writing.spawn(async move { write(&table, part * AT_ONCE + at).await });
        }
        for done in writing.join_all().await {
            match done {
                Ok(took) => written.slowest = written.slowest.max(took),
                Err(error) => {
                    tracing::warn!(%error, "a write of the crowd");
                    written.failed += 1;
                }
            }
        }
        if written.failed > ENOUGH {
            written.failed += (tables.len() - AT_ONCE.min(tables.len())) as u64;
            break;
        }
    }
    written
}

/// Raises this process's limit of open files, which its children inherit. How many of so many clients it is
/// enough for.
pub(super) fn make_room(clients: u64) -> Result<u64, Failure> {
    let allowed = process::allow_files()?;
    Ok(clients.min(allowed.saturating_sub(FILES_BESIDE) / FILES_EACH))
}
