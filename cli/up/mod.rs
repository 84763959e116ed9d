//! `ramkeep up`: a whole cluster of real processes on loopback.

pub(crate) mod child;
pub(crate) mod cluster;
pub(crate) mod namespace;
pub(crate) mod place;
pub(crate) mod plan;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use ramkeep_rpc::PollMode;
use rustix::process::Signal;
use serde_json::json;

use crate::args::Global;
use crate::failure::Failure;
use crate::output::Output;
use crate::process::{self, StopSignals};
use crate::runtime;
use crate::units::{self, Size};
use cluster::{Cluster, Event};
use plan::Plan;

/// Flags of `up`.
#[derive(Clone, Debug, Args)]
pub(crate) struct UpArgs {
    /// Coordinators: 1, 3 or 5
    #[arg(
        long,
        default_value_t = 3,
        env = "RAMKEEP_UP_COORDINATORS",
        hide_env = true
    )]
    pub(crate) coordinators: u32,
    /// Processes with a master and a backup each
    #[arg(long, default_value_t = 4)]
    pub(crate) servers: u32,
    /// Further processes with only a backup
    #[arg(long, default_value_t = 0)]
    pub(crate) backups: u32,
    /// Copies of each write beside the master's own
    #[arg(long, default_value_t = 2)]
    pub(crate) replicas: u8,
    /// Memory of each master
    #[arg(long, default_value = "256MiB")]
    pub(crate) memory: Size,
    /// Have the system back all of --memory, and a quarter of the frames ahead of their use, rather
    /// than as they are written
    #[arg(long)]
    pub(crate) prefault: bool,
    /// The first coordinator's port; servers listen from ten above it up. 0: any free ports
    #[arg(long, default_value_t = 7100)]
    pub(crate) port: u16,
    /// Directory to keep frames and journals in; without it, memory, gone when `up` ends
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Make a new cluster although --data holds servers' frames of one whose coordinators' journals are lost
    #[arg(long)]
    pub(crate) new_cluster: bool,
    /// File with the key that all processes and clients share
    #[arg(long, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
    /// How servers wait for requests: adaptive, always, never
    #[arg(long, default_value_t = PollMode::Adaptive)]
    pub(crate) poll: PollMode,
    /// Worker threads of each server
    #[arg(long, default_value_t = 1)]
    pub(crate) workers: u16,
    /// Length of a master's lease from its backups
    #[arg(long, default_value = "200ms", value_parser = units::duration)]
    pub(crate) lease: Duration,
    /// How long a write waits for enough backups before it is refused
    #[arg(long, default_value = "5s", value_parser = units::duration)]
    pub(crate) backup_wait: Duration,
    /// The process to end with
    #[arg(long, hide = true)]
    pub(crate) parent: Option<i32>,
}

/// Runs `up` until a signal.
pub(crate) fn run(args: &UpArgs, global: &Global) -> Result<(), Failure> {
    if let Some(parent) = args.parent {
        // Not at once: it has children to stop and files to remove.
        process::die_with(parent, Signal::TERM)?;
    }
    let output = Output::new(global.json);
    let plan = Plan::new(args, global, &[])?;
    // On the main thread: children die with the thread that started them.
    runtime::current_thread()?.block_on(supervise(&plan, output))
}

async fn supervise(plan: &Plan, output: Output) -> Result<(), Failure> {
    let mut signals = StopSignals::listen()?;
    let mut cluster = tokio::select! {
        started = Cluster::start(plan, |event| tell(output, event)) => started?,
        () = signals.recv() => return Ok(()),
    };
    let coordinators = cluster.coordinators().to_vec();
    tell(output, &Event::Ready { coordinators });
    let ended = loop {
        tokio::select! {
            () = signals.recv() => break Ok(()),
            event = cluster.next_event() => match event {
                Some(event) => tell(output, &event),
                None => break Err(Failure::new("every process of the cluster has ended; stopping")),
            },
        }
    };
    cluster.stop().await;
    ended
}

fn tell(output: Output, event: &Event) {
    let (text, json) = match event {
        Event::Process(announcement) => (announcement.text(), announcement.json()),
        Event::Ready { coordinators } => (
            format!("cluster ready, coordinators {}", coordinators.join(",")),
            json!({ "event": "ready", "coordinators": coordinators }),
        ),
        Event::Exited { process, status } => (
            format!(
                "{} {} (pid {}) ended: {status}",
                process.role.name(),
                process.id,
                process.pid
            ),
            json!({
                "event": "exited",
                "role": process.role.name(),
                "id": process.id,
                "pid": process.pid,
                "status": status,
            }),
        ),
    };
    // With its reader gone, `up` still keeps the cluster.
    let _ = output.line(text, &json);
}
