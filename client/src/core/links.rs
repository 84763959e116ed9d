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
use crate::limits::{SILENCE, backoff};

/// How a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkState {
    /// Up, or to be opened when there is something to send.
    Usable,
    /// Being opened.
    Connecting,
    /// Broken, or it takes no more; not to be tried again before this time.
    Resting(Micros),
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
    /// When it was last heard of, or asked about.
    pub(crate) heard: Micros,
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
            heard: Micros(0),
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
        self.state = LinkState::Resting(now + backoff(self.failures));
        self.in_flight = 0;
        self.trouble = Some(reason.to_owned());
    }

    /// The socket takes no more.
    pub(crate) fn rest(&mut self, now: Micros) {
        self.state = LinkState::Resting(now + backoff(1));
    }

    /// The server answered.
    #[inline]
    pub(crate) fn answered(&mut self, now: Micros) {
        self.heard = now;
        self.failures = 0;
        if self.trouble.is_some() {
            self.trouble = None;
        }
    }

    /// Lets go of what was waited for. Returns whether the connection may be tried again.
    pub(crate) fn tick(&mut self, now: Micros) -> bool {
        match self.state {
            LinkState::Resting(until) if until <= now => {
                self.state = LinkState::Usable;
                true
            }
            _ => false,
        }
    }

    /// Whether answers have been owed for so long that the server may have been replaced. Says so
    /// once for each such time.
    pub(crate) fn is_silent(&mut self, now: Micros) -> bool {
        let silent = self.in_flight > 0 && now.since(self.heard) >= SILENCE;
        if silent {
            self.heard = now;
        }
        silent
    }

    /// When one of these has something to do.
    pub(crate) fn next_timeout(&self) -> Option<Micros> {
        let rest = match self.state {
            LinkState::Resting(until) if !self.queue.is_empty() => Some(until),
            _ => None,
        };
        let silence = (self.in_flight > 0).then(|| self.heard + SILENCE);
        rest.into_iter().chain(silence).min()
    }
}
