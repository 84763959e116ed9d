//! The verified workload: writers and readers that know what must be found.
//!
//! # Invariants
//! 1. Keys are apart by the server that owned them at the start: what one server's trouble does to
//!    its own keys is never counted for another's.
//! 2. A key whose last write may or may not have run is written no more: a late write could not be
//!    told from a lost one.

use std::ops::{Range, RangeInclusive};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ramkeep_client::{Client, Error, Reject, Table, TableId, Version};
use ramkeep_wire::coordinator::{ClusterStatus, Tablet};
use ramkeep_wire::{ServerId, key_hash};
use tokio::task::JoinSet;

use super::background::{Background, Stop};
use super::cluster::PATIENCE;
use super::counts::{Counts, Finding, Tally};
use super::record::{Record, Verdict};
use super::values::{Random, key, sequence_of, value};
use crate::failure::Failure;

/// The table of the workload.
pub(super) const TABLE: &str = "drill";
/// Bytes of a loaded value.
pub(super) const LOADED_VALUE: usize = 1_000;
/// Bytes of a value written later. Short: a drill may write for long.
const WRITTEN_VALUE: usize = 100;
/// Loading tasks side by side.
const LOADERS: u64 = 4;
/// How long an operation may wait where nobody's death is waited for.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);
/// How long an operation may wait for its tablet to be recovered.
pub(super) const RECOVERY_DEADLINE: Duration = Duration::from_secs(30);
/// Objects in one batch.
const BATCH: usize = 256;
/// Writers of each server's keys, and as many readers.
const TASKS_PER_SERVER: u64 = 2;
/// Clients that the tasks share.
const CLIENTS: usize = 2;
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
    /// A key of that server that the workload leaves alone.
    pub(super) probe: String,
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
        let records = load(&table, objects, &sizes).await?;
        let status = client.status().await.map_err(Failure::new)?;
        let shared = Arc::new(Shared {
            table: table.id(),
            records,
            groups: groups(&status, table.id(), objects)?,
        });
        let (addresses, running) = (addresses.to_vec(), shared.clone());
        let background = Background::start(move |stop| run(addresses, running, deadline, stop));
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

async fn load(
    table: &Table,
    objects: u64,
    sizes: &RangeInclusive<usize>,
) -> Result<Vec<(Record, Version)>, Failure> {
    let part = objects.div_ceil(LOADERS).max(1);
    let mut loaders = Vec::new();
    for first in (0..objects).step_by(usize::try_from(part).map_err(Failure::new)?) {
        let numbers = first..(first + part).min(objects);
        loaders.push(tokio::spawn(load_part(
            table.clone(),
            numbers,
            sizes.clone(),
        )));
    }
    let mut records = Vec::new();
    for loader in loaders {
        records.extend(loader.await.map_err(Failure::new)??);
    }
    Ok(records)
}

async fn load_part(
    table: Table,
    numbers: Range<u64>,
    sizes: RangeInclusive<usize>,
) -> Result<Vec<(Record, Version)>, Failure> {
    let mut records = Vec::new();
    let mut random = Random(numbers.start);
    let span = (sizes.end() - sizes.start()) as u64 + 1;
    let numbers: Vec<u64> = numbers.collect();
    for batch in numbers.chunks(BATCH) {
        let mut items = Vec::with_capacity(batch.len());
        for number in batch {
            let len = sizes.start() + (random.next() % span) as usize;
            items.push((key(*number), value(table.id(), *number, 1, len)));
        }
        for written in table.multi_write(&items).await {
            let record = Record::default();
            record.acknowledge(record.begin());
            records.push((record, written.map_err(Failure::new)?));
        }
    }
    Ok(records)
}

/// The keys by owner.
fn groups(status: &ClusterStatus, table: TableId, objects: u64) -> Result<Vec<Group>, Failure> {
    let tablets: Vec<&Tablet> = (status.tables.iter())
        .filter(|one| one.table == table)
        .flat_map(|one| &one.tablets)
        .collect();
    let owner = |key: &str| {
        let hash = key_hash(table, key.as_bytes());
        let mut found = tablets.iter();
        let tablet = found.find(|tablet| (tablet.first..=tablet.last).contains(&hash));
        tablet.map(|tablet| tablet.owner)
    };
    let mut groups: Vec<Group> = Vec::new();
    for number in 0..objects {
        let owner = owner(&key(number))
            .ok_or_else(|| Failure::new("a key of the drill belongs to no tablet"))?;
        match groups.iter_mut().find(|group| group.owner == owner) {
            Some(group) => group.keys.push(number),
            None => groups.push(Group {
                owner,
                keys: vec![number],
                probe: String::new(),
                counters: Vec::new(),
                counts: Counts::default(),
            }),
        }
    }
    for group in &mut groups {
        let names = (0u64..).map(|number| format!("counter {number}"));
        let own = names.filter(|name| owner(name) == Some(group.owner));
        let counters = own.take(TASKS_PER_SERVER as usize);
        let mut probes = (0u64..).map(|number| format!("probe {number}"));
        group.probe = (probes.find(|name| owner(name) == Some(group.owner))).unwrap_or_default();
        group.counters = counters.map(|name| (name, Record::default())).collect();
    }
    Ok(groups)
}

