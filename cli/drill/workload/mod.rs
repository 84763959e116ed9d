//! The verified workload: writers and readers that know what must be found.
//!
//! # Invariants
//! 1. Keys are apart by the server that owned them at the start: what one server's trouble does to
//!    its own keys is never counted for another's.
//! 2. A key whose last write may or may not have run is written no more: a late write could not be
//!    told from a lost one.
//! 3. It never stops: writes, removals, conditional ones, increments and reads go on until it is told.

mod check;
mod load;
mod spread;
mod tasks;

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use ramkeep_client::{Client, TableId, Version};
use ramkeep_wire::ServerId;

use super::background::Background;
use super::cluster::PATIENCE;
use super::counts::{Counts, Tally};
use super::record::Record;
use super::samples::Samples;
use crate::failure::Failure;
use crate::up::namespace::Namespace;
pub(super) use check::{read_back, read_back_but};
use load::Loader;
use spread::Spread;

/// The table of the workload.
pub(super) const TABLE: &str = "drill";
/// Bytes of a loaded value.
pub(super) const LOADED_VALUE: usize = 1_000;
/// How long an operation may wait where nobody's death is waited for.
pub(super) const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);
/// How long one may wait while data is loaded; many tables take long to be made.
const LOAD_DEADLINE: Duration = Duration::from_secs(60);
/// How long an operation may wait for its tablet to be recovered.
pub(super) const RECOVERY_DEADLINE: Duration = Duration::from_secs(30);
/// Objects in one batch.
const BATCH: usize = 256;
/// Writers of each server's keys, and as many readers.
const TASKS_PER_SERVER: u64 = 2;
/// Operations on one server that show that the workload goes on.
const SOME: u64 = 20;
/// Between two operations of one task. The machine is shared with the cluster.
const PACE: Duration = Duration::from_millis(3);

/// What is loaded before the workload begins.
#[derive(Clone, Debug)]
pub(super) struct Data {
    /// How much.
    pub(super) amount: Amount,
    /// Bytes of each value.
    pub(super) sizes: RangeInclusive<usize>,
    /// Tables that it is spread over: half of it is in the first, the other half in one of each ten of
    /// the others, the rest are empty.
    pub(super) tables: u32,
}

/// How much is loaded.
#[derive(Clone, Copy, Debug)]
pub(super) enum Amount {
    /// Bytes of values.
    Bytes(u64),
    /// Until this share of the masters' memory is used.
    Fill(f64),
}

impl Data {
    /// So many bytes in one table.
    pub(super) fn of(bytes: u64) -> Self {
        Self {
            amount: Amount::Bytes(bytes),
            sizes: LOADED_VALUE..=LOADED_VALUE,
            tables: 1,
        }
    }

    /// Bytes of a value on the average.
    fn usual(&self) -> u64 {
        ((self.sizes.start() + self.sizes.end()) / 2).max(1) as u64
    }

    /// Objects with so many bytes of values.
    fn objects(&self, bytes: u64) -> u64 {
        (bytes / self.usual()).max(1)
    }
}

/// The keys that one server owned at the start, and what was found about them.
#[derive(Debug)]
pub(super) struct Group {
    /// The server.
    pub(super) owner: ServerId,
    /// Numbers of its objects.
    pub(super) keys: Vec<u64>,
    /// Keys of that server that the workload leaves alone, far apart in its tablets.
    pub(super) probes: Vec<String>,
    /// Its counters, one for each writer.
    counters: Vec<(String, Record)>,
    /// What happened.
    pub(super) counts: Counts,
    /// Operations that each of its tasks had answered.
    done: [AtomicU64; 2 * TASKS_PER_SERVER as usize],
}

impl Group {
    /// How many operations each of its tasks has had answered.
    pub(super) fn done(&self) -> Vec<u64> {
        self.done.iter().map(|count| count.load(Relaxed)).collect()
    }
}

/// What all tasks share.
#[derive(Debug)]
pub(super) struct Shared {
    spread: Spread,
    /// Loaded, in values.
    pub(super) bytes: u64,
    records: Vec<(Record, Version)>,
    /// By owner.
    pub(super) groups: Vec<Group>,
    /// How long operations took, for the picture.
    pub(super) samples: Samples,
}

impl Shared {
    /// How many objects were loaded.
    pub(super) fn objects(&self) -> usize {
        self.records.len()
    }

    /// The first table of the workload.
    pub(super) fn table(&self) -> TableId {
        self.spread.ids()[0]
    }

