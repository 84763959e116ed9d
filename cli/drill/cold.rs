//! `drill cold`: every process is killed at once under a verified workload, and started again with
//! the directories that it had. All of memory is gone; the frames and the journals are what is left.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use clap::Args;
use ramkeep_client::{Table, Version};
use ramkeep_wire::coordinator::{ClusterStatus, TabletState};
use serde_json::Value;

use super::Common;
use super::asking::{ASK_EVERY, first_led};
use super::cluster::{Cluster, PATIENCE};
use super::counts::ms;
use super::timeline::Timeline;
use super::values::Random;
use super::workload::{TABLE, Workload, connect, read_back};
use crate::args::Global;
use crate::failure::Failure;
use crate::units::Size;

/// For which masters get memory.
const SECONDS: u64 = 120;
/// The workload runs for as long at most before a kill.
const LONGEST_BEFORE: u64 = 500;
/// Objects that are removed before the kill, and must stay so.
const REMOVED: u64 = 1_000;
/// Of those, in one batch.
const BATCH: usize = 200;

/// Flags of `drill cold`.
#[derive(Clone, Debug, Args)]
pub(crate) struct ColdArgs {
    /// How often everything is killed
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=8))]
    kills: u32,
    /// Kill everything again while tablets are still recovered from the time before
    #[arg(long)]
    during_recovery: bool,
    #[command(flatten)]
    common: Common,
}

/// The longest of what was measured, from a kill on.
#[derive(Clone, Copy, Debug, Default)]
struct Took {
    restart: Duration,
    detect: Duration,
    first_read: Duration,
    recover: Duration,
    /// Everything is to be killed again at once.
    is_disturbed: bool,
}

/// From a kill until the next, or until everything is served.
struct Round {
    killed: Instant,
    timeline: Timeline,
    told: BTreeSet<String>,
    detect: Option<Duration>,
}

impl ColdArgs {
    /// The drill.
    pub(super) async fn run(&self, global: &Global, timeline: Timeline) -> Result<(), Failure> {
        let mut shape = self.common.shape(0, SECONDS)?;
        // A master may get more than its share when tablets are given out anew.
        let usual = shape.memory.0 + self.common.size.0;
        shape.memory = self.common.memory.unwrap_or(Size(usual));
        let bytes = self.common.size.0;
        let mut cluster = Cluster::start(shape, global).await?;
        timeline.tell("cluster ready")?;
        let addresses = cluster.addresses.clone();
        let workload = Workload::start_patient(&addresses, bytes).await?;
        let removed = Removed::make(&addresses).await?;
        timeline.tell(format_args!("{} loaded, workload runs", Size(bytes)))?;

        let mut seed = [0; 8];
        getrandom::fill(&mut seed).map_err(Failure::new)?;
        let mut random = Random(u64::from_le_bytes(seed));
        let mut took = Took::default();
        for kill in 1..=self.kills {
            let disturbed = self.during_recovery && kill < self.kills;
            if !took.is_disturbed {
                let wait = random.next() % LONGEST_BEFORE;
                tokio::time::sleep(Duration::from_millis(wait)).await;
            }
            let one = Round::run(&mut cluster, disturbed, timeline).await?;
            took = took.longest(one);
            if !disturbed {
                workload.goes_on(|_| true).await?;
            }
        }
        let shared = workload.finish().await?;
        let tally = read_back(&addresses, &shared, |_| true).await?;
        let (revived, backwards) = removed.check(&addresses).await?;
        let objects = shared.objects();
        timeline.tell(format_args!("{objects} objects read back"))?;
        let svg = self.common.svg.as_deref();
        timeline.draw(svg, "Everything is killed at once", &shared, |_| true)?;
        let unavailable = tally.slowest_read.max(tally.slowest_write);
        let text = format!(
            "everything killed {} times, {} of data: all processes in the cluster again after {} ms, \
             first read served after {} ms, all tablets served after {} ms; the slowest operation \
             took {} ms\n{}\n{REMOVED} removed objects: {revived} are back, {backwards} versions went \
             back",
            self.kills,
            Size(bytes),
            ms(took.restart),
            ms(took.first_read),
            ms(took.recover),
            ms(unavailable),
            tally.text(),
        );
        let mut fields = tally.json();
        let mut field = |name: &str, value: Value| fields.insert(name.to_owned(), value);
        field("objects", objects.into());
        field("bytes", bytes.into());
        field("bytes_recovered", bytes.into());
        field("kills", self.kills.into());
        field("removed_objects", REMOVED.into());
        field("revived_objects", revived.into());
        field("versions_back", backwards.into());
        field("restart_ms", ms(took.restart).into());
        field("detect_ms", ms(took.detect).into());
        field("first_read_ms", ms(took.first_read).into());
        field("recover_ms", ms(took.recover).into());
        field("unavailable_ms", ms(unavailable).into());
        timeline.end("cold", &text, fields)
    }
}

