//! A session: a core, its connections, and who waits for what. The client's async lanes drive it over
//! sockets, the simulator over its network.
//!
//! Pure: no clock, no sockets; a connection is a handle `L` that the driver understands. A caller
//! opens a call, begins operations in it, and takes their results once it is over. The driver, after
//! any of that:
//! - connects for each [`Session::poll_connect`], and reports [`Session::connected`],
//!   [`Session::lost`] or [`Session::refused`];
//! - sends, while there is a [`Session::next_send`], what [`Session::fill`] gives;
//! - closes each [`Session::pop_closed`], and wakes each [`Session::take_wakes`];
//! - calls [`Session::handle_tick`] at [`Session::next_timeout`].
//!
//! # Invariants
//! 1. Each operation of an open call has one result, which is there when the call is over.
//! 2. Nothing is received from, or sent on, a connection but the last one to its target.
//! 3. A call that is given up leaves nothing behind but what servers still owe.

mod calls;
mod connections;
#[cfg(test)]
mod tests;
mod waiting;

use std::collections::BTreeMap;
use std::task::Waker;

use ramkeep_rpc::Identity;
use ramkeep_wire::coordinator::{Request, Table};
use ramkeep_wire::envelope::{self, Envelope, Kind};
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::{ClientId, ClusterId, Micros, postcards};

pub use self::calls::CallId;
use self::calls::Calls;
use self::connections::Connections;
pub use self::connections::{Connect, Connection};
use crate::core::Core;
pub use crate::core::{NotStarted, OpId, Target};
use crate::error::Error;
use crate::types::{Operation, Outcome};

/// Why an operation that found no room until its deadline has no result.
pub(crate) const LATE: Error = Error::Timeout {
    maybe_applied: false,
};

/// A core and all that it needs to be driven.
#[derive(Debug)]
pub struct Session<L> {
    pub(crate) core: Core,
    calls: Calls,
    /// By slot: the call that its operation belongs to.
    call_of: Vec<CallId>,
    call_of_request: BTreeMap<OpId, CallId>,
    connections: Connections<L>,
    /// Operations begun so far.
    begun: u64,
    /// To be woken.
    wakes: Vec<Waker>,
    /// Callers that wait for room, or for a map.
    room: Vec<Waker>,
    maps_seen: u64,
    /// A coordinator refused this client for good.
    refused: Option<String>,
    /// Nothing will come any more.
    stopped: bool,
}

impl<L: Clone> Session<L> {
    /// Knows these coordinators, and joins the cluster that they lead; it begins by asking for the map. `nonce` is random, or drawn from the
    /// seed in a simulation.
    #[must_use]
    pub fn new(identity: Identity, coordinators: Vec<String>, nonce: [u8; 16]) -> Self {
        Self {
            core: Core::new(identity, coordinators, nonce),
            calls: Calls::default(),
            call_of: Vec::new(),
            call_of_request: BTreeMap::new(),
            connections: Connections::default(),
            begun: 0,
            wakes: Vec::new(),
            room: Vec::new(),
            maps_seen: 0,
            refused: None,
            stopped: false,
        }
    }

    /// Opens a call with no operations; one that may lead may be asked to receive for all.
    pub fn open(&mut self, may_lead: bool) -> CallId {
        self.calls.open(may_lead)
    }

