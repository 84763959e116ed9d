//! The cluster that a drill breaks: child processes that can be killed, stopped and started again.
//!
//! # Invariants
//! 1. A process keeps its arguments, so its directory and its port, from one start to the next.
//! 2. Ports are taken from below those that the system gives to outgoing connections: while a
//!    process is down, its port is not somebody else's by accident.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ramkeep_rpc::PollMode;
use ramkeep_wire::coordinator::{ClusterStatus, ServerReport, ServerState};
use rustix::process::Signal;
use tokio::task::JoinSet;

use super::asking::{ASK_EVERY, Led, first_led};
use super::values::Random;
use crate::args::Global;
use crate::failure::Failure;
use crate::process::{Announcement, Role};
use crate::units::Size;
use crate::up::UpArgs;
use crate::up::child::Child;
use crate::up::cluster::{await_ready, start_one};
use crate::up::plan::{Host, Plan, Planned};

/// Longest wait for something that must come; far above what it takes.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// A coordinator heard of so recently is there.
const HEARD: Duration = Duration::from_millis(500);
/// Where ports are looked for.
const PORTS: std::ops::Range<u16> = 10_000..32_000;
/// Ports that a cluster may take from its first one up.
const PORTS_WIDE: u16 = 96;

/// What to start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) coordinators: u32,
    pub(super) servers: u32,
    pub(super) backups: u32,
    pub(super) replicas: u8,
    pub(super) memory: Size,
    pub(super) prefault: bool,
}

/// A process that may be down.
#[derive(Debug)]
pub(super) struct Member {
    planned: Planned,
    child: Option<Child>,
    /// As it announced itself when it was last started.
    pub(super) announcement: Announcement,
}

/// The cluster. Its processes end with it.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) coordinators: Vec<Member>,
    /// Servers, then backups.
    pub(super) servers: Vec<Member>,
    /// A backup that is enlisted and down, to be started later.
    pub(super) spare: Option<Member>,
    /// Ids of the servers that were killed.
    pub(super) gone: BTreeSet<u64>,
    /// Of the coordinators.
    pub(super) addresses: Vec<String>,
    /// Keeps the directories.
    _plan: Plan,
}

impl Cluster {
    /// Starts it on loopback and waits until all are in service.
    pub(super) async fn start(shape: Shape, global: &Global) -> Result<Self, Failure> {
        Self::start_on(shape, global, &[], None).await
    }

    /// Starts it on these hosts, whose processes share a key, and waits until all are in service.
    pub(super) async fn start_on(
        shape: Shape,
        global: &Global,
        hosts: &[Host],
        key_file: Option<&Path>,
    ) -> Result<Self, Failure> {
        let mut args = up(shape)?;
        args.key_file = key_file.map(Path::to_path_buf);
        let mut plan = Plan::new(&args, global, hosts)?;
        let mut coordinators = Vec::new();
        for planned in std::mem::take(&mut plan.coordinators) {
            coordinators.push(Member::start(planned, &[]).await?);
        }
        let addresses: Vec<String> = coordinators.iter().map(Member::address).collect();
        let mut servers = Vec::new();
        for planned in std::mem::take(&mut plan.servers) {
            servers.push(Member::start(planned, &addresses).await?);
        }
        let ids: Vec<u64> = servers
            .iter()
            .map(|server| server.announcement.id)
            .collect();
        await_ready(&addresses, key_file, &ids).await?;
        Ok(Self {
            coordinators,
            servers,
            spare: None,
            gone: BTreeSet::new(),
            addresses,
            _plan: plan,
        })
    }

    /// Ends the last server, to start it another time.
    pub(super) async fn set_aside_last(&mut self) -> Result<(), Failure> {
        let Some(mut last) = self.servers.pop() else {
            return Err(Failure::new("there is no server to set aside"));
        };
        last.kill().await?;
        let id = last.announcement.id;
        self.gone.insert(id);
        self.spare = Some(last);
        let crashed = |one: &ServerReport| {
            one.entry.server.0 == id && one.entry.state == ServerState::Crashed
        };
        self.until("a server's death is decided", |status| {
            status.servers.iter().any(crashed)
        })
        .await?;
        Ok(())
    }