async fn run(
    addresses: Vec<String>,
    shared: Arc<Shared>,
    deadline: Duration,
    stop: Stop,
) -> Result<(), Failure> {
    let mut tables = Vec::new();
    for _ in 0..CLIENTS {
        let client = connect(&addresses).await?.with_deadline(deadline);
        tables.push(client.table(TABLE).await.map_err(Failure::new)?);
    }
    let mut tasks = JoinSet::new();
    for group in 0..shared.groups.len() {
        for part in 0..TASKS_PER_SERVER {
            let task = |table: &Table| Task {
                table: table.clone(),
                shared: shared.clone(),
                group,
                part,
                random: Random((group as u64) << 32 | part),
                stop: stop.clone(),
            };
            let at = (group + part as usize) % CLIENTS;
            tasks.spawn(task(&tables[at]).write());
            tasks.spawn(task(&tables[CLIENTS - 1 - at]).read());
        }
    }
    while let Some(ended) = tasks.join_next().await {
        ended.map_err(|error| Failure::new(format_args!("a task of the drill: {error}")))?;
    }
    Ok(())
}

/// One writer or reader.
struct Task {
    table: Table,
    shared: Arc<Shared>,
    group: usize,
    part: u64,
    random: Random,
    stop: Stop,
}

/// What a writer knows of one of its keys. `None`: whether the last write ran is not known.
type Known = Option<Version>;

impl Task {
    fn group(&self) -> &Group {
        &self.shared.groups[self.group]
    }

    fn failed(&self, what: &str, began: Instant, error: &Error) {
        let took = began.elapsed();
        let what = format_args!("{what} after {took:.1?}: {error}");
        self.group().counts.find(Finding::Failed, what);
        if let Error::Timeout {
            maybe_applied: true,
        } = error
        {
            self.group().counts.uncertain();
        }
    }

    async fn write(mut self) {
        let own =
            (self.group().keys.iter().copied()).filter(|key| key % TASKS_PER_SERVER == self.part);
        let mut own: Vec<(u64, Known)> = own
            .map(|number| (number, Some(self.shared.records[number as usize].1)))
            .collect();
        let mut counts = true;
        while !self.stop.is_set() {
            let choice = self.random.next() % 10;
            if choice == 0 && counts {
                counts = self.increment().await;
            } else if !own.is_empty() {
                let at = (self.random.next() % own.len() as u64) as usize;
                let (number, known) = own[at];
                match known {
                    Some(version) if choice == 1 => self.refused(number, version).await,
                    Some(version) => own[at].1 = self.write_one(number, version, choice == 2).await,
                    None => {}
                }
            }
            tokio::time::sleep(PACE).await;
        }
    }

    async fn write_one(&self, number: u64, version: Version, conditional: bool) -> Known {
        let record = &self.shared.records[number as usize].0;
        let counts = &self.group().counts;
        let sequence = record.begin();
        let bytes = value(self.shared.table, number, sequence, WRITTEN_VALUE);
        let rule = match conditional {
            true => Reject::unless_version(version),
            false => Reject::never(),
        };
        let began = Instant::now();
        match self.table.write_with(key(number), bytes, rule).await {
            Ok(newer) => {
                record.acknowledge(sequence);
                counts.written(began.elapsed());
                if newer <= version {
                    let what = format_args!("{newer:?} of {} after {version:?}", key(number));
                    counts.find(Finding::Wrong, what);
                }
                Some(newer)
            }
            Err(Error::Rejected { version: found }) => {
                let what = format_args!("{} is at {found:?}, not {version:?}", key(number));
                counts.find(Finding::Wrong, what);
                None
            }
            Err(error) => {
                self.failed("a write", began, &error);
                None
            }
        }
    }

    /// A write that must be refused, with the version that is known.
    async fn refused(&self, number: u64, version: Version) {
        let counts = &self.group().counts;
        let began = Instant::now();
        match self
            .table
            .write_with(key(number), b"never", Reject::exists())
            .await
        {
            Err(Error::Rejected {
                version: Some(found),
            }) if found == version => {
                counts.answered(began.elapsed());
            }
            Ok(_) | Err(Error::Rejected { .. }) => {
                let what = format_args!("{} was to be refused at {version:?}", key(number));
                counts.find(Finding::Wrong, what);
            }
            Err(error) => self.failed("a conditional write", began, &error),
        }
    }

