//! `ramkeep coordinator`: one of the processes that know who owns what, and how a lost one is
//! replaced.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use paxos::limits::{GROUP_SIZES, Timing};
use ramkeep_coordinator::core::default_settings;
use ramkeep_coordinator::shell::{Running, ShellConfig};
use ramkeep_rpc::Address;
use ramkeep_wire::PeerId;
use ramkeep_wire::coordinator::{Answer, Refused, Request, Settings};
use ramkeep_wire::limits::MAX_REPLICAS;
use rustix::process::Signal;
use serde_json::json;

use crate::connect::{ConnectArgs, shared_key};
use crate::coordinators::Coordinators;
use crate::failure::Failure;
use crate::output::Output;
use crate::process::{self, Announcement, Role, StopSignals};
use crate::rescue::RescueArgs;
use crate::{runtime, units};

/// `coordinator`: run one, or replace one.
#[derive(Clone, Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct CoordinatorArgs {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    run: Option<RunArgs>,
}

#[derive(Clone, Debug, Subcommand)]
enum Action {
    /// Put a coordinator that has asked to join in the place of one that is lost
    Replace(ReplaceArgs),
    /// Go on from the directory of one when most coordinators are lost for good
    Rescue(RescueArgs),
}

/// Flags of `coordinator`.
#[derive(Clone, Debug, Args)]
struct RunArgs {
    /// Where to listen, as host:port or unix:/path
    #[arg(long, value_name = "ADDRESS")]
    listen: Address,
    /// Directory of its journal, which belongs to it alone
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Its number in the group of coordinators
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    id: u32,
    /// The coordinators that form a group (1, 3 or 5), this one among them, as ID=ADDRESS,...;
    /// without this one, the group that it joins. Default: this one alone
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = peer)]
    peers: Vec<(PeerId, Address)>,
    /// Silence of the leader after which another coordinator asks to lead; the same for all
    #[arg(long, default_value = "250ms", value_parser = units::duration)]
    election_timeout: Duration,
    /// Make a new cluster if the directories of this one and of all its peers are empty. Without it an empty
    /// one waits to be taken into the group of its peers
    #[arg(long)]
    new_cluster: bool,
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

fn peer(text: &str) -> Result<(PeerId, Address), String> {
    let (id, address) = text
        .split_once('=')
        .ok_or("a coordinator is named ID=ADDRESS")?;
    let id: u32 = id.parse().map_err(|_| format!("`{id}` is no number"))?;
    if id == 0 {
        return Err("coordinators are numbered from 1".into());
    }
    let address = address
        .parse::<Address>()
        .map_err(|error| error.to_string())?;
    Ok((PeerId(id), address))
}

impl RunArgs {
    /// The group as named, if it can be one.
    fn group(&self) -> Result<Vec<(PeerId, Address)>, Failure> {
        let mut ids: Vec<u32> = self.peers.iter().map(|(id, _)| id.0).collect();
        ids.sort_unstable();
        ids.dedup();
        let founds = self.peers.is_empty() || ids.contains(&self.id);
        let size = ids.len().max(1);
        if ids.len() != self.peers.len() || (founds && !GROUP_SIZES.contains(&size)) {
            return Err(Failure::usage(
                "--peers names a group of 1, 3 or 5 coordinators, each once",
            ));
        }
        Ok(self.peers.clone())
    }

    fn timing(&self) -> Result<Timing, Failure> {
        const LEAST: Duration = Duration::from_millis(50);
        const MOST: Duration = Duration::from_secs(60);
        if !(LEAST..=MOST).contains(&self.election_timeout) {
            return Err(Failure::usage(
                "--election-timeout must be between 50ms and 1m",
            ));
        }
        Ok(Timing::of_election(self.election_timeout))
    }

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

/// Runs a coordinator until a signal, replaces one, or rescues a group.
pub(crate) fn run(args: &CoordinatorArgs, output: Output) -> Result<(), Failure> {
    match (&args.action, &args.run) {
        (Some(Action::Replace(replace)), _) => replace.run(output),
        (Some(Action::Rescue(rescue)), _) => rescue.run(output),
        (None, Some(args)) => args.run(output),
        (None, None) => Err(Failure::usage(
            "coordinator: --listen and --data are needed",
        )),
    }
}

impl RunArgs {
    fn run(&self, output: Output) -> Result<(), Failure> {
        if let Some(parent) = self.parent {
            process::die_with(parent, Signal::KILL)?;
        }
        process::allow_connections(1);
        let config = ShellConfig {
            listen: self.listen.clone(),
            directory: self.data.clone(),
            peer: PeerId(self.id),
            peers: self.group()?,
            timing: self.timing()?,
            key: shared_key(self.key_file.as_deref())?,
            settings: self.settings()?,
            new_cluster: self.new_cluster,
        };
        runtime::current_thread()?.block_on(async {
            let mut signals = StopSignals::listen()?;
            let running = Running::start(&config).map_err(Failure::new)?;
            let announcement = Announcement {
                role: Role::Coordinator,
                id: self.id.into(),
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
}

/// Flags of `coordinator replace`.
#[derive(Clone, Debug, Args)]
struct ReplaceArgs {
    /// The number of the coordinator that is lost
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    lost: u32,
    /// The number of the one that takes its place; it runs already, with --peers naming the others
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    by: u32,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// From the first attempt until a newcomer must have learned enough.
const REPLACE_PATIENCE: Duration = Duration::from_secs(30);
/// Between two attempts.
const REPLACE_RETRY: Duration = Duration::from_millis(200);

impl ReplaceArgs {
    fn run(&self, output: Output) -> Result<(), Failure> {
        let coordinators = Coordinators::of(&self.connect)?;
        runtime::current_thread()?.block_on(self.replace(&coordinators))?;
        let (lost, by) = (self.lost, self.by);
        output.line(
            format!("coordinator {by} is in the place of coordinator {lost}"),
            &json!({ "lost": lost, "by": by }),
        )?;
        Ok(())
    }

    /// Asks again while the newcomer still learns.
    async fn replace(&self, coordinators: &Coordinators) -> Result<(), Failure> {
        let request = Request::ReplaceCoordinator {
            lost: PeerId(self.lost),
            by: PeerId(self.by),
        };
        let patience = tokio::time::Instant::now() + REPLACE_PATIENCE;
        loop {
            let answer = coordinators.ask(&request).await?.answer;
            match answer {
                Answer::Noted => return Ok(()),
                Answer::Refused(Refused::Limit(_)) if tokio::time::Instant::now() < patience => {
                    tokio::time::sleep(REPLACE_RETRY).await;
                }
                Answer::Refused(why) => return Err(Failure::new(why)),
                _ => return Err(Failure::new("the coordinator's answer makes no sense")),
            }
        }
    }
}
