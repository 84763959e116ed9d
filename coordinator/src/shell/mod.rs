//! The coordinator process: files, sockets and the clock around the desk.
//!
//! One mutex holds the desk. Whoever brings an input (a connection's worker, the journal thread,
//! the timer, a wire's task) takes it, calls the desk, and carries out what the desk wants done.
//! The journal is synced on a thread of its own, so that nobody waits for the disk but the answers
//! that depend on it.
//!
//! # Invariants
//! 1. The desk is told that a record is persisted only after the disk has it for good.
//! 2. After an error of the disk nothing is persisted or answered any more: the process ends.

pub mod files;
mod hub;
mod journal_thread;
pub mod rescue;
mod service;

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use paxos::limits::Timing;
use paxos::{Record, Snapshot, Stored};
use ramkeep_rpc::{Address, BindError, Identity, PollMode, Router, Serving, WorkerPool, clock};
use ramkeep_wire::coordinator::Settings;
use ramkeep_wire::envelope::Kind;
use ramkeep_wire::hello::SharedKey;
use ramkeep_wire::{Party, PeerId, postcards};

use crate::core::{Config, Coordinator, RecoverError};
use crate::desk::{Desk, DeskEnd};
use files::{Files, FilesError, Recovered};
use hub::Hub;
use service::DeskService;

/// What connections get to finish when the process stops.
const STOP_GRACE: Duration = Duration::from_millis(500);

/// What a coordinator process is started with.
#[derive(Clone, Debug)]
pub struct ShellConfig {
    /// Where to listen; port 0 for any.
    pub listen: Address,
    /// Where its journal is. Belongs to this peer alone.
    pub directory: PathBuf,
    /// Which peer it is.
    pub peer: PeerId,
    /// The coordinators that form a group, this one among them; or, for one that joins, those that
    /// are there. Empty: this one alone.
    pub peers: Vec<(PeerId, Address)>,
    /// The times of the group.
    pub timing: Timing,
    /// The cluster's shared key.
    pub key: Option<SharedKey>,
    /// Constants of the cluster, in case this start makes it.
    pub settings: Settings,
    /// Whether this start may make one, if the directory is empty and so are those of all peers.
    pub new_cluster: bool,
}

/// Why a coordinator process can't start, or can't go on.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    /// The directory can't be used.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The journal does not make a coordinator.
    #[error("{directory}: {error}")]
    Recover {
        /// The directory.
        directory: PathBuf,
        /// What is wrong.
        error: RecoverError,
    },
    /// The address can't be listened at.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The group goes on without it.
    #[error(transparent)]
    End(#[from] DeskEnd),
    /// The system gives no thread or no random bytes.
    #[error("the system refuses: {0}")]
    System(#[from] io::Error),
}

/// A coordinator that is running.
pub struct Running {
    hub: Arc<Hub>,
    pool: WorkerPool,
    serving: Serving,
    journal: JoinHandle<()>,
}

impl Running {
    /// Recovers what the directory holds, listens, and takes part in the group.
    ///
    /// # Errors
    /// When the directory, the address or the system don't allow it.
    pub fn start(config: &ShellConfig) -> Result<Self, ShellError> {
        let config = &with_port(config)?;
        let (core, files) = recover(config)?;
        let identity =
            Identity::new(config.key.clone()).with_party(Party::coordinator(config.peer));
        let pool = WorkerPool::start(1, PollMode::Adaptive)?;
        let (hub, jobs) = Hub::new(Desk::new(core), identity.clone(), pool.runtime().clone());
        let kinds = [Kind::CoordinatorRequest, Kind::Group];
        let router = Router::new().route(&kinds, Arc::new(DeskService(hub.clone())));
        let journal = journal_thread::start(files, jobs, hub.clone())?;
        // Before this one listens: what answers where it was may not be itself.
        let serving = hub.ask_where_it_was().and_then(|()| {
            let serving = pool.serve(&config.listen, &identity, router);
            serving.map_err(ShellError::from)
        });
        let serving = match serving {
            Ok(serving) => serving,
            Err(error) => {
                hub.close_journal();
                pool.shutdown();
                return Err(error);
            }
        };
        hub.begin();
        pool.runtime().spawn(hub.clone().tick());
        tracing::info!(address = %serving.address(), "coordinator listens");
        Ok(Self {
            hub,
            pool,
            serving,
            journal,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> &Address {
        self.serving.address()
    }

    /// Serves until `stop` is ready, then stops in order.
    ///
    /// # Errors
    /// When the journal can't be written any more; the process must end.
    pub async fn run_until(self, stop: impl Future<Output = ()>) -> Result<(), ShellError> {
        let outcome = tokio::select! {
            () = stop => Ok(()),
            error = self.hub.failed() => Err(error),
        };
        self.serving.stop(STOP_GRACE).await;
        self.hub.close_journal();
        self.pool.shutdown();
        if self.journal.join().is_err() {
            tracing::error!("the journal thread had panicked");
        }
        outcome
    }
}

/// Runs a coordinator until `stop` is ready.
///
/// # Errors
/// When it can't start, or its journal can't be written any more.
pub async fn run(config: &ShellConfig, stop: impl Future<Output = ()>) -> Result<(), ShellError> {
    Running::start(config)?.run_until(stop).await
}

/// The same with a free port in the place of port 0: the group must know where this one is.
fn with_port(config: &ShellConfig) -> Result<ShellConfig, ShellError> {
    let mut config = config.clone();
    if let Address::Tcp { host, port: 0 } = &config.listen {
        let free = std::net::TcpListener::bind((host.as_str(), 0))?.local_addr()?;
        config.listen = Address::Tcp {
            host: host.clone(),
            port: free.port(),
        };
    }
    if config.peers.is_empty() {
        config.peers = vec![(config.peer, config.listen.clone())];
    }
    Ok(config)
}

/// The core as the directory has it.
fn recover(config: &ShellConfig) -> Result<(Coordinator, Files), ShellError> {
    let (files, recovered) = Files::open(&config.directory, config.peer, random()?)?;
    let peers = config.peers.iter();
    let core_config = Config {
        peer: config.peer,
        incarnation: files.incarnation(),
        address: config.listen.to_string(),
        peers: peers.map(|(id, at)| (*id, at.to_string())).collect(),
        settings: config.settings.clone(),
        timing: config.timing,
        founds: config.new_cluster,
        entropy: random()?,
    };
    let core = stored(&recovered)
        .and_then(|stored| Coordinator::new(clock::now(), core_config, stored))
        .map_err(|error| ShellError::Recover {
            directory: config.directory.clone(),
            error,
        })?;
    Ok((core, files))
}

/// What the files held, as the group has it.
fn stored(recovered: &Recovered) -> Result<Stored, RecoverError> {
    fn read<T: serde::de::DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, RecoverError> {
        postcards::decode(bytes).map_err(|why| RecoverError::Unreadable {
            what: what.to_owned(),
            why: why.to_string(),
        })
    }
    let snapshot = recovered.snapshot.as_ref();
    let snapshot = snapshot.map(|bytes| read::<Snapshot>("the snapshot", bytes));
    let records = recovered.records.iter();
    let records = records.map(|bytes| read::<Vec<Record>>("a record of the journal", bytes));
    let records = records.collect::<Result<Vec<_>, _>>()?;
    Ok(Stored {
        snapshot: snapshot.transpose()?,
        records: records.into_iter().flatten().collect(),
    })
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}
