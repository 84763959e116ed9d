//! What a stranger is, and how it behaves.

use std::time::Duration;

use ramkeep_rpc::Identity;
use ramkeep_wire::{ClientId, Party};

/// Who a visitor says that it is, if nobody else: a client that there never is.
pub const VISITOR: ClientId = ClientId(1_000_000);

/// How a stranger behaves where it connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Says hello as what it is; if it is let in, it leaves. For one of another cluster.
    Hello,
    /// Says hello to a process that is not there: to an older life of it, perhaps.
    ForAnother(Party),
    /// Once it is let in, it sends requests in the name of another than it said hello as.
    AsAnother(Party),
    /// Once it is let in, it sends requests for another than it has reached.
    ToAnother(Party),
    /// Once it is let in, it sends kinds that nobody is asked with.
    WrongKinds,
    /// Once it is let in, it sends requests that nobody can read.
    Garbage,
    /// Sends requests without a hello.
    NoHello,
    /// Says nothing at all.
    Silent,
}

/// What a stranger is and whom it visits.
#[derive(Clone, Debug)]
pub struct StrangerConfig {
    /// Tells it from others.
    pub number: u32,
    /// Its party, cluster and key.
    pub identity: Identity,
    /// How it behaves.
    pub manner: Manner,
    /// Addresses of the processes that it visits, one after the other, at random.
    pub visits: Vec<String>,
    /// From the end of a visit to the next.
    pub rest: Duration,
}
