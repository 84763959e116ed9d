//! Why a side of a handshake gives up, and how envelopes of a handshake are written.

use ramkeep_wire::envelope::{self, Header, Kind};
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::{Party, postcards};
use serde::Serialize;

/// Why a handshake ended without a connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// The peer refused, and said why.
    #[error("the peer refused the connection: {0}")]
    Refused(Refusal),
    /// This side refused the peer.
    #[error("refused the peer: {0}")]
    Refuse(Refusal),
    /// There is no shared key and the peer is on another machine.
    #[error("without a shared key only processes on this machine are talked to; use a key file")]
    KeyNeeded,
}

impl HelloError {
    /// What one side had against the other, if that is why.
    #[must_use]
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) | Self::Refuse(refusal) => Some(refusal),
            Self::KeyNeeded => None,
        }
    }
}

/// The bytes of an envelope that refuses.
#[must_use]
pub fn refusal_envelope(refusal: &Refusal, from: Party, to: Party) -> Vec<u8> {
    let mut out = Vec::new();
    append(&mut out, Kind::Refusal, from, to, refusal);
    out
}

pub(super) fn append<T: Serialize>(
    out: &mut Vec<u8>,
    kind: Kind,
    from: Party,
    to: Party,
    message: &T,
) {
    let header = Header::new(kind, 0, to, from);
    envelope::append(out, header, &postcards::encode(message));
}

pub(super) fn refuse<T>(refusal: Refusal) -> Result<T, HelloError> {
    Err(HelloError::Refuse(refusal))
}
