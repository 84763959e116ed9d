//! Who this process is on its sockets.
//!
//! A server enlists after it listens, so its party, and for a first coordinator its cluster, may
//! be set later. Each is set once: a process never becomes another.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use ramkeep_wire::hello::{Refusal, SharedKey};
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::{ClusterId, Party};

/// Party, cluster and shared key of a process. Clones share one state.
#[derive(Clone, Debug)]
pub struct Identity(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    party: AtomicU64,
    cluster: OnceLock<ClusterId>,
    key: Option<SharedKey>,
}

impl Identity {
    /// A process that knows neither its party nor its cluster yet.
    #[must_use]
    pub fn new(key: Option<SharedKey>) -> Self {
        Self(Arc::new(Inner {
            party: AtomicU64::new(Party::NONE.0),
            cluster: OnceLock::new(),
            key,
        }))
    }

    /// The party; `NONE` until it is known.
    #[must_use]
    pub fn party(&self) -> Party {
        Party(self.0.party.load(Ordering::Acquire))
    }

    /// Makes the party known. Envelopes for another are refused from now on.
    pub fn set_party(&self, party: Party) {
        self.0.party.store(party.0, Ordering::Release);
    }

    /// The cluster; all zero until it is known.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.0.cluster.get().copied().unwrap_or_default()
    }

    /// The process is of this cluster from now on, and connections of another are refused: unless it is
    /// of another already, or this is none. Returns whether it is of this one.
    pub fn join(&self, cluster: ClusterId) -> bool {
        cluster != ClusterId::default() && *self.0.cluster.get_or_init(|| cluster) == cluster
    }

    /// Whether the process is of this cluster, or may become so: one side does not know its own yet.
    #[must_use]
    pub fn may_join(&self, cluster: ClusterId) -> bool {
        let (ours, unknown) = (self.cluster(), ClusterId::default());
        ours == cluster || ours == unknown || cluster == unknown
    }

    /// The same with the party set, for building one in an expression.
    #[must_use]
    pub fn with_party(self, party: Party) -> Self {
        self.set_party(party);
        self
    }

    /// The same with the cluster set, for building one in an expression.
    #[must_use]
    pub fn with_cluster(self, cluster: ClusterId) -> Self {
        self.join(cluster);
        self
    }

    /// The cluster's shared key.
    #[must_use]
    pub fn key(&self) -> Option<&SharedKey> {
        self.0.key.as_ref()
    }
}

/// One side of a connection, as it says or as it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Side {
    pub(crate) party: Party,
    pub(crate) cluster: ClusterId,
}

/// Why one side may not connect to another, whatever they want of each other (SAFETY 30). A side that does
/// not know its cluster may only be, or ask, a coordinator: one that forms a group or finds it, or one that
/// says of which cluster who asks is. A server asks as a server only those of its own cluster.
pub(crate) fn may_meet(connecting: Side, accepting: Side) -> Result<(), Apart> {
    let unknown = ClusterId::default();
    if connecting.cluster != unknown && accepting.cluster != unknown {
        return if connecting.cluster == accepting.cluster {
            Ok(())
        } else {
            Err(Apart::Cluster)
        };
    }
    let asks = accepting.party.as_coordinator().is_some() && connecting.party.as_server().is_none();
    if asks || mutants::active(Mutant::HelloUnknownCluster) {
        Ok(())
    } else {
        Err(Apart::Unknown)
    }
}

/// Why two sides may not connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Apart {
    /// They are of different clusters.
    Cluster,
    /// One does not know its cluster.
    Unknown,
}

impl Apart {
    /// What a side of this cluster tells the other: who has to know it may learn it from that.
    pub(crate) fn refusal(self, ours: ClusterId) -> Refusal {
        match self {
            Self::Unknown if ours == ClusterId::default() => Refusal::NoCluster,
            Self::Cluster | Self::Unknown => Refusal::Cluster(ours),
        }
    }
}

/// Whether what is meant for `to` is for `me`: by name, or for whoever is there (SAFETY 6).
pub(crate) fn is_for(me: Party, to: Party) -> bool {
    to == Party::NONE || to == me || mutants::active(Mutant::IgnoreServerId)
}
