//! The master's shell: its service on the server's port, its connections to backups, and its
//! conversation with the coordinator.

mod control;
pub mod links;
mod probing;
mod recovery;
mod replaying;
mod scrub;
mod service;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use ramkeep_rpc::{Identity, PollMode, Wake};
use ramkeep_wire::Micros;
use ramkeep_wire::coordinator::{BackupStats, ServerList};

use crate::core::Master;
use crate::store::MasterLease;
use links::{BackupLinks, LinkSink};
use recovery::RecoveryLinks;

pub use control::{ControlConfig, ControlEnd, run_control};
pub use probing::Probing;
pub use service::MasterService;

/// Takes in server lists.
type ListHook = Box<dyn Fn(&ServerList) + Send + Sync>;

/// A master with its connections: shared by the workers and the control loop.
pub struct MasterShell {
    master: Master,
    links: BackupLinks,
    recovery: RecoveryLinks,
    identity: Identity,
    poll: PollMode,
    /// Connections that hold replies, to be woken when more is durable.
    holding: Mutex<Vec<Wake>>,
    holders: AtomicUsize,
    /// Times that all holders were woken.
    wakes: AtomicU64,
    /// Some of them wait for the master lease.
    lease_wanted: AtomicBool,
    /// Has this server's own backup fence and free what a server list says.
    fence: OnceLock<ListHook>,
    /// What the backup in the same process says of itself, for who asks this server.
    backup: OnceLock<Box<dyn Fn() -> BackupStats + Send + Sync>>,
}

impl fmt::Debug for MasterShell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MasterShell")
            .field("me", &self.master.me())
            .finish_non_exhaustive()
    }
}

impl MasterShell {
    /// A master that is known to its cluster and has no connections yet.
    #[must_use]
    pub fn new(master: Master, identity: Identity, poll: PollMode) -> Arc<Self> {
        Arc::new(Self {
            master,
            links: BackupLinks::default(),
            recovery: RecoveryLinks::default(),
            identity,
            poll,
            holding: Mutex::new(Vec::new()),
            holders: AtomicUsize::new(0),
            wakes: AtomicU64::new(0),
            lease_wanted: AtomicBool::new(false),
            fence: OnceLock::new(),
            backup: OnceLock::new(),
        })
    }

    /// Has `fence` called with every server list, before the coordinator is told that this server
    /// knows it: from then on it takes the backup here to refuse who was decided crashed
    /// (SAFETY 5). Once only; later calls change nothing.
    pub fn fence_with(&self, fence: impl Fn(&ServerList) + Send + Sync + 'static) {
        drop(self.fence.set(Box::new(fence)));
    }

    /// Has `stats` asked for the part of the backup in the same process when somebody asks this
    /// server how it is. Once only; later calls change nothing.
    pub fn report_backup_with(&self, stats: impl Fn() -> BackupStats + Send + Sync + 'static) {
        drop(self.backup.set(Box::new(stats)));
    }

    fn backup_stats(&self) -> Option<BackupStats> {
        self.backup.get().map(|stats| stats())
    }

    fn fence_crashed(&self, list: &ServerList) {
        if let Some(fence) = self.fence.get() {
            fence(list);
        }
    }

    /// Its core.
    #[must_use]
    pub fn master(&self) -> &Master {
        &self.master
    }

    /// Sends what is due to the backups, and wakes who waits for what became durable.
    fn pump(&self, now: Micros) -> bool {
        let mut sink = LinkSink::new(self.master.me(), &self.links);
        let moved = self.master.pump(now, &mut sink);
        for lost in std::mem::take(&mut sink.lost) {
            self.links.remove(&self.master, &lost);
        }
        let decided = self.lease_wanted.load(Ordering::Acquire)
            && self.master.lease(now) != MasterLease::Lost
            && self.lease_wanted.swap(false, Ordering::AcqRel);
        if moved || decided {
            self.wake_holders();
        }
        if moved {
            self.recovery.threads.wake();
        }
        moved
    }

    /// Has who holds replies woken once the lease is held again, or given up. Look again after this.
    fn wait_for_lease(&self) {
        self.lease_wanted.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// Takes in acknowledgements and draws the conclusions.
    fn drive(&self, now: Micros) -> bool {
        self.links.receive(now, &self.master) && self.pump(now)
    }

    /// Has `wake` called once, when more has become durable. Look again after this: it may have
    /// already. Returns what [`MasterShell::wakes`] says as long as the registration stands.
    fn hold(&self, wake: &Wake) -> u64 {
        let mut holding = self.holding.lock();
        holding.push(wake.clone());
        self.holders.store(holding.len(), Ordering::Relaxed);
        // With the fence in `wake_holders`: either it sees the holder, or the look at what is
        // durable that follows here sees what it became durable for.
        fence(Ordering::SeqCst);
        self.wakes.load(Ordering::Acquire)
    }

    /// Times that all holders were woken.
    fn wakes(&self) -> u64 {
        self.wakes.load(Ordering::Acquire)
    }

    fn wake_holders(&self) {
        fence(Ordering::SeqCst);
        if self.holders.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut holding = self.holding.lock();
        self.holders.store(0, Ordering::Release);
        self.wakes.fetch_add(1, Ordering::AcqRel);
        for wake in holding.drain(..) {
            wake.wake();
        }
    }
}