    /// Kills a server.
    pub(super) async fn kill_server(&mut self, at: usize) -> Result<u64, Failure> {
        let server = &mut self.servers[at];
        server.kill().await?;
        let id = server.announcement.id;
        self.gone.insert(id);
        Ok(id)
    }

    /// Kills every process: all are told before the first is waited for.
    pub(super) async fn kill_everything(&mut self) -> Result<(), Failure> {
        let all = || self.servers.iter().chain(&self.coordinators);
        for member in all() {
            member.signal(Signal::KILL)?;
        }
        let ids = self.servers.iter().map(|server| server.announcement.id);
        self.gone.extend(ids);
        for member in self.servers.iter_mut().chain(&mut self.coordinators) {
            member.kill().await?;
        }
        Ok(())
    }

    /// Starts everything again as it was, all at the same time.
    pub(super) async fn restart_everything(&mut self) -> Result<(), Failure> {
        let coordinators = std::mem::take(&mut self.coordinators);
        self.coordinators = restart_all(coordinators, &[]).await?;
        let servers = std::mem::take(&mut self.servers);
        self.servers = restart_all(servers, &self.addresses).await?;
        Ok(())
    }

    /// What the leader says.
    pub(super) async fn led(&self) -> Result<Led, Failure> {
        let led = first_led(&self.addresses, PATIENCE).await?;
        led.ok_or_else(|| Failure::new(format_args!("no coordinator leads for {PATIENCE:?}")))
    }

