//! Writers and readers.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use ramkeep_client::{Error, Object, Reject, Table, Version};
use tokio::task::JoinSet;

use super::{Group, PACE, Reach, Shared, TASKS_PER_SERVER, check};
use crate::drill::background::Stop;
use crate::drill::counts::Finding;
use crate::drill::record::{Record, removes};
use crate::drill::values::{Random, key, value};
use crate::failure::Failure;

/// Bytes of a value written later. Short: a drill may write for long.
const WRITTEN_VALUE: usize = 100;
/// Clients that the tasks share.
const CLIENTS: usize = 2;

/// Reads and writes until it is stopped.
pub(super) async fn run(
    reach: Reach,
    shared: Arc<Shared>,
    deadline: Duration,
    stop: Stop,
) -> Result<(), Failure> {
    if let Some(namespace) = &reach.namespace {
        namespace.enter()?;
    }
    let mut tables = Vec::new();
    for _ in 0..CLIENTS {
        let client = reach.connect().await?.with_deadline(deadline);
        tables.push(Arc::from(shared.spread.open(&client).await?));
    }
    let mut tasks = JoinSet::new();
    for group in 0..shared.groups.len() {
        for part in 0..TASKS_PER_SERVER {
            let task = |tables: &Arc<[Table]>, number| Task {
                tables: tables.clone(),
                shared: shared.clone(),
                group,
                part,
                number,
                random: Random((group as u64) << 32 | part),
                stop: stop.clone(),
            };
            let at = (group + part as usize) % CLIENTS;
            tasks.spawn(task(&tables[at], part).write());
            tasks.spawn(task(&tables[CLIENTS - 1 - at], TASKS_PER_SERVER + part).read());
        }
    }
    while let Some(ended) = tasks.join_next().await {
        ended.map_err(|error| Failure::new(format_args!("a task of the drill: {error}")))?;
    }
    Ok(())
}

/// One writer or reader.
struct Task {
    /// Those that have objects.
    tables: Arc<[Table]>,
    shared: Arc<Shared>,
    group: usize,
    part: u64,
    /// Among the tasks of its group.
    number: u64,
    random: Random,
    stop: Stop,
}

/// What a writer knows of one of its keys.
#[derive(Clone, Copy)]
struct Known {
    /// The version of the last write; that of a removed object if there is none.
    version: Version,
    exists: bool,
}

impl Task {
    fn group(&self) -> &Group {
        &self.shared.groups[self.group]
    }

    /// The table that has this object.
    fn table(&self, number: u64) -> &Table {
        &self.tables[self.shared.spread.place(number)]
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

    fn took(&self, began: Instant) -> Duration {
        let took = began.elapsed();
        self.shared.samples.note(self.group, took);
        self.group().done[self.number as usize].fetch_add(1, Relaxed);
        took
    }

    async fn write(mut self) {
        let own =
            (self.group().keys.iter().copied()).filter(|key| key % TASKS_PER_SERVER == self.part);
        // `None`: whether the last write ran is not known.
        let mut own: Vec<(u64, Option<Known>)> = own
            .map(|number| {
                let version = self.shared.records[number as usize].1;
                let exists = true;
                (number, Some(Known { version, exists }))
            })
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
                    Some(known) if choice == 1 => self.refused(number, known).await,
                    Some(known) => own[at].1 = self.change(number, known, choice == 2).await,
                    None => {}
                }
            }
            tokio::time::sleep(PACE).await;
        }
    }

    /// The key's next write, which is a removal now and then.
    async fn change(&self, number: u64, known: Known, conditional: bool) -> Option<Known> {
        let record = &self.shared.records[number as usize].0;
        let sequence = record.begin();
        let rule = match (conditional, known.exists) {
            (false, _) => Reject::never(),
            (true, true) => Reject::unless_version(known.version),
            (true, false) => Reject::exists(),
        };
        let began = Instant::now();
        let done = match removes(sequence) {
            true => self.remove(number, known, rule).await,
            false => self.write_one(number, sequence, rule).await,
        };
        let counts = &self.group().counts;
        match done {
            Ok(now) => {
                record.acknowledge(sequence);
                counts.written(self.took(began));
                if now.exists && now.version <= known.version {
                    let (now, known) = (now.version, known.version);
                    let what = format_args!("{now:?} of {} after {known:?}", key(number));
                    counts.find(Finding::Wrong, what);
                }
                Some(now)
            }
            Err(Error::Rejected { version: found }) => {
                let version = known.version;
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

    async fn write_one(&self, number: u64, sequence: u64, rule: Reject) -> Result<Known, Error> {
        let table = self.table(number);
        let bytes = value(table.id(), number, sequence, WRITTEN_VALUE);
        let version = table.write_with(key(number), bytes, rule).await?;
        let exists = true;
        Ok(Known { version, exists })
    }

    async fn remove(&self, number: u64, known: Known, rule: Reject) -> Result<Known, Error> {
        let removed = self.table(number).remove_with(key(number), rule).await?;
        if removed != known.exists.then_some(known.version) {
            let what = format_args!(
                "{} removed at {removed:?}, not {:?}",
                key(number),
                known.version
            );
            self.group().counts.find(Finding::Wrong, what);
        }
        Ok(Known {
            exists: false,
            ..known
        })
    }

    /// A write that must be refused, with the version that is known.
    async fn refused(&self, number: u64, known: Known) {
        let counts = &self.group().counts;
        let rule = match known.exists {
            true => Reject::exists(),
            false => Reject::absent(),
        };
        let expected = known.exists.then_some(known.version);
        let began = Instant::now();
        let table = self.table(number);
        match table.write_with(key(number), b"never", rule).await {
            Err(Error::Rejected { version }) if version == expected => {
                counts.answered(self.took(began));
            }
            Ok(_) | Err(Error::Rejected { .. }) => {
                let what = format_args!("{} was to be refused at {expected:?}", key(number));
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
        match self.tables[0].increment(name, 1).await {
            Ok(sum) => {
                let sum = u64::try_from(sum).unwrap_or(u64::MAX);
                record.acknowledge(sum);
                group.counts.written(self.took(began));
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
            let shared = self.shared.clone();
            let group = &shared.groups[self.group];
            let counter =
                (self.random.next().is_multiple_of(10)).then(|| self.random.pick(&group.counters));
            let number = *self.random.pick(&group.keys);
            let began = Instant::now();
            let done = match counter {
                Some((name, record)) => {
                    let seen = |found: Option<&Object>| check::counter(found);
                    self.read_one(&self.tables[0], record, name, seen).await
                }
                None => {
                    let seen = |found: Option<&Object>| check::object(&shared, number, found);
                    let record = &shared.records[number as usize].0;
                    self.read_one(self.table(number), record, &key(number), seen)
                        .await
                }
            };
            match done {
                Ok(()) => group.counts.read(self.took(began)),
                Err(error) => self.failed("a read", began, &error),
            }
            tokio::time::sleep(PACE).await;
        }
    }

    async fn read_one(
        &self,
        table: &Table,
        record: &Record,
        name: &str,
        seen: impl Fn(Option<&Object>) -> crate::drill::record::Found,
    ) -> Result<(), Error> {
        let floor = record.floor();
        let found = table.read(name).await?;
        let found = seen(found.as_ref());
        check::judge(self.group(), record, floor, name, found);
        Ok(())
    }
}
