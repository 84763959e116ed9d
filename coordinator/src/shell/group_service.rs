//! What the other coordinators say.

use std::sync::Arc;

use ramkeep_rpc::{Batch, Peer, Service, Session, Wake};
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::{Micros, Party, PeerId, postcards};

use super::hub::Hub;

/// Takes in `Group`. Nothing is answered here: answers go on this coordinator's own connections.
pub(super) struct GroupService {
    hub: Arc<Hub>,
}

impl GroupService {
    pub(super) fn new(hub: Arc<Hub>) -> Self {
        Self { hub }
    }
}

impl Service for GroupService {
    fn open(&self, peer: &Peer, _wake: Wake) -> Box<dyn Session> {
        Box::new(GroupSession {
            hub: self.hub.clone(),
            party: peer.party,
        })
    }
}

struct GroupSession {
    hub: Arc<Hub>,
    party: Party,
}

impl Session for GroupSession {
    fn handle_batch(
        &mut self,
        _now: Micros,
        batch: &mut Batch<'_>,
        _out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        for envelope in batch.by_ref() {
            let message: paxos::Envelope = postcards::decode(envelope.payload)
                .map_err(|malformed| Refusal::Malformed(malformed.to_string()))?;
            if self.party != Party::coordinator(PeerId(message.from.0)) {
                let party = self.party;
                let why = format!("{party:?} speaks for coordinator {}", message.from);
                return Err(Refusal::Malformed(why));
            }
            self.hub
                .input(|core, now| core.handle_message(now, message));
        }
        Ok(())
    }

    fn poll(&mut self, _now: Micros, _out: &mut Vec<u8>) -> bool {
        false
    }

    fn holds(&self) -> bool {
        false
    }
}
