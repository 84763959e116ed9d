//! `drill load`: nothing is broken. Every core is kept busy for a long time, and nobody may be taken
//! for dead: neither a server nor the coordinator that leads. With `--kill` a server is killed in the
//! end, under that load, and must be found dead all the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use clap::Args;
use ramkeep_client::Table;
use ramkeep_wire::Ballot;
use ramkeep_wire::coordinator::{ClusterStatus, ServerState, SuspicionCounts, TabletState};
use serde_json::{Map, Value};
use tokio::task::JoinSet;

use super::Common;
use super::background::{Background, Stop};
use super::cluster::Cluster;
use super::counts::ms;
use super::timeline::Timeline;
use super::values::Random;
use super::workload::{RECOVERY_DEADLINE, Workload, connect, read_back};
use crate::args::Global;
use crate::failure::Failure;
use crate::units::{self, Size};

/// The table of the clients that only load.
const TABLE: &str = "load";
/// Its keys.
const KEYS: u64 = 10_000;
/// Bytes of its values.
const VALUE: usize = 100;
/// Writes of those clients in a second, all together. There is no cleaner: what is written stays.
const WRITES_PER_SECOND: u64 = 2_000;
/// Bytes of log that one such write takes, at most.
const WRITE_TAKES: u64 = 400;
/// For loading, and for what comes after the load.
const SECONDS_AROUND: u64 = 120;
/// How often the leader is asked.
const LOOK: Duration = Duration::from_secs(1);
/// How often the timeline says that the load goes on.
const REPORTS: u32 = 10;

/// Flags of `drill load`.
#[derive(Clone, Debug, Args)]
pub(crate) struct LoadArgs {
    /// For how long
    #[arg(long = "for", value_name = "TIME", default_value = "10m", value_parser = units::duration)]
    time: Duration,
    /// Clients that read as fast as they can beside the verified workload, each on a thread of its own
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    clients: u16,
    /// Reads under way on each of their connections
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=4096))]
    depth: u16,
    /// Kill a server in the end, while the load goes on, and see it found dead
    #[arg(long)]
    kill: bool,
    #[command(flatten)]
    common: Common,
}

impl LoadArgs {
    /// The drill.
    pub(super) async fn run(&self, global: &Global, timeline: Timeline) -> Result<(), Failure> {
        let mut cluster = Cluster::start(self.shape()?, global).await?;
        let workload = Workload::start_patient(&cluster.addresses, self.common.size.0).await?;
        let load = Load::start(&cluster.addresses, self.clients, self.depth).await?;
        timeline.tell(format_args!(
            "{} loaded; the workload and {} clients run",
            self.common.size, self.clients
        ))?;
        let began = Instant::now();
        let busy = Busy::now();
        let seen = self.watch(&cluster, &load, timeline).await?;
        let busy = busy.zip(Busy::now()).map(|(from, to)| to.cores_since(from));
        workload.goes_on(|_| true).await?;
        let operations = load.operations();
        let per_second = operations as f64 / began.elapsed().as_secs_f64();

        let mut fields = Map::new();
        let mut text = seen.text(self.time, per_second, busy);
        if self.kill {
            let detected = kill_one(&mut cluster, timeline).await?;
            fields.insert("detect_ms".into(), ms(detected).into());
            text += &format!(
                "\na server killed in the end was decided crashed after {} ms",
                ms(detected)
            );
            workload.goes_on(|_| true).await?;
        }
        let errors = load.finish().await?;
        let shared = workload.finish().await?;
        let mut tally = read_back(&cluster.addresses, &shared, |_| true).await?;
        tally.failed += errors;
        let title = "Every core is busy, and nobody is taken for dead";
        timeline.draw(self.common.svg.as_deref(), title, &shared, |_| false)?;
        fields.extend(tally.json());
        fields.extend(seen.json());
        let mut field = |name: &str, value: Value| fields.insert(name.to_owned(), value);
        field("seconds", self.time.as_secs_f64().into());
        field("load_operations", operations.into());
        field("load_per_s", per_second.round().into());
        field("busy_cores", busy.into());
        field("objects", shared.objects().into());
        field("bytes", self.common.size.0.into());
        timeline.end("load", &format!("{text}\n{}", tally.text()), fields)
    }

    fn shape(&self) -> Result<super::cluster::Shape, Failure> {
        let seconds = self.time.as_secs() + SECONDS_AROUND;
        let mut shape = self.common.shape(0, seconds)?;
        if self.common.memory.is_none() {
            // Others take over what a killed server had.
            let load = seconds * WRITES_PER_SECOND * WRITE_TAKES / u64::from(shape.servers.max(1));
            shape.memory = Size(shape.memory.0 + load + self.common.size.0);
        }
        Ok(shape)
    }

