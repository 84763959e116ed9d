//! What is said of connections: to the process, and within the layer.

use ramkeep_rpc::wires::{Reach, WireEnd, WireId};
use ramkeep_rpc::{Expect, Handshake};
use ramkeep_wire::{ClusterId, Micros, Party};

use crate::network::ConnectionId;

/// What becomes of a process's connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happening {
    /// A wire is of use.
    Up {
        /// Which.
        wire: WireId,
        /// This process, as it said hello.
        local: Party,
        /// Who is there.
        peer: Party,
        /// The cluster, as either side knew it; zero if neither did.
        cluster: ClusterId,
    },
    /// An envelope came on a wire.
    Received {
        /// Which.
        wire: WireId,
        /// The envelope.
        bytes: Vec<u8>,
    },
    /// A wire has ended, or could not be made.
    Down {
        /// Which.
        wire: WireId,
        /// Why.
        end: WireEnd,
    },
    /// Someone has connected, and is who it says.
    Accepted {
        /// The connection.
        inbound: ConnectionId,
        /// Who.
        peer: Party,
        /// Of which cluster, as far as it knew.
        cluster: ClusterId,
    },
    /// An envelope of a kind that is served here came on an accepted connection.
    Request {
        /// The connection.
        inbound: ConnectionId,
        /// The envelope.
        bytes: Vec<u8>,
    },
    /// An accepted connection has ended.
    Gone {
        /// The connection.
        inbound: ConnectionId,
        /// Who was there.
        peer: Party,
    },
}

/// All simulated processes count as being on one machine: keys are for those of several.
pub(super) const ON_THIS_MACHINE: bool = true;

/// This process's end of a connection.
#[derive(Debug)]
pub(super) enum End {
    /// The network has not answered yet.
    Asked(WireId),
    /// The handshake is under way.
    Shaking {
        side: Side,
        handshake: Box<Handshake>,
        until: Micros,
    },
    /// Made by this process, and of use.
    Wire { wire: WireId, expect: Expect },
    /// Accepted, from a known peer.
    Inbound { peer: Party },
}

/// Which side of a handshake this process is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Side {
    Connecting(WireId),
    Accepting,
}

/// A wire, from the wish for it to its end.
#[derive(Debug)]
pub(super) struct Making {
    pub(super) reach: Reach,
    pub(super) to: Party,
    /// The connection that is tried, or that it is.
    pub(super) connection: ConnectionId,
}
