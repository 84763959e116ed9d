//! The lines to the other coordinators: one to each, for what this one says. What they say comes on
//! theirs.
//!
//! # Invariants
//! 1. Messages to one coordinator leave in order, as long as its line lasts; what can't be sent is lost,
//!    as `paxos` expects, and so is what is said between two attempts to connect.
//! 2. A line that ended is made again, whether or not there is something to say, so that it is noticed when
//!    a process is gone.
//! 3. One to whom nothing was said for [`FORGET_AFTER`], and who is not there, is forgotten: others
//!    took the places of some, and some never were coordinators.

use std::collections::BTreeMap;
use std::time::Duration;

use paxos::limits::{MAX_BATCH_BYTES, MAX_COMMAND, MAX_IN_FLIGHT, PAGE_BYTES};
use ramkeep_rpc::wires::{WireEnd, WireId, WireOutput, WireRules, Wires};
use ramkeep_wire::envelope::Kind;
use ramkeep_wire::limits::MAX_PAYLOAD;
use ramkeep_wire::{Micros, Party, PeerId, postcards};

/// The room of wires to coordinators.
const ROOM: u8 = 2;
/// Messages that wait while a connection is made; older ones go first.
pub(super) const MAX_WAITING: usize = 64;
/// Between two attempts to connect.
pub(super) const RETRY: Duration = Duration::from_millis(100);
/// After which one who is not there, and to whom nothing was said, is forgotten.
pub(super) const FORGET_AFTER: Duration = Duration::from_secs(10);
/// Bytes of a message beside its entries: lengths, slots, ballots, a group.
const OVERHEAD: usize = 32 << 10;

// The longest messages fit an envelope: a page, and all that a leader may have in flight.
const _: () = assert!(PAGE_BYTES + OVERHEAD <= MAX_PAYLOAD && MAX_COMMAND <= MAX_BATCH_BYTES);
const _: () = assert!(MAX_IN_FLIGHT * MAX_BATCH_BYTES + OVERHEAD <= MAX_PAYLOAD);

/// Where a coordinator is, and since when.
#[derive(Debug)]
struct PeerLine {
    addresses: Vec<String>,
    /// When something was last said.
    used: Micros,
    /// When its wire was last made.
    made: Micros,
}

/// The lines.
#[derive(Debug)]
pub(super) struct PeerLines {
    wires: Wires<PeerId>,
    lines: BTreeMap<PeerId, PeerLine>,
}

impl PeerLines {
    pub(super) fn new() -> Self {
        let rules = WireRules {
            rest: RETRY,
            max_waiting: MAX_WAITING,
        };
        Self {
            wires: Wires::new(ROOM, rules),
            lines: BTreeMap::new(),
        }
    }

    /// Sends a message, or keeps it while a connection is made. `addresses`: the likeliest first.
    pub(super) fn send(
        &mut self,
        now: Micros,
        mut addresses: Vec<String>,
        message: &paxos::Envelope,
    ) {
        let to = PeerId(message.to.0);
        if addresses.is_empty() {
            return tracing::debug!(%to, "it is not known where a coordinator is");
        }
        // A wire tries the last first.
        addresses.reverse();
        let made = self.lines.get(&to).map_or(now, |line| line.made);
        let line = PeerLine {
            addresses,
            used: now,
            made,
        };
        self.lines.insert(to, line);
        self.keep(now, to);
        let payload = postcards::encode(message);
        if !self.wires.send(&to, Kind::Group, 0, &payload) {
            tracing::debug!(%to, "a message to a coordinator is lost");
        }
    }

    /// Makes the wire of a line, unless there is one or it rests.
    fn keep(&mut self, now: Micros, to: PeerId) {
        let Some(line) = self.lines.get_mut(&to) else {
            return;
        };
        let before = self.wires.wire(&to);
        let party = Party::coordinator(to);
        self.wires.ensure(now, &to, &line.addresses, party);
        if self.wires.wire(&to) != before {
            line.made = now;
        }
    }

    /// A wire is up. False: it is none of these.
    pub(super) fn handle_up(&mut self, wire: WireId, local: Party, peer: Party) -> bool {
        self.wires.handle_up(wire, local, peer).is_some()
    }

    /// A wire has ended, or could not be made: the coordinator who is not there, if that is proved.
    pub(super) fn handle_down(
        &mut self,
        now: Micros,
        wire: WireId,
        end: &WireEnd,
    ) -> Option<PeerId> {
        let (to, _) = self.wires.handle_down(now, wire)?;
        tracing::debug!(%to, %end, "no connection with a coordinator");
        let line = self.lines.get(&to)?;
        if now.since(line.used) > FORGET_AFTER {
            self.lines.remove(&to);
            self.wires.forget(&to);
        } else if now.since(line.made) >= RETRY {
            // At once when a connection that had lasted broke: it shows whether the process is gone.
            self.wires.forget(&to);
            self.keep(now, to);
        }
        (*end == WireEnd::Nobody).then_some(to)
    }

    /// Whether a line to this coordinator is up.
    pub(super) fn is_up(&self, peer: PeerId) -> bool {
        self.wires.is_up(&peer)
    }

    /// Makes the wires again that have rested.
    pub(super) fn handle_tick(&mut self, now: Micros) {
        if self.next_timeout().is_some_and(|due| due <= now) {
            let all: Vec<PeerId> = self.lines.keys().copied().collect();
            all.into_iter().for_each(|to| self.keep(now, to));
        }
    }

    /// When the first of them has rested.
    pub(super) fn next_timeout(&self) -> Option<Micros> {
        self.wires.next_due()
    }

    pub(super) fn poll_output(&mut self) -> Option<WireOutput> {
        self.wires.poll_output()
    }
}
