//! The three envelopes that open a connection, over a socket: see `ramkeep_wire::hello`.
//!
//! # Invariants
//! 1. Before a peer has proved the key, at most `MAX_HELLO` bytes of it are kept, and it has
//!    [`HANDSHAKE_DEADLINE`] to do so.
//! 2. Without a key, only peers on this machine are talked to.

use std::io;
use std::time::Duration;

use ramkeep_wire::envelope::{self, HEADER_LEN, Header, Kind};
use ramkeep_wire::hello::{Hello, Proof, Refusal, Side, Welcome, mac};
use ramkeep_wire::limits::MAX_HELLO;
use ramkeep_wire::{ClusterId, Party, postcards};
use serde::Serialize;
use serde::de::DeserializeOwned;
use subtle::ConstantTimeEq;

use crate::identity::{Identity, same_cluster};
use crate::receive::refusal_of;
use crate::socket::{Moved, Socket};

/// A handshake that isn't done by then is given up.
pub(crate) const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(2);

/// Why no connection came to be.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The socket failed, or the peer closed it.
    #[error("the connection broke during the handshake: {0}")]
    Io(#[from] io::Error),
    /// The peer refused, and said why.
    #[error("the peer refused the connection: {0}")]
    Refused(Refusal),
    /// This side refused the peer.
    #[error("refused the peer: {0}")]
    Refuse(Refusal),
    /// The peer was silent for too long.
    #[error("the peer did not finish the handshake within {HANDSHAKE_DEADLINE:?}")]
    Timeout,
    /// There is no shared key and the peer is on another machine.
    #[error("without a shared key only processes on this machine are talked to; use a key file")]
    KeyNeeded,
}

/// A connection whose peer is known.
#[derive(Debug)]
pub(crate) struct Opened {
    /// The peer's party, as it said.
    pub(crate) peer: Party,
    /// This side's party, as it said.
    pub(crate) local: Party,
    /// The cluster, if either side knows it.
    pub(crate) cluster: ClusterId,
    /// Bytes that came after the handshake.
    pub(crate) rest: Vec<u8>,
}

/// Whether a peer may be talked to at all.
pub(crate) fn check_locality(identity: &Identity, local: bool) -> Result<(), HandshakeError> {
    if identity.key().is_some() || local {
        Ok(())
    } else {
        Err(HandshakeError::KeyNeeded)
    }
}

/// The accepting side. A refusal has been sent when this returns one.
pub(crate) async fn accept(socket: &Socket, identity: &Identity) -> Result<Opened, HandshakeError> {
    let mut talk = Talk::new(socket);
    let outcome = within_deadline(accept_inner(&mut talk, identity)).await;
    talk.tell(outcome, identity.party())
}

async fn accept_inner(talk: &mut Talk<'_>, identity: &Identity) -> Result<Opened, HandshakeError> {
    check_locality(identity, talk.socket.peer_is_local()?)?;
    let (header, hello): (_, Hello) = talk.receive(Kind::Hello).await?;
    // What is said to the peer is what is judged by and proved, also if this process enlists now.
    let (local, cluster) = (identity.party(), identity.cluster());
    if header.from != hello.from || header.to != hello.to {
        return refuse(Refusal::Malformed("hello unlike its header".to_owned()));
    }
    if !same_cluster(cluster, hello.cluster) {
        return refuse(Refusal::Cluster(cluster));
    }
    if hello.to != Party::NONE && hello.to != local {
        return refuse(Refusal::Party(local));
    }
    let mut welcome = Welcome {
        cluster,
        party: local,
        nonce: fresh_nonce()?,
        mac: [0; 32],
    };
    welcome.mac = mac(identity.key(), Side::Accepting, &hello, &welcome);
    talk.send(Kind::Welcome, local, hello.from, &welcome)
        .await?;
    let (_, proof): (_, Proof) = talk.receive(Kind::Proof).await?;
    let expected = mac(identity.key(), Side::Connecting, &hello, &welcome);
    if !bool::from(expected.ct_eq(&proof.mac)) {
        return refuse(Refusal::Key);
    }
    Ok(talk.opened(hello.from, local, known(cluster, hello.cluster)))
}

/// The connecting side, that means to reach `to` (`NONE`: whoever is there).
pub(crate) async fn connect(
    socket: &Socket,
    identity: &Identity,
    to: Party,
) -> Result<Opened, HandshakeError> {
    let mut talk = Talk::new(socket);
    let outcome = within_deadline(connect_inner(&mut talk, identity, to)).await;
    talk.tell(outcome, identity.party())
}

async fn connect_inner(
    talk: &mut Talk<'_>,
    identity: &Identity,
    to: Party,
) -> Result<Opened, HandshakeError> {
    check_locality(identity, talk.socket.peer_is_local()?)?;
    let hello = Hello {
        cluster: identity.cluster(),
        from: identity.party(),
        to,
        nonce: fresh_nonce()?,
    };
    talk.send(Kind::Hello, hello.from, to, &hello).await?;
    let (_, welcome): (_, Welcome) = talk.receive(Kind::Welcome).await?;
    let expected = |side| mac(identity.key(), side, &hello, &welcome);
    if !bool::from(expected(Side::Accepting).ct_eq(&welcome.mac)) {
        return refuse(Refusal::Key);
    }
    if !same_cluster(hello.cluster, welcome.cluster) {
        return refuse(Refusal::Cluster(hello.cluster));
    }
    if to != Party::NONE && welcome.party != to {
        return refuse(Refusal::Party(welcome.party));
    }
    let proof = Proof {
        mac: expected(Side::Connecting),
    };
    talk.send(Kind::Proof, hello.from, to, &proof).await?;
    let cluster = known(hello.cluster, welcome.cluster);
    Ok(talk.opened(welcome.party, hello.from, cluster))
}

