//! The client's core: a state machine that routes operations to servers, batches them into
//! envelopes and sees them through redirects, refusals and broken connections.
//!
//! Pure: time comes in as an argument. The order of calls: after any of `start`, `handle_*`, see to
//! [`Core::pop_completed`], [`Core::pop_closing`], [`Core::next_ready`] with [`Core::fill`], then to
//! [`Core::next_timeout`].
//!
//! # Invariants
//! 1. A mutation that may have been applied is sent again only as the same call: of the same client,
//!    under the same rpc id, which masters run once. One that went out as nobody's call is sent again
//!    only after its server answered that it did nothing.
//! 2. Every operation begun gets one result, at its deadline at the latest.
//! 3. `Timeout { maybe_applied: false }` and `Unavailable` mean that no server has, or will, apply
//!    the operation.
//! 4. Operations on one server leave in the order in which they were begun, unless they are sent
//!    again.

mod answers;
mod control;
mod events;
mod lease;
mod links;
mod map;
mod routing;
mod sending;
mod slots;
mod timing;

use std::collections::{BTreeMap, VecDeque};

use ramkeep_control::{RpcIds, is_mutation};
use ramkeep_rpc::Identity;
use ramkeep_wire::coordinator::{Request, Table};
use ramkeep_wire::data::{self, Item, Op, ScanCursor};
use ramkeep_wire::limits::{MAX_KEY, MAX_VALUE, MIN_KEY};
use ramkeep_wire::{ClientId, Micros, RpcId, ServerId, TableId, key_hash};

use self::control::Control;
use self::lease::Lease;
use self::links::ServerLink;
use self::map::Routes;
pub use self::slots::OpId;
use self::slots::{Begin, Phase, Slots};
use crate::error::Error;
use crate::limits::{MAX_PENDING, MAX_PENDING_BYTES};
use crate::types::{Operation, Outcome};

/// Whom something is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// A server.
    Server(ServerId),
    /// The coordinator of this place in the list given at first, or one learned of since.
    Coordinator(usize),
}

/// Why an operation did not begin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotStarted {
    /// As many as may be are under way; try again when one is over.
    #[error("too many operations are under way")]
    Full,
    /// It can't succeed.
    #[error(transparent)]
    Refused(#[from] Error),
}

const NEVER: Micros = Micros(u64::MAX);

/// The client's core.
#[derive(Debug)]
pub(crate) struct Core {
    routes: Routes,
    slots: Slots,
    servers: BTreeMap<ServerId, ServerLink>,
    /// Servers that have something to be sent and may.
    ready: VecDeque<ServerId>,
    control: Control,
    lease: Lease,
    rpcs: RpcIds,
    completed: VecDeque<OpId>,
    control_results: BTreeMap<OpId, Result<Outcome, Error>>,
    closing: VecDeque<Target>,
    /// No deadline or waiting time of a slot is earlier.
    wake_bound: Micros,
    next_correlation: u64,
    attention: bool,
    last_batch: usize,
}

impl Core {
    /// A core that knows these coordinators; it begins by asking for the map. `nonce` is random,
    /// or drawn from the seed in a simulation.
    #[must_use]
    pub(crate) fn new(identity: Identity, coordinators: Vec<String>, nonce: [u8; 16]) -> Self {
        let mut control = Control::new(identity, coordinators);
        control.refresh();
        Self {
            routes: Routes::default(),
            slots: Slots::default(),
            servers: BTreeMap::new(),
            ready: VecDeque::new(),
            control,
            lease: Lease::new(nonce),
            rpcs: RpcIds::default(),
            completed: VecDeque::new(),
            control_results: BTreeMap::new(),
            closing: VecDeque::new(),
            wake_bound: NEVER,
            next_correlation: 1,
            attention: true,
            last_batch: 0,
        }
    }

