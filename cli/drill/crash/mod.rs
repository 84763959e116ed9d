//! `drill crash`: servers are killed under a verified workload; others recover their tablets.
//!
//! # Invariants
//! 1. Each round is a drill of its own, in a fresh cluster: every victim has its full share of the
//!    data, and no round is better or worse for what came before.
//! 2. Who is killed, and how long the workload has run before, follow from the round's seed.

mod aftermath;
pub(super) mod deaths;
pub(super) mod healing;
mod puts;
mod steps;
pub(super) mod summary;

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde_json::{Map, Value};

use super::churn::Churn;
use super::cluster::Cluster;
use super::down::Down;
use super::rounds;
use super::timeline::Timeline;
use super::values::{MIN_VALUE, Random};
use super::workload::{Amount, Data, Group, Shared, Workload};
use super::{Common, LEAST_MEMORY};
use crate::args::Global;
use crate::failure::Failure;
use crate::units::Size;
use aftermath::Aftermath;
use deaths::{Deaths, Recovered, Unserved};
use summary::Outcome;

/// For which masters get memory.
const SECONDS: u64 = 120;
/// The moment of a kill is drawn from as many milliseconds.
const MOMENTS: u64 = 500;

/// What `--help` ends with.
const AFTERWARDS: &str = "\
When all is recovered, some values are written to each tablet that is served. JSON: puts, puts_failed, \
tablets_unserved. Tablets may stay down if what the killed servers had alive does not fit into the memory \
of the others, and `status` says that they are stuck, and why: tablets_down counts those, \
tablets_unexplained the ones without a reason.";

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Victims {
    /// Processes with a master and a backup
    Server,
    /// Processes that run only a backup
    Backup,
}

/// Flags of `drill crash`.
#[derive(Clone, Debug, Args)]
#[command(mut_arg("size", |arg| arg.default_value("256MiB").help("Data of each master")))]
#[command(after_help = AFTERWARDS)]
pub(crate) struct CrashArgs {
    /// How many are killed in a round, each when the one before is recovered
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
    /// Whom to kill. Backups are started for it, as many as are killed and one more
    #[arg(long, value_enum, default_value_t = Victims::Server)]
    role: Victims,
    /// How many drills in a row, each in a fresh cluster
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// Repeats the choice of victims and moments; round N has this seed and N - 1 [default: random]
    #[arg(long)]
    seed: Option<u32>,
    /// The workload runs for so long before anybody is killed
    #[arg(long, default_value = "2s", value_parser = crate::units::duration)]
    steady: Duration,
    /// Bytes of a loaded value: N or MIN..MAX
    #[arg(long, default_value = "1000", value_name = "MIN..MAX", value_parser = sizes)]
    value_size: RangeInclusive<usize>,
    /// Load, instead of --size, until this share of the masters' memory is used, as `status` counts it.
    /// JSON: fits (the others have room for what the killed servers had alive), fullest_before and
    /// fullest_after (share used where most is), memory_before and memory_after (each master's)
    #[arg(long, value_name = "SHARE", conflicts_with = "size", value_parser = share)]
    fill: Option<f64>,
    /// Spread the data over so many tables: half of it is in the first, half in one of each ten
    /// others, the rest are empty
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=8_192))]
    tables: u32,
    /// Beside the whole drill so many loops of: connect, write once, disconnect. JSON: churn_clients
    /// (how many came and went), churn_failed (of those, who could not write)
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=1_024))]
    client_churn: u32,
    /// Wait until every segment has all its copies again, and compare the latency meanwhile with the
    /// healthy one. With --role backup it is so always
    #[arg(long)]
    heal: bool,
    #[command(flatten)]
    common: Common,
}

impl CrashArgs {
    /// The drill.
    pub(super) async fn run(&self, global: &Global, timeline: Timeline) -> Result<(), Failure> {
        self.check()?;
        rounds::run(
            "crash",
            self.rounds,
            self.seed,
            timeline,
            async |seed, longest| self.round(seed, longest, global, timeline).await,
        )
        .await
    }

    async fn round(
        &self,
        seed: u64,
        longest: Duration,
        global: &Global,
        timeline: Timeline,
    ) -> Result<Outcome, Failure> {
        let mut random = Random(seed);
        let start = (self.shape()?, global);
        let (mut cluster, workload) = rounds::begin(start, &self.data(), timeline).await?;
        let addresses = cluster.addresses.clone();
        let churn = Churn::start(&addresses, self.client_churn);
        let calm = Instant::now();
        tokio::time::sleep(self.steady).await;
        let victims = self.victims(&cluster, &mut random);
        let shown = self.fill.is_some();
        let mut after = Aftermath::expect(&cluster, &victims, shown, timeline).await?;
        let recovered = self
            .kill(
                (&mut cluster, &workload),
                victims,
                &mut random,
                after.unserved(),
                timeline,
            )
            .await?;
        after.look(&cluster, timeline).await?;
        let churned = Churn::finish(churn).await?;
        let svg = self.common.svg.as_deref();
        let served = (&addresses[..], &after.down);
        let (shared, tally) = rounds::conclude(workload, served, svg, timeline).await?;
        let tally = after.excuse(tally, &shared);
        let owned = match self.role {
            Victims::Server => {
                shared.bytes / u64::from(self.common.servers) * u64::from(self.kills)
            }
            Victims::Backup => 0,
        };
        let (mut note, mut fields) = felt(&recovered, &shared, calm);
        note += &after.text();
        fields.extend(after.json());
        if let Some(churned) = churned {
            note += &churned.text();
            fields.extend(churned.json());
        }
        let outcome = Outcome {
            seed,
            recovered,
            tally,
            objects: shared.objects(),
            bytes: shared.bytes,
            lost_memory: owned,
            fields,
            note,
        };
        // Of many rounds the picture shows the longest outage.
        if outcome.unavailable() > longest {
            let dead: Vec<u64> = outcome.recovered.iter().map(|one| one.id).collect();
            let title = format!(
                "kill -9 of {} ({} of data each, {} servers, {} copies)",
                dead.iter()
                    .map(|id| format!("server {id}"))
                    .collect::<Vec<_>>()
                    .join(", "),
                Size(shared.bytes / u64::from(self.common.servers)),
                self.common.servers,
                self.common.replicas,
            );
            timeline.draw(svg, &title, &shared, |group| dead.contains(&group.owner.0))?;
        }
        Ok(outcome)
    }

