//! A coordinator whose directory says that it was elsewhere: it takes part in nothing while it is still
//! there, since this is a copy of it then (SAFETY 30).
//!
//! # Invariants
//! 1. Nothing leaves but the question, and nothing is heard but its outcome, until that is known.
//! 2. Only a coordinator of the same number and cluster counts; silence and others don't.

use std::time::Duration;

use ramkeep_rpc::wires::{WireEnd, WireId, WireOutput, WireRules, Wires};
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::{Micros, Party, PeerId};

/// The room of the wire.
const ROOM: u8 = 3;
/// One that has not answered by then is not there.
const PATIENCE: Duration = Duration::from_secs(2);

/// The question whether this coordinator is where it was.
#[derive(Debug)]
pub(super) struct Moved {
    me: PeerId,
    address: String,
    wires: Wires<()>,
    until: Option<Micros>,
}

impl Moved {
    /// It was at this address.
    pub(super) fn from(me: PeerId, address: String) -> Self {
        let rules = WireRules {
            rest: PATIENCE,
            max_waiting: 0,
        };
        Self {
            me,
            address,
            wires: Wires::new(ROOM, rules),
            until: None,
        }
    }

    /// Where it was.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// What must happen outside next.
    pub(super) fn poll_output(&mut self, now: Micros) -> Option<WireOutput> {
        if self.until.is_none() {
            self.until = Some(now + PATIENCE);
            let to = Party::coordinator(self.me);
            let addresses = [self.address.clone()];
            self.wires.ensure(now, &(), &addresses, to);
        }
        self.wires.poll_output()
    }

    /// When nobody has answered.
    pub(super) fn until(&self) -> Option<Micros> {
        self.until
    }

    /// Whether it is the one that answers over this wire.
    pub(super) fn is_there(&mut self, wire: WireId, local: Party, peer: Party) -> bool {
        self.wires.handle_up(wire, local, peer).is_some()
    }

    /// What the end of a wire says: whether it is there. `None`: of no wire of this.
    pub(super) fn ended(&mut self, now: Micros, wire: WireId, end: &WireEnd) -> Option<bool> {
        self.wires.handle_down(now, wire)?;
        // Only who is meant is told that there is no room.
        Some(matches!(
            end,
            WireEnd::Refused(Refusal::Busy | Refusal::Stopping)
        ))
    }
}