impl Took {
    fn longest(self, other: Self) -> Self {
        Self {
            restart: self.restart.max(other.restart),
            detect: self.detect.max(other.detect),
            first_read: self.first_read.max(other.first_read),
            recover: self.recover.max(other.recover),
            is_disturbed: other.is_disturbed,
        }
    }
}

impl Round {
    /// Kills everything, starts it again, and watches until all is served; if it is to be
    /// `disturbed`, only until tablets are being recovered.
    async fn run(
        cluster: &mut Cluster,
        disturbed: bool,
        timeline: Timeline,
    ) -> Result<Took, Failure> {
        cluster.kill_everything().await?;
        let mut round = Self {
            killed: Instant::now(),
            timeline,
            told: BTreeSet::new(),
            detect: None,
        };
        timeline.begin_picture();
        timeline.mark(round.killed, "everything killed");
        round.tell("all servers and coordinators killed")?;
        let first_read = tokio::spawn(first_read(cluster.addresses.clone()));
        cluster.restart_everything().await?;
        let restart = round.killed.elapsed();
        timeline.mark(Instant::now(), "started again");
        let ids: Vec<u64> = cluster.servers.iter().map(|s| s.announcement.id).collect();
        round.tell(&format!("started again: servers {ids:?}"))?;
        loop {
            let led = first_led(&cluster.addresses, PATIENCE).await?;
            let led = led.ok_or_else(|| Failure::new("no coordinator leads"))?;
            round.watch(&led.status, &cluster.gone)?;
            if is_served(&led.status, &cluster.gone) {
                break;
            }
            if disturbed && is_replayed(&led.status) {
                first_read.abort();
                return Ok(Took {
                    restart,
                    is_disturbed: true,
                    ..Took::default()
                });
            }
            if round.killed.elapsed() > PATIENCE {
                return Err(Failure::new(format_args!(
                    "not recovered in {PATIENCE:?}: {:?}",
                    led.status.recoveries
                )));
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
        let recover = round.killed.elapsed();
        timeline.mark(Instant::now(), "all served");
        timeline.part("restart", round.killed, round.killed + restart);
        timeline.part("recovery", round.killed + restart, round.killed + recover);
        round.tell("all tablets are served")?;
        if disturbed {
            let what = "the recovery was over before it could be disturbed; use a larger --size";
            return Err(Failure::new(what));
        }
        let first_read = first_read.await.map_err(Failure::new)??;
        Ok(Took {
            restart,
            detect: round.detect.unwrap_or(recover),
            first_read: first_read.duration_since(round.killed),
            recover,
            is_disturbed: false,
        })
    }

    /// Tells what is new.
    fn watch(&mut self, status: &ClusterStatus, gone: &BTreeSet<u64>) -> Result<(), Failure> {
        use ramkeep_wire::coordinator::ServerState::Crashed;
        let old = status.servers.iter().map(|one| &one.entry);
        let mut old = old.filter(|one| gone.contains(&one.server.0));
        if self.detect.is_none() && old.all(|one| one.state == Crashed) {
            self.detect = Some(self.killed.elapsed());
            self.tell("the servers of before are decided crashed")?;
        }
        for one in &status.recoveries {
            // Without the numbers, which change with each answer.
            let phase = one.phase.split(':').next().unwrap_or_default();
            let news = format!("recovery of server {}: {phase}", one.master);
            if self.told.insert(news) {
                let (master, tablets) = (one.master, one.tablets);
                let whole = format!("recovery of {master}, {tablets} tablets: {}", one.phase);
                self.tell(&whole)?;
            }
        }
        Ok(())
    }

    fn tell(&self, what: &str) -> Result<(), Failure> {
        let at = ms(self.killed.elapsed());
        self.timeline.tell(format_args!("{at:8.1} ms  {what}"))
    }
}

/// Whether every tablet is served by somebody who was started since.
fn is_served(status: &ClusterStatus, gone: &BTreeSet<u64>) -> bool {
    let mut tablets = status.tables.iter().flat_map(|table| &table.tablets);
    tablets.all(|one| one.state == TabletState::Normal && !gone.contains(&one.owner.0))
}

/// Whether a recovery master has a tablet.
fn is_replayed(status: &ClusterStatus) -> bool {
    let mut tablets = status.tables.iter().flat_map(|table| &table.tablets);
    tablets.any(|one| one.state == TabletState::Recovering)
}

/// When anything is first served again.
async fn first_read(addresses: Vec<String>) -> Result<Instant, Failure> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let read = async {
            let client = connect(&addresses).await?.with_deadline(PATIENCE);
            let table = client.table(TABLE).await.map_err(Failure::new)?;
            table.read("probe").await.map_err(Failure::new)
        };
        match read.await {
            Ok(_) => return Ok(Instant::now()),
            Err(failure) if Instant::now() > deadline => return Err(failure),
            Err(_) => tokio::time::sleep(ASK_EVERY).await,
        }
    }
}

