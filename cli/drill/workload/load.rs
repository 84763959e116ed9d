//! Loading: the objects, and whose they are.

use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use ramkeep_client::{Client, Table, Version};
use ramkeep_wire::coordinator::{ClusterStatus, Tablet};
use ramkeep_wire::key_hash;

use super::spread::Spread;
use super::{Amount, BATCH, Data, Group, TASKS_PER_SERVER};
use crate::drill::counts::Counts;
use crate::drill::fill::Memory;
use crate::drill::record::Record;
use crate::drill::values::{Random, key, value};
use crate::failure::Failure;

/// Loading tasks side by side.
const LOADERS: u64 = 4;
/// Keys of a server that show when it is served again.
const PROBES: usize = 8;
/// What is loaded at once at least while memory fills, in bytes of values.
const LEAST_PART: u64 = 1 << 20;
/// After which every server has reported what it uses.
const REPORTED: Duration = Duration::from_millis(250);

/// What loading writes through and to.
pub(super) struct Loader<'a> {
    pub(super) client: &'a Client,
    pub(super) spread: &'a Spread,
    pub(super) tables: &'a [Table],
}

type Loaded = Vec<(Record, Version)>;

impl Loader<'_> {
    /// Loads as much as is wanted.
    pub(super) async fn load(&self, data: &Data) -> Result<Loaded, Failure> {
        match data.amount {
            Amount::Bytes(bytes) => {
                let objects = data.objects(bytes);
                self.load_side_by_side(0..objects, &data.sizes).await
            }
            Amount::Fill(share) => self.fill(share, data).await,
        }
    }

    /// Loads until this share of memory is used: each time half of what is missing.
    async fn fill(&self, share: f64, data: &Data) -> Result<Loaded, Failure> {
        let mut loaded = Vec::new();
        loop {
            tokio::time::sleep(REPORTED).await;
            let status = self.client.status().await.map_err(Failure::new)?;
            let missing = Memory::of(&status).bytes_to(share);
            if missing == 0 {
                return Ok(loaded);
            }
            let first = loaded.len() as u64;
            let objects = data.objects((missing / 2).max(LEAST_PART));
            let numbers = first..first + objects;
            let more = self.load_side_by_side(numbers, &data.sizes).await;
            let what = format_args!("loading to {share} of memory");
            loaded.extend(more.map_err(|failure| failure.within(what))?);
        }
    }

    async fn load_side_by_side(
        &self,
        numbers: Range<u64>,
        sizes: &RangeInclusive<usize>,
    ) -> Result<Loaded, Failure> {
        let part = (numbers.end - numbers.start).div_ceil(LOADERS).max(1);
        let mut loaders = Vec::new();
        for first in numbers
            .clone()
            .step_by(usize::try_from(part).map_err(Failure::new)?)
        {
            let numbers = first..(first + part).min(numbers.end);
            loaders.push(tokio::spawn(load_part(
                (self.spread.clone(), self.tables.to_vec()),
                numbers,
                sizes.clone(),
            )));
        }
        let mut loaded = Vec::new();
        for loader in loaders {
            loaded.extend(loader.await.map_err(Failure::new)??);
        }
        Ok(loaded)
    }
}

async fn load_part(
    (spread, tables): (Spread, Vec<Table>),
    numbers: Range<u64>,
    sizes: RangeInclusive<usize>,
) -> Result<Loaded, Failure> {
    let mut loaded = Vec::new();
    let mut random = Random(numbers.start);
    let span = (sizes.end() - sizes.start()) as u64 + 1;
    let numbers: Vec<u64> = numbers.collect();
    for (place, batch) in spread.parts(&numbers, BATCH) {
        let table = &tables[place];
        let mut items = Vec::with_capacity(batch.len());
        for number in batch {
            let len = sizes.start() + (random.next() % span) as usize;
            items.push((key(*number), value(table.id(), *number, 1, len)));
        }
        for written in table.multi_write(&items).await {
            let record = Record::default();
            record.acknowledge(record.begin());
            loaded.push((record, written.map_err(Failure::new)?));
        }
    }
    Ok(loaded)
}

/// The keys by owner.
pub(super) fn groups(
    status: &ClusterStatus,
    spread: &Spread,
    objects: u64,
) -> Result<Vec<Group>, Failure> {
    let tablets = |id| {
        let mut tables = status.tables.iter();
        let found = tables.find(|one| one.table == id);
        found.map_or(&[][..], |table| &table.tablets[..])
    };
    let tablets: Vec<&[Tablet]> = spread.ids().iter().map(|id| tablets(*id)).collect();
    let owner = |place: usize, key: &str| {
        let hash = key_hash(spread.ids()[place], key.as_bytes());
        let mut found = tablets[place].iter();
        let tablet = found.find(|tablet| (tablet.first..=tablet.last).contains(&hash));
        tablet.map(|tablet| tablet.owner)
    };
    let mut groups: Vec<Group> = Vec::new();
    for number in 0..objects {
        let owner = owner(spread.place(number), &key(number))
            .ok_or_else(|| Failure::new("a key of the drill belongs to no tablet"))?;
        match groups.iter_mut().find(|group| group.owner == owner) {
            Some(group) => group.keys.push(number),
            None => groups.push(Group {
                owner,
                keys: vec![number],
                probes: Vec::new(),
                counters: Vec::new(),
                counts: Counts::default(),
                done: Default::default(),
            }),
        }
    }
    for group in &mut groups {
        let own = |prefix: &'static str| {
            let names = (0u64..).map(move |number| format!("{prefix} {number}"));
            names.filter(|name| owner(0, name) == Some(group.owner))
        };
        let counters = own("counter").take(TASKS_PER_SERVER as usize);
        group.counters = counters.map(|name| (name, Record::default())).collect();
        group.probes = own("probe").take(PROBES).collect();
    }
    Ok(groups)
}
