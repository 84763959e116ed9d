//! Drills in a row, each in a fresh cluster and from a seed of its own.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::cluster::{Cluster, Shape};
use super::counts::Tally;
use super::crash::summary::{self, Outcome};
use super::down::Down;
use super::picture;
use super::timeline::Timeline;
use super::workload::{Data, RECOVERY_DEADLINE, Shared, Workload, read_back_but};
use crate::args::Global;
use crate::failure::Failure;
use crate::units::Size;

/// Runs `round` with its seed and the longest outage before it, again and again, and sums up.
pub(super) async fn run(
    drill: &str,
    rounds: u32,
    seed: Option<u32>,
    timeline: Timeline,
    mut round: impl AsyncFnMut(u64, Duration) -> Result<Outcome, Failure>,
) -> Result<(), Failure> {
    let seed = match seed {
        Some(seed) => u64::from(seed),
        None => random_seed()?,
    };
    let mut outcomes = Vec::new();
    let mut longest = Duration::ZERO;
    for number in 1..=rounds {
        let own = seed + u64::from(number) - 1;
        timeline.tell(format_args!("round {number} of {rounds}, seed {own}"))?;
        let outcome = round(own, longest).await.map_err(|failure| {
            failure.within(format_args!("round {number}, which --seed {own} repeats"))
        })?;
        if rounds > 1 {
            timeline.tell(outcome.text())?;
        }
        longest = longest.max(outcome.unavailable());
        outcomes.push(outcome);
    }
    let text = match &outcomes[..] {
        [one] => one.text(),
        all => summary::table(all),
    };
    timeline.end(drill, &text, summary::totals(seed, &outcomes))
}

/// Begins a round: a fresh cluster with this data, on which the workload runs.
pub(super) async fn begin(
    (shape, global): (Shape, &Global),
    data: &Data,
    timeline: Timeline,
) -> Result<(Cluster, Workload), Failure> {
    let cluster = Cluster::start(shape, global).await?;
    timeline.tell("cluster ready")?;
    let workload =
        Workload::start_with(&cluster.addresses[..].into(), data, RECOVERY_DEADLINE).await?;
    let bytes = Size(workload.shared.bytes);
    timeline.tell(format_args!("{bytes} loaded, workload runs"))?;
    Ok((cluster, workload))
}

/// Ends a round's workload, once a picture has something of the time after, and reads everything back
/// but what is down.
pub(super) async fn conclude(
    workload: Workload,
    (addresses, down): (&[String], &Down),
    svg: Option<&Path>,
    timeline: Timeline,
) -> Result<(Arc<Shared>, Tally), Failure> {
    if svg.is_some() {
        tokio::time::sleep(picture::AFTER).await;
    }
    let shared = workload.finish().await?;
    let (tally, objects) = read_back_but(&addresses.into(), &shared, down).await?;
    timeline.tell(format_args!("{objects} objects read back"))?;
    Ok((shared, tally))
}

/// A seed that a person can type.
fn random_seed() -> Result<u64, Failure> {
    let mut seed = [0; 4];
    getrandom::fill(&mut seed).map_err(Failure::new)?;
    Ok(u64::from(u32::from_le_bytes(seed)))
}
