//! `ramkeep coordinator`: one process that knows who owns what.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use ramkeep_coordinator::core::default_settings;
use ramkeep_coordinator::shell::{Running, ShellConfig};
use ramkeep_rpc::Address;
use ramkeep_wire::PeerId;
use ramkeep_wire::coordinator::Settings;
use ramkeep_wire::limits::MAX_REPLICAS;
use rustix::process::Signal;

use crate::connect::shared_key;
use crate::failure::Failure;
use crate::output::Output;
use crate::process::{self, Announcement, Role, StopSignals};
use crate::{runtime, units};

/// Flags of `coordinator`.
#[derive(Clone, Debug, Args)]
pub(crate) struct CoordinatorArgs {
    /// Where to listen, as host:port or unix:/path
    #[arg(long, value_name = "ADDRESS")]
    listen: Address,
    /// Directory of its journal, which belongs to it alone
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Its number in the group of coordinators
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    id: u32,
    /// Copies of each write beside the master's own. This and the durations count when the cluster
    /// is made; they are kept with it
    #[arg(long, default_value_t = 2,
          value_parser = clap::value_parser!(u8).range(0..=MAX_REPLICAS as i64))]
    replicas: u8,
    /// Length of a master's lease from its backups
    #[arg(long, default_value = "200ms", value_parser = units::duration)]
    lease: Duration,
    /// How long a write waits for enough backups before it is refused
    #[arg(long, default_value = "2s", value_parser = units::duration)]
    backup_wait: Duration,
    /// How often servers report
    #[arg(long, default_value = "100ms", value_parser = units::duration)]
    heartbeat: Duration,
    /// Silence after which a server is asked whether it is alive
    #[arg(long, default_value = "500ms", value_parser = units::duration)]
    suspect_after: Duration,
    /// File with the key that all processes and clients share; without it, loopback only
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// The process to end with
    #[arg(long, hide = true)]
    parent: Option<i32>,
}

impl CoordinatorArgs {
    fn settings(&self) -> Result<Settings, Failure> {
        Ok(Settings {
            replicas: self.replicas,
            lease_us: micros("lease", self.lease)?,
            backup_wait_us: micros("backup-wait", self.backup_wait)?,
            heartbeat_us: micros("heartbeat", self.heartbeat)?,
            suspect_us: micros("suspect-after", self.suspect_after)?,
            ..default_settings()
        })
    }
}

fn micros(flag: &str, duration: Duration) -> Result<u32, Failure> {
    match u32::try_from(duration.as_micros()) {
        Ok(micros) if micros > 0 => Ok(micros),
        _ => Err(Failure::usage(format_args!(
            "--{flag} must be between 1us and 1h"
        ))),
    }
}

/// Runs a coordinator until a signal.
pub(crate) fn run(args: &CoordinatorArgs, output: Output) -> Result<(), Failure> {
    if let Some(parent) = args.parent {
        process::die_with(parent, Signal::KILL)?;
    }
    let config = ShellConfig {
        listen: args.listen.clone(),
        directory: args.data.clone(),
        peer: PeerId(args.id),
        key: shared_key(args.key_file.as_deref())?,
        settings: args.settings()?,
    };
    runtime::current_thread()?.block_on(async {
        let mut signals = StopSignals::listen()?;
        let running = Running::start(&config).map_err(Failure::new)?;
        let announcement = Announcement {
            role: Role::Coordinator,
            id: args.id.into(),
            pid: std::process::id(),
            address: running.address().to_string(),
        };
        // It serves already; that nobody reads this line is no reason to end.
        let _ = output.line(announcement.text(), &announcement.json());
        running
            .run_until(signals.recv())
            .await
            .map_err(Failure::new)
    })
}
