//! `ramkeep drill`: breaks a cluster of real processes on purpose, under a workload that checks
//! every answer.
//!
//! # Invariants
//! 1. Whether a drill has passed depends on a time only where a flag sets one: times are measured and
//!    shown.
//! 2. Every key has one writer, so that what a read may return is known (`record`).
//! 3. No process of a drill outlives it.

mod all;
mod asking;
mod background;
mod churn;
mod clients;
mod cluster;
mod cold;
mod coordinator;
mod corrupt;
mod counts;
mod crash;
mod cut;
mod down;
mod fill;
mod ledger;
mod load;
mod metadata;
mod outage;
mod pause;
mod picture;
mod record;
mod rejoin;
mod rounds;
mod samples;
mod timeline;
mod values;
mod workload;
mod zombie;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::args::Global;
use crate::failure::Failure;
use crate::output::Output;
use crate::process::StopSignals;
use crate::runtime;
use crate::units::Size;
use cluster::Shape;
use timeline::Timeline;

/// What to break.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum DrillArgs {
    /// Kill servers, and see their tablets served by others with nothing lost
    Crash(crash::CrashArgs),
    /// Damage copies of a server's segments, kill it, and see the honest copies used and the others named
    Corrupt(corrupt::CorruptArgs),
    /// Kill everything at once, and see it all come back from frames and journals
    Cold(cold::ColdArgs),
    /// Kill the leading coordinator, again and again, while tables are made and dropped
    Coordinator(coordinator::CoordinatorArgs),
    /// Stop a server beyond its lease, and wake it when it is fenced
    Pause(pause::PauseArgs),
    /// Have no coordinator for a long time while clients read and write
    Outage(outage::OutageArgs),
    /// Empty a coordinator's disk and see it come back
    Rejoin(rejoin::RejoinArgs),
    /// Keep every core busy for long, and see nobody taken for dead
    Load(load::LoadArgs),
    /// Hold very many clients, and see a server join and another recovered
    Clients(clients::ClientsArgs),
    /// Cut links between processes, in network namespaces, and see everybody go on when they heal
    Cut(cut::CutArgs),
    /// Crash, damage and cold start, each several times, and one table of what came of it
    All(all::AllArgs),
}

/// Flags of every drill.
#[derive(Clone, Debug, Args)]
pub(crate) struct Common {
    /// Coordinators: 3 or 5
    #[arg(
        long,
        default_value_t = 3,
        env = "RAMKEEP_DRILL_COORDINATORS",
        hide_env = true
    )]
    coordinators: u32,
    /// Processes with a master and a backup each
    #[arg(long, default_value_t = 4)]
    servers: u32,
    /// Copies of each write beside the master's own
    #[arg(long, default_value_t = 2)]
    replicas: u8,
    /// Data to load, in values of 1,000 bytes
    #[arg(long, default_value = "64MiB")]
    size: Size,
    /// Memory of each master [default: what loading and writing take]
    #[arg(long)]
    memory: Option<Size>,
    /// Draw throughput, latency and what happened when into this SVG file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Servers have memory and frames backed ahead of their use: on a virtual machine the first touch
    /// of memory may cost more than everything else
    #[arg(long)]
    prefault: bool,
}

/// Bytes of log that loaded data takes at most for each of its bytes, with keys and headers.
const LOAD_TAKES: u64 = 2;
/// Bytes of log that the workload writes to one master in a second, at most.
const WRITES_PER_SECOND: u64 = 256 << 10;
/// Memory that a master has in any case.
const LEAST_MEMORY: u64 = 128 << 20;

impl Common {
    /// With memory for `seconds` of writes.
    fn shape(&self, backups: u32, seconds: u64) -> Result<Shape, Failure> {
        if self.coordinators < 3 {
            return Err(Failure::usage(
                "--coordinators: a drill needs 3 or 5, so that one can be lost",
            ));
        }
        let loaded = self.size.0 * LOAD_TAKES / u64::from(self.servers.max(1));
        let usual = LEAST_MEMORY + loaded + seconds * WRITES_PER_SECOND;
        Ok(Shape {
            coordinators: self.coordinators,
            servers: self.servers,
            backups,
            replicas: self.replicas,
            memory: self.memory.unwrap_or(Size(usual)),
            prefault: self.prefault,
        })
    }
}

/// Runs a drill to its end, or until a signal.
pub(crate) fn run(args: &DrillArgs, global: &Global) -> Result<(), Failure> {
    let timeline = Timeline::new(Output::new(global.json));
    // On the main thread: children die with the thread that started them.
    runtime::current_thread()?.block_on(async {
        let mut signals = StopSignals::listen()?;
        let drill = async {
            match args {
                DrillArgs::Crash(args) => args.run(global, timeline).await,
                DrillArgs::Corrupt(args) => args.run(global, timeline).await,
                DrillArgs::Cold(args) => args.run(global, timeline).await,
                DrillArgs::Coordinator(args) => args.run(global, timeline).await,
                DrillArgs::Pause(args) => args.run(global, timeline).await,
                DrillArgs::Outage(args) => args.run(global, timeline).await,
                DrillArgs::Rejoin(args) => args.run(global, timeline).await,
                DrillArgs::Load(args) => args.run(global, timeline).await,
                DrillArgs::Clients(args) => args.run(global, timeline).await,
                DrillArgs::Cut(args) => args.run(global, timeline).await,
                DrillArgs::All(args) => args.run(timeline).await,
            }
        };
        tokio::select! {
            done = drill => done,
            () = signals.recv() => Err(Failure::new("the drill was stopped before its end")),
        }
    })
}
