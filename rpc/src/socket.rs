//! A connected socket, TCP or Unix, read and written directly and never blocking.
//!
//! Polling goes straight to the system call; tokio's readiness is only for sleeping. Bytes taken
//! by polling leave tokio's readiness raised, so whoever sleeps looks once more under [`Socket::try_read`] or
//! [`Socket::try_write`], which clear the readiness that they found stale.

use std::io;
use std::net::{Shutdown, TcpStream as StdTcp};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream as StdUnix;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, sockopt};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

/// Bytes that a Unix socket takes before its peer reads, as far as the system allows.
const SOCKET_BUFFER: usize = 1 << 20;

/// A TCP connection whose peer acknowledges nothing for this long is broken off, and a new one is tried
/// again and again: after a cut has healed it is there within a second, while the old one would wait
/// for its next retransmission, up to two minutes later. A peer that is there and reads nothing for as
/// long is given up as well.
const UNACKNOWLEDGED: Duration = Duration::from_secs(3);
/// An idle TCP connection is asked for a sign of life after this,
const KEEPALIVE_AFTER: Duration = Duration::from_secs(2);
/// again after this,
const KEEPALIVE_EVERY: Duration = Duration::from_secs(1);
/// and broken off after so many that stayed without an answer.
const KEEPALIVE_TRIES: u32 = 3;

/// A connected stream socket, watched by the tokio runtime that it was made on.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A connected stream socket on its way to the runtime that will watch it.
#[derive(Debug)]
pub(crate) enum Unwatched {
    Tcp(StdTcp),
    Unix(StdUnix),
}

impl Unwatched {
    /// The socket, watched by the current runtime.
    pub(crate) fn watch(self) -> io::Result<Socket> {
        match self {
            Self::Tcp(stream) => {
                stream.set_nonblocking(true)?;
                Socket::tcp(TcpStream::from_std(stream)?)
            }
            Self::Unix(stream) => {
                stream.set_nonblocking(true)?;
                Socket::unix(UnixStream::from_std(stream)?)
            }
        }
    }

    /// Writes what the socket takes, without waiting.
    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<Moved> {
        let fd = match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        };
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        settle(|| rustix::net::send(fd, bytes, flags))
    }
}

/// What a read or write on a socket came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moved {
    /// This many bytes; zero of a read is the end of the stream.
    Bytes(usize),
    /// It would have blocked.
    Blocked,
}

impl Socket {
    /// Takes over a connected TCP stream.
    pub(crate) fn tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let fd = stream.as_fd();
        let unacknowledged = u32::try_from(UNACKNOWLEDGED.as_millis()).unwrap_or(u32::MAX);
        sockopt::set_tcp_user_timeout(fd, unacknowledged)?;
        // The first retransmissions of little data come at even distances, so that a short cut is over soon.
        SockRef::from(&fd).set_tcp_thin_linear_timeouts(true)?;
        sockopt::set_socket_keepalive(fd, true)?;
        sockopt::set_tcp_keepidle(fd, KEEPALIVE_AFTER)?;
        sockopt::set_tcp_keepintvl(fd, KEEPALIVE_EVERY)?;
        sockopt::set_tcp_keepcnt(fd, KEEPALIVE_TRIES)?;
        Ok(Self::Tcp(stream))
    }

    /// Takes over a connected Unix stream. What the system has by default holds less than one message
    /// of replication: each would wait for the peer to run, in the middle.
    pub(crate) fn unix(stream: UnixStream) -> io::Result<Self> {
        sockopt::set_socket_send_buffer_size(stream.as_fd(), SOCKET_BUFFER)?;
        Ok(Self::Unix(stream))
    }

    /// Whether the peer is on this machine.
    pub(crate) fn peer_is_local(&self) -> io::Result<bool> {
        Ok(match self {
            Self::Tcp(stream) => stream.peer_addr()?.ip().to_canonical().is_loopback(),
            Self::Unix(_) => true,
        })
    }

    /// The peer, for people.
    pub(crate) fn describe_peer(&self) -> String {
        match self {
            Self::Tcp(stream) => match stream.peer_addr() {
                Ok(address) => address.to_string(),
                Err(_) => "a closed connection".to_owned(),
            },
            Self::Unix(_) => "a Unix socket".to_owned(),
        }
    }

    #[inline]
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }

    /// Reads what is there.
    #[inline]
    pub(crate) fn receive(&self, into: &mut [u8]) -> io::Result<Moved> {
        settle(|| rustix::net::recv(self.fd(), &mut *into, RecvFlags::DONTWAIT).map(|(_, len)| len))
    }

    /// Writes what the socket takes.
    #[inline]
    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<Moved> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        settle(|| rustix::net::send(self.fd(), bytes, flags))
    }

    /// Whether a read would not block, without reading: bytes are there, or the stream ended.
    pub(crate) fn peek(&self) -> io::Result<Moved> {
        let mut byte = [0_u8; 1];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        settle(|| rustix::net::recv(self.fd(), &mut byte, flags).map(|(_, len)| len))
    }

    /// Sleeps until a read may not block. Any number of tasks may.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.readable().await,
            Self::Unix(stream) => stream.readable().await,
        }
    }

    /// Sleeps until a write may not block.
    pub(crate) async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.writable().await,
            Self::Unix(stream) => stream.writable().await,
        }
    }

    /// As [`Self::readable`], for the one task that owns the socket.
    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_read_ready(cx),
            Self::Unix(stream) => stream.poll_read_ready(cx),
        }
    }

    /// As [`Self::writable`], for the one task that owns the socket.
    pub(crate) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_write_ready(cx),
            Self::Unix(stream) => stream.poll_write_ready(cx),
        }
    }

    /// Runs `read` when the socket may be readable. When blocked, whoever sleeps on it next is
    /// woken by what comes after `read` looked.
    pub(crate) fn try_read(
        &self,
        read: impl FnOnce(&Self) -> io::Result<Moved>,
    ) -> io::Result<Moved> {
        self.try_io(Interest::READABLE, read)
    }

    /// Runs `write` when the socket may be writable; as [`Self::try_read`].
    pub(crate) fn try_write(
        &self,
        write: impl FnOnce(&Self) -> io::Result<Moved>,
    ) -> io::Result<Moved> {
        self.try_io(Interest::WRITABLE, write)
    }

    fn try_io(
        &self,
        interest: Interest,
        operation: impl FnOnce(&Self) -> io::Result<Moved>,
    ) -> io::Result<Moved> {
        let or_would_block = || match operation(self)? {
            Moved::Blocked => Err(io::ErrorKind::WouldBlock.into()),
            moved => Ok(moved),
        };
        let outcome = match self {
            Self::Tcp(stream) => stream.try_io(interest, or_would_block),
            Self::Unix(stream) => stream.try_io(interest, or_would_block),
        };
        match outcome {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Moved::Blocked),
            other => other,
        }
    }

    /// Sends nothing more, or ends both directions.
    pub(crate) fn shutdown(&self, how: Shutdown) {
        let how = match how {
            Shutdown::Read => rustix::net::Shutdown::Read,
            Shutdown::Write => rustix::net::Shutdown::Write,
            Shutdown::Both => rustix::net::Shutdown::Both,
        };
        // The peer may have closed before; either way the direction is shut.
        let _ = rustix::net::shutdown(self.fd(), how);
    }
}

#[inline]
fn settle(mut operation: impl FnMut() -> rustix::io::Result<usize>) -> io::Result<Moved> {
    loop {
        match operation() {
            Ok(bytes) => return Ok(Moved::Bytes(bytes)),
            Err(Errno::AGAIN) => return Ok(Moved::Blocked),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
