//! One connection per server: what waits for it, what is on it, and how it is.
//!
//! # Invariants
//! 1. At most [`MAX_IN_FLIGHT_ITEMS`] items are on a connection; others wait in order.
//! 2. A server is in the core's ready list once at most, and whenever it has something to send and
//!    may.

use std::collections::VecDeque;

use ramkeep_wire::Micros;
use ramkeep_wire::limits::MAX_IN_FLIGHT_ITEMS;

use crate::core::slots::OpId;
use crate::limits::backoff;

/// How a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkState {
    /// Up, or to be opened when there is something to send.
    Usable,
    /// Being opened.
    Connecting,
    /// Broken; not to be tried again before this time.
    Down(Micros),
}

/// A server, as this client sees it.
#[derive(Debug)]
pub(crate) struct ServerLink {
    pub(crate) addresses: Vec<String>,
    pub(crate) state: LinkState,
    /// Operations to be sent; those finished meanwhile are skipped.
    pub(crate) queue: VecDeque<OpId>,
    pub(crate) in_flight: usize,
    /// Whether it is in the ready list.
    pub(crate) listed: bool,
    failures: u32,
    /// Why it was down last; none once it has answered.
    pub(crate) trouble: Option<String>,
}

impl ServerLink {
    pub(crate) fn new(addresses: Vec<String>) -> Self {
        Self {
            addresses,
            state: LinkState::Usable,
            queue: VecDeque::new(),
            in_flight: 0,
            listed: false,
            failures: 0,
            trouble: None,
        }
    }

    /// Whether it belongs in the ready list.
    #[inline]
    pub(crate) fn is_ready(&self) -> bool {
        self.state == LinkState::Usable
            && !self.queue.is_empty()
            && self.in_flight < MAX_IN_FLIGHT_ITEMS
    }

    /// The connection broke or could not be made.
    pub(crate) fn break_down(&mut self, now: Micros, reason: &str) {
        self.failures += 1;
        self.state = LinkState::Down(now + backoff(self.failures));
        self.in_flight = 0;
        self.trouble = Some(reason.to_owned());
    }

    /// The server answered.
    #[inline]
    pub(crate) fn answered(&mut self) {
        self.failures = 0;
        if self.trouble.is_some() {
            self.trouble = None;
        }
    }

    /// Lets go of what was waited for. Returns whether the connection may be tried again.
    pub(crate) fn tick(&mut self, now: Micros) -> bool {
        match self.state {
            LinkState::Down(until) if until <= now => {
                self.state = LinkState::Usable;
                true
            }
            _ => false,
        }
    }

    /// When [`ServerLink::tick`] has something to do.
    pub(crate) fn next_timeout(&self) -> Option<Micros> {
        match self.state {
            LinkState::Down(until) if !self.queue.is_empty() => Some(until),
            _ => None,
        }
    }
}
