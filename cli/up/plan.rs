//! What `up` will start, decided before anything starts: ports, directories, frames, arguments.
//!
//! # Invariants
//! 1. A coordinator gets just the port that was asked for, or nothing starts.
//! 2. Every process has a directory of its own.
//! 3. The backups together have frames for every copy of every master's memory, with room to spare
//!    for copies that are unevenly spread.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};

use paxos::limits::GROUP_SIZES;
use ramkeep_coordinator::shell::files;
use ramkeep_wire::limits::{MAX_REPLICAS, SEGMENT_SIZE};

use super::UpArgs;
use super::namespace::Namespace;
use super::place::Place;
use crate::args::Global;
use crate::failure::Failure;
use crate::process::Role;

/// From the first coordinator's port to where servers' ports begin.
const SERVER_PORTS_ABOVE: u16 = 10;
/// Processes of each kind that `up` starts at most.
const MAX_PROCESSES: u32 = 64;
/// A server's socket in its directory.
const SOCKET: &str = "socket";
/// Longest path of a socket that every system takes.
const MAX_SOCKET_PATH: usize = 100;
/// Frames beyond an even spread of the copies.
const SPARE_FRAMES: u64 = 32;

/// What to start.
#[derive(Debug)]
pub(crate) struct Plan {
    /// In the order in which they start; coordinators come first.
    pub(crate) coordinators: Vec<Planned>,
    /// Servers, then backups.
    pub(crate) servers: Vec<Planned>,
    /// With the key that they share.
    pub(crate) key_file: Option<PathBuf>,
    /// Directories that end with the plan.
    _place: Place,
}

/// One process to start.
#[derive(Debug)]
pub(crate) struct Planned {
    /// Its arguments, without those that name its parent and the coordinators.
    pub(crate) arguments: Vec<OsString>,
    /// Where it runs, if not where this process does.
    pub(crate) namespace: Option<Namespace>,
}

/// Where a process runs and listens.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    /// Its address.
    pub(crate) ip: Ipv4Addr,
    /// Where that is, if not here.
    pub(crate) namespace: Option<Namespace>,
}

impl Host {
    /// This machine, for itself alone.
    const LOOPBACK: Self = Self {
        ip: Ipv4Addr::LOCALHOST,
        namespace: None,
    };
}

impl Plan {
    /// Checks what was asked for and makes directories. `hosts`: where the processes run, coordinators
    /// first; those without one run on loopback.
    pub(crate) fn new(args: &UpArgs, global: &Global, hosts: &[Host]) -> Result<Self, Failure> {
        check(args)?;
        let coordinator_ports = coordinator_ports(args)?;
        let server_ports = server_ports(args)?;
        let place = Place::open(args.data.as_deref(), bytes_of_frames(args))?;
        let mut hosts = hosts
            .iter()
            .cloned()
            .chain(std::iter::repeat(Host::LOOPBACK));
        let coordinator_at: Vec<(u32, Host, u16)> = (1..)
            .zip(hosts.by_ref())
            .zip(coordinator_ports)
            .map(|((id, host), port)| (id, host, port))
            .collect();
        let peers = peers(&coordinator_at);
        let makes = makes_cluster(args)?;
        let coordinators = coordinator_at
            .into_iter()
            .map(|at| coordinator((args, global), at, &peers, makes, &place))
            .collect::<Result<_, _>>()?;
        let masters = (1..=args.servers).map(|n| (Role::Server, n));
        let backups = (1..=args.backups).map(|n| (Role::Backup, n));
        let servers = masters
            .chain(backups)
            .zip(hosts.zip(server_ports))
            .map(|((role, n), at)| server((args, global), role, n, at, &place))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            coordinators,
            servers,
            key_file: args.key_file.clone(),
            _place: place,
        })
    }
}

fn check(args: &UpArgs) -> Result<(), Failure> {
    if !GROUP_SIZES.contains(&(args.coordinators as usize)) {
        return Err(Failure::usage(format_args!(
            "--coordinators {}: a group has 1, 3 or 5",
            args.coordinators
        )));
    }
    if args.servers + args.backups == 0 || args.servers.max(args.backups) > MAX_PROCESSES {
        return Err(Failure::usage(format_args!(
            "a cluster has 1 to {MAX_PROCESSES} servers and at most as many further backups"
        )));
    }
    if usize::from(args.replicas) > MAX_REPLICAS {
        return Err(Failure::usage(format_args!(
            "--replicas {}: at most {MAX_REPLICAS} copies are kept",
            args.replicas
        )));
    }
    // A master never keeps its own copies.
    let others = args.servers.saturating_sub(1) + args.backups;
    if args.servers > 0 && u32::from(args.replicas) > others {
        return Err(Failure::usage(format_args!(
            "{} copies of each write need as many other processes, here are {others}; \
             use --replicas {others}, or more --servers or --backups",
            args.replicas
        )));
    }
    Ok(())
}