    /// Begins an operation that ends at `deadline` at the latest. Limits are checked here, before
    /// anything is sent.
    pub(crate) fn start(
        &mut self,
        now: Micros,
        operation: Operation<'_>,
        deadline: Micros,
    ) -> Result<OpId, NotStarted> {
        match operation {
            Operation::Read { table, key } => {
                let item = item(Op::Read, table, key, &[]);
                self.start_item(now, item, deadline)
            }
            Operation::Write {
                table,
                key,
                value,
                reject,
            } => {
                let rules = reject.0;
                let item = Item {
                    rules,
                    ..item(Op::Write, table, key, value)
                };
                self.start_item(now, item, deadline)
            }
            Operation::Remove { table, key, reject } => {
                let rules = reject.0;
                let item = Item {
                    rules,
                    ..item(Op::Remove, table, key, &[])
                };
                self.start_item(now, item, deadline)
            }
            Operation::Increment { table, key, delta } => {
                let item = item(Op::Increment, table, key, &[]);
                let value = &delta.to_le_bytes();
                self.start_item(now, Item { value, ..item }, deadline)
            }
            Operation::Scan { table, from } => {
                let mut cursor = Vec::with_capacity(16 + from.after.len());
                let until = ramkeep_wire::KeyHash(u64::MAX);
                let (hash, after) = (from.hash, &from.after[..]);
                ScanCursor { hash, until, after }.write(&mut cursor);
                let item = item(Op::Scan, table, &[], &cursor);
                self.begin(now, item, hash, deadline)
            }
        }
    }

    fn start_item(
        &mut self,
        now: Micros,
        item: Item<'_>,
        deadline: Micros,
    ) -> Result<OpId, NotStarted> {
        if item.key.len() < MIN_KEY {
            return Err(Error::EmptyKey.into());
        }
        if item.key.len() > MAX_KEY || item.value.len() > MAX_VALUE {
            return Err(Error::TooLarge.into());
        }
        self.begin(now, item, key_hash(item.table, item.key), deadline)
    }

    fn begin(
        &mut self,
        now: Micros,
        mut item: Item<'_>,
        hash: ramkeep_wire::KeyHash,
        deadline: Micros,
    ) -> Result<OpId, NotStarted> {
        let callable = !item.op.mutates() || self.rpcs.has_room();
        if !callable || !self.has_room(data::item_len(&item)) {
            return Err(NotStarted::Full);
        }
        if item.op.mutates() {
            item.rpc = self.rpcs.give();
            if let Some(request) = self.lease.want(now) {
                self.control.ask_lease(request);
                self.attention = true;
            }
        }
        let op = self.slots.begin(&Begin {
            op: item.op,
            table: item.table,
            hash,
            rpc: item.rpc,
            deadline,
            item,
        });
        self.wake_bound = self.wake_bound.min(deadline);
        self.dispatch(now, op);
        Ok(op)
    }