    /// Lets the load run, and keeps an eye on the leader.
    async fn watch(
        &self,
        cluster: &Cluster,
        load: &Load,
        timeline: Timeline,
    ) -> Result<Seen, Failure> {
        let (began, mut told) = (Instant::now(), 0);
        let mut seen = Seen::default();
        while began.elapsed() < self.time {
            tokio::time::sleep(LOOK.min(self.time.saturating_sub(began.elapsed()))).await;
            let led = cluster.led().await?;
            seen.look(led.ballot, &led.status);
            let parts = began.elapsed().as_secs_f64() / self.time.as_secs_f64();
            if parts * f64::from(REPORTS) >= f64::from(told + 1) {
                told += 1;
                timeline.tell(format_args!(
                    "{:.0} s: {} reads and writes of clients; {seen}",
                    began.elapsed().as_secs_f64(),
                    load.operations(),
                ))?;
            }
        }
        Ok(seen)
    }
}

/// What was seen of the detector.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    ballot: Option<Ballot>,
    leader_changes: u64,
    declared_dead: u64,
    /// Under earlier leaders.
    before: SuspicionCounts,
    now: SuspicionCounts,
}

impl Seen {
    fn look(&mut self, ballot: Ballot, status: &ClusterStatus) {
        let servers = status.servers.iter();
        let suspected = servers.map(|server| server.suspected);
        self.count(
            ballot,
            suspected.fold(SuspicionCounts::default(), SuspicionCounts::and),
        );
        let crashed = |state| state == ServerState::Crashed;
        let dead = status.servers.iter().filter(|s| crashed(s.entry.state));
        self.declared_dead = self.declared_dead.max(dead.count() as u64);
    }

    /// A leader counts from when it began to lead.
    fn count(&mut self, ballot: Ballot, suspected: SuspicionCounts) {
        if self.ballot.is_some_and(|known| known != ballot) {
            self.leader_changes += 1;
            self.before = self.suspected();
        }
        self.ballot = Some(ballot);
        self.now = suspected;
    }

    fn suspected(&self) -> SuspicionCounts {
        self.before.and(self.now)
    }

    fn text(&self, time: Duration, per_second: f64, busy: Option<f64>) -> String {
        let busy = busy.map_or_else(String::new, |busy| format!(", {busy:.2} cores busy"));
        format!(
            "{} of load, {per_second:.0} operations of clients a second{busy}: {self}",
            humantime::format_duration(time)
        )
    }

    fn json(&self) -> Map<String, Value> {
        let suspected = self.suspected();
        let fields = [
            ("servers_declared_dead", self.declared_dead),
            ("leader_changes", self.leader_changes),
            ("symptoms_reported", suspected.reports),
            ("suspicions", suspected.suspicions),
            ("verifications", suspected.probes),
        ];
        let fields = fields.map(|(name, count)| (name.to_owned(), count.into()));
        fields.into_iter().collect()
    }
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let suspected = self.suspected();
        write!(
            f,
            "{} servers declared dead, {} changes of the leader; {} symptoms reported, {} suspicions, \
             verified with {} probes",
            self.declared_dead,
            self.leader_changes,
            suspected.reports,
            suspected.suspicions,
            suspected.probes,
        )
    }
}

/// Clients that read as fast as they can, and write a little.
struct Load {
    clients: Vec<Background<u64>>,
    done: Arc<AtomicU64>,
}

impl Load {
    async fn start(addresses: &[String], clients: u16, depth: u16) -> Result<Self, Failure> {
        let client = connect(addresses).await?;
        let table = client.create_table(TABLE).await.map_err(Failure::new)?;
        for number in 0..KEYS {
            table
                .write(key(number), [b'v'; VALUE])
                .await
                .map_err(Failure::new)?;
        }
        let done = Arc::new(AtomicU64::new(0));
        let gap = Duration::from_secs(1) * u32::from(clients) / WRITES_PER_SECOND as u32;
        let clients = (0..clients).map(|number| {
            let (addresses, done) = (addresses.to_vec(), done.clone());
            Background::start(move |stop| async move {
                let client = connect(&addresses).await?;
                let client = client.with_deadline(RECOVERY_DEADLINE);
                let table = client.table(TABLE).await.map_err(Failure::new)?;
                let mut tasks = JoinSet::new();
                for at in 0..depth {
                    let random = Random(u64::from(number) << 32 | u64::from(at));
                    tasks.spawn(read(table.clone(), random, done.clone(), stop.clone()));
                }
                let random = Random(u64::from(number) << 32 | u64::from(depth));
                tasks.spawn(write(table, random, done, stop, gap));
                let errors = tasks.join_all().await;
                Ok(errors.into_iter().sum())
            })
        });
        Ok(Self {
            clients: clients.collect(),
            done,
        })
    }

    fn operations(&self) -> u64 {
        self.done.load(Relaxed)
    }

