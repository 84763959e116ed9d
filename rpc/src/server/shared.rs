//! What the connections of one listener share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use ramkeep_wire::{Micros, Party};
use tokio::sync::Notify;

use super::places::{PlaceId, Places};
use crate::identity::Identity;
use crate::service::Router;
use crate::wake::Wake;

pub(super) struct Shared {
    pub(super) identity: Identity,
    pub(super) router: Arc<Router>,
    pub(super) stopping: AtomicBool,
    /// When a connection must be closed, once stopping.
    stop_by: Mutex<Micros>,
    places: Mutex<Places>,
    changed: Notify,
}

/// A connection's place among those open, given back when dropped.
pub(super) struct Place {
    shared: Arc<Shared>,
    id: PlaceId,
    /// When something was last sent or received.
    used: Arc<AtomicU64>,
    leaves: Arc<AtomicBool>,
    pub(super) wake: Wake,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.places.lock().give_back(self.id);
        self.shared.changed.notify_waiters();
    }
}

impl Place {
    /// The peer has said who it is. False: there is no place for it.
    pub(super) fn prove(&self, now: Micros, party: Party) -> bool {
        self.use_at(now);
        self.shared.places.lock().prove(self.id, now, party)
    }

    /// Something was sent or received.
    #[inline]
    pub(super) fn use_at(&self, now: Micros) {
        self.used.store(now.0, Ordering::Relaxed);
    }

    /// Whether it is to make room for another.
    pub(super) fn leaves(&self) -> bool {
        self.leaves.load(Ordering::Relaxed)
    }
}

impl Shared {
    pub(super) fn new(identity: &Identity, router: Router) -> Arc<Self> {
        Arc::new(Self {
            identity: identity.clone(),
            router: Arc::new(router),
            stopping: AtomicBool::new(false),
            stop_by: Mutex::new(Micros(u64::MAX)),
            places: Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// A place for a connection that was just accepted, if there is one.
    pub(super) fn place(shared: &Arc<Self>) -> Option<Place> {
        let wake = Wake::new();
        let taken = shared.places.lock().take(&wake)?;
        Some(Place {
            shared: shared.clone(),
            id: taken.id,
            used: taken.used,
            leaves: taken.leaves,
            wake,
        })
    }

    pub(super) fn open(&self) -> usize {
        self.places.lock().len()
    }

    pub(super) fn stop_by(&self) -> Micros {
        *self.stop_by.lock()
    }

    /// Has all connections close, at `by` at the latest, and waits until they have.
    pub(super) async fn stop(&self, by: Micros) {
        *self.stop_by.lock() = by;
        self.stopping.store(true, Ordering::Release);
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if !self.places.lock().wake_all() {
                return;
            }
            changed.await;
        }
    }
}