    /// Whether an operation of so many bytes may begin now.
    #[must_use]
    #[inline]
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.slots.len() < MAX_PENDING
            && (self.slots.bytes() + bytes <= MAX_PENDING_BYTES || self.slots.len() == 0)
    }

    /// Asks the coordinator. A refused answer is an error; any other is [`Outcome::Answer`]. Making
    /// and dropping a table is run once however often it must be sent: `once` is filled in here.
    pub(crate) fn start_request(
        &mut self,
        request: Request,
        deadline: Micros,
    ) -> Result<OpId, NotStarted> {
        self.attention = true;
        if is_mutation(&request) {
            self.lease.want_soon();
        }
        let op = self.control.start(request, deadline);
        op.ok_or(NotStarted::Full)
    }

    /// Asks for the map anew. [`Core::map_number`] reaches the returned number with the answer.
    pub(crate) fn refresh_map(&mut self) -> u64 {
        self.attention = true;
        self.control.refresh()
    }

    /// Whether, since the last call, something began to wait for time or for a coordinator: look
    /// at [`Core::next_ready`] and [`Core::next_timeout`]. Saves looking after each answer.
    pub(crate) fn take_attention(&mut self) -> bool {
        std::mem::take(&mut self.attention)
    }

    /// The tables of the map, as last heard.
    #[must_use]
    pub(crate) fn tables(&self) -> &[Table] {
        self.routes.tables()
    }

    /// Number of the latest refresh of the map that was answered.
    #[must_use]
    pub(crate) fn map_number(&self) -> u64 {
        self.control.answered_refresh()
    }

    /// To be said to a coordinator when the client ends, if there is something: it gives its lease
    /// back. Nobody waits for the answer.
    #[must_use]
    pub(crate) fn farewell(&self) -> Option<(Target, Request)> {
        let to = Target::Coordinator(self.control.current());
        self.lease.farewell().map(|request| (to, request))
    }

    /// Why the coordinators can't be reached, if they can't: what each of them said.
    #[must_use]
    pub(crate) fn trouble(&self) -> Option<&str> {
        self.control.trouble()
    }

    /// This client's id; 0 until it has a client lease.
    #[must_use]
    pub(crate) fn client(&self) -> ClientId {
        self.lease.client()
    }

    /// Where a target listens. Empty for one that left the map.
    #[must_use]
    pub(crate) fn addresses(&self, target: Target) -> &[String] {
        match target {
            Target::Server(server) => self
                .servers
                .get(&server)
                .map_or(&[], |link| &link.addresses),
            Target::Coordinator(peer) => {
                self.control.address(peer).map_or(&[], std::slice::from_ref)
            }
        }
    }

    /// Nobody wants this operation's result. It may still be applied if it was sent.
    pub(crate) fn cancel(&mut self, op: OpId) {
        if op.is_control() {
            self.control.cancel(op);
            self.control_results.remove(&op);
        } else if let Some(slot) = self.slots.get(op) {
            if slot.phase != Phase::Done && slot.rpc != RpcId(0) {
                self.rpcs.finish(slot.rpc);
            }
            self.slots.abandon(op);
        }
    }

    /// A connection that is to be closed.
    pub(crate) fn pop_closing(&mut self) -> Option<Target> {
        if let Some(target) = self.closing.pop_front() {
            return Some(target);
        }
        let silent = self.control.pop_closing()?;
        self.control.link_closed(silent);
        Some(Target::Coordinator(silent))
    }

    /// An operation that has its result. Each is named once.
    #[inline]
    pub(crate) fn pop_completed(&mut self) -> Option<OpId> {
        self.completed.pop_front()
    }

    /// The result of an operation that is over; handed out once.
    #[inline]
    pub(crate) fn take(&mut self, op: OpId) -> Option<Result<Outcome, Error>> {
        if op.is_control() {
            self.control_results.remove(&op)
        } else {
            self.slots.take(op)
        }
    }

    /// Whether an answer is owed by this target.
    #[must_use]
    pub(crate) fn expects(&self, target: Target) -> bool {
        match target {
            Target::Server(server) => (self.servers.get(&server)).is_some_and(|l| l.in_flight > 0),
            Target::Coordinator(peer) => self.control.expects(peer),
        }
    }

    #[cfg(test)]
    pub(crate) fn lease_mut(&mut self) -> &mut Lease {
        &mut self.lease
    }

    fn complete(&mut self, op: OpId, result: Result<Outcome, Error>) {
        if let Some(slot) = self.slots.get(op)
            && slot.rpc != RpcId(0)
        {
            self.rpcs.finish(slot.rpc);
        }
        self.slots.finish(op, result);
        self.completed.push_back(op);
    }

    fn complete_request(&mut self, op: OpId, result: Result<Outcome, Error>) {
        self.control_results.insert(op, result);
        self.completed.push_back(op);
    }
}

fn item<'a>(op: Op, table: TableId, key: &'a [u8], value: &'a [u8]) -> Item<'a> {
    Item {
        op,
        id: 0,
        table,
        rpc: RpcId(0),
        rules: data::RejectRules::default(),
        key,
        value,
    }
}
