//! `drill coordinator`: the leader is killed again and again, and no command is lost or runs twice.

use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;

use super::Common;
use super::asking::first_led;
use super::cluster::{Cluster, PATIENCE};
use super::counts::ms;
use super::metadata::Metadata;
use super::samples::percentile;
use super::timeline::Timeline;
use super::workload::{Workload, read_back};
use crate::args::Global;
use crate::failure::Failure;

/// Time for which memory is given to each kill.
const SECONDS_PER_KILL: u64 = 4;

/// Flags of `drill coordinator`.
#[derive(Clone, Debug, Args)]
pub(crate) struct CoordinatorArgs {
    /// How often the leader is killed
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    kills: u64,
    /// How long the workload goes on at least
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=86_400))]
    seconds: u64,
    #[command(flatten)]
    common: Common,
}

impl CoordinatorArgs {
    /// The drill.
    pub(super) async fn run(&self, global: &Global, timeline: Timeline) -> Result<(), Failure> {
        let seconds = self.seconds.max(self.kills * SECONDS_PER_KILL);
        let mut cluster = Cluster::start(self.common.shape(0, seconds)?, global).await?;
        timeline.tell("cluster ready")?;
        let workload = Workload::start(&cluster.addresses, self.common.size.0).await?;
        let metadata = Metadata::start(&cluster.addresses).await?;
        timeline.tell(format_args!("{} loaded, workload runs", self.common.size))?;
        let began = Instant::now();
        let mut elected = Vec::new();
        for kill in 1..=self.kills {
            metadata.goes_on().await?;
            timeline.begin_picture();
            elected.push(depose(&mut cluster, kill, timeline).await?);
        }
        metadata.goes_on().await?;
        let rest = Duration::from_secs(self.seconds).saturating_sub(began.elapsed());
        tokio::time::sleep(rest).await;
        let ledger = metadata.finish().await?;
        let shared = workload.finish().await?;
        let tally = read_back(&cluster.addresses, &shared, |_| true).await?;
        let objects = shared.objects();
        timeline.tell(format_args!("{objects} objects read back"))?;

        let svg = self.common.svg.as_deref();
        timeline.draw(svg, "Leaders are killed", &shared, |_| false)?;
        elected.sort_unstable();
        let elections = json!({
            "p50": ms(percentile(&elected, 50)),
            "p90": ms(percentile(&elected, 90)),
            "max": ms(percentile(&elected, 100)),
        });
        let text = format!(
            "{} leaders killed; the next answered after {} ms (median), {} ms (p90), {} ms (max)\n\
             {}\n{}",
            self.kills,
            elections["p50"],
            elections["p90"],
            elections["max"],
            ledger.text(),
            tally.text(),
        );
        let mut fields = tally.json();
        fields.insert("kills".into(), self.kills.into());
        fields.insert("elected_ms".into(), elections);
        fields.insert("objects".into(), objects.into());
        fields.insert("bytes".into(), self.common.size.0.into());
        fields.extend(ledger.json());
        timeline.end("coordinator", &text, fields)
    }
}

/// Kills the leader, starts it again when there is another, and waits until it has caught up.
/// How long nobody led.
async fn depose(cluster: &mut Cluster, kill: u64, timeline: Timeline) -> Result<Duration, Failure> {
    let old = cluster.led().await?;
    let leader = old.status.leader.0;
    let others = cluster.addresses_without(&[leader]);
    let killed = Instant::now();
    cluster.coordinator(leader)?.kill().await?;
    timeline.mark(killed, format_args!("{leader} killed"));
    let Some(new) = first_led(&others, PATIENCE).await? else {
        return Err(Failure::new(format_args!(
            "after kill {kill} (coordinator {leader}) no other leads for {PATIENCE:?}"
        )));
    };
    let elected = new.at.duration_since(killed);
    timeline.mark(new.at, format_args!("{} leads", new.status.leader));
    timeline.part("without a leader", killed, new.at);
    let restarted = Instant::now();
    cluster.restart_coordinator(leader).await?;
    let status = cluster.all_caught_up().await?;
    timeline.tell(format_args!(
        "kill {kill}: coordinator {leader} led under {}; {} answers under {} after {} ms; \
         {leader} is back and knows slot {} after {} ms",
        old.ballot,
        new.status.leader,
        new.ballot,
        ms(elected),
        status.decided,
        ms(restarted.elapsed()),
    ))?;
    Ok(elected)
}
