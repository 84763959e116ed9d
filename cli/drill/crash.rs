//! `drill crash`: servers are killed under a verified workload; others recover their tablets.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use clap::Args;
use ramkeep_wire::coordinator::{ClusterStatus, ServerState, TabletState};
use serde_json::Value;
use tokio::task::JoinHandle;

use super::Common;
use super::asking::{ASK_EVERY, first_led};
use super::cluster::{Cluster, PATIENCE};
use super::counts::ms;
use super::timeline::Timeline;
use super::values::{MIN_VALUE, Random};
use super::workload::{RECOVERY_DEADLINE, TABLE, Workload, connect, read_back};
use crate::args::Global;
use crate::failure::Failure;
use crate::units::Size;

/// For which masters get memory.
const SECONDS: u64 = 120;
/// The workload runs for as long at most before a kill.
const LONGEST_BEFORE: u64 = 500;

/// Flags of `drill crash`.
#[derive(Clone, Debug, Args)]
#[command(mut_arg("size", |arg| arg.default_value("256MiB").help("Data of each master")))]
pub(crate) struct CrashArgs {
    /// How many servers are killed, one after the other is recovered
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=8))]
    kills: u32,
    /// Kill them together
    #[arg(long)]
    at_once: bool,
    /// Kill each next one while the one before is recovered
    #[arg(long, conflicts_with = "at_once")]
    during_recovery: bool,
    /// Kill the leading coordinator during the first recovery
    #[arg(long)]
    coordinator: bool,
    /// Bytes of a loaded value: N or MIN..MAX
    #[arg(long, default_value = "1000", value_name = "MIN..MAX", value_parser = sizes)]
    value_size: RangeInclusive<usize>,
    #[command(flatten)]
    common: Common,
}

/// The longest of what was measured.
#[derive(Clone, Copy, Debug, Default)]
struct Took {
    detect: Duration,
    recover: Duration,
    first_read: Duration,
}

/// Deaths that are recovered together.
struct Round {
    killed: Instant,
    /// In the order of their deaths.
    dead: Vec<u64>,
    /// Still to be killed while the others are recovered.
    next: Vec<usize>,
    kill_leader: bool,
    leader: Option<u32>,
    told: BTreeSet<String>,
    detect: Option<Duration>,
    first_reads: Vec<JoinHandle<Result<Instant, Failure>>>,
}