    /// The status, once it is as `wanted`.
    pub(super) async fn until(
        &self,
        what: &str,
        mut wanted: impl FnMut(&ClusterStatus) -> bool,
    ) -> Result<ClusterStatus, Failure> {
        let patience = Instant::now() + PATIENCE;
        loop {
            let status = self.led().await?.status;
            if wanted(&status) {
                return Ok(status);
            }
            if Instant::now() > patience {
                return Err(Failure::new(format_args!("not in {PATIENCE:?}: {what}")));
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// Which of the coordinators has this number.
    pub(super) fn coordinator(&mut self, id: u32) -> Result<&mut Member, Failure> {
        let mut members = self.coordinators.iter_mut();
        let found = members.find(|member| member.announcement.id == u64::from(id));
        found.ok_or_else(|| Failure::new(format_args!("coordinator {id} is none of this drill's")))
    }

    /// Starts a coordinator that was killed.
    pub(super) async fn restart_coordinator(&mut self, id: u32) -> Result<(), Failure> {
        self.coordinator(id)?.restart(&[]).await
    }

    /// Starts all coordinators that were killed.
    pub(super) async fn restart_dead_coordinators(&mut self) -> Result<(), Failure> {
        let members = self.coordinators.iter_mut();
        for member in members.filter(|member| member.child.is_none()) {
            member.restart(&[]).await?;
        }
        Ok(())
    }

    /// The addresses of all coordinators but these.
    pub(super) fn addresses_without(&self, ids: &[u32]) -> Vec<String> {
        let others = self.coordinators.iter().filter(|member| {
            !ids.iter()
                .any(|id| u64::from(*id) == member.announcement.id)
        });
        others.map(Member::address).collect()
    }

    /// Waits until every coordinator is a member that is there and knows what is decided now.
    pub(super) async fn all_caught_up(&self) -> Result<ClusterStatus, Failure> {
        let decided = self.led().await?.status.decided;
        let count = self.coordinators.len();
        self.until("every coordinator has caught up", |status| {
            let there = status.coordinators.iter().filter(|one| {
                let heard = one.silent_us.map(Duration::from_micros);
                one.member
                    && one.decided.is_some_and(|known| known >= decided)
                    && heard.is_some_and(|silent| silent < HEARD)
            });
            there.count() == count && status.coordinators.len() == count
        })
        .await
    }
}

/// In the order in which they came.
async fn restart_all(
    members: Vec<Member>,
    coordinators: &[String],
) -> Result<Vec<Member>, Failure> {
    let mut starting = JoinSet::new();
    for (at, mut member) in members.into_iter().enumerate() {
        let coordinators = coordinators.to_vec();
        starting.spawn(async move {
            let started = member.restart(&coordinators).await;
            started.map(|()| (at, member))
        });
    }
    let mut members = Vec::new();
    while let Some(started) = starting.join_next().await {
        members.push(started.map_err(Failure::new)??);
    }
    members.sort_unstable_by_key(|(at, _)| *at);
    Ok(members.into_iter().map(|(_, member)| member).collect())
}

impl Member {
    async fn start(planned: Planned, coordinators: &[String]) -> Result<Self, Failure> {
        let child = start_one(&planned, coordinators, &mut |_| {}).await?;
        Ok(Self {
            planned,
            announcement: child.announcement.clone(),
            child: Some(child),
        })
    }

    /// Where it listens.
    pub(super) fn address(&self) -> String {
        self.announcement.address.clone()
    }

    /// Whether it runs only a backup.
    pub(super) fn is_backup(&self) -> bool {
        self.announcement.role == Role::Backup
    }

    /// SIGKILL.
    pub(super) async fn kill(&mut self) -> Result<(), Failure> {
        match self.child.take() {
            Some(child) => child.kill().await,
            None => Ok(()),
        }
    }

    /// Sends a signal.
    pub(super) fn signal(&self, signal: Signal) -> Result<(), Failure> {
        match &self.child {
            Some(child) => child.signal(signal),
            None => Err(Failure::new("a process that is down takes no signal")),
        }
    }

    /// How it ended, if it did.
    pub(super) fn ended(&mut self) -> Option<String> {
        self.child.as_mut()?.has_ended()
    }

    /// Starts it again as it was.
    pub(super) async fn restart(&mut self, coordinators: &[String]) -> Result<(), Failure> {
        let child = start_one(&self.planned, coordinators, &mut |_| {}).await?;
        self.announcement = child.announcement.clone();
        self.child = Some(child);
        Ok(())
    }

    /// The directory of its files.
    pub(super) fn directory(&self) -> Result<PathBuf, Failure> {
        let mut arguments = self.planned.arguments.iter();
        let found = arguments.find(|argument| *argument == "--data");
        let directory = found.and_then(|_| arguments.next());
        directory
            .map(PathBuf::from)
            .ok_or_else(|| Failure::new("a process without a directory"))
    }
}

fn up(shape: Shape) -> Result<UpArgs, Failure> {
    Ok(UpArgs {
        coordinators: shape.coordinators,
        new_cluster: false,
        servers: shape.servers,
        backups: shape.backups,
        replicas: shape.replicas,
        memory: shape.memory,
        prefault: shape.prefault,
        port: free_ports()?,
        data: None,
        key_file: None,
        poll: PollMode::Adaptive,
        workers: 1,
        lease: Duration::from_millis(200),
        backup_wait: Duration::from_secs(5),
        parent: None,
    })
}

/// The first of enough ports that are free now.
fn free_ports() -> Result<u16, Failure> {
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(Failure::new)?;
    let mut random = Random(u64::from_le_bytes(seed));
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    let blocks = (PORTS.end - PORTS.start) / PORTS_WIDE;
    for _ in 0..blocks {
        let block = (random.next() % u64::from(blocks)) as u16;
        let first = PORTS.start + block * PORTS_WIDE;
        if (first..first + PORTS_WIDE).all(|port| free(&port)) {
            return Ok(first);
        }
    }
    Err(Failure::new(format_args!("no free ports in {PORTS:?}")))
}
