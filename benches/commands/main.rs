//! Ramkeep's coordinators beside etcd: small commands through a group of three, synced to disk.
#![forbid(unsafe_code)]

mod disk;
mod engine;
mod etcd;
mod grpc;
mod nonce;
mod ramkeep;
mod report;
mod systems;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
pub(crate) use ramkeep_benches::{Failure, Outcome, process};
use ramkeep_rpc::PollMode;
use ramkeep_wire::coordinator::GroupCounters;

use crate::disk::DiskCost;
use crate::engine::Length;
use crate::report::Report;
use crate::systems::{Running, Sample, Setting, System};

/// Commands outstanding at most: what one connection of the Ramkeep client carries.
const MAX_OUTSTANDING: usize = ramkeep_rpc::caller::MAX_CALLS;
/// The part of a measurement that warms up before it.
const WARM_UP: u32 = 4;

/// Compares Ramkeep's coordinators with etcd on this machine: commands a second and latency, each
/// command synced to disk by a majority before it is answered.
#[derive(Debug, Parser)]
struct Args {
    /// Fewer and shorter rounds: under a minute
    #[arg(long)]
    quick: bool,
    /// Only these systems
    #[arg(long, value_delimiter = ',', value_enum)]
    only: Vec<System>,
    /// Commands outstanding, in turns
    #[arg(long, value_delimiter = ',', value_name = "N", default_values_t = [1, 16, 64, 256, 1024])]
    outstanding: Vec<usize>,
    /// Processes of each group
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=5))]
    members: u8,
    /// Connections to the leader, at most
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64))]
    connections: u8,
    /// Rounds; the table shows medians over them
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,
    /// Seconds of one measurement, after its warm-up
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: Option<u32>,
    /// How the Ramkeep client waits for its socket: adaptive, always or never
    #[arg(long, default_value = "never")]
    poll: PollMode,
    /// Both groups keep their data in a new directory below this one, which must lie on a disk
    #[arg(long, default_value = "/var/tmp", value_name = "DIR")]
    data: PathBuf,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match compare(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("commands: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn compare(args: &Args) -> Outcome<()> {
    if let Some(bad) = (args.outstanding.iter()).find(|n| !(1..=MAX_OUTSTANDING).contains(*n)) {
        return Err(Failure::new(format!(
            "--outstanding {bad} is not between 1 and {MAX_OUTSTANDING}"
        )));
    }
    let directory = disk::directory(&args.data)?;
    let setting = Setting {
        members: args.members.into(),
        data: directory.path(),
        poll: args.poll,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut failures = Vec::new();
    let mut disks = Vec::new();
    let (samples, counters) = runtime.block_on(run(args, setting, &mut disks, &mut failures))?;
    let mut report = Report::new(setting.members, &disks, &samples);
    report.counters = counters;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{}", report.text());
    }
    failures.into_iter().next().map_or(Ok(()), Err)
}

/// Starts the systems and measures them in turns. One that fails takes no further turn.
async fn run(
    args: &Args,
    setting: Setting<'_>,
    disks: &mut Vec<DiskCost>,
    failures: &mut Vec<Failure>,
) -> Outcome<(Vec<Sample>, Vec<GroupCounters>)> {
    let (rounds, seconds) = if args.quick { (2, 1) } else { (5, 3) };
    let counted = Duration::from_secs(args.seconds.unwrap_or(seconds).into());
    let length = Length {
        warm_up: counted / WARM_UP,
        counted,
    };
    let mut running = Vec::new();
    for system in [System::Ramkeep, System::Etcd] {
        if args.only.is_empty() || args.only.contains(&system) {
            match Running::start(system, setting).await {
                Ok(one) => running.push(one),
                Err(failure) => failures.push(failure.during(system.name(), "start")),
            }
        }
    }
    let mut samples = Vec::new();
    for _ in 0..args.rounds.unwrap_or(rounds) {
        disks.push(disk::measure(setting.data)?);
        for &outstanding in &args.outstanding {
            let mut still = Vec::new();
            for one in running {
                let connections = args.connections.into();
                match one.measure(outstanding, connections, length).await {
                    Ok(sample) => {
                        samples.push(sample);
                        still.push(one);
                    }
                    Err(failure) => {
                        let test = format!("{outstanding} outstanding");
                        failures.push(failure.during(one.system().name(), &test));
                    }
                }
            }
            running = still;
        }
        // Whoever goes first in one round goes last in the next.
        running.reverse();
    }
    let mut counters = Vec::new();
    for one in &running {
        if let Running::Ramkeep(group) = one {
            counters = group.counters().await?;
        }
    }
    Ok((samples, counters))
}
