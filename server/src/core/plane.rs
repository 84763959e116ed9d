//! What all workers of a server share without a lock around it: the master, its connections to
//! backups, and who waits for more to become durable.
//!
//! # Invariants
//! 1. Who holds replies and has said so is woken once when more is durable, or when the master lease
//!    is here again or given up for good; a look at both after saying so misses nothing.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, OnceLock};
use std::task::Waker;

use parking_lot::Mutex;
use ramkeep_master::core::Master;
use ramkeep_master::store::MasterLease;
use ramkeep_rpc::Wake;
use ramkeep_wire::Micros;
use ramkeep_wire::envelope::Envelope;

use super::links::{BackupLinks, LinkCarrier};

/// The polled part of a server with a master.
#[derive(Debug)]
pub struct DataPlane<C> {
    master: Arc<Master>,
    links: BackupLinks<C>,
    /// Connections that hold replies, to be woken when more is durable.
    holding: Mutex<Vec<Wake>>,
    holders: AtomicUsize,
    /// Times that all holders were woken.
    wakes: AtomicU64,
    /// Some of them wait for the master lease.
    lease_wanted: AtomicBool,
    /// Woken whenever more is durable.
    follower: OnceLock<Waker>,
}

impl<C: LinkCarrier> DataPlane<C> {
    /// A master without connections.
    #[must_use]
    pub fn new(master: Arc<Master>) -> Self {
        Self {
            master,
            links: BackupLinks::default(),
            holding: Mutex::default(),
            holders: AtomicUsize::new(0),
            wakes: AtomicU64::new(0),
            lease_wanted: AtomicBool::new(false),
            follower: OnceLock::new(),
        }
    }

    /// The master.
    #[must_use]
    pub fn master(&self) -> &Arc<Master> {
        &self.master
    }

    /// Its connections to backups.
    #[must_use]
    pub fn links(&self) -> &BackupLinks<C> {
        &self.links
    }

    /// Has `follower` woken whenever more is durable. Once only; later calls change nothing.
    pub fn follow(&self, follower: Waker) {
        drop(self.follower.set(follower));
    }

    /// An envelope came on a wire to a backup, of this number. Says whether there is reason to
    /// [`DataPlane::pump`].
    pub fn handle_received(&self, now: Micros, number: u64, envelope: &Envelope<'_>) -> bool {
        let all = self.links.all();
        let from = all.iter().find(|link| link.number() == number);
        let take = |from| {
            self.links
                .handle_received(now, &self.master, from, envelope)
        };
        from.is_some_and(take)
    }

    /// Sends what is due to the backups, and wakes who waits for what became durable, or for the lease.
    /// Returns whether more is durable.
    pub fn pump(&self, now: Micros) -> bool {
        let moved = self.links.pump(now, &self.master);
        let decided = self.lease_wanted.load(Ordering::Acquire)
            && self.master.lease(now) != MasterLease::Lost
            && self.lease_wanted.swap(false, Ordering::AcqRel);
        if moved || decided {
            self.wake_holders();
        }
        if moved && let Some(follower) = self.follower.get() {
            follower.wake_by_ref();
        }
        moved
    }

    /// Has `wake` called once, when more has become durable. Look again after this: it may have
    /// already. Returns what [`DataPlane::wakes`] says as long as the registration stands.
    pub(super) fn hold(&self, wake: &Wake) -> u64 {
        let mut holding = self.holding.lock();
        holding.push(wake.clone());
        self.holders.store(holding.len(), Ordering::Relaxed);
        // With the fence in `wake_holders`: either it sees the holder, or the look at what is
        // durable that follows here sees what it became durable for.
        fence(Ordering::SeqCst);
        self.wakes.load(Ordering::Acquire)
    }

    /// Times that all holders were woken.
    pub(super) fn wakes(&self) -> u64 {
        self.wakes.load(Ordering::Acquire)
    }

    /// Has who holds replies woken once the lease is held again, or given up. Look again after this.
    pub(super) fn wait_for_lease(&self) {
        self.lease_wanted.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
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