    /// Begins an operation of `call`, which ends at `deadline` at the latest.
    ///
    /// # Errors
    /// When there is no room for it now, or it can't succeed.
    pub fn begin(
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
            self.call_of.resize(slot + 1, CallId::default());
        }
        self.call_of[slot] = call;
        self.calls.add(call);
        self.begun += 1;
        Ok(op)
    }

    /// Begins as many operations of `call` as there is room for, and adds to `begun` what became of
    /// each: those that can't succeed, or are late, have their error at once.
    pub fn begin_many<'o>(
        &mut self,
        now: Micros,
        call: CallId,
        operations: impl Iterator<Item = Operation<'o>>,
        deadline: Micros,
        begun: &mut Vec<Result<OpId, Error>>,
    ) {
        for operation in operations {
            begun.push(match self.begin(now, call, operation, deadline) {
                Ok(op) => Ok(op),
                Err(NotStarted::Refused(error)) => Err(error),
                Err(NotStarted::Full) if now >= deadline => Err(LATE),
                Err(NotStarted::Full) => return,
            });
        }
    }

    /// Begins a request of `call` to the coordinators. Its result is [`Outcome::Answer`] unless the
    /// coordinators refuse. Making and dropping a table is run once however often it must be sent:
    /// `once` is filled in here.
    ///
    /// # Errors
    /// When there is no room for it now, or it can't succeed.
    pub fn ask(
        &mut self,
        call: CallId,
        request: Request,
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

    /// Whether the call's results are there.
    #[must_use]
    pub fn is_over(&self, call: CallId) -> bool {
        self.stopped || self.calls.is_over(call)
    }

    /// The result of an operation of a call that is over.
    ///
    /// # Errors
    /// The operation's own.
    pub fn take(&mut self, op: OpId) -> Result<Outcome, Error> {
        match self.core.take(op) {
            Some(result) => result,
            None => {
                self.cancel(op);
                Err(stopped())
            }
        }
    }

    /// Nobody wants this operation's result any more, nor its call's: the call is closed next. It may
    /// still be applied if it was sent.
    pub fn cancel(&mut self, op: OpId) {
        self.call_of_request.remove(&op);
        self.core.cancel(op);
    }

    /// The caller is done with the call: the results of its operations were taken, or they were
    /// cancelled.
    pub fn close(&mut self, call: CallId) {
        self.calls.close(call);
    }

    /// Asks for the map anew. [`Session::map_number`] reaches the returned number with the answer.
    pub fn refresh_map(&mut self) -> u64 {
        self.core.refresh_map()
    }

    /// Number of the latest refresh of the map that was answered; 0: there is no map yet.
    #[must_use]
    pub fn map_number(&self) -> u64 {
        self.core.map_number()
    }

    /// The tables of the map, as last heard.
    #[must_use]
    pub fn tables(&self) -> &[Table] {
        self.core.tables()
    }

    /// This client's id; 0 until it has a client lease.
    #[must_use]
    pub fn client(&self) -> ClientId {
        self.core.client()
    }

    /// Takes an envelope from the connection of this number.
    ///
    /// # Errors
    /// What is wrong with it: the connection is given up.
    pub fn receive(
        &mut self,
        now: Micros,
        from: Target,
        number: u64,
        envelope: &Envelope<'_>,
    ) -> Result<(), String> {
        if self.connections.to(from).map(|up| up.number) != Some(number) {
            return Ok(());
        }
        let taken = self.take_envelope(now, from, envelope);
        match &taken {
            Ok(()) => self.settle(),
            Err(what) => self.give_up(now, from, what),
        }
        taken
    }

    fn take_envelope(
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
                self.core
                    .handle_coordinator_response(now, peer, correlation, response);
            }
            (_, kind) => return Err(format!("an envelope of kind {kind:?} is not for a client")),
        }
        Ok(())
    }

    /// Hands what is over to its calls, and gives up what is to be closed.
    fn settle(&mut self) {
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
            self.connections.forget(target);
        }
    }

    /// The next target that something is to be sent to, over a connection that is up. Where there is
    /// none, it is wished for.
    pub fn next_send(&mut self, now: Micros) -> Option<(Target, Connection<L>)> {
        while let Some(target) = self.core.next_ready(now) {
            if let Some(connection) = self.connections.to(target) {
                return Some((target, connection.clone()));
            }
            self.core.handle_connecting(target);
            self.connections.wish(target);
        }
        None
    }

    /// Appends envelopes for a target to `out`: until nothing is left to be sent to it now, or more
    /// than `most` bytes were appended.
    pub fn fill(&mut self, now: Micros, target: Target, out: &mut Vec<u8>, most: usize) {
        let begin = out.len();
        while out.len() - begin <= most {
            let start = envelope::begin(out, self.core.header(target));
            if !self.core.fill(now, target, out) {
                out.truncate(start);
                return;
            }
            envelope::seal(out, start);
        }
    }

    /// The target's connection takes no more: its turn comes again a moment later.
    pub fn full(&mut self, now: Micros, target: Target) {
        self.core.handle_full(now, target);
    }

    /// A connection that is to be made.
    pub fn poll_connect(&mut self) -> Option<Connect> {
        let (target, number) = self.connections.pop_wish()?;
        Some(Connect {
            target,
            number,
            addresses: self.core.addresses(target).to_vec(),
        })
    }

    /// A connection that was wished for is up, to a process of this cluster.
    pub fn connected(&mut self, target: Target, number: u64, link: L, cluster: ClusterId) {
        if self.connections.connected(target, number, link) {
            self.core.handle_link_up(target, cluster);
        }
    }

    /// The connection of this number is lost, or could not be made.
    pub fn lost(&mut self, now: Micros, target: Target, number: u64, reason: &str) {
        if self.connections.lost(target, number) {
            self.core.handle_link_down(now, target, reason);
            self.settle();
        }
    }

    /// The connection of this number could not be made: one side refused the other. When a coordinator
    /// always will, who waits for the first map is told.
    pub fn refused(
        &mut self,
        now: Micros,
        target: Target,
        number: u64,
        refusal: &Refusal,
        reason: &str,
    ) {
        let is_final = matches!(
            refusal,
            Refusal::Version(_) | Refusal::Cluster(_) | Refusal::Key
        );
        if is_final && matches!(target, Target::Coordinator(_)) {
            self.refused = Some(reason.to_owned());
            self.wakes.append(&mut self.room);
        }
        self.lost(now, target, number, reason);
    }

    fn give_up(&mut self, now: Micros, target: Target, reason: &str) {
        self.connections.forget(target);
        self.core.handle_link_down(now, target, reason);
        self.settle();
    }

    /// A connection that is to be closed: nothing of it is of interest any more.
    pub fn pop_closed(&mut self) -> Option<L> {
        self.connections.pop_closed()
    }

    /// Lets time pass.
    pub fn handle_tick(&mut self, now: Micros) {
        self.core.handle_tick(now);
        self.settle();
    }

    /// When [`Session::handle_tick`] has something to do.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Micros> {
        self.core.next_timeout()
    }

    /// Why the coordinators can't be reached, if they can't: what each of them said.
    #[must_use]
    pub fn trouble(&self) -> Option<&str> {
        self.core.trouble()
    }

    /// Whether the answer to the refresh of this number is there.
    ///
    /// # Errors
    /// When it will never be.
    pub fn has_map(&self, number: u64) -> Result<bool, Error> {
        if self.core.map_number() >= number {
            return Ok(true);
        }
        if self.stopped {
            return Err(stopped());
        }
        match self.refused.clone() {
            Some(reason) => Err(Error::Unavailable { reason }),
            None => Ok(false),
        }
    }

    /// What the client says when it ends, if there is something, and on which connection: it gives its
    /// lease back. Nobody waits for the answer.
    #[must_use]
    pub fn farewell(&self) -> Option<(L, Vec<u8>)> {
        let (to, request) = self.core.farewell()?;
        let connection = self.connections.to(to)?;
        let mut bytes = Vec::new();
        envelope::append(
            &mut bytes,
            self.core.header(to),
            &postcards::encode(&request),
        );
        Some((connection.link.clone(), bytes))
    }

    /// Nothing will come any more: all that is under way ends.
    pub fn stop(&mut self, now: Micros) {
        self.stopped = true;
        let up: Vec<_> = self.connections().map(|(to, _)| to).collect();
        for target in up {
            self.give_up(now, target, "the client has stopped");
        }
        self.calls.wake_all(&mut self.wakes);
        self.wakes.append(&mut self.room);
    }
}

fn stopped() -> Error {
    Error::Unavailable {
        reason: "the runtime on which this client was connected has stopped".to_owned(),
    }
}
