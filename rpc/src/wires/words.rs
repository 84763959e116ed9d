//! The words in which cores and carriers of bytes speak about connections.

use ramkeep_wire::Party;
use ramkeep_wire::hello::Refusal;

/// Names one connection that a process makes, from the wish for it to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WireId {
    /// Which of the process's tables made it.
    pub room: u8,
    /// Its number there.
    pub number: u64,
}

/// What is to be done with a wire. In this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WireOutput {
    /// Connect to a party at one of its addresses; see [`Reach`](super::Reach). Ends with an up or a down.
    Connect {
        /// Names it.
        wire: WireId,
        /// Where it listens.
        addresses: Vec<String>,
        /// Whom to expect there; `NONE`: whoever is there.
        to: Party,
    },
    /// Send whole envelopes on a wire that is up.
    Send {
        /// On which.
        wire: WireId,
        /// The envelopes.
        bytes: Vec<u8>,
    },
    /// Close it, or stop making it. Nothing more is heard of it.
    Close {
        /// Which.
        wire: WireId,
    },
}

/// Why a wire is no more, or never was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireEnd {
    /// No process of that identity is at any of the addresses.
    #[error("no process of this identity listens there")]
    Nobody,
    /// Who is there refuses, or is refused.
    #[error("{0}")]
    Refused(Refusal),
    /// It was up, and closed or broke.
    #[error("{0}")]
    Closed(String),
    /// It could not be made, which proves nothing.
    #[error("{0}")]
    Unclear(String),
}
