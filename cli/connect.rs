//! How commands find and reach a cluster.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use ramkeep_client::{Client, Error, Table};
use ramkeep_rpc::{Address, ConnectError, Identity, Link, PollMode};
use ramkeep_wire::Party;
use ramkeep_wire::hello::{Refusal, SharedKey};

use crate::failure::Failure;
use crate::units;

/// Where coordinators are looked for unless somebody says otherwise.
pub(crate) const DEFAULT_COORDINATORS: [&str; 3] =
    ["127.0.0.1:7100", "127.0.0.1:7101", "127.0.0.1:7102"];

/// How long a leader is looked for: some coordinators may be down, and an election under way.
pub(crate) const CONNECT_PATIENCE: Duration = Duration::from_secs(3);

/// Flags of every command that talks to a cluster.
#[derive(Clone, Debug, Args)]
pub(crate) struct ConnectArgs {
    /// The cluster's coordinators, as host:port,... [default: 127.0.0.1:7100 to 7102]
    #[arg(long, value_delimiter = ',', value_name = "ADDRESSES")]
    pub(crate) coordinators: Option<Vec<String>>,
    /// File with the key that the cluster's processes and clients share
    #[arg(long, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
    /// How long an operation may take
    #[arg(long, default_value = "10s", value_parser = units::duration)]
    pub(crate) deadline: Duration,
}

impl ConnectArgs {
    /// The coordinators' addresses.
    pub(crate) fn addresses(&self) -> Vec<String> {
        match &self.coordinators {
            Some(addresses) => addresses.clone(),
            None => DEFAULT_COORDINATORS.map(str::to_owned).to_vec(),
        }
    }

    /// A client of the cluster.
    pub(crate) async fn client(&self) -> Result<Client, Failure> {
        let addresses = self.addresses();
        let mut builder = Client::builder()
            .coordinators(addresses.clone())
            .deadline(self.deadline.min(CONNECT_PATIENCE));
        if let Some(file) = &self.key_file {
            builder = builder.key_file(file);
        }
        let connected = builder.connect().await.map_err(|error| match error {
            Error::Unavailable { reason } => no_answer(&addresses.join(","), reason),
            error => Failure::new(error),
        })?;
        Ok(connected.with_deadline(self.deadline))
    }

    /// A table of the cluster.
    pub(crate) async fn table(&self, name: &str) -> Result<Table, Failure> {
        let client = self.client().await?;
        client
            .table(name)
            .await
            .map_err(|error| self.failure(name, &error))
    }

    /// What to say when the coordinators were asked about table `name` in vain.
    pub(crate) fn failure(&self, name: &str, error: &Error) -> Failure {
        match error {
            Error::Unavailable { reason } => no_answer(&self.addresses().join(","), reason),
            error => operation_failed(name, error),
        }
    }
}

/// What to say when an operation on table `name`, which was found, failed.
pub(crate) fn operation_failed(name: &str, error: &Error) -> Failure {
    match error {
        Error::TableNotFound => Failure::new(format_args!(
            "there is no table {name}; make it with `ramkeep table create {name}`"
        )),
        Error::Unavailable { reason } => Failure::new(format_args!(
            "part of table {name} is not served ({reason}); `ramkeep status` shows which"
        )),
        error => Failure::new(error),
    }
}

/// What to say when there is no cluster where it was looked for.
pub(crate) fn no_answer(addresses: &str, reason: impl Display) -> Failure {
    Failure::NoCluster(format!(
        "no cluster answers at {addresses} ({reason}); start one with `ramkeep up`, or name its \
         coordinators with --coordinators"
    ))
}

/// A connection to a server, which talks to processes of its own cluster only: where no coordinator says
/// which that is, its refusal does.
pub(crate) async fn link_to_server(
    address: &Address,
    identity: &Identity,
    to: Party,
) -> Result<Link, ConnectError> {
    let refused = match Link::connect(address, identity, to, PollMode::Never).await {
        Err(error) => error,
        link => return link,
    };
    match refused.refusal() {
        Some(Refusal::Cluster(cluster)) if identity.join(*cluster) => {
            Link::connect(address, identity, to, PollMode::Never).await
        }
        _ => Err(refused),
    }
}

/// The shared key in a key file.
pub(crate) fn shared_key(file: Option<&Path>) -> Result<Option<SharedKey>, Failure> {
    let Some(file) = file else { return Ok(None) };
    let contents = std::fs::read(file).map_err(|error| {
        Failure::new(format_args!(
            "cannot read the key file {}: {error}",
            file.display()
        ))
    })?;
    match SharedKey::from_file_contents(&contents) {
        Some(key) => Ok(Some(key)),
        None => Err(Failure::new(format_args!(
            "the key file {} is too short; it must hold at least {} bytes",
            file.display(),
            SharedKey::MIN_FILE_BYTES
        ))),
    }
}