impl CrashArgs {
    /// The drill.
    pub(super) async fn run(&self, global: &Global, timeline: Timeline) -> Result<(), Failure> {
        self.check()?;
        let servers = u64::from(self.common.servers);
        let left = servers - u64::from(self.kills);
        let bytes = self.common.size.0 * servers;
        let mut shape = self.common.shape(0, SECONDS)?;
        // Room for what survivors take over, and for entries that are dead by then.
        let after = bytes / left;
        let usual = shape.memory.0 + after + after / 2;
        shape.memory = self.common.memory.unwrap_or(Size(usual));
        let mut cluster = Cluster::start(shape, global).await?;
        timeline.tell("cluster ready")?;
        let sizes = self.value_size.clone();
        let addresses = cluster.addresses.clone();
        let workload = Workload::start_with(&addresses, bytes, sizes, RECOVERY_DEADLINE).await?;
        timeline.tell(format_args!("{} loaded, workload runs", Size(bytes)))?;

        let mut seed = [0; 8];
        getrandom::fill(&mut seed).map_err(Failure::new)?;
        let mut random = Random(u64::from_le_bytes(seed));
        let mut victims: Vec<usize> = (0..cluster.servers.len()).collect();
        while victims.len() > self.kills as usize {
            let at = (random.next() % victims.len() as u64) as usize;
            victims.swap_remove(at);
        }
        let together = if self.at_once { victims.len() } else { 1 };
        let mut took = Took::default();
        while !victims.is_empty() {
            let wait = random.next() % LONGEST_BEFORE;
            tokio::time::sleep(Duration::from_millis(wait)).await;
            let now: Vec<usize> = victims.drain(..together).collect();
            let next = match self.during_recovery {
                true => std::mem::take(&mut victims),
                false => Vec::new(),
            };
            let round = Round {
                killed: Instant::now(),
                dead: Vec::new(),
                next,
                kill_leader: self.coordinator && cluster.gone.is_empty(),
                leader: None,
                told: BTreeSet::new(),
                detect: None,
                first_reads: Vec::new(),
            };
            let one = round.run(&mut cluster, &workload, now, timeline).await?;
            took = took.longest(one);
            workload.goes_on(|_| true).await?;
        }
        let owners = cluster.gone.clone();
        let shared = workload.finish().await?;
        let tally = read_back(&addresses, &shared, |_| true).await?;
        let objects = shared.objects();
        timeline.tell(format_args!("{objects} objects read back"))?;
        let of_dead = shared.tally(|group| owners.contains(&group.owner.0));
        let unavailable = of_dead.slowest_read.max(of_dead.slowest_write);
        let recovered = self.common.size.0 * u64::from(self.kills);
        let text = format!(
            "{} servers killed, {} of data recovered: decided crashed after {} ms, first read served \
             after {} ms, all tablets served after {} ms; the slowest operation took {} ms\n{}",
            self.kills,
            Size(recovered),
            ms(took.detect),
            ms(took.first_read),
            ms(took.recover),
            ms(unavailable),
            tally.text(),
        );
        let mut fields = tally.json();
        let mut field = |name: &str, value: Value| fields.insert(name.to_owned(), value);
        field("objects", objects.into());
        field("bytes", bytes.into());
        field("bytes_recovered", recovered.into());
        field("kills", self.kills.into());
        field("detect_ms", ms(took.detect).into());
        field("first_read_ms", ms(took.first_read).into());
        field("recover_ms", ms(took.recover).into());
        field("unavailable_ms", ms(unavailable).into());
        timeline.end("crash", &text, fields)
    }

    fn check(&self) -> Result<(), Failure> {
        let replicas = u32::from(self.common.replicas);
        if self.common.servers <= self.kills + replicas {
            return Err(Failure::usage(format_args!(
                "--servers: with {} kills and {replicas} replicas a drill needs {} or more",
                self.kills,
                self.kills + replicas + 1
            )));
        }
        if self.kills > replicas {
            return Err(Failure::usage(
                "--kills: more servers than there are replicas may not be lost",
            ));
        }
        Ok(())
    }
}

impl Took {
    fn longest(self, other: Self) -> Self {
        Self {
            detect: self.detect.max(other.detect),
            recover: self.recover.max(other.recover),
            first_read: self.first_read.max(other.first_read),
        }
    }
}

impl Round {
    /// Kills, and watches until all tablets are served again.
    async fn run(
        mut self,
        cluster: &mut Cluster,
        workload: &Workload,
        now: Vec<usize>,
        timeline: Timeline,
    ) -> Result<Took, Failure> {
        self.killed = Instant::now();
        for at in now {
            self.kill(cluster, workload, at, timeline).await?;
        }
        let status = loop {
            let led = first_led(&cluster.addresses, PATIENCE).await?;
            let led = led.ok_or_else(|| Failure::new("no coordinator leads"))?;
            self.watch(&led.status, timeline)?;
            let recovering = !led.status.recoveries.is_empty();
            if recovering && std::mem::take(&mut self.kill_leader) {
                let leader = led.status.leader.0;
                cluster.coordinator(leader)?.kill().await?;
                self.leader = Some(leader);
                self.tell(timeline, &format!("coordinator {leader} killed, which led"))?;
            } else if recovering && let Some(at) = self.next.pop() {
                self.kill(cluster, workload, at, timeline).await?;
            } else if served(&led.status, &cluster.gone) {
                break led.status;
            }
            if self.killed.elapsed() > PATIENCE {
                return Err(Failure::new(format_args!(
                    "not recovered in {PATIENCE:?}: {:?}",
                    led.status.recoveries
                )));
            }
            tokio::time::sleep(ASK_EVERY).await;
        };
        let recover = self.killed.elapsed();
        let tablets: usize = status.tables.iter().map(|table| table.tablets.len()).sum();
        self.tell(timeline, &format!("all {tablets} tablets are served"))?;
        let mut first_read = Duration::ZERO;
        for read in std::mem::take(&mut self.first_reads) {
            let at = read.await.map_err(Failure::new)??;
            first_read = first_read.max(at.duration_since(self.killed));
        }
        if self.leader.is_some() {
            cluster.restart_dead_coordinators().await?;
        }
        if !self.next.is_empty() || self.kill_leader {
            let what = "the recovery was over before it could be disturbed; use a larger --size";
            return Err(Failure::new(what));
        }
        Ok(Took {
            detect: self.detect.unwrap_or(recover),
            recover,
            first_read,
        })
    }

