//! `drill rejoin`: a coordinator loses its disk. It must not vote as if it remembered; it comes
//! back as a new incarnation, and nothing decided is lost whoever is killed after.

use std::time::{Duration, Instant};

use clap::Args;
use serde_json::Value;

use super::Common;
use super::asking::first_led;
use super::cluster::Cluster;
use super::counts::ms;
use super::metadata::Metadata;
use super::timeline::Timeline;
use super::workload::{Workload, connect, read_back};
use crate::args::Global;
use crate::failure::Failure;

/// Tables made before the disk is lost.
const TABLES: usize = 10;
/// How long one member and the wiped one are alone. Many elections long.
const ALONE: Duration = Duration::from_secs(3);
/// For which masters get memory.
const SECONDS: u64 = 120;

/// Flags of `drill rejoin`.
#[derive(Clone, Debug, Args)]
pub(crate) struct RejoinArgs {
    #[command(flatten)]
    common: Common,
}

impl RejoinArgs {
    /// The drill.
    pub(super) async fn run(&self, global: &Global, timeline: Timeline) -> Result<(), Failure> {
        let mut cluster = Cluster::start(self.common.shape(0, SECONDS)?, global).await?;
        let workload = Workload::start(&cluster.addresses, self.common.size.0).await?;
        let names: Vec<String> = (0..TABLES).map(|number| format!("kept {number}")).collect();
        let client = connect(&cluster.addresses).await?;
        for name in &names {
            client.create_table(name).await.map_err(Failure::new)?;
        }
        let metadata = Metadata::start(&cluster.addresses).await?;
        timeline.tell(format_args!("workload runs, {TABLES} tables made"))?;

        let (wiped, others) = roles(&cluster).await?;
        let voted = lose_disk(&mut cluster, wiped, &others, timeline).await?;
        let began = Instant::now();
        cluster.restart_dead_coordinators().await?;
        let status = cluster.all_caught_up().await?;
        let rejoined = began.elapsed();
        timeline.mark(Instant::now(), "a member again");
        timeline.tell(format_args!(
            "the others are back; {wiped} is a member again and knows slot {} after {} ms",
            status.decided,
            ms(rejoined)
        ))?;
        let mut missing = 0;
        for other in &others {
            metadata.goes_on().await?;
            missing += without(&mut cluster, *other, &names, timeline).await?;
        }
        let mut ledger = metadata.finish().await?;
        ledger.lost += missing;
        let shared = workload.finish().await?;
        let tally = read_back(&cluster.addresses, &shared, |_| true).await?;

        let svg = self.common.svg.as_deref();
        timeline.draw(svg, "A coordinator loses its disk", &shared, |_| false)?;
        let text = format!(
            "coordinator {wiped} lost its disk: {voted} leaders by its vote before it was a member \
             again, which took {} ms\n{}\n{}",
            ms(rejoined),
            ledger.text(),
            tally.text()
        );
        let mut fields = tally.json();
        fields.extend(ledger.json());
        let mut field = |name: &str, value: Value| fields.insert(name.to_owned(), value);
        field("member", wiped.into());
        field("leaders_elected_by_it", voted.into());
        field("rejoined_ms", ms(rejoined).into());
        field("tables", TABLES.into());
        field("objects", shared.objects().into());
        timeline.end("rejoin", &text, fields)
    }
}

/// A follower, and the other members with the leader last.
async fn roles(cluster: &Cluster) -> Result<(u32, Vec<u32>), Failure> {
    let status = cluster.all_caught_up().await?;
    let members = status.coordinators.iter().map(|one| one.peer);
    let mut followers: Vec<u32> = members
        .filter(|peer| *peer != status.leader)
        .map(|peer| peer.0)
        .collect();
    let wiped = followers.remove(0);
    followers.push(status.leader.0);
    Ok((wiped, followers))
}

/// Kills the member, removes its files, and starts it with so few others that only its vote could
/// make a leader. How many leaders there were. The members that are needed for one are killed.
async fn lose_disk(
    cluster: &mut Cluster,
    wiped: u32,
    others: &[u32],
    timeline: Timeline,
) -> Result<u64, Failure> {
    let quorum = cluster.coordinators.len() / 2 + 1;
    let alone = &others[..quorum - 1];
    cluster.coordinator(wiped)?.kill().await?;
    // With the leader among them, so that a new one must be elected.
    for other in &others[quorum - 1..] {
        cluster.coordinator(*other)?.kill().await?;
    }
    let directory = cluster.coordinator(wiped)?.directory()?;
    let emptied =
        std::fs::remove_dir_all(&directory).and_then(|()| std::fs::create_dir(&directory));
    emptied.map_err(|error| {
        Failure::new(format_args!(
            "cannot empty {}: {error}",
            directory.display()
        ))
    })?;
    cluster.restart_coordinator(wiped).await?;
    timeline.mark(Instant::now(), "disk emptied");
    timeline.tell(format_args!(
        "coordinator {wiped} killed and its disk emptied; it is alone with {alone:?}, one vote \
         short of a leader"
    ))?;
    let led = first_led(&cluster.addresses, ALONE).await?;
    match &led {
        Some(led) => timeline.tell(format_args!(
            "coordinator {} leads under {}, by the vote of one who remembers nothing",
            led.status.leader, led.ballot
        ))?,
        None => timeline.tell(format_args!("nobody leads for {ALONE:?}"))?,
    }
    Ok(u64::from(led.is_some()))
}

/// Kills a member, looks for the tables, and starts it again. How many are missing.
async fn without(
    cluster: &mut Cluster,
    member: u32,
    names: &[String],
    timeline: Timeline,
) -> Result<u64, Failure> {
    cluster.coordinator(member)?.kill().await?;
    let led = cluster.led().await?;
    let missing = names.iter().filter(|name| {
        let mut tables = led.status.tables.iter();
        !tables.any(|table| table.name == **name)
    });
    let missing = missing.count() as u64;
    timeline.tell(format_args!(
        "without coordinator {member}: {} leads, {missing} of {} tables are missing",
        led.status.leader,
        names.len()
    ))?;
    cluster.restart_coordinator(member).await?;
    cluster.all_caught_up().await?;
    Ok(missing)
}
