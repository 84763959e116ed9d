//! What a server starts with, what it wants done, and why it ends.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ramkeep_backup::{Backup, FramesError};
use ramkeep_control::Asking;
use ramkeep_master::recovery::{RecoveryId, Replayer};
use ramkeep_master::store::StoreError;
use ramkeep_rpc::wires::{WireId, WireOutput};
use ramkeep_wire::coordinator::{Refused, Roles};
use ramkeep_wire::envelope::Kind;
use ramkeep_wire::{BootId, ClusterId, ServerId};

/// Between two attempts to connect to a backup, unless something else is drawn.
pub const RECONNECT: Duration = Duration::from_millis(50);
/// Between two requests of scrubbing, unless something else is drawn: 5 MB/s are read back, so that
/// 256 MiB in two copies are seen every two minutes.
pub const SCRUB_EVERY: Duration = Duration::from_millis(50);

/// Kinds of envelopes for [`DataLine::handle`](super::DataLine::handle).
pub const DATA_KINDS: &[Kind] = &[Kind::DataRequest];
/// Kinds of envelopes for [`ServerCore::handle_requests`](super::ServerCore::handle_requests).
pub const CONTROL_KINDS: &[Kind] = &[Kind::Order, Kind::StatusRequest, Kind::Probe];

/// Kinds of envelopes that a server answers: these, and those for [`ramkeep_backup::Backup::answer`] if it is a backup.
#[must_use]
pub fn serves(roles: Roles) -> &'static [Kind] {
    const SERVES: &[Kind] = &[
        Kind::DataRequest,
        Kind::Order,
        Kind::StatusRequest,
        Kind::Probe,
        Kind::Replicate,
        Kind::BackupRequest,
    ];
    let with_backup = if roles.backup {
        ramkeep_backup::KINDS.len()
    } else {
        0
    };
    &SERVES[..DATA_KINDS.len() + CONTROL_KINDS.len() + with_backup]
}

/// What the wires of a server are for: their rooms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Room {
    /// To coordinators.
    Control,
    /// To backups of this server's master: what comes on these goes to [`BackupLinks`](super::BackupLinks).
    Links,
    /// To servers that are probed.
    Probes,
    /// To backups that are read from.
    Fetches,
}

impl Room {
    const ALL: [Self; 4] = [Self::Control, Self::Links, Self::Probes, Self::Fetches];

    /// That of a wire of this core.
    #[must_use]
    pub fn of(wire: WireId) -> Option<Self> {
        Self::ALL.into_iter().find(|room| *room as u8 == wire.room)
    }
}

/// What a server process starts with.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// What it does.
    pub roles: Roles,
    /// Where the coordinators listen.
    pub coordinators: Vec<String>,
    /// Bytes for log and index.
    pub memory: u64,
    /// The boot of its machine.
    pub boot: BootId,
    /// Recognises this process when it enlists.
    pub nonce: [u8; 16],
    /// Seeds the choice of backups, and of whom to probe.
    pub seed: u64,
    /// Between two attempts to connect to a backup.
    pub reconnect: Duration,
    /// Between two requests of scrubbing.
    pub scrub_every: Duration,
}

/// What is to be done.
#[derive(Debug)]
pub enum ServerOutput {
    /// This, with a wire. Those in [`Room::Links`] are never sent on: their carriers are.
    Wire(WireOutput),
    /// Where this server's coordinators were, another cluster's are: it waits for its own, and whoever runs it
    /// is to be told, once.
    Foreign {
        /// The cluster of this server.
        ours: ClusterId,
        /// The cluster of those coordinators.
        theirs: ClusterId,
    },
    /// From now on this process is this server, also on connections made next.
    Adopt {
        /// The server.
        server: ServerId,
    },
    /// Drive this replayer.
    StartReplay(RecoveryId, Box<Replayer>),
    /// Call [`DataPlane::pump`](super::DataPlane::pump).
    Pump,
    /// Nothing more comes of this core.
    End(ServerEnd),
}

/// Why a server ends.
#[derive(Debug, thiserror::Error)]
pub enum ServerEnd {
    /// It was decided crashed, and must not go on under this identity.
    #[error("this server was decided crashed")]
    Crashed,
    /// The cluster does not want it.
    #[error("the coordinator refuses this server: {0}")]
    Refused(Refused),
    /// The coordinator answered something else than what it was asked.
    #[error("the coordinator's answer to an enlistment makes no sense")]
    Senseless,
    /// The frames can't be this server's.
    #[error("cannot use the frames: {0}")]
    Frames(FramesError),
    /// A master does not fit the memory.
    #[error("{0}")]
    Memory(StoreError),
}

/// For whom the coordinators are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asker {
    Enlistment,
    Report,
    Master,
    Suspicion,
}

/// Shared with who answers replication.
pub(super) type SharedBackup<S> = Arc<Mutex<Backup<S>>>;

/// What leaves the core, but for wires that have owners of their own.
#[derive(Debug)]
pub(super) struct Outlet {
    pub(super) asking: Asking<Asker>,
    pub(super) outputs: VecDeque<ServerOutput>,
}

impl Outlet {
    pub(super) fn pump(&mut self) {
        let last = self.outputs.back();
        if !matches!(last, Some(ServerOutput::Pump)) {
            self.outputs.push_back(ServerOutput::Pump);
        }
    }
}
