//! A running cluster of child processes: started, watched, stopped.
//!
//! Must be started on the program's main thread: the children die with the thread that starts them.

use std::path::Path;
use std::time::Duration;

use ramkeep_wire::coordinator::{Answer, Request, ServerState};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::child::{Child, Next};
use super::plan::{Plan, Planned};
use crate::coordinators::Coordinators;
use crate::failure::Failure;
use crate::process::{Announcement, Role};

/// From the last process's announcement until all are in service.
const READY_PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks at the coordinator's server list.
const READY_INTERVAL: Duration = Duration::from_millis(20);

/// What happens to a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A process is there.
    Process(Announcement),
    /// All are in service.
    Ready {
        /// Where the coordinators listen.
        coordinators: Vec<String>,
    },
    /// A process has ended.
    Exited {
        /// Which.
        process: Announcement,
        /// `exit code N` or `signal N`.
        status: String,
    },
}

/// A cluster of child processes. Dropping it kills them.
#[derive(Debug)]
pub(crate) struct Cluster {
    coordinators: Vec<String>,
    events: mpsc::Receiver<Event>,
    keepers: Keepers,
}

impl Cluster {
    /// Starts what is planned, tells of each process, and returns when all are in service.
    ///
    /// Stops what it has started when it fails.
    pub(crate) async fn start(plan: &Plan, mut tell: impl FnMut(&Event)) -> Result<Self, Failure> {
        let mut children = Vec::new();
        let coordinators = match start_all(plan, &mut children, &mut tell).await {
            Ok(coordinators) => coordinators,
            Err(failure) => {
                Self::keep(Vec::new(), children).stop().await;
                return Err(failure);
            }
        };
        let servers: Vec<u64> = children[plan.coordinators.len()..]
            .iter()
            .map(|child| child.announcement.id)
            .collect();
        let mut cluster = Self::keep(coordinators, children);
        match cluster
            .become_ready(plan.key_file.as_deref(), &servers)
            .await
        {
            Ok(()) => Ok(cluster),
            Err(failure) => {
                cluster.stop().await;
                Err(failure)
            }
        }
    }

    /// Where the coordinators listen.
    pub(crate) fn coordinators(&self) -> &[String] {
        &self.coordinators
    }

    /// The next process that ends by itself or by somebody else's hand, or that has joined anew;
    /// `None` when all have ended.
    pub(crate) async fn next_event(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// Stops all processes and waits until they have ended. The coordinators end first, so that
    /// they don't take the servers' end for a crash.
    pub(crate) async fn stop(self) {
        self.keepers.coordinators.stop().await;
        self.keepers.servers.stop().await;
    }

    async fn become_ready(
        &mut self,
        key_file: Option<&Path>,
        servers: &[u64],
    ) -> Result<(), Failure> {
        let coordinators = self.coordinators.clone();
        tokio::select! {
            ready = await_ready(&coordinators, key_file, servers) => ready,
            Some(Event::Exited { process, status }) = self.next_event() => {
                Err(Failure::new(format_args!(
                    "{} {} ended ({status}) before the cluster was ready",
                    process.role.name(),
                    process.id
                )))
            }
        }
    }

    fn keep(coordinators: Vec<String>, children: Vec<Child>) -> Self {
        let (told, events) = mpsc::channel(children.len().max(1));
        let mut keepers = Keepers::default();
        for child in children {
            let of_role = match child.announcement.role {
                Role::Coordinator => &mut keepers.coordinators,
                Role::Server | Role::Backup => &mut keepers.servers,
            };
            of_role.keep(child, told.clone());
        }
        Self {
            coordinators,
            events,
            keepers,
        }
    }
}

#[derive(Debug, Default)]
struct Keepers {
    coordinators: Group,
    servers: Group,
}

/// Children that are stopped at the same time, each with a task that owns it.
#[derive(Debug, Default)]
struct Group {
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Group {
    fn keep(&mut self, child: Child, events: mpsc::Sender<Event>) {
        self.tasks
            .spawn(keep_one(child, events, self.stop.subscribe()));
    }

    async fn stop(mut self) {
        self.stop.send_replace(true);
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Owns a child until it ends or is to be stopped.
async fn keep_one(mut child: Child, events: mpsc::Sender<Event>, mut stop: watch::Receiver<bool>) {
    loop {
        let next = tokio::select! {
            next = child.next() => next,
            () = told_to_stop(&mut stop) => return child.stop().await,
        };
        // Nobody listens any more when the cluster has been dropped.
        match next {
            Next::Announced(announcement) => {
                let _ = events.send(Event::Process(announcement)).await;
            }
            Next::Ended(status) => {
                let process = child.announcement;
                let _ = events.send(Event::Exited { process, status }).await;
                return;
            }
        }
    }
}

async fn told_to_stop(stop: &mut watch::Receiver<bool>) {
    // An error means that the cluster was dropped, and its processes with it.
    drop(stop.wait_for(|stop| *stop).await);
}

/// One after the other, so that ids follow ports. The coordinators' addresses.
async fn start_all(
    plan: &Plan,
    children: &mut Vec<Child>,
    tell: &mut impl FnMut(&Event),
) -> Result<Vec<String>, Failure> {
    let mut coordinators = Vec::new();
    for planned in &plan.coordinators {
        let child = start_one(planned, &[], tell).await?;
        coordinators.push(child.announcement.address.clone());
        children.push(child);
    }
    for planned in &plan.servers {
        children.push(start_one(planned, &coordinators, tell).await?);
    }
    Ok(coordinators)
}

/// Starts one process, a server with the addresses of its coordinators.
pub(crate) async fn start_one(
    planned: &Planned,
    coordinators: &[String],
    tell: &mut impl FnMut(&Event),
) -> Result<Child, Failure> {
    let mut arguments = planned.arguments.clone();
    if !coordinators.is_empty() {
        arguments.extend(["--coordinators".into(), coordinators.join(",").into()]);
    }
    let child = Child::start(&arguments, planned.namespace.as_ref()).await?;
    tell(&Event::Process(child.announcement.clone()));
    Ok(child)
}

/// Waits until the coordinator says of all these servers that they are in service.
pub(crate) async fn await_ready(
    coordinators: &[String],
    key_file: Option<&Path>,
    servers: &[u64],
) -> Result<(), Failure> {
    let asked = Coordinators::new(coordinators, key_file)?;
    let patience = Instant::now() + READY_PATIENCE;
    loop {
        let response = asked.ask(&Request::Status).await?;
        let Answer::Status(status) = response.answer else {
            return Err(Failure::new(
                "the coordinator's answer to a status request makes no sense",
            ));
        };
        let waiting = servers.iter().find(|id| {
            !status.servers.iter().any(|report| {
                report.entry.server.0 == **id && report.entry.state == ServerState::Up
            })
        });
        match waiting {
            None => return Ok(()),
            Some(id) if Instant::now() > patience => {
                return Err(Failure::new(format_args!(
                    "server {id} is not in service after {READY_PATIENCE:?}; \
                     RAMKEEP_TRACE=debug shows more"
                )));
            }
            Some(_) => tokio::time::sleep(READY_INTERVAL).await,
        }
    }
}
