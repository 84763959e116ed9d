//! Loading: the objects, and whose they are.

use std::ops::{Range, RangeInclusive};

use ramkeep_client::{Table, TableId, Version};
use ramkeep_wire::coordinator::{ClusterStatus, Tablet};
use ramkeep_wire::key_hash;

use super::{BATCH, Group, TASKS_PER_SERVER};
use crate::drill::counts::Counts;
use crate::drill::record::Record;
use crate::drill::values::{Random, key, value};
use crate::failure::Failure;

/// Loading tasks side by side.
const LOADERS: u64 = 4;
/// Keys of a server that show when it is served again.
const PROBES: usize = 8;

pub(super) async fn load(
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
pub(super) fn groups(
    status: &ClusterStatus,
    table: TableId,
    objects: u64,
) -> Result<Vec<Group>, Failure> {
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
                probes: Vec::new(),
                counters: Vec::new(),
                counts: Counts::default(),
            }),
        }
    }
    for group in &mut groups {
        let own = |prefix: &'static str| {
            let names = (0u64..).map(move |number| format!("{prefix} {number}"));
            names.filter(|name| owner(name) == Some(group.owner))
        };
        let counters = own("counter").take(TASKS_PER_SERVER as usize);
        group.counters = counters.map(|name| (name, Record::default())).collect();
        group.probes = own("probe").take(PROBES).collect();
    }
    Ok(groups)
}