fn coordinator_ports(args: &UpArgs) -> Result<Vec<u16>, Failure> {
    if args.port == 0 {
        return free_ports(args.coordinators as usize);
    }
    let ports: Vec<u16> = (args.port..=u16::MAX)
        .take(args.coordinators as usize)
        .collect();
    for &port in &ports {
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(|error| match error.kind() {
            ErrorKind::AddrInUse => Failure::new(format_args!(
                "port {port} is taken, perhaps by another cluster; stop that one or choose \
                 another port with --port"
            )),
            _ => Failure::new(format_args!("cannot listen on port {port}: {error}")),
        })?;
    }
    Ok(ports)
}

/// Ports that are free now, all held until the last is found. The coordinators must know each
/// other's before they start.
fn free_ports(count: usize) -> Result<Vec<u16>, Failure> {
    let held: std::io::Result<Vec<TcpListener>> = (0..count)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .collect();
    let ports = held.and_then(|held| held.iter().map(|l| Ok(l.local_addr()?.port())).collect());
    ports.map_err(|error| Failure::new(format_args!("no free port to listen on: {error}")))
}

/// The group as each coordinator is told of it.
fn peers(coordinators: &[(u32, Host, u16)]) -> String {
    let peers = coordinators.iter();
    let peers = peers.map(|(id, host, port)| format!("{id}={}:{port}", host.ip));
    peers.collect::<Vec<_>>().join(",")
}

/// Ports that are free now; a process that finds its port taken after all says so and ends.
fn server_ports(args: &UpArgs) -> Result<Vec<u16>, Failure> {
    let wanted = (args.servers + args.backups) as usize;
    if args.port == 0 {
        return Ok(vec![0; wanted]);
    }
    let first = args.port.saturating_add(SERVER_PORTS_ABOVE);
    let ports: Vec<u16> = (first..=u16::MAX)
        .filter(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .take(wanted)
        .collect();
    if ports.len() < wanted {
        return Err(Failure::new(format_args!(
            "not enough free ports from {first} up; choose a lower --port"
        )));
    }
    Ok(ports)
}

fn frames_each(args: &UpArgs) -> u64 {
    let segments = args.memory.0.div_ceil(SEGMENT_SIZE as u64);
    let copies = segments * u64::from(args.replicas) * u64::from(args.servers);
    let even = copies.div_ceil(u64::from((args.servers + args.backups).max(1)));
    even + even / 2 + SPARE_FRAMES
}

/// Whether there is no cluster yet: no coordinator has anything in its journal, and no server frames.
fn makes_cluster(args: &UpArgs) -> Result<bool, Failure> {
    let Some(data) = &args.data else {
        return Ok(true);
    };
    let unreadable = |error: std::io::Error| {
        Failure::new(format_args!("cannot read {}: {error}", data.display()))
    };
    let entries = match std::fs::read_dir(data) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
        entries => entries.map_err(unreadable)?,
    };
    let (mut journals, mut frames) = (false, false);
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        match name.and_then(|name| name.split_once('-')) {
            Some(("coordinator", _)) => {
                journals |= !files::is_blank(&path).map_err(Failure::new)?;
            }
            Some(("server" | "backup", _)) => {
                frames |= std::fs::read_dir(&path)
                    .map_err(unreadable)?
                    .next()
                    .is_some();
            }
            _ => {}
        }
    }
    if frames && !journals && !args.new_cluster {
        return Err(Failure::new(format_args!(
            "{0} holds servers' frames, but no coordinator's journal: what they knew of the cluster is not \
             there. Put {0}/coordinator-1 and the others back from a copy; or, to give up what the frames \
             hold, empty {0}/server-1 and the others and start with --new-cluster",
            data.display()
        )));
    }
    Ok(!journals)
}

/// What the frames take if every one is used to the end.
fn bytes_of_frames(args: &UpArgs) -> u64 {
    let copies = args.memory.0 * u64::from(args.replicas) * u64::from(args.servers);
    copies + SEGMENT_SIZE as u64 * u64::from(args.servers + args.backups)
}

fn coordinator(
    (args, global): (&UpArgs, &Global),
    (id, host, port): (u32, Host, u16),
    peers: &str,
    makes_cluster: bool,
    place: &Place,
) -> Result<Planned, Failure> {
    let mut line = Line::new("coordinator", global);
    if makes_cluster {
        line.0.push("--new-cluster".into());
    }
    line.flag("--listen", format!("{}:{port}", host.ip))
        .flag("--id", id.to_string())
        .flag("--peers", peers)
        .flag("--data", place.directory(&format!("coordinator-{id}"))?)
        .flag("--replicas", args.replicas.to_string())
        .flag(
            "--lease",
            humantime::format_duration(args.lease).to_string(),
        )
        .flag(
            "--backup-wait",
            humantime::format_duration(args.backup_wait).to_string(),
        )
        .key_file(args.key_file.as_deref());
    Ok(Planned {
        arguments: line.0,
        namespace: host.namespace,
    })
}