    async fn kill(
        &mut self,
        cluster: &mut Cluster,
        workload: &Workload,
        at: usize,
        timeline: Timeline,
    ) -> Result<(), Failure> {
        let id = cluster.kill_server(at).await?;
        self.dead.push(id);
        self.tell(timeline, &format!("server {id} killed"))?;
        let groups = workload.shared.groups.iter();
        for group in groups.filter(|group| group.owner.0 == id) {
            let (addresses, probe) = (cluster.addresses.clone(), group.probe.clone());
            let read = tokio::spawn(first_read(addresses, probe));
            self.first_reads.push(read);
        }
        Ok(())
    }

    /// Tells what is new.
    fn watch(&mut self, status: &ClusterStatus, timeline: Timeline) -> Result<(), Failure> {
        let dead = status.servers.iter().filter(|one| {
            one.entry.state == ServerState::Crashed && self.dead.contains(&one.entry.server.0)
        });
        if self.detect.is_none() && dead.count() == self.dead.len() {
            self.detect = Some(self.killed.elapsed());
            self.tell(
                timeline,
                &format!("servers {:?} decided crashed", self.dead),
            )?;
        }
        for one in &status.recoveries {
            // Without the numbers, which change with each answer.
            let phase = one.phase.split(':').next().unwrap_or_default();
            let news = format!("recovery of server {}: {phase}", one.master);
            if self.told.insert(news) {
                let (master, tablets) = (one.master, one.tablets);
                let whole = format!("recovery of {master}, {tablets} tablets: {}", one.phase);
                self.tell(timeline, &whole)?;
            }
        }
        Ok(())
    }

    fn tell(&self, timeline: Timeline, what: &str) -> Result<(), Failure> {
        timeline.tell(format_args!("{:8.1} ms  {what}", ms(self.killed.elapsed())))
    }
}

/// When a key of a dead server is first served again.
async fn first_read(addresses: Vec<String>, probe: String) -> Result<Instant, Failure> {
    let client = connect(&addresses).await?.with_deadline(PATIENCE);
    let table = client.table(TABLE).await.map_err(Failure::new)?;
    table.read(&probe).await.map_err(Failure::new)?;
    Ok(Instant::now())
}

/// Whether every tablet is served by somebody who lives.
fn served(status: &ClusterStatus, gone: &BTreeSet<u64>) -> bool {
    let mut tablets = status.tables.iter().flat_map(|table| &table.tablets);
    tablets.all(|one| one.state == TabletState::Normal && !gone.contains(&one.owner.0))
}

/// `N` or `MIN..MAX`, both inclusive.
fn sizes(text: &str) -> Result<RangeInclusive<usize>, String> {
    let (least, most) = text.split_once("..").unwrap_or((text, text));
    let parse = |text: &str| text.trim().parse::<usize>().ok();
    match (parse(least), parse(most)) {
        (Some(least), Some(most))
            if MIN_VALUE <= least && least <= most && most <= ramkeep_wire::limits::MAX_VALUE =>
        {
            Ok(least..=most)
        }
        _ => Err(format!("write N or MIN..MAX, from {MIN_VALUE} bytes up")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_values_are_one_number_or_two_in_order() {
        assert_eq!(sizes("1000"), Ok(1000..=1000));
        assert_eq!(sizes("20..4096"), Ok(20..=4096));
        for wrong in ["", "19", "30..20", "20..", "1..2..3", "20..99999999"] {
            assert!(sizes(wrong).is_err(), "{wrong}");
        }
    }
}
