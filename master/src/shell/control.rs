//! The control loop: time, heartbeats, requests to the coordinator, connections to backups.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ramkeep_rpc::{Link, clock};
use ramkeep_wire::ServerId;
use ramkeep_wire::coordinator::{Answer, Heartbeat, Refused, Request};

use super::MasterShell;
use super::probing::Probing;
use super::{recovery, scrub};
use crate::probing::Prober;
use ramkeep_control::shell::Coordinators;

/// How often time is let pass.
const TICK: Duration = Duration::from_millis(10);
/// Between two attempts to connect to a backup.
const RECONNECT: Duration = Duration::from_millis(50);

/// What the control loop needs beside the master.
pub struct ControlConfig {
    /// The coordinators.
    pub coordinators: Arc<Coordinators>,
    /// How often to report.
    pub heartbeat: Duration,
    /// Adds to a report what the master doesn't know: the backup's part, the process's memory.
    pub complete: Box<dyn Fn(&mut Heartbeat) + Send + Sync>,
    /// Have the system back all memory at once, rather than a little ahead of its use.
    pub prefault: bool,
}

/// Why the control loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlEnd {
    /// The coordinator decided that this server is dead; it must not go on under this identity.
    #[error("this server was decided crashed")]
    Fenced,
    /// The runtime under it has ended.
    #[error("the server's workers have ended")]
    Stopped,
}

/// How often copies of segments may go on while there are some.
const HEALING_TICK: Duration = Duration::from_millis(1);
/// Between two looks for memory that will be needed next.
const POPULATE: Duration = Duration::from_millis(25);

/// Has the system back memory before it is needed, on a thread of its own: it may take milliseconds
/// that no worker should lose. The thread ends with the shell.
fn populate_ahead(shell: &Arc<MasterShell>, all: bool) {
    let weak = Arc::downgrade(shell);
    let work = move || {
        if let Some(shell) = weak.upgrade().filter(|_| all) {
            shell.master.store().populate();
        }
        while let Some(shell) = weak.upgrade() {
            shell.master.store().populate_ahead();
            drop(shell);
            std::thread::sleep(POPULATE);
        }
    };
    let spawned = std::thread::Builder::new()
        .name("populate".into())
        .spawn(work);
    if let Err(error) = spawned {
        tracing::warn!(%error, "no thread to prepare memory; growing will cost page faults");
    }
}

/// Runs until the server is fenced. Must run on a runtime that lives as long as the server.
pub async fn run_control(shell: Arc<MasterShell>, config: ControlConfig) -> ControlEnd {
    let connecting = Arc::new(Mutex::new(BTreeSet::new()));
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let config = Arc::new(config);
    populate_ahead(&shell, config.prefault);
    let recovering = tokio::spawn(recovery::run(shell.clone()));
    let scrubbing = tokio::spawn(scrub::run(shell.clone()));
    let healing = tokio::spawn(heal(shell.clone()));
    let reporting = tokio::spawn(report(shell.clone(), config.clone()));
    let probing = Probing::new(
        Prober::new(shell.master.me(), shell.master.seed()),
        shell.identity.clone(),
        config.coordinators.clone(),
    );
    let probed = shell.clone();
    let list = move |known| probed.master.list_after(known);
    let prober = tokio::spawn(probing.clone().run(list));
    while !shell.master.is_fenced() {
        tick.tick().await;
        shell.master.handle_tick(clock::now());
        shell.pump(clock::now());
        connect_backups(&shell, &connecting, &probing);
        while let Some(request) = shell.master.poll_request() {
            tokio::spawn(ask(shell.clone(), config.coordinators.clone(), request));
        }
    }
    recovering.abort();
    scrubbing.abort();
    healing.abort();
    reporting.abort();
    prober.abort();
    ControlEnd::Fenced
}

/// Lets copies of segments go on when their rest is over, which may be before the next tick.
async fn heal(shell: Arc<MasterShell>) {
    loop {
        let healing = shell.master.is_healing();
        tokio::time::sleep(if healing { HEALING_TICK } else { TICK }).await;
        if healing {
            shell.pump(clock::now());
        }
    }
}

/// Asks the coordinator, and gives the answer to the core.
async fn ask(shell: Arc<MasterShell>, coordinators: Arc<Coordinators>, request: Request) {
    let sent = clock::now();
    let response = coordinators.call(&request).await.ok();
    shell
        .master
        .handle_answer(clock::now(), sent, &request, response.as_ref());
    shell.pump(clock::now());
}

async fn report(shell: Arc<MasterShell>, config: Arc<ControlConfig>) {
    let every = shell.master.renew_every();
    let every = every.map_or(config.heartbeat, |every| every.min(config.heartbeat));
    let mut interval = tokio::time::interval(every);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let mut heartbeat = shell.master.heartbeat();
        (config.complete)(&mut heartbeat);
        let request = Request::Heartbeat(heartbeat);
        let sent = clock::now();
        let response = config.coordinators.call(&request).await.ok();
        if response
            .as_ref()
            .is_some_and(|r| r.answer == Answer::Refused(Refused::Unknown))
        {
            tracing::warn!("the coordinator does not know this server");
        }
        if let Some(Answer::Heard {
            list: Some(list), ..
        }) = response.as_ref().map(|r| &r.answer)
        {
            shell.fence_crashed(list);
        }
        shell
            .master
            .handle_answer(clock::now(), sent, &request, response.as_ref());
        shell.pump(clock::now());
    }
}

/// Starts a connection to every living backup that has none, and ends those to others.
fn connect_backups(
    shell: &Arc<MasterShell>,
    connecting: &Arc<Mutex<BTreeSet<ServerId>>>,
    probing: &Arc<Probing>,
) {
    let backups = shell.master.backups();
    let wanted = |server| backups.iter().any(|(known, _)| *known == server);
    shell.links.keep(&shell.master, wanted);
    for (server, addresses) in backups {
        if shell.links.has(server) || !connecting.lock().insert(server) {
            continue;
        }
        let (shell, connecting) = (shell.clone(), connecting.clone());
        let probing = probing.clone();
        tokio::spawn(async move {
            connect(&shell, server, &addresses, &probing).await;
            connecting.lock().remove(&server);
        });
    }
}

/// Connects to one backup and takes in its acknowledgements until the connection breaks.
async fn connect(
    shell: &Arc<MasterShell>,
    server: ServerId,
    addresses: &[String],
    probing: &Probing,
) {
    let link = Link::reach(server, addresses, &shell.identity, shell.poll);
    let Ok(link) = link.await else {
        tokio::time::sleep(RECONNECT).await;
        return;
    };
    let link = shell.links.add(&shell.master, server, link);
    shell.pump(clock::now());
    while link.ready().await {
        let now = clock::now();
        if shell.links.receive_from(now, &shell.master, &link) {
            shell.pump(now);
        }
    }
    tracing::info!(%server, "the connection to a backup broke");
    shell.links.remove(&shell.master, &link);
    probing.closed(server);
    shell.pump(clock::now());
}
