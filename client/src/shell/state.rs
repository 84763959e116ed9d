//! What a lane's lock guards: the core, its connections, and who waits for what.

use std::collections::BTreeMap;
use std::task::Waker;

use ramkeep_rpc::Link;
use ramkeep_wire::envelope::{Envelope, Kind};
use ramkeep_wire::{Micros, postcards};

use super::calls::{CallId, Calls};
use super::spin::Window;
use crate::core::{Core, NotStarted, OpId, Target};
use crate::error::Error;
use crate::types::{Operation, Outcome};

/// A link that is up. The number tells it from a later one to the same target.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub(crate) link: Link,
    pub(crate) number: u64,
}

pub(crate) struct State {
    pub(crate) core: Core,
    pub(crate) calls: Calls,
    /// By slot: the call that its operation belongs to.
    call_of: Vec<CallId>,
    call_of_request: BTreeMap<OpId, CallId>,
    connections: BTreeMap<Target, Connection>,
    next_connection: u64,
    /// To be connected by the driver.
    pub(crate) to_connect: Vec<Target>,
    /// Who receives for all.
    pub(crate) leader: Option<CallId>,
    /// Turns of leaders so far.
    pub(crate) turns: u64,
    /// Operations begun so far.
    pub(crate) begun: u64,
    /// The driver sleeps until it is woken: the next operation wakes it.
    pub(crate) dozing: bool,
    pub(crate) window: Window,
    /// To be woken when the lock is free.
    pub(crate) wakes: Vec<Waker>,
    /// Callers that wait for room, or for a map.
    room: Vec<Waker>,
    maps_seen: u64,
    /// A coordinator refused us for good.
    pub(crate) refused: Option<String>,
    /// No user is left.
    pub(crate) stopping: bool,
    /// The driver is gone.
    pub(crate) stopped: bool,
}

impl State {
    pub(crate) fn new(core: Core) -> Self {
        Self {
            core,
            calls: Calls::default(),
            call_of: Vec::new(),
            call_of_request: BTreeMap::new(),
            connections: BTreeMap::new(),
            next_connection: 0,
            to_connect: Vec::new(),
            leader: None,
            turns: 0,
            begun: 0,
            dozing: false,
            window: Window::default(),
            wakes: Vec::new(),
            room: Vec::new(),
            maps_seen: 0,
            refused: None,
            stopping: false,
            stopped: false,
        }
    }

    /// Begins an operation of `call`.
    pub(crate) fn start(
        &mut self,
        now: Micros,
        call: CallId,
        operation: Operation<'_>,
        deadline: Micros,
    ) -> Result<OpId, NotStarted> {
        if self.stopped {
            return Err(stopped().into());
        }
        let op = self.core.start(now, operation, deadline)?;
        let slot = op.slot().expect("an operation on data has a slot");
        if self.call_of.len() <= slot {
            self.call_of.resize(slot + 1, 0);
        }
        self.call_of[slot] = call;
        self.calls.add(call);
        self.begun += 1;
        Ok(op)
    }

    /// Begins a request of `call` to the coordinator.
    pub(crate) fn start_request(
        &mut self,
        call: CallId,
        request: ramkeep_wire::coordinator::Request,
        deadline: Micros,
    ) -> Result<OpId, NotStarted> {
        if self.stopped {
            return Err(stopped().into());
        }
        let op = self.core.start_request(request, deadline)?;
        self.call_of_request.insert(op, call);
        self.calls.add(call);
        self.begun += 1;
        Ok(op)
    }

    /// The result of an operation of a call that is over.
    pub(crate) fn take(&mut self, op: OpId) -> Result<Outcome, Error> {
        match self.core.take(op) {
            Some(result) => result,
            None => {
                self.cancel(op);
                Err(stopped())
            }
        }
    }

    /// Nobody wants this operation any more.
    pub(crate) fn cancel(&mut self, op: OpId) {
        self.call_of_request.remove(&op);
        self.core.cancel(op);
    }

    /// Whether the call's results are there.
    pub(crate) fn is_over(&self, call: CallId) -> bool {
        self.stopped || self.calls.is_over(call)
    }

    /// The caller waits for room, or for a map.
    pub(crate) fn wait_for_room(&mut self, waker: &Waker) {
        self.room.push(waker.clone());
    }

