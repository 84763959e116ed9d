//! The client: connecting, and tables.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ramkeep_rpc::{Identity, PollMode};
use ramkeep_wire::TableId;
use ramkeep_wire::coordinator::{Answer, ClusterStatus, Request};
use ramkeep_wire::hello::SharedKey;
use ramkeep_wire::limits::MAX_TABLE_NAME;

use crate::error::Error;
use crate::limits::{DEFAULT_DEADLINE, MAX_CONNECTIONS_PER_SERVER, MAX_COORDINATORS};
use crate::session::Session;
use crate::shell::{Lane, ask, drive, wait_for_map};
use crate::table::Table;

/// A connection to a cluster. Cheap to clone, and usable from any task and thread; it lives on the
/// tokio runtime that it was connected on, and ends with it.
#[derive(Clone)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
    deadline: Duration,
}

/// What the clones of a client share.
pub(crate) struct Shared {
    lanes: Vec<Arc<Lane>>,
    next_lane: AtomicUsize,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.lanes.iter().for_each(|lane| lane.shut());
    }
}

impl Shared {
    /// Lanes are given out in turn.
    pub(crate) fn next_lane(&self) -> Arc<Lane> {
        let next = self.next_lane.fetch_add(1, Ordering::Relaxed);
        self.lanes[next % self.lanes.len()].clone()
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("connections_per_server", &self.shared.lanes.len())
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

/// How to connect.
///
/// ```
/// use std::time::Duration;
/// use ramkeep_client::{Client, PollMode};
///
/// let builder = Client::builder()
///     .coordinators(["127.0.0.1:7100", "127.0.0.1:7101"])
///     .key_file("/etc/ramkeep/key")
///     .deadline(Duration::from_secs(3))
///     .poll_mode(PollMode::Adaptive)
///     .connections(2);
/// // builder.connect().await?
/// # drop(builder);
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder {
    coordinators: Vec<String>,
    key_file: Option<PathBuf>,
    deadline: Duration,
    poll_mode: PollMode,
    connections: usize,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            coordinators: Vec::new(),
            key_file: None,
            deadline: DEFAULT_DEADLINE,
            poll_mode: PollMode::default(),
            connections: 1,
        }
    }
}

impl Builder {
    /// Where the coordinators listen: `host:port` or `unix:/path`; any one that lives is enough.
    pub fn coordinators<I>(mut self, addresses: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.coordinators = addresses.into_iter().map(Into::into).collect();
        self
    }

    /// The file with the cluster's shared key. Without it only processes on this machine can be
    /// talked to.
    pub fn key_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.key_file = Some(path.into());
        self
    }

    /// How long an operation may take, with all its retries. 10 s unless set.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// How answers are waited for. Adaptive unless set.
    pub fn poll_mode(mut self, mode: PollMode) -> Self {
        self.poll_mode = mode;
        self
    }

    /// Connections to each server; clones of the client and of its tables take them in turn. 1
    /// unless set, which many tasks may share; more help when many threads use one client.
    pub fn connections(mut self, count: usize) -> Self {
        self.connections = count.clamp(1, MAX_CONNECTIONS_PER_SERVER);
        self
    }

    /// Connects: returns when a coordinator has answered with the tablet map.
    ///
    /// # Errors
    /// [`Error::KeyFile`], and [`Error::Unavailable`] when no coordinator answers within the
    /// deadline or they refuse the key.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn connect(self) -> Result<Client, Error> {
        let unavailable = |reason: String| Error::Unavailable { reason };
        if self.coordinators.is_empty() || self.coordinators.len() > MAX_COORDINATORS {
            return Err(unavailable(format!(
                "1 to {MAX_COORDINATORS} coordinators are to be named, not {}",
                self.coordinators.len()
            )));
        }
        let identity = Identity::new(self.shared_key()?);
        let mut lanes = Vec::with_capacity(self.connections);
        for _ in 0..self.connections {
            let mut nonce = [0; 16];
            getrandom::fill(&mut nonce).map_err(|error| unavailable(error.to_string()))?;
            let session = Session::new(identity.clone(), self.coordinators.clone(), nonce);
            let lane = Lane::new(session, identity.clone(), self.poll_mode);
            lanes.push(Arc::new(lane));
        }
        let shared = Arc::new(Shared {
            lanes,
            next_lane: AtomicUsize::new(0),
        });
        for lane in &shared.lanes {
            drive(lane.clone());
        }
        for lane in &shared.lanes {
            wait_for_map(lane, 1, self.deadline).await?;
        }
        let deadline = self.deadline;
        Ok(Client { shared, deadline })
    }

    fn shared_key(&self) -> Result<Option<SharedKey>, Error> {
        let Some(path) = &self.key_file else {
            return Ok(None);
        };
        let contents = std::fs::read(path)
            .map_err(|error| Error::KeyFile(format!("{}: {error}", path.display())))?;
        match SharedKey::from_file_contents(&contents) {
            Some(key) => Ok(Some(key)),
            None => Err(Error::KeyFile(format!(
                "{}: fewer than {} bytes",
                path.display(),
                SharedKey::MIN_FILE_BYTES
            ))),
        }
    }
}