    /// Ends it. How many operations failed.
    async fn finish(self) -> Result<u64, Failure> {
        let mut errors = 0;
        for client in self.clients {
            errors += client.finish().await?;
        }
        Ok(errors)
    }
}

async fn read(table: Table, mut random: Random, done: Arc<AtomicU64>, stop: Stop) -> u64 {
    let mut errors = 0;
    while !stop.is_set() {
        let found = table.read(key(random.next() % KEYS)).await;
        let as_written = |value: &[u8]| value.len() == VALUE;
        match found {
            Ok(Some(object)) if as_written(&object.value) => {}
            other => {
                tracing::warn!(?other, "a read of the load");
                errors += 1;
            }
        }
        done.fetch_add(1, Relaxed);
    }
    errors
}

/// One write after the other, a `gap` apart.
async fn write(
    table: Table,
    mut random: Random,
    done: Arc<AtomicU64>,
    stop: Stop,
    gap: Duration,
) -> u64 {
    let (mut errors, mut next) = (0, Instant::now());
    while !stop.is_set() {
        let written = table.write(key(random.next() % KEYS), [b'w'; VALUE]).await;
        if let Err(error) = written {
            tracing::warn!(%error, "a write of the load");
            errors += 1;
        }
        done.fetch_add(1, Relaxed);
        next += gap;
        // What was missed is not made up for: the log has no room for bursts.
        next = next.max(Instant::now());
        tokio::time::sleep_until(next.into()).await;
    }
    errors
}

fn key(number: u64) -> String {
    format!("load-{number}")
}

/// Kills the last server. How long until its death was decided; others serve its tablets then.
async fn kill_one(cluster: &mut Cluster, timeline: Timeline) -> Result<Duration, Failure> {
    let killed = Instant::now();
    let id = cluster.kill_server(cluster.servers.len() - 1).await?;
    timeline.mark(killed, format_args!("server {id} killed"));
    cluster
        .until("the death of a server is decided", |status| {
            let mut servers = status.servers.iter();
            servers.any(|one| one.entry.server.0 == id && one.entry.state == ServerState::Crashed)
        })
        .await?;
    let detected = killed.elapsed();
    let told = format_args!(
        "server {id} killed, decided crashed after {} ms",
        ms(detected)
    );
    timeline.tell_mark("decided crashed", told)?;
    cluster
        .until("others have its tablets", |status| {
            let mut tablets = status.tables.iter().flat_map(|table| &table.tablets);
            tablets.all(|one| one.owner.0 != id && one.state == TabletState::Normal)
        })
        .await?;
    timeline.tell(format_args!("others serve what server {id} served"))?;
    Ok(detected)
}

/// How long all cores have been busy, and idle, in the system's ticks.
#[derive(Clone, Copy, Debug)]
struct Busy {
    busy: u64,
    all: u64,
    cores: usize,
}

impl Busy {
    /// `None`: the system does not say.
    fn now() -> Option<Self> {
        Self::read(&std::fs::read_to_string("/proc/stat").ok()?)
    }

    fn read(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let fields = lines.next()?.strip_prefix("cpu ")?.split_whitespace();
        // user nice system idle iowait irq softirq steal; guests are in user already.
        let ticks: Vec<u64> = fields
            .take(8)
            .map_while(|field| field.parse().ok())
            .collect();
        let (idle, wait) = (ticks.get(3)?, ticks.get(4)?);
        let all = ticks.iter().sum();
        Some(Self {
            busy: all - idle - wait,
            all,
            cores: lines.take_while(|line| line.starts_with("cpu")).count(),
        })
    }

    fn cores_since(self, from: Self) -> f64 {
        let all = (self.all - from.all).max(1) as f64;
        let share = (self.busy - from.busy) as f64 / all;
        (share * self.cores as f64 * 100.0).round() / 100.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ramkeep_wire::PeerId;

    #[test]
    fn busy_cores_are_read_from_what_the_system_says() {
        let text =
            |user, idle| format!("cpu  {user} 0 0 {idle} 0 0 0 0 0 0\ncpu0 1\ncpu1 1\nintr 5\n");
        let from = Busy::read(&text(100, 100)).unwrap();
        let to = Busy::read(&text(250, 150)).unwrap();
        assert_eq!(to.cores_since(from), 1.5);
        assert!(Busy::read("").is_none());
    }

    #[test]
    fn a_change_of_the_leader_is_counted_and_loses_no_counts() {
        let ballot = |round| Ballot {
            round,
            peer: PeerId(1),
        };
        let counted = |reports| SuspicionCounts {
            reports,
            ..SuspicionCounts::default()
        };
        let mut seen = Seen::default();
        seen.count(ballot(1), counted(3));
        seen.count(ballot(1), counted(5));
        assert_eq!((seen.leader_changes, seen.suspected().reports), (0, 5));
        seen.count(ballot(2), counted(1));
        assert_eq!((seen.leader_changes, seen.suspected().reports), (1, 6));
    }
}
