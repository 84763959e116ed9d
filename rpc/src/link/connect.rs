//! Making a link.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use ramkeep_wire::Party;
use ramkeep_wire::hello::Refusal;
use tokio::net::{TcpStream, UnixStream};

use super::sharing::Link;
use crate::address::Address;
use crate::handshake::{self, HandshakeError};
use crate::hello::check_locality;
use crate::identity::Identity;
use crate::polling::PollMode;
use crate::socket::Socket;

/// A connection that isn't made by then, the handshake apart, is given up: the next attempt comes
/// sooner than the system would repeat this one.
pub(crate) const CONNECT_DEADLINE: Duration = Duration::from_millis(700);

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nothing answers there.
    #[error("cannot connect to {address}: {error}")]
    Io {
        /// As given.
        address: Address,
        /// What the system said.
        error: io::Error,
    },
    /// Something answers, but the handshake failed.
    #[error("no link to {address}: {error}")]
    Handshake {
        /// As given.
        address: Address,
        /// What went wrong.
        error: HandshakeError,
    },
}

impl ConnectError {
    /// What one side had against the other, if that is why.
    #[must_use]
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Handshake { error, .. } => error.refusal(),
            Self::Io { .. } => None,
        }
    }
}

impl Link {
    /// Connects to `address`, where `to` is expected (`NONE`: whoever is there). The link lives on
    /// the tokio runtime that this is called on, and may be used from any.
    ///
    /// # Errors
    /// When nothing answers in 0.7 seconds, or the handshake fails.
    pub async fn connect(
        address: &Address,
        identity: &Identity,
        to: Party,
        mode: PollMode,
    ) -> Result<Self, ConnectError> {
        let connecting = tokio::time::timeout(CONNECT_DEADLINE, open(address, identity));
        let opened = connecting.await.unwrap_or_else(|_| {
            Err(Failure::Io(io::Error::new(
                io::ErrorKind::TimedOut,
                "no answer",
            )))
        });
        let handshake = |error| ConnectError::Handshake {
            address: address.clone(),
            error,
        };
        let socket = opened.map_err(|failure| match failure {
            Failure::Io(error) => ConnectError::Io {
                address: address.clone(),
                error,
            },
            Failure::Handshake(error) => handshake(error),
        })?;
        let opened = handshake::connect(&socket, identity, to)
            .await
            .map_err(handshake)?;
        Ok(Self::new(socket, &opened, mode))
    }
}

enum Failure {
    Io(io::Error),
    Handshake(HandshakeError),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

async fn open(address: &Address, identity: &Identity) -> Result<Socket, Failure> {
    Ok(match address {
        Address::Tcp { host, port } => {
            let resolved: Vec<SocketAddr> = match address.as_ip() {
                Some(ip) => vec![ip],
                None => tokio::net::lookup_host((host.as_str(), *port))
                    .await?
                    .collect(),
            };
            Socket::tcp(open_tcp(&resolved, identity).await?)?
        }
        Address::Unix(path) => Socket::unix(UnixStream::connect(path).await?)?,
    })
}

/// The first of the addresses that answers and may be talked to.
async fn open_tcp(addresses: &[SocketAddr], identity: &Identity) -> Result<TcpStream, Failure> {
    let mut last = Failure::Io(io::ErrorKind::NotFound.into());
    for address in addresses {
        let local = address.ip().to_canonical().is_loopback();
        if let Err(error) = check_locality(identity, local) {
            last = Failure::Handshake(error.into());
            continue;
        }
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}