    /// Whether it is known that it ran.
    async fn increment(&self) -> bool {
        let group = self.group();
        let Some((name, record)) = group.counters.get(self.part as usize) else {
            return false;
        };
        let (before, attempted) = (record.floor(), record.begin());
        let began = Instant::now();
        match self.table.increment(name, 1).await {
            Ok(sum) => {
                let sum = u64::try_from(sum).unwrap_or(u64::MAX);
                record.acknowledge(sum);
                group.counts.written(began.elapsed());
                if sum <= before || sum > attempted {
                    let what = format_args!("{name}: {sum} after {before}, attempt {attempted}");
                    group.counts.find(Finding::Wrong, what);
                }
                true
            }
            Err(error) => {
                self.failed("an increment", began, &error);
                false
            }
        }
    }

    async fn read(mut self) {
        while !self.stop.is_set() {
            let (table, shared) = (self.table.clone(), self.shared.clone());
            let group = &shared.groups[self.group];
            let began = Instant::now();
            let done = if self.random.next().is_multiple_of(10) {
                let counter = self.random.pick(&group.counters);
                read_counter(&table, group, counter).await
            } else {
                let number = *self.random.pick(&group.keys);
                read_object(&table, &shared, group, number).await
            };
            match done {
                Ok(()) => group.counts.read(began.elapsed()),
                Err(error) => self.failed("a read", began, &error),
            }
            tokio::time::sleep(PACE).await;
        }
    }
}

async fn read_object(
    table: &Table,
    shared: &Shared,
    group: &Group,
    number: u64,
) -> Result<(), Error> {
    let record = &shared.records[number as usize].0;
    let floor = record.floor();
    let found = table.read(key(number)).await?;
    let sequence = found.map(|object| sequence_of(shared.table, number, &object.value));
    judge(
        group,
        record,
        floor,
        &key(number),
        sequence.unwrap_or(Some(0)),
    );
    Ok(())
}

async fn read_counter(
    table: &Table,
    group: &Group,
    (name, record): &(String, Record),
) -> Result<(), Error> {
    let floor = record.floor();
    let found = table.read(name).await?;
    let sum = found.map(|object| {
        object
            .value
            .as_ref()
            .try_into()
            .ok()
            .map(u64::from_le_bytes)
    });
    judge(group, record, floor, name, sum.unwrap_or(Some(0)));
    Ok(())
}

/// `sequence` 0: there is no such object; `None`: one that nobody wrote.
fn judge(group: &Group, record: &Record, floor: u64, name: &str, sequence: Option<u64>) {
    let verdict = sequence.map_or(Verdict::Wrong, |found| record.judge(floor, found));
    let finding = match verdict {
        Verdict::Fine => return,
        Verdict::Stale => Finding::Stale,
        Verdict::Wrong => Finding::Wrong,
    };
    let attempted = record.attempted();
    let what = format_args!("{name}: {sequence:?}, not {floor} to {attempted}");
    group.counts.find(finding, what);
}

/// Reads back every key of these groups with a client of its own, and counts what is lost.
pub(super) async fn read_back(
    addresses: &[String],
    shared: &Shared,
    wanted: impl Fn(&Group) -> bool,
) -> Result<Tally, Failure> {
    let client = connect(addresses).await?;
    let table = client.table(TABLE).await.map_err(Failure::new)?;
    for group in shared.groups.iter().filter(|group| wanted(group)) {
        for batch in group.keys.chunks(BATCH) {
            let keys: Vec<String> = batch.iter().map(|number| key(*number)).collect();
            match table.multi_read(&keys).await {
                Ok(found) => {
                    for (number, object) in batch.iter().zip(found) {
                        let sequence =
                            object.map(|object| sequence_of(shared.table, *number, &object.value));
                        let record = &shared.records[*number as usize].0;
                        is_kept(group, record, &key(*number), sequence.unwrap_or(Some(0)));
                    }
                }
                Err(error) => group.counts.find(Finding::Failed, format_args!("{error}")),
            }
        }
        for (name, record) in &group.counters {
            let found = table.read(name).await.map_err(Failure::new)?;
            let bytes = found.map(|object| object.value.as_ref().try_into().ok());
            let sum = bytes.map(|bytes| bytes.map(u64::from_le_bytes));
            is_kept(group, record, name, sum.unwrap_or(Some(0)));
        }
    }
    Ok(shared.tally(wanted))
}

fn is_kept(group: &Group, record: &Record, name: &str, sequence: Option<u64>) {
    let (least, most) = (record.acknowledged(), record.attempted());
    let finding = match sequence {
        Some(found) if found < least => Finding::Lost,
        Some(found) if found <= most => return,
        _ => Finding::Wrong,
    };
    let what = format_args!("at the end {name}: {sequence:?}, not {least} to {most}");
    group.counts.find(finding, what);
}
