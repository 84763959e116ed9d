//! Requests as they come in on connections.

use std::sync::Arc;

use parking_lot::Mutex;
use ramkeep_rpc::{Batch, Peer, Service, Session, Wake};
use ramkeep_wire::coordinator::Request;
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::limits::MAX_UNSENT;
use ramkeep_wire::{Micros, ServerId, postcards};

use super::hub::{Hub, Outbox};

/// Requests of one connection that are answered at the same time; more are left unread.
const MAX_UNANSWERED: usize = 256;

/// Answers `CoordinatorRequest`.
pub(super) struct RequestService {
    hub: Arc<Hub>,
}

impl RequestService {
    pub(super) fn new(hub: Arc<Hub>) -> Self {
        Self { hub }
    }
}

impl Service for RequestService {
    fn open(&self, peer: &Peer, wake: Wake) -> Box<dyn Session> {
        let (id, outbox) = self.hub.open_session(wake);
        Box::new(RequestSession {
            hub: self.hub.clone(),
            id,
            outbox,
            server: peer.party.as_server(),
        })
    }
}

struct RequestSession {
    hub: Arc<Hub>,
    id: u64,
    outbox: Arc<Mutex<Outbox>>,
    /// Whose connection it is: as it said hello, or as its heartbeats say.
    server: Option<ServerId>,
}

impl Session for RequestSession {
    fn handle_batch(
        &mut self,
        now: Micros,
        batch: &mut Batch<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let room = {
            let outbox = self.outbox.lock();
            let full = outbox.bytes.len() + out.len() > MAX_UNSENT;
            if full {
                0
            } else {
                MAX_UNANSWERED.saturating_sub(outbox.unanswered)
            }
        };
        let mut requests = Vec::new();
        while requests.len() < room {
            let Some(envelope) = batch.next() else { break };
            let request: Request = postcards::decode(envelope.payload)
                .map_err(|malformed| Refusal::Malformed(malformed.to_string()))?;
            if let Request::Heartbeat(report) = &request {
                self.server = Some(report.server);
            }
            requests.push((envelope.header, request));
        }
        self.outbox.lock().unanswered += requests.len();
        self.hub.requests(now, self.id, requests);
        self.poll(now, out);
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

impl Drop for RequestSession {
    fn drop(&mut self) {
        self.hub.close_session(self.id, self.server);
    }
}
