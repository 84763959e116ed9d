//! `ramkeep server`: one process with a master and a backup, or with one of them.
//!
//! # Invariants
//! 1. The frame directory is locked before anybody hears of this process, and its old ServerId is
//!    named at enlistment (SAFETY 6).
//! 2. Until it is enlisted, a server listens but serves nothing: nobody can mean it yet.
//! 3. A server that was decided crashed never goes on under another identity: its process begins
//!    again from nothing but its arguments and its frames, and joins as a new server.

mod backup_only;
mod enlist;
mod late;
mod resident;

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use ramkeep_backup::layout::Geometry;
use ramkeep_backup::shell::{BackupService, Stock};
use ramkeep_master::core::{Master, MasterConfig};
use ramkeep_master::probing::Prober;
use ramkeep_master::shell::{
    ControlConfig, ControlEnd, Coordinators, MasterService, MasterShell, Probing, run_control,
};
use ramkeep_rpc::{Address, Identity, PollMode, Router, Serving, WorkerPool, clock};
use ramkeep_wire::coordinator::{Heartbeat, Roles};
use ramkeep_wire::limits::SEGMENT_SIZE;
use rustix::process::Signal;

use crate::connect::{DEFAULT_COORDINATORS, shared_key};
use crate::coordinators;
use crate::failure::Failure;
use crate::output::Output;
use crate::process::{self, Announcement, Role, StopSignals};
use crate::runtime;
use crate::units::Size;
use backup_only::BackupOnly;
use enlist::{Enlisted, Joining};
use late::Late;

/// How long replies that wait for backups may take once the process is to stop.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// Frames for copies of others' segments, per segment of own memory, unless `--frames` says
/// otherwise: two copies each, unevenly spread.
const FRAMES_PER_SEGMENT: u64 = 3;

/// Flags of `server`.
#[derive(Clone, Debug, Args)]
pub(crate) struct ServerArgs {
    /// Where to listen, as host:port or unix:/path,...; the first is for clients
    #[arg(long, value_delimiter = ',', value_name = "ADDRESSES", required = true)]
    listen: Vec<Address>,
    /// The cluster's coordinators, as host:port,... [default: 127.0.0.1:7100 to 7102]
    #[arg(long, value_delimiter = ',', value_name = "ADDRESSES")]
    coordinators: Option<Vec<String>>,
    /// Directory of the frames; its replicas outlive the process
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Memory of the master, for its log and index
    #[arg(long, default_value = "256MiB")]
    memory: Size,
    /// Have the system back all of --memory, and a quarter of the frames ahead of their use, rather
    /// than as they are written
    #[arg(long)]
    prefault: bool,
    /// Run only a backup
    #[arg(long, conflicts_with = "no_backup")]
    no_master: bool,
    /// Run only a master
    #[arg(long)]
    no_backup: bool,
    /// Copies of others' segments that there is room for, of 8 MiB each [default: three for each
    /// 8 MiB of --memory]
    #[arg(long)]
    frames: Option<u32>,
    /// Worker threads
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: u16,
    /// How to wait for requests: adaptive, always, never
    #[arg(long, default_value_t = PollMode::Adaptive)]
    poll: PollMode,
    /// File with the key that all processes and clients share; without it, loopback only
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// The process to end with
    #[arg(long, hide = true)]
    parent: Option<i32>,
}

impl ServerArgs {
    fn roles(&self) -> Roles {
        Roles {
            master: !self.no_master,
            backup: !self.no_backup,
        }
    }

    fn role(&self) -> Role {
        if self.no_master {
            Role::Backup
        } else {
            Role::Server
        }
    }

    fn frames(&self) -> u32 {
        let segments = self.memory.0.div_ceil(SEGMENT_SIZE as u64);
        let usual = u32::try_from(segments * FRAMES_PER_SEGMENT).unwrap_or(u32::MAX);
        self.frames.unwrap_or(usual)
    }

    fn coordinators(&self, identity: &Identity) -> Result<Coordinators, Failure> {
        let usual = || DEFAULT_COORDINATORS.map(str::to_owned).to_vec();
        let addresses = self.coordinators.clone().unwrap_or_else(usual);
        Ok(Coordinators::new(
            &coordinators::parse(&addresses)?,
            identity.clone(),
        ))
    }
}

/// Runs a server until a signal; one that is decided crashed begins again.
pub(crate) fn run(args: &ServerArgs, output: Output) -> Result<(), Failure> {
    if let Some(parent) = args.parent {
        process::die_with(parent, Signal::KILL)?;
    }
    let runtime = runtime::current_thread()?;
    let pool = WorkerPool::start(args.workers.into(), args.poll)
        .map_err(|error| Failure::new(format_args!("cannot start worker threads: {error}")))?;
    let ended = runtime.block_on(serve(args, &pool, output));
    pool.shutdown();
    match ended? {
        Ended::Stopped => Ok(()),
        Ended::Fenced(end) => {
            eprintln!("ramkeep: {end}; joining again as a new one");
            Err(process::begin_again())
        }
    }
}

/// Why a server has ended.
enum Ended {
    /// It was asked to.
    Stopped,
    /// It was decided crashed.
    Fenced(ControlEnd),
}