fn server(
    (args, global): (&UpArgs, &Global),
    role: Role,
    number: u32,
    (host, port): (Host, u16),
    place: &Place,
) -> Result<Planned, Failure> {
    let data = place.directory(&format!("{}-{number}", role.name()))?;
    let mut line = Line::new("server", global);
    line.flag("--listen", listen(&host, port, &data))
        .flag("--data", data)
        .flag("--memory", args.memory.0.to_string())
        .flag("--frames", frames_each(args).to_string())
        .flag("--workers", args.workers.to_string())
        .flag("--poll", args.poll.to_string())
        .key_file(args.key_file.as_deref());
    if role == Role::Backup {
        line.0.push("--no-master".into());
    }
    if args.prefault {
        line.0.push("--prefault".into());
    }
    Ok(Planned {
        arguments: line.0,
        namespace: host.namespace,
    })
}

/// The port, and for the other processes of this machine a quicker socket in the server's own
/// directory, where its path is of a form that fits.
fn listen(host: &Host, port: u16, data: &Path) -> String {
    let socket = data.join(SOCKET);
    let address = format!("{}:{port}", host.ip);
    match socket.to_str() {
        // The file system is no network: it would lead past a namespace.
        _ if host.namespace.is_some() => address,
        Some(path) if path.len() <= MAX_SOCKET_PATH && !path.contains(',') => {
            format!("{address},unix:{path}")
        }
        _ => address,
    }
}

struct Line(Vec<OsString>);

impl Line {
    fn new(command: &str, global: &Global) -> Self {
        let mut line = Self(vec![command.into(), "--json".into()]);
        if global.verbose {
            line.0.push("--verbose".into());
        }
        if let Some(filter) = &global.trace {
            line.flag("--trace", filter);
        }
        line
    }

    fn flag(&mut self, name: &str, value: impl Into<OsString>) -> &mut Self {
        self.0.extend([name.into(), value.into()]);
        self
    }

    fn key_file(&mut self, file: Option<&Path>) {
        if let Some(file) = file {
            self.flag("--key-file", file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn args(line: &str) -> UpArgs {
        #[derive(Parser)]
        struct Only {
            #[command(flatten)]
            up: UpArgs,
        }
        Only::parse_from(std::iter::once("up").chain(line.split_whitespace())).up
    }

    #[test]
    fn more_copies_than_other_processes_are_refused() {
        assert!(check(&args("--servers 3 --replicas 2")).is_ok());
        assert!(matches!(
            check(&args("--servers 2 --replicas 2")),
            Err(Failure::Usage(_))
        ));
        assert!(check(&args("--servers 1 --backups 2 --replicas 2")).is_ok());
        assert!(check(&args("--servers 1 --replicas 0")).is_ok());
    }

    #[test]
    fn a_group_has_one_three_or_five_coordinators() {
        for count in 0..7 {
            let args = args(&format!("--coordinators {count}"));
            assert_eq!(check(&args).is_ok(), [1, 3, 5].contains(&count), "{count}");
        }
    }

    #[test]
    fn frames_hold_every_copy_of_every_masters_memory() {
        for line in [
            "--servers 4",
            "--servers 1 --backups 2",
            "--servers 3 --replicas 1",
        ] {
            let args = args(line);
            let frames = frames_each(&args) * u64::from(args.servers + args.backups);
            assert!(
                frames * SEGMENT_SIZE as u64 >= bytes_of_frames(&args),
                "{line}"
            );
        }
    }

    #[test]
    fn each_process_gets_a_directory_and_the_ports_are_apart() {
        let args = args("--port 0 --servers 2 --backups 1 --replicas 2 --memory 64MiB");
        let plan = Plan::new(&args, &Global::default(), &[]).unwrap();
        let directories: std::collections::BTreeSet<_> = plan
            .coordinators
            .iter()
            .chain(&plan.servers)
            .filter_map(|planned| {
                let at = planned
                    .arguments
                    .iter()
                    .position(|argument| argument == "--data")?;
                planned.arguments.get(at + 1)
            })
            .collect();
        assert_eq!(directories.len(), 6);
        assert!(
            directories
                .iter()
                .all(|directory| Path::new(directory).is_dir())
        );
        assert!(plan.servers[2].arguments.contains(&"--no-master".into()));
        let kept: Vec<_> = directories.into_iter().cloned().collect();
        drop(plan);
        assert!(kept.iter().all(|directory| !Path::new(directory).exists()));
    }
}
