//! `drill outage`: every coordinator is gone for a long time, and nobody who reads and writes
//! notices; then they come back, and so does what needs them.

use std::time::{Duration, Instant};

use clap::Args;
use ramkeep_client::Client;
use ramkeep_wire::coordinator::ServerState;
use serde_json::Value;

use super::Common;
use super::asking::first_led;
use super::cluster::{Cluster, PATIENCE};
use super::counts::ms;
use super::timeline::Timeline;
use super::workload::{Shared, TABLE, Workload, connect, read_back};
use crate::args::Global;
use crate::failure::Failure;

/// Backups beside the servers: two are killed in the end, one is started then.
const BACKUPS: u32 = 3;
/// How often the timeline says that the outage goes on.
const REPORTS: u32 = 10;
/// Added to the outage: loading, and what comes after.
const SECONDS_AROUND: u64 = 60;

/// Flags of `drill outage`.
#[derive(Clone, Debug, Args)]
pub(crate) struct OutageArgs {
    /// How long no coordinator runs
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    #[command(flatten)]
    common: Common,
}

/// How long things took to work again, from the first coordinator's start.
struct Again {
    leader: Duration,
    enlistment: Duration,
    creation: Duration,
    /// From the death of a backup.
    epoch_change: Duration,
}

impl OutageArgs {
    /// The drill.
    pub(super) async fn run(&self, global: &Global, timeline: Timeline) -> Result<(), Failure> {
        let shape = self.common.shape(BACKUPS, self.seconds + SECONDS_AROUND)?;
        let mut cluster = Cluster::start(shape, global).await?;
        cluster.set_aside_last().await?;
        timeline.tell("cluster ready, one backup set aside")?;
        let workload = Workload::start(&cluster.addresses, self.common.size.0).await?;
        let client = connect(&cluster.addresses).await?;
        timeline.tell(format_args!("{} loaded, workload runs", self.common.size))?;

        timeline.mark(Instant::now(), "no coordinator");
        for coordinator in &mut cluster.coordinators {
            coordinator.kill().await?;
        }
        let count = cluster.coordinators.len();
        timeline.tell(format_args!("all {count} coordinators killed"))?;
        self.last(&workload.shared, timeline).await?;
        workload.goes_on(|_| true).await?;
        timeline.mark(Instant::now(), "coordinators started");
        let again = resume(&mut cluster, &workload.shared, &client, timeline).await?;

        let shared = workload.finish().await?;
        let tally = read_back(&cluster.addresses, &shared, |_| true).await?;
        let objects = shared.objects();
        timeline.tell(format_args!("{objects} objects read back"))?;
        let svg = self.common.svg.as_deref();
        timeline.draw(svg, "No coordinator is there", &shared, |_| false)?;
        let text = format!(
            "{} s without a coordinator; then a leader after {} ms, an enlistment after {} ms, a \
             new table after {} ms, a head's new backups {} ms after a backup's death\n{}",
            self.seconds,
            ms(again.leader),
            ms(again.enlistment),
            ms(again.creation),
            ms(again.epoch_change),
            tally.text(),
        );
        let mut fields = tally.json();
        let mut field = |name: &str, value: Value| fields.insert(name.to_owned(), value);
        field("seconds", self.seconds.into());
        field("leader_ms", ms(again.leader).into());
        field("enlist_ms", ms(again.enlistment).into());
        field("create_ms", ms(again.creation).into());
        field("epoch_change_ms", ms(again.epoch_change).into());
        field("objects", objects.into());
        field("bytes", self.common.size.0.into());
        timeline.end("outage", &text, fields)
    }

    /// The outage.
    async fn last(&self, shared: &Shared, timeline: Timeline) -> Result<(), Failure> {
        let whole = Duration::from_secs(self.seconds);
        for part in 1..=REPORTS {
            tokio::time::sleep(whole / REPORTS).await;
            let tally = shared.tally(|_| true);
            let so_far = (whole * part / REPORTS).as_secs_f64();
            timeline.tell(format_args!(
                "without coordinators for {so_far:.0} s: {} operations, {} failed",
                tally.operations, tally.failed
            ))?;
        }
        Ok(())
    }
}

/// Starts the coordinators, and measures.
async fn resume(
    cluster: &mut Cluster,
    shared: &Shared,
    client: &Client,
    timeline: Timeline,
) -> Result<Again, Failure> {
    let began = Instant::now();
    let addresses = cluster.addresses.clone();
    let (coordinators, spare) = (&mut cluster.coordinators, &mut cluster.spare);
    let restart = async {
        for coordinator in coordinators {
            coordinator.restart(&[]).await?;
        }
        Ok::<_, Failure>(())
    };
    let leader = async {
        let led = first_led(&addresses, PATIENCE).await?;
        led.map(|led| led.at.duration_since(began))
            .ok_or_else(|| Failure::new(format_args!("no coordinator leads for {PATIENCE:?}")))
    };
    let enlistment = async {
        if let Some(spare) = spare {
            spare.restart(&addresses).await?;
        }
        Ok::<_, Failure>(began.elapsed())
    };
    let creation = async {
        let created = client
            .with_deadline(PATIENCE)
            .create_table("after the outage")
            .await;
        created.map_err(Failure::new)?;
        Ok::<_, Failure>(began.elapsed())
    };
    let ((), leader, enlistment, creation) =
        tokio::try_join!(restart, leader, enlistment, creation)?;
    timeline.tell(format_args!(
        "coordinators started: a leader answers after {} ms, a server enlisted after {} ms, a \
         table is made after {} ms",
        ms(leader),
        ms(enlistment),
        ms(creation)
    ))?;
    let epoch_change = lose_backups(cluster, shared, client, timeline).await?;
    let gone = cluster.gone.clone();
    cluster
        .until("every other server is up", |status| {
            let mut servers = status.servers.iter();
            servers
                .all(|one| one.entry.state == ServerState::Up || gone.contains(&one.entry.server.0))
        })
        .await?;
    Ok(Again {
        leader,
        enlistment,
        creation,
        epoch_change,
    })
}

/// Kills the backups one after the other. The longest time until each server acknowledged a write
/// that was begun after a death.
async fn lose_backups(
    cluster: &mut Cluster,
    shared: &Shared,
    client: &Client,
    timeline: Timeline,
) -> Result<Duration, Failure> {
    let table = client.table(TABLE).await.map_err(Failure::new)?;
    let mut longest = Duration::ZERO;
    for at in 0..cluster.servers.len() {
        if !cluster.servers[at].is_backup() {
            continue;
        }
        let killed = Instant::now();
        let id = cluster.kill_server(at).await?;
        timeline.mark(killed, format_args!("backup {id} killed"));
        for group in &shared.groups {
            let Some(probe) = group.probes.first() else {
                continue;
            };
            let written = table.write(probe, b"after the outage").await;
            written.map_err(Failure::new)?;
        }
        let took = killed.elapsed();
        longest = longest.max(took);
        timeline.tell(format_args!(
            "backup {id} killed: every server writes on after {} ms",
            ms(took)
        ))?;
        cluster
            .until("the death of a backup is decided", |status| {
                let mut servers = status.servers.iter();
                servers
                    .any(|one| one.entry.server.0 == id && one.entry.state == ServerState::Crashed)
            })
            .await?;
    }
    Ok(longest)
}
