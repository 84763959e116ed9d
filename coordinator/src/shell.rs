//! The coordinator process: files, sockets and the clock around the core.
//!
//! One mutex holds the core. Whoever brings an input (a connection's worker, the journal thread,
//! the timer, an order's reply) takes it, calls the core, and passes on what the core wants done.
//! The journal is synced on a thread of its own, so that nobody waits for the disk but the answers
//! that depend on it.
//!
//! # Invariants
//! 1. The core is told that a record is persisted only after the disk has it for good.
//! 2. After an error of the disk nothing is persisted or answered any more: the process ends.

pub mod files;
mod hub;
mod journal_thread;
mod orders;
mod service;

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use ramkeep_rpc::{Address, BindError, Identity, PollMode, Router, Serving, WorkerPool, clock};
use ramkeep_wire::coordinator::Settings;
use ramkeep_wire::envelope::Kind;
use ramkeep_wire::hello::SharedKey;
use ramkeep_wire::{ClusterId, Party, PeerId};

use crate::core::{Config, Coordinator, Output, RecoverError};
use files::{Files, FilesError};
use hub::Hub;
use service::RequestService;

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
    /// The cluster's shared key.
    pub key: Option<SharedKey>,
    /// Constants of the cluster, in case this start makes it.
    pub settings: Settings,
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
    /// The settings make no cluster.
    #[error("these settings make no cluster: {0}")]
    Settings(String),
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
    cluster: ClusterId,
}

impl Running {
    /// Recovers what the directory holds, begins to lead and listens.
    ///
    /// # Errors
    /// When the directory, the address or the system don't allow it.
    pub fn start(config: &ShellConfig) -> Result<Self, ShellError> {
        let (core, files) = recover(config)?;
        let Some(constants) = core.state().constants().cloned() else {
            return Err(ShellError::Settings(format!("{:?}", config.settings)));
        };
        if constants.settings != config.settings {
            tracing::warn!(kept = ?constants.settings, asked = ?config.settings,
                "the cluster exists with other settings, which stay as they are");
        }
        let cluster = constants.cluster;
        let identity = Identity::new(config.key.clone())
            .with_party(Party::coordinator(config.peer))
            .with_cluster(cluster);
        let pool = WorkerPool::start(1, PollMode::Never)?;
        let (hub, jobs) = Hub::new(core, identity.clone(), pool.runtime().clone());
        let journal = journal_thread::start(files, jobs, hub.clone())?;
        let requests = Arc::new(RequestService::new(hub.clone()));
        let router = Router::new().route(&[Kind::CoordinatorRequest], requests);
        let serving = match pool.serve(&config.listen, &identity, router) {
            Ok(serving) => serving,
            Err(error) => {
                hub.close_journal();
                return Err(error.into());
            }
        };
        hub.announce(serving.address().to_string());
        pool.runtime().spawn(hub::tick(hub.clone()));
        tracing::info!(address = %serving.address(), %cluster, "coordinator listens");
        Ok(Self {
            hub,
            pool,
            serving,
            journal,
            cluster,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> &Address {
        self.serving.address()
    }

    /// Which cluster it coordinates.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Serves until `stop` is ready, then stops in order.
    ///
    /// # Errors
    /// When the journal can't be written any more; the process must end.
    pub async fn run_until(self, stop: impl Future<Output = ()>) -> Result<(), ShellError> {
        let outcome = tokio::select! {
            () = stop => Ok(()),
            error = self.hub.failed() => Err(error.into()),
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

/// The core as the directory has it, leading already: nothing is listened at before.
fn recover(config: &ShellConfig) -> Result<(Coordinator, Files), ShellError> {
    let (mut files, recovered) = Files::open(&config.directory, config.peer, random()?)?;
    let core_config = Config {
        peer: config.peer,
        address: config.listen.to_string(),
        settings: config.settings.clone(),
        entropy: random()?,
    };
    let snapshot = recovered.snapshot.as_ref();
    let snapshot = snapshot.map(|(index, bytes)| (*index, bytes.as_slice()));
    let mut core =
        Coordinator::recover(core_config, snapshot, recovered.records).map_err(|error| {
            ShellError::Recover {
                directory: config.directory.clone(),
                error,
            }
        })?;
    core.start(clock::now());
    while let Some(output) = core.poll_output() {
        match output {
            Output::Persist { index, bytes } => {
                files.append(index, &bytes)?;
                core.handle_persisted(clock::now(), index);
            }
            Output::Snapshot { index, bytes } => files.snapshot(index, &bytes)?,
            // Nobody has asked yet, and orders are repeated.
            Output::Reply { .. } | Output::Order { .. } => {}
        }
    }
    Ok((core, files))
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}
