//! The backup as a service: envelopes in, acknowledgements out, one lock for all of one read.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use ramkeep_rpc::{Batch, Peer, Service, Session, Wake};
use ramkeep_wire::backup::BackupRequest;
use ramkeep_wire::coordinator::{BackupStats, ServerList};
use ramkeep_wire::envelope::{self, Envelope, Header, Kind};
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::limits::MAX_UNSENT;
use ramkeep_wire::replicate::Replicate;
use ramkeep_wire::{BootId, ClusterId, Micros, Party, ServerId, postcards};

use super::directory::{self, DirectoryLock, OpenError};
use super::keeper::{Keeper, Stock};
use crate::core::Backup;
use crate::frames::FramesError;
use crate::layout::Geometry;
use crate::mapped::MappedStore;

/// The kinds of envelopes that a backup answers.
pub const KINDS: &[Kind] = &[Kind::Replicate, Kind::BackupRequest];

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
    /// This server, 0 until it is enlisted.
    server: AtomicU64,
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
                server: AtomicU64::new(0),
            }),
        })
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

    /// The boot of this machine.
    #[must_use]
    pub fn boot(&self) -> BootId {
        self.shared.core.lock().boot()
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
        self.shared.core.lock().assign(cluster, server, lease_us)?;
        self.shared.server.store(server.0, Ordering::Release);
        Ok(())
    }

    /// Draws from a server list what the backup must do; see [`Backup::take_list`].
    pub fn take_list(&self, list: &ServerList) {
        self.shared.core.lock().take_list(list);
    }

    /// A master was decided crashed: it changes nothing here any more.
    pub fn fence(&self, master: ServerId) {
        self.shared.core.lock().fence(master);
    }

    /// Frees every replica of a master that has been recovered, or never will be.
    pub fn free_master(&self, master: ServerId) {
        self.shared.core.lock().free_master(master);
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
        let server = ServerId(self.shared.server.load(Ordering::Acquire));
        let mut core = self.shared.core.lock();
        let free = core.free_frames();
        while out.len() <= MAX_UNSENT {
            let Some(envelope) = batch.next() else { break };
            handle(&mut core, server, now, &envelope, out)?;
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

/// Answers one envelope. Every one names both servers (SAFETY 6).
fn handle(
    core: &mut Backup<MappedStore>,
    server: ServerId,
    now: Micros,
    envelope: &Envelope<'_>,
    out: &mut Vec<u8>,
) -> Result<(), Refusal> {
    let header = &envelope.header;
    let own = Party::server(server);
    if server == ServerId(0) || header.to != own {
        return Err(Refusal::Party(own));
    }
    match header.kind {
        Kind::Replicate => {
            let Some(master) = header.from.as_server() else {
                return Err(malformed(&"replication from one that is no server"));
            };
            heard(core, now, master, header)?;
            let message = Replicate::read(envelope.payload).map_err(|error| malformed(&error))?;
            let ack = core.handle_replicate(now, master, &message);
            envelope::append(out, header.reply(Kind::ReplicateAck), &ack.to_bytes());
        }
        Kind::BackupRequest => {
            let request: BackupRequest =
                postcards::decode(envelope.payload).map_err(|error| malformed(&error))?;
            if let BackupRequest::Free { master, .. } = request {
                heard(core, now, master, header)?;
            }
            let answer = core.handle_request(now, header.from, request);
            let start = envelope::begin(out, header.reply(Kind::BackupResponse));
            out.extend_from_slice(&postcards::encode(&answer.response));
            out.extend_from_slice(answer.bytes);
            envelope::seal(out, start);
        }
        other => return Err(malformed(&format_args!("{other:?} sent to a backup"))),
    }
    Ok(())
}

/// Refuses what is left of an earlier connection of the master: the number of the connection is
/// the correlation of what it sends to change its replicas.
fn heard(
    core: &mut Backup<MappedStore>,
    now: Micros,
    master: ServerId,
    header: &Header,
) -> Result<(), Refusal> {
    if header.from == Party::server(master) && !core.hears(now, master, header.correlation) {
        return Err(malformed(
            &"it came over a connection that another has replaced",
        ));
    }
    Ok(())
}

fn malformed(what: &dyn std::fmt::Display) -> Refusal {
    Refusal::Malformed(what.to_string())
}
