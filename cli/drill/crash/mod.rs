//! `drill crash`: servers are killed under a verified workload; others recover their tablets.
//!
//! # Invariants
//! 1. Each round is a drill of its own, in a fresh cluster: every victim has its full share of the
//!    data, and no round is better or worse for what came before.
//! 2. Who is killed, and how long the workload has run before, follow from the round's seed.

pub(super) mod deaths;
pub(super) mod healing;
mod steps;
pub(super) mod summary;

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde_json::{Map, Value};

use super::Common;
use super::cluster::Cluster;
use super::rounds;
use super::timeline::Timeline;
use super::values::{MIN_VALUE, Random};
use super::workload::{Shared, Workload};
use crate::args::Global;
use crate::failure::Failure;
use crate::units::Size;
use deaths::{Deaths, Recovered};
use summary::Outcome;

/// For which masters get memory.
const SECONDS: u64 = 120;
/// The moment of a kill is drawn from as many milliseconds.
const MOMENTS: u64 = 500;

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
        let bytes = self.common.size.0 * u64::from(self.common.servers);
        let (start, sizes) = ((self.shape()?, global), self.value_size.clone());
        let (mut cluster, workload) = rounds::begin(start, bytes, sizes, timeline).await?;
        let addresses = cluster.addresses.clone();
        let calm = Instant::now();
        tokio::time::sleep(self.steady).await;
        let victims = self.victims(&cluster, &mut random);
        let recovered = self
            .kill(&mut cluster, &workload, victims, &mut random, timeline)
            .await?;
        let svg = self.common.svg.as_deref();
        let (shared, tally) = rounds::conclude(workload, &addresses, svg, timeline).await?;
        let owned = match self.role {
            Victims::Server => self.common.size.0 * u64::from(self.kills),
            Victims::Backup => 0,
        };
        let (note, fields) = felt(&recovered, &shared, calm);
        let outcome = Outcome {
            seed,
            recovered,
            tally,
            objects: shared.objects(),
            bytes,
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
                self.common.size,
                self.common.servers,
                self.common.replicas,
            );
            timeline.draw(svg, &title, &shared, |group| dead.contains(&group.owner.0))?;
        }
        Ok(outcome)
    }

    fn shape(&self) -> Result<super::cluster::Shape, Failure> {
        let servers = u64::from(self.common.servers);
        let (backups, left) = match self.role {
            Victims::Server => (0, servers - u64::from(self.kills)),
            Victims::Backup => (self.kills + 1, servers),
        };
        let mut shape = self.common.shape(backups, SECONDS)?;
        // Room for what survivors take over, and for entries that are dead by then.
        let after = self.common.size.0 * servers / left;
        let usual = shape.memory.0 + after + after / 2;
        shape.memory = self.common.memory.unwrap_or(Size(usual));
        Ok(shape)
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
        cluster: &mut Cluster,
        workload: &Workload,
        mut victims: Vec<usize>,
        random: &mut Random,
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
            recovered.extend(match self.role {
                Victims::Server => deaths.run(&now).await?,
                Victims::Backup => deaths.run_backups(&now).await?,
            });
            workload.goes_on(|_| true).await?;
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