async fn serve(args: &ServerArgs, pool: &WorkerPool, output: Output) -> Result<Ended, Failure> {
    let mut signals = StopSignals::listen()?;
    let identity = Identity::new(shared_key(args.key_file.as_deref())?);
    let backup = open_backup(args, &identity)?;
    let control = Late::default();
    let listening = listen(args, pool, &identity, backup.as_ref(), &control)?;
    let addresses: Vec<String> = listening
        .iter()
        .map(|one| one.address().to_string())
        .collect();
    let joining = Joining {
        roles: args.roles(),
        addresses: addresses.clone(),
        frames: backup.as_ref().map_or(0, |backup| backup.stats().frames),
        replaces: backup.as_ref().and_then(BackupService::replaces),
        memory: args.memory.0,
    };
    let coordinators = args.coordinators(&identity)?;
    let enlisted = tokio::select! {
        enlisted = enlist::enlist(&coordinators, &joining) => enlisted?,
        () = signals.recv() => return Ok(Ended::Stopped),
    };
    adopt(&enlisted, &identity, backup.as_ref())?;
    let announcement = Announcement {
        role: args.role(),
        id: enlisted.server.0,
        pid: std::process::id(),
        address: addresses.into_iter().next().unwrap_or_default(),
    };
    let mut running = begin(args, pool, enlisted, &identity, backup, &control)?;
    // Known to the coordinator by now; that nobody reads this line is no reason to end.
    drop(output.line(announcement.text(), &announcement.json()));
    tokio::select! {
        end = &mut running => return match end {
            ControlEnd::Fenced => Ok(Ended::Fenced(end)),
            ControlEnd::Stopped => Err(Failure::new(end)),
        },
        () = signals.recv() => {}
    }
    // Writes that are on their way still need the control loop to become durable.
    tokio::select! {
        _ = &mut running => {}
        () = stop(listening) => {}
    }
    Ok(Ended::Stopped)
}

fn open_backup(args: &ServerArgs, identity: &Identity) -> Result<Option<BackupService>, Failure> {
    if args.no_backup {
        return Ok(None);
    }
    let segment_size = u32::try_from(SEGMENT_SIZE).map_err(Failure::new)?;
    let geometry = Geometry::new(args.frames(), segment_size).map_err(Failure::new)?;
    let stock = if args.prefault {
        Stock::AtOnce
    } else {
        Stock::WhenQuiet
    };
    let backup = BackupService::open_with(&args.data, geometry, clock::now(), stock)
        .map_err(|error| Failure::new(format_args!("cannot open the frames: {error}")))?;
    if let Some(cluster) = backup.cluster() {
        identity.set_cluster(cluster);
    }
    Ok(Some(backup))
}

fn listen(
    args: &ServerArgs,
    pool: &WorkerPool,
    identity: &Identity,
    backup: Option<&BackupService>,
    control: &Late,
) -> Result<Vec<Serving>, Failure> {
    let mut router = Router::new().route(MasterService::KINDS, Arc::new(control.clone()));
    if let Some(backup) = backup {
        router = router.route(ramkeep_backup::KINDS, Arc::new(backup.clone()));
    }
    args.listen
        .iter()
        .map(|address| {
            pool.serve(address, identity, router.clone())
                .map_err(Failure::new)
        })
        .collect()
}

/// From here on this process is the server that it was made.
fn adopt(
    enlisted: &Enlisted,
    identity: &Identity,
    backup: Option<&BackupService>,
) -> Result<(), Failure> {
    if let Some(backup) = backup {
        backup
            .assign(
                enlisted.cluster,
                enlisted.server,
                enlisted.settings.lease_us,
            )
            .map_err(|error| Failure::new(format_args!("cannot use the frames: {error}")))?;
    }
    identity.set_cluster(enlisted.cluster);
    identity.set_party(ramkeep_wire::Party::server(enlisted.server));
    Ok(())
}

/// Serves and reports; ends when the server must.
type Running = Pin<Box<dyn Future<Output = ControlEnd>>>;

/// Starts what serves.
fn begin(
    args: &ServerArgs,
    pool: &WorkerPool,
    enlisted: Enlisted,
    identity: &Identity,
    backup: Option<BackupService>,
    control: &Late,
) -> Result<Running, Failure> {
    // Anew: these connections say who they come from.
    let coordinators = Arc::new(args.coordinators(identity)?);
    let heartbeat = Duration::from_micros(enlisted.settings.heartbeat_us.into());
    if args.no_master {
        let only = BackupOnly::new(enlisted.server, enlisted.list, backup);
        control.set(only.clone());
        let prober = Prober::new(enlisted.server, enlist::seed()?);
        let probing = Probing::new(prober, identity.clone(), coordinators.clone());
        return Ok(Box::pin(only.run(coordinators, heartbeat, probing)));
    }
    let master = Master::new(MasterConfig {
        me: enlisted.server,
        cluster: enlisted.cluster,
        key: enlisted.key,
        settings: enlisted.settings,
        memory: args.memory.0,
        seed: enlist::seed()?,
    })
    .map_err(|error| Failure::new(format_args!("--memory {}: {error}", args.memory)))?;
    let shell = MasterShell::new(master, identity.clone(), args.poll);
    if let Some(backup) = backup.clone() {
        let stats = backup.clone();
        shell.report_backup_with(move || stats.stats());
        shell.fence_with(move |list| backup.take_list(list));
    }
    control.set(MasterService(shell.clone()));
    let config = ControlConfig {
        coordinators,
        heartbeat,
        complete: complete(backup),
        prefault: args.prefault,
    };
    // On a worker: the connections to backups belong to its runtime, so that a thread of their own
    // isn't woken for every acknowledgement that a session has polled already.
    let running = pool.runtime().spawn(run_control(shell, config));
    Ok(Box::pin(async move {
        running.await.unwrap_or(ControlEnd::Stopped)
    }))
}

/// Adds the backup's part and the process's to the master's report.
fn complete(backup: Option<BackupService>) -> Box<dyn Fn(&mut Heartbeat) + Send + Sync> {
    Box::new(move |report| {
        report.resident = resident::bytes();
        report.backup = backup.as_ref().map(BackupService::stats);
    })
}

async fn stop(listening: Vec<Serving>) {
    for one in listening {
        one.stop(STOP_GRACE).await;
    }
}
