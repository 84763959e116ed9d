//! The backup as a service: envelopes in, acknowledgements out, one lock for all of one read.

use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use ramkeep_rpc::{Batch, Peer, Service, Session, Wake};
use ramkeep_wire::coordinator::BackupStats;
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::limits::MAX_UNSENT;
use ramkeep_wire::{ClusterId, Micros, ServerId};

use super::directory::{self, DirectoryLock, OpenError};
use super::keeper::{Keeper, Stock};
use crate::core::Backup;
use crate::frames::FramesError;
use crate::layout::Geometry;
use crate::mapped::MappedStore;

/// The backup of this process. Clones share it; the directory is unlocked when all are gone.
#[derive(Clone, Debug)]
pub struct BackupService {
    shared: Arc<Shared>,
}

/// In the order in which they go: no thread is left when the frames are unmapped, and they are
/// unmapped when the lock goes.
#[derive(Debug)]
struct Shared {
    keeper: Keeper,
    core: Arc<Mutex<Backup<MappedStore>>>,
    _lock: DirectoryLock,
}

impl BackupService {
    /// Opens the frames in `directory` at `now`, or makes them. The directory may be in tmpfs.
    ///
    /// # Errors
    /// [`OpenError`], when the directory is in use or what is in it is not ours to use.
    pub fn open(directory: &Path, geometry: Geometry, now: Micros) -> Result<Self, OpenError> {
        Self::open_with(directory, geometry, now, Stock::WhenQuiet)
    }

    /// As [`BackupService::open`], with frames prepared as `stock` says.
    ///
    /// # Errors
    /// As [`BackupService::open`].
    pub fn open_with(
        directory: &Path,
        geometry: Geometry,
        now: Micros,
        stock: Stock,
    ) -> Result<Self, OpenError> {
        let (core, lock) = directory::open(directory, geometry, now)?;
        let stats = core.stats();
        tracing::info!(
            directory = %directory.display(),
            frames = stats.frames,
            inherited = stats.inherited,
            "frames opened"
        );
        if core.damaged() > 0 {
            let damaged = core.damaged();
            tracing::warn!(damaged, "frames with a torn or damaged certificate slot");
        }
        let core = Arc::new(Mutex::new(core));
        Ok(Self {
            shared: Arc::new(Shared {
                keeper: Keeper::start(&core, stock).map_err(OpenError::Keeper)?,
                core,
                _lock: lock,
            }),
        })
    }

    /// The backup itself, for who fences and asks it beside what comes over connections.
    #[must_use]
    pub fn core(&self) -> Arc<Mutex<Backup<MappedStore>>> {
        Arc::clone(&self.shared.core)
    }

    /// The server whose frames these were; enlistment names it.
    #[must_use]
    pub fn replaces(&self) -> Option<ServerId> {
        self.shared.core.lock().replaces()
    }

    /// The cluster the frames belong to, unless they are new.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterId> {
        self.shared.core.lock().cluster()
    }

    /// Enlistment is done. Until then everything is refused.
    ///
    /// # Errors
    /// [`FramesError`] if the frames hold another cluster's replicas, or the disk fails. The
    /// process can't go on.
    pub fn assign(
        &self,
        cluster: ClusterId,
        server: ServerId,
        lease_us: u32,
    ) -> Result<(), FramesError> {
        self.shared.core.lock().assign(cluster, server, lease_us)
    }

    /// What is reported to the coordinator.
    #[must_use]
    pub fn stats(&self) -> BackupStats {
        self.shared.core.lock().stats()
    }
}

impl Service for BackupService {
    fn open(&self, _peer: &Peer, _wake: Wake) -> Box<dyn Session> {
        Box::new(BackupSession {
            shared: Arc::clone(&self.shared),
        })
    }
}

struct BackupSession {
    shared: Arc<Shared>,
}

impl Session for BackupSession {
    fn handle_batch(
        &mut self,
        now: Micros,
        batch: &mut Batch<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let mut core = self.shared.core.lock();
        let free = core.free_frames();
        while out.len() <= MAX_UNSENT {
            let Some(envelope) = batch.next() else { break };
            core.answer(now, &envelope, out)?;
        }
        if core.free_frames() < free {
            self.shared.keeper.wake();
        }
        Ok(())
    }

    fn poll(&mut self, _now: Micros, _out: &mut Vec<u8>) -> bool {
        false
    }

    fn holds(&self) -> bool {
        false
    }
}
