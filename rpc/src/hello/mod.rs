//! The three envelopes that open a connection (`ramkeep_wire::hello`), for both sides, without a
//! socket: bytes come in, bytes go out, and a connection is open or refused.
//!
//! # Invariants
//! 1. Before a peer has proved the key, at most `MAX_HELLO` bytes of it are kept.
//! 2. Without a key, only peers on this machine are talked to.
//! 3. A side judges by what it says and proves, also if its process enlists meanwhile.
//! 4. A side that refuses says why: its refusal is the last that it appends.
//! 5. A link is of one cluster; one with a side that does not know its own leads to a coordinator only, and
//!    no server is its other end (SAFETY 30).
//! 6. What is meant for another process is refused by both sides (SAFETY 6).

mod refusing;
mod states;

use std::time::Duration;

use ramkeep_wire::envelope::{self, HEADER_LEN, Header, Kind};
use ramkeep_wire::hello::{Hello, Refusal};
use ramkeep_wire::limits::MAX_HELLO;
use ramkeep_wire::{ClusterId, Party, postcards};

pub use self::refusing::{HelloError, refusal_envelope};
use self::refusing::{append, refuse};
use self::states::{AwaitHello, AwaitWelcome, Next, State};
use crate::identity::Identity;
use crate::receive::refusal_of;

/// A handshake that is not done by then is given up.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(2);

/// A connection whose peer is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The peer's party, as the peer said.
    pub peer: Party,
    /// This side's party, as this side said.
    pub local: Party,
    /// The cluster that the peer is of, as the peer said; all zero if it did not know.
    pub cluster: ClusterId,
    /// Bytes that came after the handshake.
    pub rest: Vec<u8>,
}

/// One side of a handshake that is under way.
#[derive(Debug)]
pub struct Handshake {
    identity: Identity,
    received: Vec<u8>,
    state: State,
}

impl Handshake {
    /// The side that connects, and means to reach `to` (`NONE`: whoever is there). `local` says
    /// whether the peer is on this machine; `nonce` is fresh random bytes. Appends the hello to `out`.
    ///
    /// # Errors
    /// When the peer may not be talked to; it is told so.
    pub fn connect(
        identity: &Identity,
        local: bool,
        to: Party,
        nonce: [u8; 16],
        out: &mut Vec<u8>,
    ) -> Result<Self, HelloError> {
        check_locality(identity, local).inspect_err(|error| tell(error, identity, out))?;
        let hello = Hello {
            cluster: identity.cluster(),
            from: identity.party(),
            to,
            nonce,
        };
        append(out, Kind::Hello, hello.from, to, &hello);
        let key = identity.key().cloned();
        let state = State::AwaitWelcome(AwaitWelcome { key, hello });
        Ok(Self::new(identity, state))
    }

    /// The side that accepts. `local` and `nonce` as for [`Self::connect`].
    ///
    /// # Errors
    /// When the peer may not be talked to; it is told so.
    pub fn accept(
        identity: &Identity,
        local: bool,
        nonce: [u8; 16],
        out: &mut Vec<u8>,
    ) -> Result<Self, HelloError> {
        check_locality(identity, local).inspect_err(|error| tell(error, identity, out))?;
        let identity = identity.clone();
        let state = State::AwaitHello(AwaitHello {
            identity: identity.clone(),
            nonce,
        });
        Ok(Self::new(&identity, state))
    }

    fn new(identity: &Identity, state: State) -> Self {
        Self {
            identity: identity.clone(),
            received: Vec::new(),
            state,
        }
    }

    /// Takes what came in and appends to `out` what goes to the peer. `None`: more bytes are needed.
    ///
    /// # Errors
    /// When either side refuses the other. The connection is of no more use once `out` is sent.
    ///
    /// # Panics
    /// When the handshake has ended before.
    pub fn handle(
        &mut self,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<Opened>, HelloError> {
        self.received.extend_from_slice(bytes);
        loop {
            match self.advance(out) {
                Ok(None) => {
                    assert!(self.received.len() < MAX_HELLO, "an endless hello is kept");
                    return Ok(None);
                }
                Ok(Some(Next::Await(state))) => self.state = state,
                Ok(Some(Next::Open {
                    peer,
                    local,
                    cluster,
                })) => {
                    return Ok(Some(Opened {
                        peer,
                        local,
                        cluster,
                        rest: std::mem::take(&mut self.received),
                    }));
                }
                Err(error) => {
                    tell(&error, &self.identity, out);
                    return Err(error);
                }
            }
        }
    }

    /// Handles the first envelope received, if it is whole. The handshake has ended unless this
    /// says otherwise.
    fn advance(&mut self, out: &mut Vec<u8>) -> Result<Option<Next>, HelloError> {
        let state = std::mem::replace(&mut self.state, State::Ended);
        let expected = state.expects();
        let Some((header, len)) = whole(&self.received)? else {
            self.state = state;
            return Ok(None);
        };
        let payload = &self.received[HEADER_LEN..len];
        if header.kind == Kind::Refusal {
            return Err(HelloError::Refused(decode(payload)?));
        }
        if header.kind != expected {
            let text = format!("{:?} before {expected:?}", header.kind);
            return refuse(Refusal::Malformed(text));
        }
        let next = match state {
            State::AwaitHello(state) => state.handle(&header, decode(payload)?, out)?,
            State::AwaitWelcome(state) => state.handle(&decode(payload)?, out)?,
            State::AwaitProof(state) => state.handle(&decode(payload)?)?,
            State::Ended => unreachable!("a state that has ended expects nothing"),
        };
        self.received.drain(..len);
        Ok(Some(next))
    }
}

/// Whether a peer may be talked to at all.
pub(crate) fn check_locality(identity: &Identity, local: bool) -> Result<(), HelloError> {
    if identity.key().is_some() || local {
        Ok(())
    } else {
        Err(HelloError::KeyNeeded)
    }
}

/// Tells the peer why, when this side refuses.
fn tell(error: &HelloError, identity: &Identity, out: &mut Vec<u8>) {
    let refusal = match error {
        HelloError::Refuse(refusal) => refusal,
        HelloError::KeyNeeded => &Refusal::Key,
        HelloError::Refused(_) => return,
    };
    append(out, Kind::Refusal, identity.party(), Party::NONE, refusal);
}

/// The header and the length of the envelope at the front, once that is whole. It is refused by its
/// header if it is too long.
fn whole(received: &[u8]) -> Result<Option<(Header, usize)>, HelloError> {
    let unreadable = |error| HelloError::Refuse(refusal_of(error));
    let Some(header) = envelope::parse_header(received).map_err(unreadable)? else {
        return Ok(None);
    };
    if HEADER_LEN + header.len as usize > MAX_HELLO {
        return refuse(Refusal::Malformed(format!(
            "{} bytes before the key is proved, over the limit of {MAX_HELLO}",
            header.len
        )));
    }
    let parsed = envelope::parse(received).map_err(unreadable)?;
    Ok(parsed.map(|(_, len)| (header, len)))
}

fn decode<T: serde::de::DeserializeOwned>(payload: &[u8]) -> Result<T, HelloError> {
    let unreadable = |error: postcards::Malformed| Refusal::Malformed(error.0);
    postcards::decode(payload).map_err(|error| HelloError::Refuse(unreadable(error)))
}

#[cfg(test)]
mod tests;