    fn data(&self) -> Data {
        let bytes = self.common.size.0 * u64::from(self.common.servers);
        Data {
            amount: self.fill.map_or(Amount::Bytes(bytes), Amount::Fill),
            sizes: self.value_size.clone(),
            tables: self.tables,
        }
    }

    fn shape(&self) -> Result<super::cluster::Shape, Failure> {
        if self.fill.is_some() {
            let mut shape = self.common.shape(self.backups(), SECONDS)?;
            shape.memory = self.common.memory.unwrap_or(Size(LEAST_MEMORY));
            return Ok(shape);
        }
        let servers = u64::from(self.common.servers);
        let left = match self.role {
            Victims::Server => servers - u64::from(self.kills),
            Victims::Backup => servers,
        };
        let mut shape = self.common.shape(self.backups(), SECONDS)?;
        // Room for what survivors take over, and for entries that are dead by then.
        let after = self.common.size.0 * servers / left;
        let usual = shape.memory.0 + after + after / 2;
        shape.memory = self.common.memory.unwrap_or(Size(usual));
        Ok(shape)
    }

    /// Processes that run only a backup.
    fn backups(&self) -> u32 {
        match self.role {
            Victims::Server => 0,
            Victims::Backup => self.kills + 1,
        }
    }

    /// Their places, in the order of their deaths.
    fn victims(&self, cluster: &Cluster, random: &mut Random) -> Vec<usize> {
        let wanted = self.role == Victims::Backup;
        let mut all: Vec<usize> = (0..cluster.servers.len())
            .filter(|at| cluster.servers[*at].is_backup() == wanted)
            .collect();
        let mut victims = Vec::new();
        while victims.len() < self.kills as usize && !all.is_empty() {
            let at = (random.next() % all.len() as u64) as usize;
            victims.push(all.swap_remove(at));
        }
        victims
    }

    async fn kill(
        &self,
        (cluster, workload): (&mut Cluster, &Workload),
        mut victims: Vec<usize>,
        random: &mut Random,
        unserved: Unserved,
        timeline: Timeline,
    ) -> Result<Vec<Recovered>, Failure> {
        let together = if self.at_once { victims.len() } else { 1 };
        let mut recovered = Vec::new();
        while !victims.is_empty() {
            let wait = random.next() % MOMENTS;
            tokio::time::sleep(Duration::from_millis(wait)).await;
            let now: Vec<usize> = victims.drain(..together).collect();
            let kill_leader = self.coordinator && cluster.gone.is_empty();
            let mut deaths = Deaths::new(cluster, workload, timeline);
            if self.during_recovery {
                deaths.next = std::mem::take(&mut victims);
            }
            deaths.kill_leader = kill_leader;
            deaths.heal = self.heal;
            deaths.unserved = unserved;
            recovered.extend(match self.role {
                Victims::Server => deaths.run(&now).await?,
                Victims::Backup => deaths.run_backups(&now).await?,
            });
            let down = Down::of(&cluster.led().await?.status, &cluster.gone);
            let whole = |group: &Group| down.is_empty() || !cluster.gone.contains(&group.owner.0);
            workload.goes_on(whole).await?;
            if !down.is_empty() {
                break;
            }
        }
        Ok(recovered)
    }

    fn check(&self) -> Result<(), Failure> {
        let replicas = u32::from(self.common.replicas);
        if self.role == Victims::Backup {
            if self.coordinator || self.during_recovery {
                return Err(Failure::usage(
                    "--role backup: nothing is recovered that could be disturbed",
                ));
            }
            if self.common.servers < replicas {
                return Err(Failure::usage(format_args!(
                    "--servers: {replicas} replicas need as many servers, so that enough backups are left"
                )));
            }
        } else if self.common.servers <= self.kills + replicas {
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

/// What clients felt of healing after the first death, in words and numbers; nothing if nobody
/// waited for that.
fn felt(recovered: &[Recovered], shared: &Shared, calm: Instant) -> (String, Map<String, Value>) {
    let first = recovered.first();
    let Some((first, healing)) = first.and_then(|one| Some((one, one.healing?))) else {
        return (String::new(), Map::new());
    };
    let felt = healing.felt(&shared.samples, calm, first.killed);
    let fields = [("healing".to_owned(), felt.json())];
    (felt.text(), fields.into_iter().collect())
}

/// A share of memory.
fn share(text: &str) -> Result<f64, String> {
    let parsed = text.parse().ok();
    let some = parsed.filter(|share| (0.01..=0.99).contains(share));
    some.ok_or_else(|| "write a share from 0.01 to 0.99".to_owned())
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
