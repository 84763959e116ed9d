//! A service that comes after its port: a server listens first, then learns who it is, then serves.

use std::sync::{Arc, OnceLock};

use ramkeep_rpc::{Batch, Peer, Service, Session, Wake};
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::{Micros, Party};

/// Refuses everything until its service is set. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Late(Arc<OnceLock<Box<dyn Service>>>);

impl Late {
    /// Serves from now on. Once only; later calls change nothing.
    pub(super) fn set(&self, service: impl Service) {
        // Already set: invariant of the one caller.
        drop(self.0.set(Box::new(service)));
    }
}

impl Service for Late {
    fn open(&self, peer: &Peer, wake: Wake) -> Box<dyn Session> {
        match self.0.get() {
            Some(service) => service.open(peer, wake),
            None => Box::new(Nobody),
        }
    }
}

/// Tells that nobody is here yet, which closes the connection; the peer tries again.
struct Nobody;

impl Session for Nobody {
    fn handle_batch(
        &mut self,
        _: Micros,
        _: &mut Batch<'_>,
        _: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        Err(Refusal::Party(Party::NONE))
    }

    fn poll(&mut self, _: Micros, _: &mut Vec<u8>) -> bool {
        false
    }

    fn holds(&self) -> bool {
        false
    }
}
