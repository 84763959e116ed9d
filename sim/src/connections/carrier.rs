//! What carries replication, which leaves by whatever its master does, not by what its core puts out.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use ramkeep_rpc::wires::{WireId, WireOutput};
use ramkeep_server::core::LinkCarrier;

/// Carries envelopes over a wire.
#[derive(Clone, Debug)]
pub struct WireCarrier {
    wire: WireId,
    carried: Carried,
}

/// What carriers were given and the process has not done yet. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Carried(Arc<Mutex<VecDeque<WireOutput>>>);

impl Carried {
    /// A carrier for a wire that is up.
    #[must_use]
    pub fn over(&self, wire: WireId) -> WireCarrier {
        let carried = self.clone();
        WireCarrier { wire, carried }
    }

    /// What is to be done next.
    #[must_use]
    pub fn pop(&self) -> Option<WireOutput> {
        self.0.lock().pop_front()
    }
}

impl LinkCarrier for WireCarrier {
    fn send(&self, build: impl FnOnce(&mut Vec<u8>)) -> bool {
        let (wire, mut bytes) = (self.wire, Vec::new());
        build(&mut bytes);
        let send = WireOutput::Send { wire, bytes };
        self.carried.0.lock().push_back(send);
        true
    }

    fn close(&self) {
        let close = WireOutput::Close { wire: self.wire };
        self.carried.0.lock().push_back(close);
    }
}
