//! Requests as they come in on connections.
//!
//! # Invariants
//! 1. No request is taken while more than `MAX_UNSENT` bytes of answers wait for the connection, or
//!    [`MAX_UNANSWERED`] requests for their answer: what one connection may have kept is bounded.

use std::sync::Arc;

use parking_lot::Mutex;
use ramkeep_rpc::{Batch, Peer, Service, Session, Wake};
use ramkeep_wire::coordinator::Request;
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::limits::MAX_UNSENT;
use ramkeep_wire::{Micros, ServerId, postcards};

use super::hub::{Hub, Outbox};
use crate::limits::MAX_LIST_BYTES;

/// Requests of one connection that are answered at the same time; more are left unread.
const MAX_UNANSWERED: usize = 48;

// The largest answers that are not given at once carry the server list.
const _: () = assert!(MAX_UNANSWERED * (MAX_LIST_BYTES + 1_024) <= 2 * MAX_UNSENT);

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
        self.poll(now, out);
        while out.len() <= MAX_UNSENT && self.outbox.lock().unanswered < MAX_UNANSWERED {
            let Some(envelope) = batch.next() else { break };
            let request: Request = postcards::decode(envelope.payload)
                .map_err(|malformed| Refusal::Malformed(malformed.to_string()))?;
            if let Request::Heartbeat(report) = &request {
                self.server = Some(report.server);
            }
            self.outbox.lock().unanswered += 1;
            self.hub.request(now, self.id, envelope.header, request);
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

impl Drop for RequestSession {
    fn drop(&mut self) {
        self.hub.close_session(self.id, self.server);
    }
}

#[cfg(test)]
mod tests {
    use ramkeep_rpc::Identity;
    use ramkeep_wire::coordinator::{Enlist, Roles};
    use ramkeep_wire::envelope::{self, Header, Kind};
    use ramkeep_wire::limits::{MAX_ADDRESS, MAX_PAYLOAD};
    use ramkeep_wire::{BootId, ListVersion, Party, PeerId};

    use super::*;
    use crate::core::{Config, Coordinator, Output, default_settings};
    use crate::limits::MAX_ADDRESSES;

    const NOW: Micros = Micros(1);

    fn enlist(nonce: u8) -> Request {
        Request::Enlist(Enlist {
            nonce: [nonce; 16],
            roles: Roles {
                master: true,
                backup: true,
            },
            addresses: vec!["a".repeat(MAX_ADDRESS); MAX_ADDRESSES],
            replaces: None,
            boot: BootId([0; 16]),
            frames: 1,
            memory: 1,
        })
    }

    /// A leader whose server list is about as long as any.
    fn core() -> Coordinator {
        let config = Config {
            peer: PeerId(1),
            incarnation: [1; 16],
            address: String::new(),
            peers: vec![(PeerId(1), String::new())],
            settings: default_settings(),
            timing: paxos::limits::Timing::default(),
            entropy: [1; 32],
        };
        let mut core = Coordinator::new(NOW, config, paxos::Stored::default()).unwrap();
        for nonce in 0..u8::MAX {
            for _ in 0..8 {
                core.handle_tick(NOW);
                while let Some(output) = core.poll_output() {
                    if let Output::Persist { seq, .. } = output {
                        core.handle_persisted(NOW, seq);
                    }
                }
            }
            core.handle_request(NOW, Party::NONE, 0, enlist(nonce));
        }
        core
    }

    fn asked(request: &Request, times: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let header = Header::new(Kind::CoordinatorRequest, 1, Party::NONE, Party::NONE);
        envelope::append(&mut bytes, header, &postcards::encode(request));
        bytes.repeat(times)
    }

    /// Gives a session all of `bytes`; the largest that `out` ever was, and how much was taken.
    fn largest_out(session: &mut dyn Session, bytes: &[u8]) -> (usize, usize) {
        let (mut taken, mut largest) = (0, 0);
        loop {
            let mut batch = Batch::new(&bytes[taken..]);
            let mut out = Vec::new();
            session.handle_batch(NOW, &mut batch, &mut out).unwrap();
            taken += batch.taken();
            largest = largest.max(out.len());
            if batch.taken() == 0 || taken == bytes.len() {
                return (largest, taken);
            }
        }
    }

    #[test]
    fn answers_of_one_connection_are_bounded_and_all_are_given() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let (hub, _jobs) = Hub::new(core(), Identity::new(None), runtime.handle().clone());
        let peer = Peer {
            party: Party::NONE,
            address: String::new(),
        };
        let service = RequestService::new(hub);
        let mut session = service.open(&peer, Wake::new());
        let request = Request::Servers {
            known: ListVersion(0),
        };
        let bytes = asked(&request, 200);
        let (largest, taken) = largest_out(&mut *session, &bytes);
        assert!(largest > MAX_UNSENT, "more than one connection may have");
        assert!(largest <= MAX_UNSENT + MAX_PAYLOAD, "{largest}");
        assert_eq!(taken, bytes.len(), "the rest when the first are sent");

        // Nothing is persisted here, so nothing of these is answered.
        let bytes = asked(&Request::OpenClientLease { nonce: [1; 16] }, 200);
        let (_, taken) = largest_out(&mut *session, &bytes);
        assert_eq!(taken, bytes.len() / 200 * MAX_UNANSWERED);
        assert!(session.holds());
    }
}
