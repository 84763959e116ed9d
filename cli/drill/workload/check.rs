//! What a read may find, and what must be there in the end.

use super::{BATCH, Group, Reach, Shared};
use crate::drill::counts::{Finding, Tally};
use crate::drill::down::Down;
use crate::drill::record::{Found, Record, Verdict};
use crate::drill::values::{key, sequence_of};
use crate::failure::Failure;
use ramkeep_client::Object;

/// What a read of an object shows.
pub(super) fn object(shared: &Shared, number: u64, found: Option<&Object>) -> Found {
    match found {
        None => Found::Absent,
        Some(object) => match sequence_of(shared.spread.table(number), number, &object.value) {
            Some(sequence) => Found::Written(sequence),
            None => Found::Foreign,
        },
    }
}

/// What a read of a counter shows.
pub(super) fn counter(found: Option<&Object>) -> Found {
    let Some(object) = found else {
        return Found::Sum(0);
    };
    let bytes = object.value.as_ref().try_into();
    bytes.map_or(Found::Foreign, |bytes| {
        Found::Sum(u64::from_le_bytes(bytes))
    })
}

/// Judges a read that began when the record's floor was `floor`.
pub(super) fn judge(group: &Group, record: &Record, floor: u64, name: &str, found: Found) {
    let finding = match record.judge(floor, found) {
        Verdict::Fine => return,
        Verdict::Stale => Finding::Stale,
        Verdict::Wrong => Finding::Wrong,
    };
    let attempted = record.attempted();
    let what = format_args!("{name}: {found:?}, not {floor} to {attempted}");
    group.counts.find(finding, what);
}

/// Reads back every key of these groups with a client of its own, and counts what is lost.
pub(in crate::drill) async fn read_back(
    addresses: &[String],
    shared: &Shared,
    wanted: impl Fn(&Group) -> bool,
) -> Result<Tally, Failure> {
    let groups = shared.groups.iter().filter(|group| wanted(group));
    read_groups(&addresses.into(), shared, groups, &Down::default()).await?;
    Ok(shared.tally(wanted))
}

/// Reads back every key but those that nobody serves. How many objects that are.
pub(in crate::drill) async fn read_back_but(
    reach: &Reach,
    shared: &Shared,
    down: &Down,
) -> Result<(Tally, usize), Failure> {
    let read = read_groups(reach, shared, shared.groups.iter(), down).await?;
    Ok((shared.tally(|_| true), read))
}

async fn read_groups(
    reach: &Reach,
    shared: &Shared,
    groups: impl Iterator<Item = &Group>,
    down: &Down,
) -> Result<usize, Failure> {
    let client = reach.connect().await?;
    let tables = shared.spread.open(&client).await?;
    let mut read = 0;
    for group in groups {
        let mut numbers = group.keys.clone();
        numbers.retain(|number| !down.has(shared.spread.table(*number), &key(*number)));
        read += numbers.len();
        for (place, batch) in shared.spread.parts(&numbers, BATCH) {
            let keys: Vec<String> = batch.iter().map(|number| key(*number)).collect();
            match tables[place].multi_read(&keys).await {
                Ok(found) => {
                    for (number, found) in batch.iter().zip(found) {
                        let found = object(shared, *number, found.as_ref());
                        let record = &shared.records[*number as usize].0;
                        is_kept(group, record, &key(*number), found);
                    }
                }
                Err(error) => group.counts.find(Finding::Failed, format_args!("{error}")),
            }
        }
        for (name, record) in &group.counters {
            if down.has(shared.table(), name) {
                continue;
            }
            let found = tables[0].read(name).await.map_err(Failure::new)?;
            is_kept(group, record, name, counter(found.as_ref()));
        }
    }
    Ok(read)
}

/// Nobody writes any more: what was acknowledged is there, or one more that may have run.
fn is_kept(group: &Group, record: &Record, name: &str, found: Found) {
    let (least, most) = (record.acknowledged(), record.attempted());
    let finding = match record.judge(least, found) {
        Verdict::Fine => return,
        Verdict::Stale => Finding::Lost,
        Verdict::Wrong => Finding::Wrong,
    };
    let what = format_args!("at the end {name}: {found:?}, not {least} to {most}");
    group.counts.find(finding, what);
}
