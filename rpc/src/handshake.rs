//! A handshake over a socket: reads, writes and waits; [`crate::hello`] has the rules.
//!
//! # Invariants
//! 1. A peer has [`HANDSHAKE_DEADLINE`] to end the handshake.

use std::io;
use std::time::Duration;

use ramkeep_wire::Party;
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::limits::MAX_HELLO;

use crate::hello::{HANDSHAKE_DEADLINE, Handshake, HelloError, Opened};
use crate::identity::Identity;
use crate::socket::{Moved, Socket};

/// Why no connection came to be.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The socket failed, or the peer closed it.
    #[error("the connection broke during the handshake: {0}")]
    Io(#[from] io::Error),
    /// One side refused the other.
    #[error(transparent)]
    Hello(#[from] HelloError),
    /// The peer was silent for too long.
    #[error("the peer did not finish the handshake within {HANDSHAKE_DEADLINE:?}")]
    Timeout,
}

impl HandshakeError {
    /// What one side had against the other, if that is why.
    #[must_use]
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Hello(error) => error.refusal(),
            Self::Io(_) | Self::Timeout => None,
        }
    }
}

/// The accepting side. A refusal has been sent when this returns one.
pub(crate) async fn accept(socket: &Socket, identity: &Identity) -> Result<Opened, HandshakeError> {
    let (local, nonce) = (socket.peer_is_local()?, fresh_nonce()?);
    let mut out = Vec::new();
    let handshake = Handshake::accept(identity, local, nonce, &mut out);
    talk(socket, handshake, out).await
}

/// The connecting side, that means to reach `to` (`NONE`: whoever is there).
pub(crate) async fn connect(
    socket: &Socket,
    identity: &Identity,
    to: Party,
) -> Result<Opened, HandshakeError> {
    let (local, nonce) = (socket.peer_is_local()?, fresh_nonce()?);
    let mut out = Vec::new();
    let handshake = Handshake::connect(identity, local, to, nonce, &mut out);
    talk(socket, handshake, out).await
}

/// Carries bytes until the handshake has ended, and a refusal if this side refuses.
async fn talk(
    socket: &Socket,
    handshake: Result<Handshake, HelloError>,
    mut out: Vec<u8>,
) -> Result<Opened, HandshakeError> {
    let talking = async {
        let mut handshake = handshake?;
        let mut opened = None;
        loop {
            send_all(socket, &mut out).await?;
            if let Some(opened) = opened {
                return Ok(opened);
            }
            let mut chunk = [0; MAX_HELLO];
            socket.readable().await?;
            match socket.try_read(|s| s.receive(&mut chunk))? {
                Moved::Bytes(0) => {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
                Moved::Bytes(count) => opened = handshake.handle(&chunk[..count], &mut out)?,
                Moved::Blocked => {}
            }
        }
    };
    let outcome = tokio::time::timeout(HANDSHAKE_DEADLINE, talking)
        .await
        .unwrap_or(Err(HandshakeError::Timeout));
    if let Err(HandshakeError::Hello(_)) = outcome {
        // A socket that doesn't take a hundred bytes now is not worth waiting for.
        let _ = socket.send(&out);
    }
    outcome
}

async fn send_all(socket: &Socket, out: &mut Vec<u8>) -> io::Result<()> {
    let mut sent = 0;
    while sent < out.len() {
        socket.writable().await?;
        if let Moved::Bytes(count) = socket.try_write(|s| s.send(&out[sent..]))? {
            sent += count;
        }
    }
    out.clear();
    Ok(())
}

fn fresh_nonce() -> io::Result<[u8; 16]> {
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(nonce)
}

/// Longest that a closing side waits for the peer to have read its last bytes.
const LINGER_DEADLINE: Duration = Duration::from_millis(500);
/// Most bytes that it throws away meanwhile.
const MAX_LINGER_BYTES: usize = 16 << 20;

/// Ends the sending side and reads away what still comes, so that the last envelope sent is not
/// lost to a reset.
pub(crate) async fn linger(socket: &Socket) {
    socket.shutdown(std::net::Shutdown::Write);
    let drain = async {
        let mut chunk = vec![0; 64 << 10];
        let mut thrown = 0;
        while thrown < MAX_LINGER_BYTES {
            match socket.try_read(|s| s.receive(&mut chunk)) {
                Ok(Moved::Bytes(0)) | Err(_) => return,
                Ok(Moved::Bytes(count)) => thrown += count,
                Ok(Moved::Blocked) => {
                    if socket.readable().await.is_err() {
                        return;
                    }
                }
            }
        }
    };
    // Whether the peer closed or the time ran out, this side is done.
    let _ = tokio::time::timeout(LINGER_DEADLINE, drain).await;
}
