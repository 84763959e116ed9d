//! What comes in from servers and coordinators.

use ramkeep_wire::bytes::Reader;
use ramkeep_wire::coordinator::Response;
use ramkeep_wire::data::{ResponseItem, Status};
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::{ClientId, ClusterId, Micros, ServerId};

use super::control::Event;
use super::links::LinkState;
use super::slots::{Awaited, OpId, Phase};
use super::{Core, Target, answers};
use crate::error::Error;
use crate::limits::{MAP_PATIENCE, backoff};
use crate::types::Outcome;

const MAYBE: Error = Error::Timeout {
    maybe_applied: true,
};

impl Core {
    /// Takes the payload of a DataResponse. One that can't be read breaks the connection off.
    pub(crate) fn handle_response(&mut self, now: Micros, server: ServerId, payload: &[u8]) {
        let Some(link) = self.servers.get_mut(&server) else {
            return;
        };
        link.answered(now);
        let mut reader = Reader(payload);
        loop {
            match ResponseItem::read(&mut reader) {
                Ok(Some(item)) => {
                    if let Err(what) = self.handle_item(now, server, &item) {
                        return self.break_off(now, server, what);
                    }
                }
                Ok(None) => break,
                Err(error) => return self.break_off(now, server, &error.to_string()),
            }
        }
        self.list(server);
    }

    pub(super) fn break_off(&mut self, now: Micros, server: ServerId, what: &str) {
        tracing::warn!(%server, what, "malformed answer; connection closed");
        self.closing.push_back(Target::Server(server));
        self.handle_link_down(now, Target::Server(server), what);
    }

