//! Which table an object is in: one alone, or many of which most are empty.

use ramkeep_client::{Client, Table, TableId};
use tokio::task::JoinSet;

use super::{LOAD_DEADLINE, Reach, TABLE};
use crate::failure::Failure;

/// Of the further tables one in so many has objects.
const FILLED_EVERY: u32 = 10;
/// Objects with neighbouring numbers that are in one table.
const RUN: u64 = 32;
/// Clients that make tables, each one after the other.
const MAKERS: u32 = 8;

/// The tables that have objects: the first has half of them or all, the others share the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Spread(Vec<TableId>);

impl Spread {
    /// Makes so many tables, and opens those that are to have objects.
    pub(super) async fn make(
        reach: &Reach,
        client: &Client,
        tables: u32,
    ) -> Result<(Self, Vec<Table>), Failure> {
        let tables = tables.max(1);
        let mut makers = JoinSet::new();
        for first in 0..MAKERS.min(tables) {
            // Results of one client are kept until it has all before them.
            let maker = reach.connect().await?.with_deadline(LOAD_DEADLINE);
            makers.spawn(async move {
                for number in (first..tables).step_by(MAKERS as usize) {
                    maker.create_table(&name(number)).await?;
                }
                Ok::<_, ramkeep_client::Error>(())
            });
        }
        while let Some(made) = makers.join_next().await {
            made.map_err(Failure::new)?.map_err(Failure::new)?;
        }
        let filled = (0..tables).filter(|number| is_filled(*number));
        let tables = open(client, filled).await?;
        Ok((Self(tables.iter().map(Table::id).collect()), tables))
    }

    /// Opens those tables that have objects, as another client.
    pub(super) async fn open(&self, client: &Client) -> Result<Vec<Table>, Failure> {
        let filled = (0..).filter(|number| is_filled(*number));
        open(client, filled.take(self.0.len())).await
    }

    /// Their ids.
    pub(super) fn ids(&self) -> &[TableId] {
        &self.0
    }

    /// The place among them of the table that has this object.
    pub(super) fn place(&self, number: u64) -> usize {
        let others = self.0.len() as u64 - 1;
        let run = number / RUN;
        match others {
            0 => 0,
            _ if run.is_multiple_of(2) => 0,
            _ => 1 + (run / 2 % others) as usize,
        }
    }

    /// The table that has this object.
    pub(super) fn table(&self, number: u64) -> TableId {
        self.0[self.place(number)]
    }

    /// Objects in the order of `numbers`, in parts of one table each.
    pub(super) fn parts<'a>(
        &'a self,
        numbers: &'a [u64],
        at_most: usize,
    ) -> impl Iterator<Item = (usize, &'a [u64])> {
        let of_one_table = numbers.chunk_by(|one, next| self.place(*one) == self.place(*next));
        let parts = of_one_table.flat_map(move |part| part.chunks(at_most));
        parts.map(|part| (self.place(part[0]), part))
    }
}

async fn open(client: &Client, numbers: impl Iterator<Item = u32>) -> Result<Vec<Table>, Failure> {
    let mut tables = Vec::new();
    for number in numbers {
        tables.push(client.table(&name(number)).await.map_err(Failure::new)?);
    }
    Ok(tables)
}

fn is_filled(number: u32) -> bool {
    number == 0 || number % FILLED_EVERY == 1
}

fn name(number: u32) -> String {
    match number {
        0 => TABLE.to_owned(),
        number => format!("{TABLE} {number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_table_has_half_and_every_other_one_with_objects_some() {
        let spread = |tables: u32| Spread((0..tables).map(TableId).collect());
        assert!((0..1_000).all(|number| spread(1).place(number) == 0));
        let spread = spread(5);
        let mut counts = [0; 5];
        (0..10_000).for_each(|number| counts[spread.place(number)] += 1);
        assert!((4_900..5_100).contains(&counts[0]), "{counts:?}");
        assert!(counts.iter().all(|count| *count > 1_000), "{counts:?}");
        let numbers: Vec<u64> = (0..1_000).collect();
        let parts: Vec<_> = spread.parts(&numbers, 20).collect();
        assert!(parts.iter().all(|(_, part)| part.len() <= 20));
        let again: Vec<u64> = parts.iter().flat_map(|(_, part)| part.to_vec()).collect();
        assert_eq!(again, numbers);
    }
}
