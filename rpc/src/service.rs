//! What a role offers on sockets: a [`Service`] opens a [`Session`] for each connection.

use std::sync::Arc;

use ramkeep_wire::envelope::Kind;
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::{ClusterId, Micros, Party};

use crate::receive::{Batch, KIND_CODES};
use crate::wake::Wake;

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// As it said hello; `NONE` when it has no id yet.
    pub party: Party,
    /// The cluster that it is of, as it said hello; all zero when it did not know.
    pub cluster: ClusterId,
    /// Its address, for people.
    pub address: String,
}

/// One role's answers to some kinds of envelopes.
pub trait Service: Send + Sync + 'static {
    /// Called when a connection brings its first envelope for this service. `wake` has the
    /// session's `poll` called; any thread may use it for as long as it likes.
    fn open(&self, peer: &Peer, wake: Wake) -> Box<dyn Session>;
}

/// One service's side of one connection. It runs to completion on the worker that owns the
/// connection, and must not block.
pub trait Session: Send {
    /// Handles the envelopes that came in one read, appending replies (whole envelopes) to `out`.
    ///
    /// No envelope is taken once more than `limits::MAX_UNSENT` bytes are in `out`: the rest of the
    /// batch is left. Envelopes may be left only then and while replies are held; they are offered
    /// again when that has changed.
    ///
    /// # Errors
    /// A refusal is sent to the peer, and the connection closed.
    fn handle_batch(
        &mut self,
        now: Micros,
        batch: &mut Batch<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal>;

    /// Releases replies that were held (durable now, journal synced, ...). Called while `holds`,
    /// and after each wake. Says whether something was written.
    fn poll(&mut self, now: Micros, out: &mut Vec<u8>) -> bool;

    /// Whether replies are held: the connection goes on polling, or sleeps until woken.
    fn holds(&self) -> bool;
}

/// Which service answers which kinds of envelopes.
#[derive(Clone)]
pub struct Router {
    services: Vec<Arc<dyn Service>>,
    table: [u8; KIND_CODES],
}

/// In the table: nobody.
pub(crate) const UNROUTED: u8 = u8::MAX;

impl Default for Router {
    fn default() -> Self {
        Self {
            services: Vec::new(),
            table: [UNROUTED; KIND_CODES],
        }
    }
}

impl Router {
    /// Nothing is served.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Has `service` answer `kinds`.
    ///
    /// # Panics
    /// When one of them is answered by another service already.
    #[must_use]
    pub fn route(mut self, kinds: &[Kind], service: Arc<dyn Service>) -> Self {
        let index = u8::try_from(self.services.len()).expect("a process has a handful of services");
        for kind in kinds {
            let entry = &mut self.table[*kind as usize];
            assert_eq!(*entry, UNROUTED, "{kind:?} is routed twice");
            *entry = index;
        }
        self.services.push(service);
        self
    }

    pub(crate) fn table(&self) -> &[u8; KIND_CODES] {
        &self.table
    }

    pub(crate) fn service(&self, index: u8) -> &dyn Service {
        &*self.services[usize::from(index)]
    }

    pub(crate) fn len(&self) -> usize {
        self.services.len()
    }
}

/// What a service that answers one request at a time needs to be: for control messages.
impl<F> Service for F
where
    F: Fn(&Peer, Wake) -> Box<dyn Session> + Send + Sync + 'static,
{
    fn open(&self, peer: &Peer, wake: Wake) -> Box<dyn Session> {
        self(peer, wake)
    }
}