    /// The group of that server's keys.
    pub(super) fn of(&self, owner: u64) -> Option<&Group> {
        self.groups.iter().find(|group| group.owner.0 == owner)
    }

    /// What happened to the keys of these groups.
    pub(super) fn tally(&self, wanted: impl Fn(&Group) -> bool) -> Tally {
        let groups = self.groups.iter().filter(|group| wanted(group));
        groups.fold(Tally::default(), |tally, group| {
            tally.and(group.counts.tally())
        })
    }
}

/// The running workload.
#[derive(Debug)]
pub(super) struct Workload {
    /// What is known.
    pub(super) shared: Arc<Shared>,
    background: Background<()>,
}

impl Workload {
    /// Loads `bytes` of values and begins.
    pub(super) async fn start(addresses: &[String], bytes: u64) -> Result<Self, Failure> {
        Self::start_with(&addresses.into(), &Data::of(bytes), DEFAULT_DEADLINE).await
    }

    /// The same where somebody dies: operations wait until tablets are recovered.
    pub(super) async fn start_patient(addresses: &[String], bytes: u64) -> Result<Self, Failure> {
        Self::start_with(&addresses.into(), &Data::of(bytes), RECOVERY_DEADLINE).await
    }

    /// Loads `data` and begins, with operations that wait up to `deadline`.
    pub(super) async fn start_with(
        reach: &Reach,
        data: &Data,
        deadline: Duration,
    ) -> Result<Self, Failure> {
        let client = reach.connect().await?.with_deadline(LOAD_DEADLINE);
        let (spread, tables) = Spread::make(reach, &client, data.tables).await?;
        let loader = Loader {
            client: &client,
            spread: &spread,
            tables: &tables,
        };
        let records = loader.load(data).await?;
        let objects = records.len() as u64;
        let status = client.status().await.map_err(Failure::new)?;
        let groups = load::groups(&status, &spread, objects)?;
        let shared = Arc::new(Shared {
            spread,
            bytes: match data.amount {
                Amount::Bytes(bytes) => bytes,
                Amount::Fill(_) => objects * data.usual(),
            },
            records,
            groups,
            samples: Samples::default(),
        });
        let (reach, running) = (reach.clone(), shared.clone());
        let background = Background::start(move |stop| tasks::run(reach, running, deadline, stop));
        let workload = Self { shared, background };
        workload.goes_on(|_| true).await?;
        Ok(workload)
    }

    /// Waits until each of these groups has done some more.
    pub(super) async fn goes_on(&self, wanted: impl Fn(&Group) -> bool) -> Result<(), Failure> {
        let done = |group: &Group| group.counts.tally().operations;
        let groups = self.shared.groups.iter().filter(|group| wanted(group));
        let before: Vec<(&Group, u64)> = groups.map(|group| (group, done(group))).collect();
        let patience = Instant::now() + PATIENCE;
        while before
            .iter()
            .any(|(group, count)| done(group) < count + SOME)
        {
            if Instant::now() > patience {
                let what = format_args!("the workload does nothing for {PATIENCE:?}");
                return Err(Failure::new(what));
            }
            tokio::time::sleep(PACE).await;
        }
        Ok(())
    }

    /// Ends it.
    pub(super) async fn finish(self) -> Result<Arc<Shared>, Failure> {
        self.background.finish().await?;
        Ok(self.shared)
    }
}

/// How clients reach a cluster.
#[derive(Clone, Debug, Default)]
pub(super) struct Reach {
    /// Of the coordinators.
    pub(super) addresses: Vec<String>,
    /// File with the key that all share.
    pub(super) key_file: Option<PathBuf>,
    /// Where the workload runs, if not where the drill does.
    pub(super) namespace: Option<Namespace>,
}

impl From<&[String]> for Reach {
    fn from(addresses: &[String]) -> Self {
        Self {
            addresses: addresses.to_vec(),
            ..Self::default()
        }
    }
}

impl Reach {
    /// A client of the cluster.
    pub(super) async fn connect(&self) -> Result<Client, Failure> {
        let mut builder = Client::builder().coordinators(self.addresses.clone());
        if let Some(file) = &self.key_file {
            builder = builder.key_file(file);
        }
        builder.connect().await.map_err(Failure::new)
    }
}

/// A client of the drill's cluster.
pub(super) async fn connect(addresses: &[String]) -> Result<Client, Failure> {
    Reach::from(addresses).connect().await
}
