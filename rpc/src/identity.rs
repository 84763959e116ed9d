//! Who this process is on its sockets.
//!
//! A server enlists after it listens, so its party, and for a first coordinator its cluster, may
//! be set later. Each is set once: a process never becomes another.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use ramkeep_wire::hello::SharedKey;
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
        same_cluster(self.cluster(), cluster)
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

/// Whether two sides can be of the same cluster: equal, or one does not know its own yet.
pub(crate) fn same_cluster(ours: ClusterId, theirs: ClusterId) -> bool {
    let unknown = ClusterId::default();
    ours == theirs || ours == unknown || theirs == unknown
}

/// Whether what is meant for `to` is for `me`: by name, or for whoever is there (SAFETY 6).
pub(crate) fn is_for(me: Party, to: Party) -> bool {
    to == Party::NONE || to == me || mutants::active(Mutant::IgnoreServerId)
}