/// A table's name and id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableInfo {
    /// Its name.
    pub name: String,
    /// Its id, never used for another.
    pub id: TableId,
    /// Tablets that it is cut into.
    pub tablets: usize,
}

impl Client {
    /// Connects to the cluster of these coordinators: the short form of [`Client::builder`].
    ///
    /// # Errors
    /// As [`Builder::connect`].
    pub async fn connect<I>(coordinators: I) -> Result<Self, Error>
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        Self::builder().coordinators(coordinators).connect().await
    }

    /// How to connect, in detail.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The same client with another deadline for what is begun through it.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self {
            shared: self.shared.clone(),
            deadline,
        }
    }

    /// Makes a table, or finds the one of that name.
    ///
    /// # Errors
    /// [`Error::InvalidTableName`], [`Error::LimitReached`], and those of any request.
    pub async fn create_table(&self, name: &str) -> Result<Table, Error> {
        check_name(name)?;
        let name = name.to_owned();
        match self.ask(Request::CreateTable { name, once: None }).await? {
            Answer::Table(table) => Ok(self.open(table.table, table.name)),
            other => Err(unexpected(&other)),
        }
    }

    /// The table of that name.
    ///
    /// # Errors
    /// [`Error::TableNotFound`], and those of any request.
    pub async fn table(&self, name: &str) -> Result<Table, Error> {
        check_name(name)?;
        let tables = self.tables().await?;
        match tables.into_iter().find(|table| table.name == name) {
            Some(table) => Ok(self.open(table.id, table.name)),
            None => Err(Error::TableNotFound),
        }
    }

    /// Removes a table with all that is in it.
    ///
    /// # Errors
    /// [`Error::TableNotFound`], and those of any request.
    pub async fn drop_table(&self, name: &str) -> Result<(), Error> {
        check_name(name)?;
        let name = name.to_owned();
        match self.ask(Request::DropTable { name, once: None }).await? {
            Answer::Dropped => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// All tables, by id.
    ///
    /// # Errors
    /// Those of any request.
    pub async fn tables(&self) -> Result<Vec<TableInfo>, Error> {
        let lane = self.shared.next_lane();
        let number = lane.refresh_map();
        wait_for_map(&lane, number, self.deadline).await?;
        Ok(lane.with_tables(|tables| {
            let info = |table: &ramkeep_wire::coordinator::Table| TableInfo {
                name: table.name.clone(),
                id: table.table,
                tablets: table.tablets.len(),
            };
            tables.iter().map(info).collect()
        }))
    }

    /// How the cluster is: its servers, tables, tablets and their owners.
    ///
    /// # Errors
    /// Those of any request.
    pub async fn status(&self) -> Result<ClusterStatus, Error> {
        match self.ask(Request::Status).await? {
            Answer::Status(status) => Ok(*status),
            other => Err(unexpected(&other)),
        }
    }

    async fn ask(&self, request: Request) -> Result<Answer, Error> {
        ask(&self.shared.next_lane(), request, self.deadline).await
    }

    fn open(&self, id: TableId, name: String) -> Table {
        Table::new(self.shared.clone(), id, name.into(), self.deadline)
    }
}

fn check_name(name: &str) -> Result<(), Error> {
    if name.is_empty() || name.len() > MAX_TABLE_NAME {
        return Err(Error::InvalidTableName);
    }
    Ok(())
}

fn unexpected(answer: &Answer) -> Error {
    Error::Protocol(format!("the coordinator answered with {answer:?}"))
}
