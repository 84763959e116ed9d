//! What comes in on connections, and the answers: bytes between them and the desk.

use std::sync::Arc;

use parking_lot::Mutex;
use ramkeep_rpc::{Batch, Peer, Service, Session, Wake};
use ramkeep_wire::Micros;
use ramkeep_wire::hello::Refusal;

use super::hub::{Hub, Outbox};
use crate::desk::SessionId;

/// Takes in requests, and what other coordinators say.
pub(super) struct DeskService(pub(super) Arc<Hub>);

impl Service for DeskService {
    fn open(&self, peer: &Peer, wake: Wake) -> Box<dyn Session> {
        let (id, outbox) = self.0.open_session(peer, wake);
        Box::new(DeskSession {
            hub: self.0.clone(),
            id,
            outbox,
        })
    }
}

struct DeskSession {
    hub: Arc<Hub>,
    id: SessionId,
    outbox: Arc<Mutex<Outbox>>,
}

impl Session for DeskSession {
    fn handle_batch(
        &mut self,
        now: Micros,
        batch: &mut Batch<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        self.poll(now, out);
        while batch.peek().is_some() && self.hub.take(self.id, out.len(), batch)? {
            // Most are answered already, and count from here on.
            self.poll(now, out);
        }
        Ok(())
    }

    fn poll(&mut self, _now: Micros, out: &mut Vec<u8>) -> bool {
        let mut outbox = self.outbox.lock();
        let wrote = !outbox.bytes.is_empty();
        out.append(&mut outbox.bytes);
        wrote
    }

    fn holds(&self) -> bool {
        let outbox = self.outbox.lock();
        outbox.unanswered > 0 || !outbox.bytes.is_empty()
    }
}

impl Drop for DeskSession {
    fn drop(&mut self) {
        self.hub.close_session(self.id);
    }
}