    /// Takes one answer. An error: the server breaks the protocol.
    #[inline]
    pub(super) fn handle_item(
        &mut self,
        now: Micros,
        server: ServerId,
        item: &ResponseItem<'_>,
    ) -> Result<(), &'static str> {
        let Some(op) = self.slots.owed(server, item.id) else {
            return Ok(());
        };
        if let Some(link) = self.servers.get_mut(&server) {
            link.in_flight = link.in_flight.saturating_sub(1);
        }
        self.slots.settle(op);
        let Some(slot) = self.slots.get_mut(op) else {
            return Ok(());
        };
        if slot.phase != Phase::Sent {
            return Ok(());
        }
        match item.status {
            Status::RetryLater => {
                slot.attempts += 1;
                let until = now + backoff(slot.attempts);
                self.wait(op, Awaited::Time, until);
            }
            Status::WrongServer => {
                slot.attempts += 1;
                slot.refused_by = Some(server);
                let map = self.control.refresh();
                self.wait(op, Awaited::Map(map), now + MAP_PATIENCE);
            }
            Status::LeaseOver => self.lease_over(now, op),
            Status::NotRemembered => {
                // None of its tries did anything, nor will one that comes late.
                slot.unremembered = true;
                slot.uncertain = false;
                slot.client = ClientId(0);
                self.dispatch(now, op);
            }
            _ => match answers::outcome(slot, item) {
                Ok(result) => self.complete(op, result),
                Err(what) => {
                    self.complete(op, Err(Error::Protocol(what.to_owned())));
                    return Err(what);
                }
            },
        }
        Ok(())
    }

    /// The lease under which an operation was sent has ended. It goes out again under the next one,
    /// unless an earlier try of it may have been applied.
    #[cold]
    fn lease_over(&mut self, now: Micros, op: OpId) {
        let Some(slot) = self.slots.get_mut(op) else {
            return;
        };
        if slot.client == self.lease.client() {
            self.lease.lost(now);
            self.attention = true;
        }
        if slot.uncertain {
            return self.complete(op, Err(MAYBE));
        }
        slot.client = ClientId(0);
        self.dispatch(now, op);
    }

    /// Takes the answer of the coordinator of this number.
    pub(crate) fn handle_coordinator_response(
        &mut self,
        now: Micros,
        peer: usize,
        correlation: u64,
        response: Response,
    ) {
        self.attention = true;
        self.control.handle(now, peer, correlation, response);
        self.heed_control(now);
    }

    /// Does what follows from what the coordinators answered, or did not in time.
    pub(super) fn heed_control(&mut self, now: Micros) {
        while let Some(event) = self.control.poll_event() {
            match event {
                Event::Map(number, map) => self.handle_map(now, number, map),
                Event::Lease(client, lease_us) => {
                    self.lease.opened(now, client, lease_us);
                    self.leave_for_lease(now);
                }
                Event::Renewed => {}
                Event::LeaseLost => self.lease.lost(now),
                Event::LeaseRefused => {
                    self.lease.refused(now);
                    self.leave_for_lease(now);
                }
                Event::Forgotten(client) => {
                    if client == self.lease.client() {
                        self.lease.lost(now);
                    }
                }
                Event::Done(op, result) => self.complete_request(op, result.map(Outcome::Answer)),
            }
        }
    }

    /// Operations that waited for the lease go out.
    fn leave_for_lease(&mut self, now: Micros) {
        for index in 0..self.slots.high_water() {
            let (op, slot) = self.slots.at(index);
            if let Phase::Waiting {
                awaited: Awaited::Lease,
                ..
            } = slot.phase
            {
                self.dispatch(now, op);
            }
        }
    }

    /// A connection is being opened: nothing is given out for it until it is up or down.
    pub(crate) fn handle_connecting(&mut self, to: Target) {
        match to {
            Target::Coordinator(peer) => self.control.connecting(peer),
            Target::Server(server) => {
                if let Some(link) = self.servers.get_mut(&server) {
                    link.state = LinkState::Connecting;
                }
            }
        }
    }

    /// A connection that was being opened is up.
    pub(crate) fn handle_link_up(&mut self, to: Target, cluster: ClusterId) {
        match to {
            Target::Coordinator(peer) => self.control.link_up(peer, cluster),
            Target::Server(server) => {
                if let Some(link) = self.servers.get_mut(&server) {
                    link.state = LinkState::Usable;
                }
                self.list(server);
            }
        }
    }

    /// The connection takes no more for now: nothing is given out for it until a moment later.
    pub(crate) fn handle_full(&mut self, now: Micros, to: Target) {
        self.attention = true;
        match to {
            Target::Coordinator(_) => self.control.rest(now),
            Target::Server(server) => {
                if let Some(link) = self.servers.get_mut(&server) {
                    link.rest(now);
                }
            }
        }
    }

    /// A connection broke or could not be opened; what was on it is lost and goes out again. Only a
    /// mutation that was sent as nobody's call ends here.
    pub(crate) fn handle_link_down(&mut self, now: Micros, to: Target, reason: &str) {
        let server = match to {
            Target::Coordinator(peer) => {
                self.attention = true;
                return self.control.link_down(now, peer, reason);
            }
            Target::Server(server) => server,
        };
        let Some(link) = self.servers.get_mut(&server) else {
            return;
        };
        link.break_down(now, reason);
        for index in 0..self.slots.high_water() {
            let (op, slot) = self.slots.at(index);
            if slot.wire != Some(server) {
                continue;
            }
            let (phase, client, mutates) = (slot.phase, slot.client, slot.op.mutates());
            self.slots.settle(op);
            if phase != Phase::Sent {
                continue;
            }
            if mutates && client == ClientId(0) {
                self.complete(op, Err(MAYBE));
                continue;
            }
            if let Some(slot) = self.slots.get_mut(op) {
                slot.uncertain = mutates;
                if mutates && mutants::active(Mutant::RetryAsAnotherCall) {
                    slot.call_anew(self.rpcs.give());
                }
            }
            self.dispatch(now, op);
        }
        self.control.refresh();
        self.attention = true;
    }
}
