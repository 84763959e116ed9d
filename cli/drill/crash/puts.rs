//! Whether writes work everywhere: some to each tablet that is served.

use std::time::Duration;

use ramkeep_client::{Error, Table, TableId, Version};
use ramkeep_wire::coordinator::{Tablet, TabletState};
use ramkeep_wire::key_hash;
use tokio::task::{JoinError, JoinSet};

use crate::drill::workload::connect;
use crate::failure::Failure;

/// Writes to each tablet.
const PUTS_PER_TABLET: usize = 4;
/// Bytes of each.
const VALUE: usize = 1_000;
/// How long one may take when nothing is recovered any more.
const DEADLINE: Duration = Duration::from_secs(3);
/// Under way at the same time.
const AT_ONCE: usize = 64;
/// After so many failures the rest is not tried, and counts as failed.
const ENOUGH: usize = 256;

/// What came of them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Puts {
    pub(super) tablets: usize,
    pub(super) wanted: usize,
    pub(super) failed: usize,
}

type Put = Result<Result<Version, Error>, JoinError>;

impl Puts {
    /// Writes to each tablet of every table.
    pub(super) async fn everywhere(addresses: &[String]) -> Result<Self, Failure> {
        let client = connect(addresses).await?.with_deadline(DEADLINE);
        let status = client.status().await.map_err(Failure::new)?;
        let mut puts = Self::default();
        let mut running = JoinSet::new();
        for table in &status.tables {
            let handle = client.table(&table.name).await.map_err(Failure::new)?;
            let served = table.tablets.iter();
            for tablet in served.filter(|one| one.state == TabletState::Normal) {
                puts.tablets += 1;
                for key in keys(table.table, tablet) {
                    if running.len() >= AT_ONCE {
                        puts.count(running.join_next().await)?;
                    }
                    puts.wanted += 1;
                    if puts.failed < ENOUGH {
                        running.spawn(put(handle.clone(), key));
                    } else {
                        puts.failed += 1;
                    }
                }
            }
        }
        while !running.is_empty() {
            puts.count(running.join_next().await)?;
        }
        Ok(puts)
    }

    fn count(&mut self, ended: Option<Put>) -> Result<(), Failure> {
        if let Some(Err(error)) = ended.transpose().map_err(Failure::new)? {
            tracing::warn!(%error, "a write after the recovery");
            self.failed += 1;
        }
        Ok(())
    }
}

/// Keys that the tablet has.
fn keys(table: TableId, tablet: &Tablet) -> impl Iterator<Item = String> {
    let range = tablet.first..=tablet.last;
    let keys = (0u64..).map(|number| format!("afterwards {number}"));
    let own = keys.filter(move |key| range.contains(&key_hash(table, key.as_bytes())));
    own.take(PUTS_PER_TABLET)
}

async fn put(table: Table, key: String) -> Result<Version, Error> {
    table.write(key, [b'a'; VALUE]).await
}
