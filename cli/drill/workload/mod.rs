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
mod tasks;

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ramkeep_client::{Client, TableId, Version};
use ramkeep_wire::ServerId;

use super::background::Background;
use super::cluster::PATIENCE;
use super::counts::{Counts, Tally};
use super::record::Record;
use super::samples::Samples;
use crate::failure::Failure;
pub(super) use check::read_back;

/// The table of the workload.
pub(super) const TABLE: &str = "drill";
/// Bytes of a loaded value.
pub(super) const LOADED_VALUE: usize = 1_000;
/// How long an operation may wait where nobody's death is waited for.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);
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
}

/// What all tasks share.
#[derive(Debug)]
pub(super) struct Shared {
    table: TableId,
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

    /// The table of the workload.
    pub(super) fn table(&self) -> TableId {
        self.table
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
        let sizes = LOADED_VALUE..=LOADED_VALUE;
        Self::start_with(addresses, bytes, sizes, DEFAULT_DEADLINE).await
    }

    /// The same where somebody dies: operations wait until tablets are recovered.
    pub(super) async fn start_patient(addresses: &[String], bytes: u64) -> Result<Self, Failure> {
        let sizes = LOADED_VALUE..=LOADED_VALUE;
        Self::start_with(addresses, bytes, sizes, RECOVERY_DEADLINE).await
    }

    /// Loads `bytes` of values of these sizes and begins, with operations that wait up to
    /// `deadline`.
    pub(super) async fn start_with(
        addresses: &[String],
        bytes: u64,
        sizes: RangeInclusive<usize>,
        deadline: Duration,
    ) -> Result<Self, Failure> {
        let client = connect(addresses).await?.with_deadline(deadline);
        let table = client.create_table(TABLE).await.map_err(Failure::new)?;
        let usual = (sizes.start() + sizes.end()) / 2;
        let objects = (bytes / usual.max(1) as u64).max(1);
        let records = load::load(&table, objects, &sizes).await?;
        let status = client.status().await.map_err(Failure::new)?;
        let shared = Arc::new(Shared {
            table: table.id(),
            records,
            groups: load::groups(&status, table.id(), objects)?,
            samples: Samples::default(),
        });
        let (addresses, running) = (addresses.to_vec(), shared.clone());
        let background =
            Background::start(move |stop| tasks::run(addresses, running, deadline, stop));
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

/// A client of the drill's cluster.
pub(super) async fn connect(addresses: &[String]) -> Result<Client, Failure> {
    Client::connect(addresses.to_vec())
        .await
        .map_err(Failure::new)
}
