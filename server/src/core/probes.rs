//! A server's probes of others on their way, and what comes of them.
//!
//! # Invariants
//! 1. To each server at most one probe is on its way: one that hangs holds one connection, however
//!    often it is chosen.
//! 2. What proves nothing is told to nobody: that there was no answer is noticed by the time that passes.

use std::time::Duration;

use ramkeep_rpc::wires::{CallLost, CallRules, Calls, EndedCalls, WireEnd, WireId, WireRules};
use ramkeep_wire::coordinator::{Request, ServerList, Symptom};
use ramkeep_wire::envelope::{Envelope, Kind};
use ramkeep_wire::{Micros, Party, ServerId};

use super::prober::{ProbeStep, Prober};

/// A probe that hangs is given up after this. Long before, [`Prober`] has noticed.
const PATIENCE: Duration = Duration::from_secs(1);
/// At most one probe to each, made anew whenever it is chosen.
const WIRES: WireRules = WireRules {
    rest: Duration::ZERO,
    max_waiting: 1,
};
const CALLS: CallRules = CallRules {
    patience: PATIENCE,
    max_in_flight: 1,
};

/// A prober and its connections.
#[derive(Debug)]
pub(super) struct Probes {
    prober: Prober,
    calls: Calls<ServerId, u64>,
}

impl Probes {
    pub(super) fn new(room: u8, me: ServerId, seed: u64) -> Self {
        Self {
            prober: Prober::new(me, seed),
            calls: Calls::new(room, WIRES, CALLS),
        }
    }

    pub(super) fn calls(&mut self) -> &mut Calls<ServerId, u64> {
        &mut self.calls
    }

    /// Those whom the list does not name as living are not probed any more.
    pub(super) fn take_list(&mut self, list: &ServerList) {
        self.prober.take_list(list);
        let known: Vec<ServerId> = self.calls.wires().keys().copied().collect();
        for server in known {
            if !self.prober.knows(server) {
                // The prober has forgotten these calls.
                self.calls.forget(&server);
            }
        }
    }

    /// Lets time pass. Returns what the leader is to be told.
    pub(super) fn handle_tick(&mut self, now: Micros) -> Vec<Request> {
        self.prober.handle_tick(now);
        // The prober has noticed long before.
        drop(self.calls.handle_tick(now));
        let mut told = Vec::new();
        while let Some(step) = self.prober.poll_step() {
            match step {
                ProbeStep::Probe {
                    number,
                    server,
                    addresses,
                } => self.probe(now, number, server, &addresses),
                ProbeStep::Tell(request) => told.push(request),
            }
        }
        told
    }

    fn probe(&mut self, now: Micros, number: u64, server: ServerId, addresses: &[String]) {
        let to = Party::server(server);
        // One that is on its way already counts; else the silence is noticed.
        let _ = (self.calls).call(now, &server, addresses, to, Kind::Probe, &[], number);
    }

    pub(super) fn handle_received(&mut self, wire: WireId, envelope: &Envelope<'_>) {
        if let Some((_, number)) = self.calls.handle_received(wire, envelope) {
            self.prober.handle_answer(number);
        }
    }

    pub(super) fn handle_down(&mut self, now: Micros, wire: WireId, end: &WireEnd) {
        let Some(ended) = self.calls.handle_down(now, wire, end) else {
            return;
        };
        if let Some(symptom) = symptom(&ended) {
            for number in ended.calls {
                self.prober.handle_failed(number, symptom);
            }
        }
    }

    /// A connection with a server closed, and not because it was not needed any more.
    pub(super) fn handle_closed(&mut self, server: ServerId) {
        self.prober.handle_closed(server);
    }
}

fn symptom(ended: &EndedCalls<ServerId, u64>) -> Option<Symptom> {
    match ended.lost {
        _ if ended.was_up => Some(Symptom::Closed),
        CallLost::Nobody => Some(Symptom::Refused),
        CallLost::Closed | CallLost::Late | CallLost::Unclear => None,
    }
}