    /// Takes an envelope. An error: the connection is of no use.
    pub(crate) fn receive(
        &mut self,
        now: Micros,
        from: Target,
        envelope: &Envelope<'_>,
    ) -> Result<(), String> {
        match (from, envelope.header.kind) {
            (Target::Server(server), Kind::DataResponse) => {
                self.core.handle_response(now, server, envelope.payload);
            }
            (Target::Coordinator(peer), Kind::CoordinatorResponse) => {
                let response =
                    postcards::decode(envelope.payload).map_err(|error| error.to_string())?;
                let correlation = envelope.header.correlation;
                (self.core).handle_coordinator_response(now, peer, correlation, response);
            }
            (_, kind) => return Err(format!("an envelope of kind {kind:?} is not for a client")),
        }
        self.settle();
        Ok(())
    }

    /// Hands what is over to its calls, and closes what is to be closed.
    pub(crate) fn settle(&mut self) {
        let mut any = false;
        while let Some(op) = self.core.pop_completed() {
            any = true;
            let call = match op.slot() {
                Some(slot) => Some(self.call_of[slot]),
                None => self.call_of_request.remove(&op),
            };
            if let Some(call) = call {
                self.calls.finish(call, &mut self.wakes);
            }
        }
        let maps = self.core.map_number();
        if any || maps != self.maps_seen {
            self.maps_seen = maps;
            self.wakes.append(&mut self.room);
        }
        while let Some(target) = self.core.pop_closing() {
            if let Some(connection) = self.connections.remove(&target) {
                connection.link.close();
            }
        }
    }

    /// The connection to `target`, if it is up.
    pub(crate) fn connection(&self, target: Target) -> Option<&Connection> {
        self.connections.get(&target)
    }

    /// All connections that are up.
    pub(crate) fn connections(&self) -> impl Iterator<Item = (Target, Connection)> {
        self.connections
            .iter()
            .map(|(target, connection)| (*target, connection.clone()))
    }

    /// All links that are up.
    pub(crate) fn links(&self) -> impl Iterator<Item = &Link> {
        self.connections.values().map(|connection| &connection.link)
    }

    /// The first connection after `after` on which an answer is owed.
    pub(crate) fn next_expecting(&self, after: Option<Target>) -> Option<(Target, Connection)> {
        let mut found = self.connections.iter().filter(|(target, _)| {
            after.is_none_or(|after| **target > after) && self.core.expects(**target)
        });
        found
            .next()
            .map(|(target, connection)| (*target, connection.clone()))
    }

    /// A connection is up.
    pub(crate) fn connected(&mut self, target: Target, link: Link) {
        self.next_connection += 1;
        let number = self.next_connection;
        if let Some(old) = self.connections.insert(target, Connection { link, number }) {
            old.link.close();
        }
        self.core.handle_link_up(target);
    }

    /// The connection of this number is lost, or could not be made (`None`).
    pub(crate) fn lost(&mut self, now: Micros, target: Target, number: Option<u64>, reason: &str) {
        let current = self
            .connections
            .get(&target)
            .map(|connection| connection.number);
        if current != number {
            return;
        }
        if let Some(connection) = self.connections.remove(&target) {
            connection.link.close();
        }
        self.core.handle_link_down(now, target, reason);
        self.settle();
    }

    /// Makes a call that waits the leader. Returns false when nobody leads now though some wait.
    pub(crate) fn pass_lead(&mut self) -> bool {
        self.leader = None;
        if let Some((call, waker)) = self.calls.next_leader() {
            self.leader = Some(call);
            self.wakes.push(waker);
            return true;
        }
        self.calls.waiting() == 0
    }

    /// A coordinator refused us, and always will: who waits for the first map is told.
    pub(crate) fn refuse(&mut self, reason: String) {
        self.refused = Some(reason);
        self.wakes.append(&mut self.room);
    }

    /// The driver is gone: nothing will come any more.
    pub(crate) fn stop(&mut self, now: Micros) {
        self.stopped = true;
        let targets: Vec<_> = self.connections.keys().copied().collect();
        for target in targets {
            let number = self
                .connections
                .get(&target)
                .map(|connection| connection.number);
            self.lost(now, target, number, "the client has stopped");
        }
        self.calls.wake_all(&mut self.wakes);
        self.wakes.append(&mut self.room);
    }
}

pub(crate) fn stopped() -> Error {
    Error::Unavailable {
        reason: "the runtime on which this client was connected has stopped".to_owned(),
    }
}
