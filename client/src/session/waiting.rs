//! Who waits for a session, and who of them receives for all: what the async lanes need beside the
//! session's own protocol.

use std::task::Waker;

use super::{CallId, Connection, Session};
use crate::core::Target;

impl<L: Clone> Session<L> {
    /// Calls with operations that are not over.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.calls.waiting()
    }

    /// The call waits; `waker` is woken when it is over, or is to receive for all.
    pub fn follow(&mut self, call: CallId, waker: &Waker) {
        self.calls.follow(call, waker);
    }

    /// A call that waits and may lead is to receive for all from now on: its waker is woken. `None`:
    /// there is none.
    pub fn pass_lead(&mut self) -> Option<CallId> {
        let (call, waker) = self.calls.next_leader()?;
        self.wakes.push(waker);
        Some(call)
    }

    /// The caller waits for room, or for a map.
    pub fn wait_for_room(&mut self, waker: &Waker) {
        self.room.push(waker.clone());
    }

    /// Whether anybody is to be woken.
    #[must_use]
    pub fn has_wakes(&self) -> bool {
        !self.wakes.is_empty()
    }

    /// Those who are to be woken, for a buffer in exchange.
    pub fn take_wakes(&mut self, empty: Vec<Waker>) -> Vec<Waker> {
        debug_assert!(empty.is_empty());
        std::mem::replace(&mut self.wakes, empty)
    }

    /// Operations begun so far.
    #[must_use]
    pub fn begun(&self) -> u64 {
        self.begun
    }

    /// Operations in the envelope filled last for a server.
    #[must_use]
    pub fn last_batch(&self) -> usize {
        self.core.last_batch()
    }

    /// Whether, since the last call, something began to wait for time or for a coordinator: look at
    /// [`Session::next_send`] and [`Session::next_timeout`]. Saves looking after each answer.
    pub fn take_attention(&mut self) -> bool {
        self.core.take_attention()
    }

    /// Whether a connection may be to be made.
    #[must_use]
    pub fn has_wishes(&self) -> bool {
        self.connections.has_wishes()
    }

    /// All connections that are up.
    pub fn connections(&self) -> impl Iterator<Item = (Target, &Connection<L>)> {
        self.connections.after(None)
    }

    /// The first connection after `after` on which an answer is owed.
    #[must_use]
    pub fn next_expecting(&self, after: Option<Target>) -> Option<(Target, &Connection<L>)> {
        let mut up = self.connections.after(after);
        up.find(|(target, _)| self.core.expects(*target))
    }
}
