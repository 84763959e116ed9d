//! The process around the core: what the core wants is done here, and what happens is told to it.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::Waker;
use std::time::Duration;

use parking_lot::Mutex;
use ramkeep_backup::MappedStore;
use ramkeep_backup::shell::{BackupService, boot_id};
use ramkeep_rpc::wires::{WireEnd, WireId};
use ramkeep_rpc::{Identity, Link, PollMode, Wake, WireHandler, Wiring, clock};
use ramkeep_wire::coordinator::Roles;
use ramkeep_wire::envelope::Envelope;
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::{ClusterId, Micros, Party, ServerId};
use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::memory;
use super::threads::Threads;
use crate::core::{
    DataLine, DataPlane, LinkCarrier, RECONNECT, Room, SCRUB_EVERY, ServerConfig, ServerCore,
    ServerEnd, ServerOutput,
};

/// How often it is looked how much memory the process has.
const RESIDENT_EVERY: Duration = Duration::from_millis(100);

/// What a server is to be.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// What it does.
    pub roles: Roles,
    /// Where the coordinators listen.
    pub coordinators: Vec<String>,
    /// Bytes for log and index.
    pub memory: u64,
    /// Have the system back all memory at once, rather than a little ahead of its use.
    pub prefault: bool,
}

/// A server that can't be begun.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// The system has no boot id.
    #[error("this machine has no boot id: {0}")]
    Boot(io::Error),
    /// The system has no random bytes.
    #[error("no random bytes: {0}")]
    Random(getrandom::Error),
}

/// A server process: shared by its workers, its wires and the task that lets time pass.
pub struct ServerShell {
    me: Weak<Self>,
    core: Mutex<ServerCore<MappedStore, Link>>,
    /// Once it is enlisted, if it has a master.
    plane: OnceLock<Arc<DataPlane<Link>>>,
    pub(super) backup: Option<BackupService>,
    identity: Identity,
    wiring: Wiring,
    pub(super) threads: Arc<Threads>,
    prefault: bool,
    /// The core has something to do before its time.
    look: Notify,
    /// Until when time is let pass without looking.
    sleeps_until: AtomicU64,
    /// Acknowledgements have come that no conclusions were drawn from.
    acknowledged: AtomicBool,
    joined: tokio::sync::OnceCell<ServerId>,
    adopted: Notify,
    ended: Mutex<Option<ServerEnd>>,
}

impl fmt::Debug for ServerShell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerShell")
            .field("me", &self.identity.party())
            .finish_non_exhaustive()
    }
}

impl LinkCarrier for Link {
    fn send(&self, build: impl FnOnce(&mut Vec<u8>)) -> bool {
        Self::send(self, build).is_ok()
    }

    fn close(&self) {
        Self::close(self);
    }
}

impl ServerShell {
    /// A server that has opened its frames, if it has some. Its connections to others live on
    /// `runtime`.
    ///
    /// # Errors
    /// If the system gives no boot id or no random bytes.
    pub fn new(
        options: ServerOptions,
        backup: Option<BackupService>,
        identity: Identity,
        runtime: Handle,
    ) -> Result<Arc<Self>, BeginError> {
        let config = ServerConfig {
            roles: options.roles,
            coordinators: options.coordinators,
            memory: options.memory,
            boot: boot_id().map_err(BeginError::Boot)?,
            nonce: random()?,
            seed: u64::from_le_bytes(random()?),
            reconnect: RECONNECT,
            scrub_every: SCRUB_EVERY,
        };
        let shared = backup.as_ref().map(BackupService::core);
        let core = ServerCore::new(config, identity.clone(), shared);
        Ok(Arc::new_cyclic(|me| Self {
            me: me.clone(),
            core: Mutex::new(core),
            plane: OnceLock::new(),
            backup,
            wiring: Wiring::new(identity.clone(), PollMode::Never, runtime),
            identity,
            threads: Arc::default(),
            prefault: options.prefault,
            look: Notify::new(),
            sleeps_until: AtomicU64::new(0),
            acknowledged: AtomicBool::new(false),
            joined: tokio::sync::OnceCell::new(),
            adopted: Notify::new(),
            ended: Mutex::new(None),
        }))
    }

    /// Joins the cluster and serves, reachable at these addresses, until the server must end. To be
    /// spawned on the runtime that its connections live on: so no other thread is woken for every
    /// acknowledgement that a session has polled already.
    pub async fn run(self: Arc<Self>, addresses: Vec<String>) -> ServerEnd {
        self.with_core(|core, now| core.start(now, addresses));
        let mut next_resident = Micros(0);
        loop {
            let due = self.with_core(|core, now| {
                if now >= next_resident {
                    next_resident = now + RESIDENT_EVERY;
                    core.set_resident(memory::resident());
                }
                core.handle_tick(now);
                let due = core.next_timeout().unwrap_or(Micros(u64::MAX));
                // While the core is locked: who has it do something sooner sees this.
                self.sleeps_until.store(due.0, Ordering::Release);
                due
            });
            if let Some(end) = self.ended.lock().take() {
                return end;
            }
            self.sleep_until(due).await;
        }
    }

