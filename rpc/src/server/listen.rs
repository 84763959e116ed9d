//! Listening, accepting, and stopping.
//!
//! # Invariants
//! 1. Without a shared key a process listens on this machine only.
//! 2. Open connections are bounded ([`super::places`]); one more is told so and closed.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ramkeep_wire::Party;
use ramkeep_wire::hello::Refusal;
use socket2::{Domain, Protocol, Type};
use tokio::net::{TcpListener, UnixListener};

use super::connection::Connection;
use super::shared::Shared;
use super::worker::{WorkerHandle, WorkerPool};
use crate::address::Address;
use crate::clock;
use crate::hello::refusal_envelope;
use crate::identity::Identity;
use crate::service::Router;
use crate::socket::Unwatched;

/// Connections that the system keeps for a process that hasn't accepted them yet.
const BACKLOG: i32 = 1_024;
/// Rest after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why an address can't be listened at.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Open to other machines, and nothing to authenticate them with.
    #[error(
        "{0} can be reached from other machines and there is no shared key: listen on 127.0.0.1, or use a key file"
    )]
    NotLoopback(SocketAddr),
    /// The name means nothing.
    #[error("{address} does not resolve: {error}")]
    Resolve {
        /// As given.
        address: Address,
        /// What the resolver said.
        error: io::Error,
    },
    /// The system refused.
    #[error("cannot listen on {address}: {error}")]
    Io {
        /// As given.
        address: Address,
        /// What the system said.
        error: io::Error,
    },
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    async fn accept(&self) -> io::Result<Unwatched> {
        match self {
            Self::Tcp(listener) => listener.accept().await?.0.into_std().map(Unwatched::Tcp),
            Self::Unix(listener) => listener.accept().await?.0.into_std().map(Unwatched::Unix),
        }
    }
}

/// Whether a process with this identity may listen there.
pub(crate) fn check_bind(address: SocketAddr, has_key: bool) -> Result<(), BindError> {
    if has_key || address.ip().to_canonical().is_loopback() {
        Ok(())
    } else {
        Err(BindError::NotLoopback(address))
    }
}

fn bind(address: &Address, has_key: bool) -> Result<(Listener, Address), BindError> {
    let failed = |error| BindError::Io {
        address: address.clone(),
        error,
    };
    match address {
        Address::Tcp { host, port } => {
            let resolved = (host.as_str(), *port).to_socket_addrs();
            let resolved = resolved.and_then(|mut all| {
                all.next()
                    .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
            });
            let at = resolved.map_err(|error| BindError::Resolve {
                address: address.clone(),
                error,
            })?;
            check_bind(at, has_key)?;
            let listener = bind_tcp(at).map_err(failed)?;
            let bound = listener.local_addr().map_err(failed)?;
            Ok((Listener::Tcp(listener), bound.into()))
        }
        Address::Unix(path) => {
            let listener = bind_unix(path).map_err(failed)?;
            Ok((Listener::Unix(listener), address.clone()))
        }
    }
}

fn bind_tcp(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&at.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            // A socket that nobody listens at was left by a process that was killed.
            match UnixStream::connect(path) {
                Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path)?;
                    UnixListener::bind(path)
                }
                _ => Err(error),
            }
        }
        other => other,
    }
}

/// A listening socket being served. Dropping it changes nothing; see [`Serving::stop`].
pub struct Serving {
    address: Address,
    shared: Arc<Shared>,
    accepting: tokio::task::JoinHandle<()>,
}

impl WorkerPool {
    /// Listens at `address` and gives connections to the workers in turns. Envelopes go to the
    /// services of `router`.
    ///
    /// # Errors
    /// When the address can't be listened at, or may not be without a key.
    pub fn serve(
        &self,
        address: &Address,
        identity: &Identity,
        router: Router,
    ) -> Result<Serving, BindError> {
        let _entered = self.runtime().enter();
        let (listener, bound) = bind(address, identity.key().is_some())?;
        let shared = Shared::new(identity, router);
        let unlink = match &bound {
            Address::Unix(path) => Some(path.clone()),
            Address::Tcp { .. } => None,
        };
        let accepting = self.runtime().spawn(accept_all(Accept {
            listener,
            shared: shared.clone(),
            workers: self.workers().to_vec(),
            turn: self.turn_counter(),
            _unlink: unlink.map(Unlink),
        }));
        Ok(Serving {
            address: bound,
            shared,
            accepting,
        })
    }
}

/// Takes a Unix socket's file away when it is no longer listened at.
struct Unlink(PathBuf);

impl Drop for Unlink {
    fn drop(&mut self) {
        // Someone may have been quicker; a file left behind is taken over by the next to bind.
        let _ = std::fs::remove_file(&self.0);
    }
}

struct Accept {
    listener: Listener,
    shared: Arc<Shared>,
    workers: Vec<WorkerHandle>,
    turn: Arc<AtomicUsize>,
    _unlink: Option<Unlink>,
}

async fn accept_all(accept: Accept) {
    loop {
        match accept.listener.accept().await {
            Ok(socket) => accept.give(socket),
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections for now");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
            | io::ErrorKind::NotConnected
            | io::ErrorKind::InvalidInput
    )
}

impl Accept {
    fn give(&self, socket: Unwatched) {
        let Some(place) = Shared::place(&self.shared) else {
            let party = self.shared.identity.party();
            // Best effort: a new socket takes these few bytes, or the peer sees it closed.
            let _ = socket.send(&refusal_envelope(&Refusal::Busy, party, Party::NONE));
            return;
        };
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let worker = &self.workers[turn % self.workers.len()];
        let shared = self.shared.clone();
        let on = worker.shared.clone();
        worker
            .runtime
            .spawn(Connection::serve(socket, shared, on, place));
    }
}

impl Serving {
    /// Where it listens; with the port that the system chose.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Connections open now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.open()
    }

    /// Accepts no more, lets held replies go out, tells peers that the process is stopping, and
    /// closes. What isn't done within `grace` is cut off.
    pub async fn stop(self, grace: Duration) {
        self.accepting.abort();
        // Awaited so that the port is free again; an aborted task has nothing to say.
        let _ = self.accepting.await;
        self.shared.stop(clock::now() + grace).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_key_only_loopback_is_listened_at() {
        for text in ["0.0.0.0:1", "[::]:1", "192.0.2.7:1", "[2001:db8::1]:1"] {
            let address = text.parse().expect(text);
            assert!(matches!(
                check_bind(address, false),
                Err(BindError::NotLoopback(_))
            ));
            assert!(check_bind(address, true).is_ok());
        }
        for text in [
            "127.0.0.1:1",
            "127.8.9.1:1",
            "[::1]:1",
            "[::ffff:127.0.0.1]:1",
        ] {
            assert!(check_bind(text.parse().expect(text), false).is_ok());
        }
    }
}
