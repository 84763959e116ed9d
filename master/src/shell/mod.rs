//! The master's shell: its service on the server's port, its connections to backups, and its
//! conversation with the coordinator.

mod control;
pub mod coordinators;
mod links;
mod service;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use ramkeep_rpc::{Identity, PollMode, Wake};
use ramkeep_wire::Micros;

use crate::core::Master;
use links::{BackupLinks, LinkSink};

pub use control::{ControlConfig, ControlEnd, run_control};
pub use coordinators::{Coordinators, Unreachable};
pub use service::MasterService;

/// A master with its connections: shared by the workers and the control loop.
pub struct MasterShell {
    master: Master,
    links: BackupLinks,
    identity: Identity,
    poll: PollMode,
    /// Connections that hold replies, to be woken when more is durable.
    holding: Mutex<Vec<Wake>>,
    holders: AtomicUsize,
    /// Times that all holders were woken.
    wakes: AtomicU64,
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
            identity,
            poll,
            holding: Mutex::new(Vec::new()),
            holders: AtomicUsize::new(0),
            wakes: AtomicU64::new(0),
        })
    }

    /// Its core.
    #[must_use]
    pub fn master(&self) -> &Master {
        &self.master
    }

    /// Sends what is due to the backups, and wakes who waits for what became durable.
    fn pump(&self, now: Micros) -> bool {
        let moved = {
            let links = self.links.all();
            let mut sink = LinkSink {
                me: self.master.me(),
                links: &links,
                lost: Vec::new(),
            };
            let moved = self.master.pump(now, &mut sink);
            for server in sink.lost {
                self.lost(server);
            }
            moved
        };
        if moved {
            self.wake_holders();
        }
        moved
    }

    /// Takes in acknowledgements and draws the conclusions.
    fn drive(&self, now: Micros) -> bool {
        self.links.receive(now, &self.master) && self.pump(now)
    }

    fn lost(&self, server: ramkeep_wire::ServerId) {
        self.links.remove(server);
        self.master.link_down(server);
    }

    /// Has `wake` called once, when more has become durable. Look again after this: it may have
    /// already. Returns what [`MasterShell::wakes`] says as long as the registration stands.
    fn hold(&self, wake: &Wake) -> u64 {
        let mut holding = self.holding.lock();
        holding.push(wake.clone());
        self.holders.store(holding.len(), Ordering::Release);
        self.wakes.load(Ordering::Acquire)
    }

    /// Times that all holders were woken.
    fn wakes(&self) -> u64 {
        self.wakes.load(Ordering::Acquire)
    }

    fn wake_holders(&self) {
        if self.holders.load(Ordering::Acquire) == 0 {
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
