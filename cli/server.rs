//! `ramkeep server`: one process with a master and a backup, or with one of them.
//!
//! # Invariants
//! 1. The frame directory is locked before anybody hears of this process (SAFETY 6).
//! 2. A server that was decided crashed never goes on under another identity: its process begins
//!    again from nothing but its arguments and its frames, and joins as a new server.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use ramkeep_backup::layout::Geometry;
use ramkeep_backup::shell::{BackupService, Stock};
use ramkeep_rpc::{Address, Identity, PollMode, Router, Serving, WorkerPool, clock};
use ramkeep_server::core::ServerEnd;
use ramkeep_server::shell::{ServerOptions, ServerShell};
use ramkeep_wire::coordinator::Roles;
use ramkeep_wire::limits::SEGMENT_SIZE;
use rustix::process::Signal;
use tokio::task::JoinHandle;

use crate::connect::{DEFAULT_COORDINATORS, shared_key};
use crate::coordinators;
use crate::failure::Failure;
use crate::output::Output;
use crate::process::{self, Announcement, Role, StopSignals};
use crate::runtime;
use crate::units::Size;

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

    fn options(&self) -> Result<ServerOptions, Failure> {
        let usual = || DEFAULT_COORDINATORS.map(str::to_owned).to_vec();
        let coordinators = self.coordinators.clone().unwrap_or_else(usual);
        let coordinators = coordinators::parse(&coordinators)?;
        Ok(ServerOptions {
            roles: self.roles(),
            coordinators: coordinators.iter().map(Address::to_string).collect(),
            memory: self.memory.0,
            prefault: self.prefault,
        })
    }
}

/// Runs a server until a signal; one that is decided crashed begins again.
pub(crate) fn run(args: &ServerArgs, output: Output) -> Result<(), Failure> {
    if let Some(parent) = args.parent {
        process::die_with(parent, Signal::KILL)?;
    }
    process::allow_connections(args.listen.len() as u64);
    let runtime = runtime::current_thread()?;
    let pool = WorkerPool::start(args.workers.into(), args.poll)
        .map_err(|error| Failure::new(format_args!("cannot start worker threads: {error}")))?;
    let ended = runtime.block_on(serve(args, &pool, output));
    pool.shutdown();
    match ended? {
        Ended::Stopped => Ok(()),
        Ended::Crashed(end) => {
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
    Crashed(ServerEnd),
}

async fn serve(args: &ServerArgs, pool: &WorkerPool, output: Output) -> Result<Ended, Failure> {
    let mut signals = StopSignals::listen()?;
    let identity = Identity::new(shared_key(args.key_file.as_deref())?);
    let backup = open_backup(args)?;
    let shell = ServerShell::new(
        args.options()?,
        backup,
        identity.clone(),
        pool.runtime().clone(),
    )
    .map_err(Failure::new)?;
    let listening = listen(args, pool, &identity, &shell.router())?;
    let addresses = listening.iter().map(|one| one.address().to_string());
    let addresses: Vec<String> = addresses.collect();
    let mut running = pool.runtime().spawn(shell.clone().run(addresses.clone()));
    let server = tokio::select! {
        server = shell.joined() => server,
        ended = end_of(args, &mut running) => return ended,
        () = signals.recv() => return Ok(Ended::Stopped),
    };
    let announcement = Announcement {
        role: args.role(),
        id: server.0,
        pid: std::process::id(),
        address: addresses.into_iter().next().unwrap_or_default(),
    };
    // Known to the coordinator by now; that nobody reads this line is no reason to end.
    drop(output.line(announcement.text(), &announcement.json()));
    tokio::select! {
        ended = end_of(args, &mut running) => return ended,
        () = signals.recv() => {}
    }
    // Writes that are on their way still need the server to become durable.
    tokio::select! {
        _ = &mut running => {}
        () = stop(listening) => {}
    }
    Ok(Ended::Stopped)
}

/// Why a server ended that nobody has asked to.
async fn end_of(args: &ServerArgs, running: &mut JoinHandle<ServerEnd>) -> Result<Ended, Failure> {
    match running.await {
        Ok(end @ ServerEnd::Crashed) => Ok(Ended::Crashed(end)),
        Ok(ServerEnd::Memory(error)) => {
            let memory = args.memory;
            Err(Failure::new(format_args!("--memory {memory}: {error}")))
        }
        Ok(end) => Err(Failure::new(end)),
        Err(_) => Err(Failure::new("the server's workers have ended")),
    }
}

fn open_backup(args: &ServerArgs) -> Result<Option<BackupService>, Failure> {
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
    Ok(Some(backup))
}

fn listen(
    args: &ServerArgs,
    pool: &WorkerPool,
    identity: &Identity,
    router: &Router,
) -> Result<Vec<Serving>, Failure> {
    let serve = |address| pool.serve(address, identity, router.clone());
    let listening = args.listen.iter().map(serve);
    listening.map(|one| one.map_err(Failure::new)).collect()
}

async fn stop(listening: Vec<Serving>) {
    for one in listening {
        one.stop(STOP_GRACE).await;
    }
}
