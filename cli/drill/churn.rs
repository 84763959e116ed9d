//! Clients that come and go beside a drill: each connects, gets a lease of its own, writes once and
//! is gone.

use std::time::Duration;

use ramkeep_client::{Client, PollMode};
use serde_json::{Map, Value};
use tokio::task::JoinSet;

use super::background::{Background, Stop};
use super::workload::{RECOVERY_DEADLINE, TABLE};
use crate::failure::Failure;

/// Between two clients of one loop: as long as a process takes to start, so that these clients take
/// no more of the machine than `ramkeep put` in as many shells does.
const PACE: Duration = Duration::from_millis(20);

/// Loops that make one client after the other.
#[derive(Debug)]
pub(super) struct Churn(Background<Churned>);

/// How many came and went.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Churned {
    came: u64,
    failed: u64,
}

impl Churn {
    /// Starts so many loops; `None` of none.
    pub(super) fn start(addresses: &[String], loops: u32) -> Option<Self> {
        let addresses = addresses.to_vec();
        let run = move |stop: Stop| async move {
            let mut running = JoinSet::new();
            for number in 0..loops {
                running.spawn(come_and_go(addresses.clone(), number, stop.clone()));
            }
            let all = running.join_all().await;
            Ok(all.into_iter().fold(Churned::default(), Churned::and))
        };
        (loops > 0).then(|| Self(Background::start(run)))
    }

    /// Ends them.
    pub(super) async fn finish(churn: Option<Self>) -> Result<Option<Churned>, Failure> {
        match churn {
            Some(churn) => churn.0.finish().await.map(Some),
            None => Ok(None),
        }
    }
}

impl Churned {
    fn and(self, other: Self) -> Self {
        Self {
            came: self.came + other.came,
            failed: self.failed + other.failed,
        }
    }

    /// For programs.
    pub(super) fn json(self) -> Map<String, Value> {
        let fields = [("churn_clients", self.came), ("churn_failed", self.failed)];
        let fields = fields.map(|(name, count)| (name.to_owned(), count.into()));
        fields.into_iter().collect()
    }

    /// For people.
    pub(super) fn text(self) -> String {
        format!(
            "\n{} clients came and went meanwhile, of which {} could not write",
            self.came, self.failed
        )
    }
}

async fn come_and_go(addresses: Vec<String>, number: u32, stop: Stop) -> Churned {
    let mut churned = Churned::default();
    while !stop.is_set() {
        churned.came += 1;
        if let Err(failure) = write_once(&addresses, &format!("churn {number}")).await {
            tracing::warn!(%failure, "a client that came and went");
            churned.failed += 1;
        }
        tokio::time::sleep(PACE).await;
    }
    churned
}

async fn write_once(addresses: &[String], key: &str) -> Result<(), Failure> {
    let builder = Client::builder().coordinators(addresses.to_vec());
    let builder = builder.poll_mode(PollMode::Never);
    let connected = builder.deadline(RECOVERY_DEADLINE).connect().await;
    let client = connected.map_err(Failure::new)?;
    let table = client.table(TABLE).await.map_err(Failure::new)?;
    table.write(key, b"was here").await.map_err(Failure::new)?;
    Ok(())
}