    async fn sleep_until(&self, due: Micros) {
        let time = due.since(clock::now());
        if time.is_zero() {
            // Others on this worker have their turn first.
            tokio::task::yield_now().await;
        } else {
            // Late is what it is to be, or looked for.
            let _ = tokio::time::timeout(time, self.look.notified()).await;
        }
        self.sleeps_until.store(0, Ordering::Release);
    }

    /// Who this server is, once it is enlisted.
    pub async fn joined(&self) -> ServerId {
        loop {
            let adopted = self.adopted.notified();
            if let Some(server) = self.joined.get() {
                return *server;
            }
            adopted.await;
        }
    }

    /// What its workers share, once it is enlisted and if it has a master.
    #[must_use]
    pub fn plane(&self) -> Option<&Arc<DataPlane<Link>>> {
        self.plane.get()
    }

    pub(super) fn open_line(&self, wake: &Wake) -> Result<DataLine<Link>, Refusal> {
        self.core.lock().open_line(wake.clone())
    }

    /// Has the core handle something, and does what it wants then.
    pub(super) fn with_core<R>(
        &self,
        act: impl FnOnce(&mut ServerCore<MappedStore, Link>, Micros) -> R,
    ) -> R {
        let mut pump = false;
        let result = {
            let mut core = self.core.lock();
            let result = act(&mut core, clock::now());
            while let Some(output) = core.poll_output() {
                pump |= self.perform(&core, output);
            }
            let due = core.next_timeout();
            if due.is_some_and(|due| due.0 < self.sleeps_until.load(Ordering::Acquire)) {
                self.look();
            }
            result
        };
        if pump && let Some(plane) = self.plane.get() {
            plane.pump(clock::now());
        }
        // There may be something to replay.
        self.threads.unpark();
        result
    }

    /// Does what the core wants; true: that the master is pumped.
    fn perform(&self, core: &ServerCore<MappedStore, Link>, output: ServerOutput) -> bool {
        let Some(me) = self.me.upgrade() else {
            return false;
        };
        match output {
            ServerOutput::Wire(output) => self.wiring.perform(output, &me),
            ServerOutput::Foreign { ours, theirs } => tracing::error!(
                "the coordinators of this server's cluster {ours} are not there: those at their \
                 addresses are of cluster {theirs}. This server takes no part in that one and waits for \
                 its own. Start the coordinators of {ours} again with their directories; if most of them \
                 are lost, `ramkeep coordinator rescue` goes on from one. To give up what this server \
                 holds and have it join {theirs}, stop it and start it with an empty --data directory"
            ),
            ServerOutput::Adopt { server } => {
                if let Some(plane) = core.plane() {
                    self.begin(plane);
                }
                // Once only, as the core does.
                drop(self.joined.set(server));
                self.adopted.notify_waiters();
            }
            ServerOutput::StartReplay(id, replayer) => me.start_replay(id, *replayer),
            ServerOutput::Pump => return true,
            ServerOutput::End(end) => {
                *self.ended.lock() = Some(end);
                self.look();
            }
        }
        false
    }

    fn begin(&self, plane: &Arc<DataPlane<Link>>) {
        plane.follow(Waker::from(self.threads.clone()));
        memory::populate_ahead(plane, self.prefault);
        // Once only, as the core does.
        drop(self.plane.set(plane.clone()));
    }

    /// The core is to be asked what is to be done.
    pub(super) fn look(&self) {
        self.look.notify_one();
    }

    /// Takes in the acknowledgements that have come, and draws the conclusions.
    pub(super) fn drive(&self, plane: &DataPlane<Link>, now: Micros) -> bool {
        let (links, master) = (plane.links(), plane.master());
        let mut any = false;
        for link in links.all().iter() {
            let mut take = |envelope: Envelope<'_>| {
                any |= links.handle_received(now, master, link, &envelope);
            };
            link.carrier.try_receive(&mut take);
        }
        any && plane.pump(now)
    }
}

impl WireHandler for ServerShell {
    fn up(&self, wire: WireId, local: Party, peer: Party, cluster: ClusterId) {
        let carrier = || self.wiring.link(wire);
        self.with_core(|core, now| {
            core.handle_up(now, wire, (local, peer), cluster, carrier);
        });
    }

    fn received(&self, wire: WireId, envelope: &Envelope<'_>) {
        if Room::of(wire) != Some(Room::Links) {
            return self.with_core(|core, now| core.handle_received(now, wire, envelope));
        }
        if let Some(plane) = self.plane.get()
            && plane.handle_received(clock::now(), wire.number, envelope)
        {
            self.acknowledged.store(true, Ordering::Relaxed);
        }
    }

    fn received_all(&self) {
        if self.acknowledged.swap(false, Ordering::Relaxed)
            && let Some(plane) = self.plane.get()
        {
            plane.pump(clock::now());
        }
    }

    fn down(&self, wire: WireId, end: WireEnd) {
        self.with_core(|core, now| core.handle_down(now, wire, &end));
    }
}

fn random<const N: usize>() -> Result<[u8; N], BeginError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(BeginError::Random)?;
    Ok(bytes)
}