async fn within_deadline(
    handshake: impl Future<Output = Result<Opened, HandshakeError>>,
) -> Result<Opened, HandshakeError> {
    tokio::time::timeout(HANDSHAKE_DEADLINE, handshake)
        .await
        .unwrap_or(Err(HandshakeError::Timeout))
}

fn refuse<T>(refusal: Refusal) -> Result<T, HandshakeError> {
    Err(HandshakeError::Refuse(refusal))
}

fn known(ours: ClusterId, theirs: ClusterId) -> ClusterId {
    if ours == ClusterId::default() {
        theirs
    } else {
        ours
    }
}

fn fresh_nonce() -> io::Result<[u8; 16]> {
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(nonce)
}

/// The bytes of an envelope that refuses.
pub(crate) fn refusal_envelope(refusal: &Refusal, from: Party, to: Party) -> Vec<u8> {
    let mut out = Vec::new();
    let header = Header::new(Kind::Refusal, 0, to, from);
    envelope::append(&mut out, header, &postcards::encode(refusal));
    out
}

/// One side's reading and writing during the handshake.
struct Talk<'a> {
    socket: &'a Socket,
    received: Vec<u8>,
}

impl<'a> Talk<'a> {
    fn new(socket: &'a Socket) -> Self {
        Self {
            socket,
            received: Vec::new(),
        }
    }

    async fn send<T: Serialize>(
        &self,
        kind: Kind,
        from: Party,
        to: Party,
        message: &T,
    ) -> Result<(), HandshakeError> {
        let mut out = Vec::new();
        let header = Header::new(kind, 0, to, from);
        envelope::append(&mut out, header, &postcards::encode(message));
        let mut sent = 0;
        while sent < out.len() {
            self.socket.writable().await?;
            if let Moved::Bytes(count) = self.socket.try_write(|s| s.send(&out[sent..]))? {
                sent += count;
            }
        }
        Ok(())
    }

    async fn receive<T: DeserializeOwned>(
        &mut self,
        kind: Kind,
    ) -> Result<(Header, T), HandshakeError> {
        loop {
            if let Some(found) = self.parse(kind)? {
                return Ok(found);
            }
            let mut chunk = [0; MAX_HELLO];
            let room = MAX_HELLO - self.received.len();
            self.socket.readable().await?;
            match self.socket.try_read(|s| s.receive(&mut chunk[..room]))? {
                Moved::Bytes(0) => {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
                Moved::Bytes(count) => self.received.extend_from_slice(&chunk[..count]),
                Moved::Blocked => {}
            }
        }
    }

    /// The first envelope received, taken away.
    fn parse<T: DeserializeOwned>(
        &mut self,
        kind: Kind,
    ) -> Result<Option<(Header, T)>, HandshakeError> {
        let refuse_envelope = |error| HandshakeError::Refuse(refusal_of(error));
        let malformed = |text: String| HandshakeError::Refuse(Refusal::Malformed(text));
        let Some(header) = envelope::parse_header(&self.received).map_err(refuse_envelope)? else {
            return Ok(None);
        };
        if HEADER_LEN + header.len as usize > MAX_HELLO {
            return Err(malformed(format!(
                "{} bytes before the key is proved, over the limit of {MAX_HELLO}",
                header.len
            )));
        }
        let parsed = envelope::parse(&self.received).map_err(refuse_envelope)?;
        let Some((envelope, len)) = parsed else {
            return Ok(None);
        };
        let unreadable = |error: postcards::Malformed| malformed(error.0);
        if envelope.header.kind == Kind::Refusal {
            let refusal = postcards::decode(envelope.payload).map_err(unreadable)?;
            return Err(HandshakeError::Refused(refusal));
        }
        if envelope.header.kind != kind {
            return Err(malformed(format!("{:?} before {kind:?}", header.kind)));
        }
        let message = postcards::decode(envelope.payload).map_err(unreadable)?;
        self.received.drain(..len);
        Ok(Some((header, message)))
    }

    /// Tells the peer why, when this side refuses.
    fn tell(
        &self,
        outcome: Result<Opened, HandshakeError>,
        from: Party,
    ) -> Result<Opened, HandshakeError> {
        let refusal = match &outcome {
            Err(HandshakeError::Refuse(refusal)) => refusal,
            Err(HandshakeError::KeyNeeded) => &Refusal::Key,
            _ => return outcome,
        };
        // A socket that doesn't take a hundred bytes now is not worth waiting for.
        let _ = self
            .socket
            .send(&refusal_envelope(refusal, from, Party::NONE));
        outcome
    }

    fn opened(&mut self, peer: Party, local: Party, cluster: ClusterId) -> Opened {
        Opened {
            peer,
            local,
            cluster,
            rest: std::mem::take(&mut self.received),
        }
    }
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