/// Objects that were removed, with the versions of their removal.
struct Removed(Vec<(String, Version)>);

impl Removed {
    async fn make(addresses: &[String]) -> Result<Self, Failure> {
        let table = table(addresses).await?;
        let keys: Vec<String> = (0..REMOVED).map(|n| format!("removed {n}")).collect();
        let mut all = Vec::new();
        for some in keys.chunks(BATCH) {
            let items: Vec<_> = some.iter().map(|key| (key, b"gone")).collect();
            for (key, written) in some.iter().zip(table.multi_write(&items).await) {
                all.push((key.clone(), written.map_err(Failure::new)?));
            }
            for removed in table.multi_remove(some).await {
                removed.map_err(Failure::new)?;
            }
        }
        Ok(Self(all))
    }

    /// How many are back, and how many of those written anew get a version that was used before.
    async fn check(&self, addresses: &[String]) -> Result<(u64, u64), Failure> {
        let table = table(addresses).await?;
        let (mut revived, mut backwards) = (0, 0);
        for some in self.0.chunks(BATCH) {
            let keys: Vec<&String> = some.iter().map(|(key, _)| key).collect();
            let found = table.multi_read(&keys).await.map_err(Failure::new)?;
            revived += found.iter().flatten().count() as u64;
            let items: Vec<_> = keys.iter().map(|key| (*key, b"again")).collect();
            for ((_, before), written) in some.iter().zip(table.multi_write(&items).await) {
                let version = written.map_err(Failure::new)?;
                backwards += u64::from(version <= *before);
            }
        }
        Ok((revived, backwards))
    }
}

async fn table(addresses: &[String]) -> Result<Table, Failure> {
    let client = connect(addresses).await?;
    client.table(TABLE).await.map_err(Failure::new)
}
