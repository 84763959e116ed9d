//! The sessions of one accepted connection: which of them is offered what came, and when.
//!
//! # Invariants
//! 1. Envelopes are offered in the order in which they came, in runs of one service; each is meant
//!    for this process and from the peer that said hello.
//! 2. While more than `MAX_UNSENT` bytes of replies wait to be sent, no session is offered anything:
//!    what it would see as full is full.
//! 3. What came before an envelope that ends the connection is handled.
//! 4. A session that takes nothing holds replies, or finds the queue full; otherwise it would never
//!    take anything, and the connection ends.

use std::sync::Arc;

use ramkeep_wire::hello::Refusal;
use ramkeep_wire::limits::MAX_UNSENT;
use ramkeep_wire::{Micros, Party};

use crate::closed::Parting;
use crate::receive::{Batch, Expect};
use crate::service::{Peer, Router, Session, UNROUTED};
use crate::wake::Wake;

/// Where replies wait to be sent.
pub trait Outbox {
    /// Where whole envelopes are appended.
    fn buffer(&mut self) -> &mut Vec<u8>;
    /// The length that whoever appends finds the buffer to have.
    fn occupied(&self) -> usize;
    /// Bytes that the peer was not sent yet.
    fn unsent(&self) -> usize;
}

impl Outbox for Vec<u8> {
    fn buffer(&mut self) -> &mut Vec<u8> {
        self
    }

    fn occupied(&self) -> usize {
        self.len()
    }

    fn unsent(&self) -> usize {
        self.len()
    }
}

/// The sessions of a connection.
pub struct Dispatch {
    router: Arc<Router>,
    sessions: Sessions,
    left: bool,
}

struct Sessions {
    peer: Peer,
    wake: Wake,
    by_service: Vec<Option<Box<dyn Session>>>,
}

/// What came of bytes that were offered.
#[derive(Debug, PartialEq, Eq)]
pub struct Dispatched {
    /// Bytes that are handled; the rest is to be offered again.
    pub taken: usize,
    /// Room that the first envelope of the rest needs to be whole; 0 if it is.
    pub needed: usize,
    /// False: the sessions left it all, for later.
    pub outcome: Result<bool, Parting>,
}

impl Dispatch {
    /// No sessions yet: each is opened by its first envelope. Whoever has `wake` has them polled.
    #[must_use]
    pub fn new(router: Arc<Router>, peer: Peer, wake: Wake) -> Self {
        let by_service = (0..router.len()).map(|_| None).collect();
        Self {
            router,
            sessions: Sessions {
                peer,
                wake,
                by_service,
            },
            left: false,
        }
    }

    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.sessions.peer
    }

    /// Whether sessions may be offered something now.
    #[must_use]
    pub fn may_offer(out: &impl Outbox) -> bool {
        out.occupied() <= MAX_UNSENT
    }

    /// Whether whole envelopes were left by a session.
    #[must_use]
    pub fn left(&self) -> bool {
        self.left
    }

    /// Whether a session holds replies.
    #[must_use]
    pub fn holds(&self) -> bool {
        let mut open = self.sessions.by_service.iter().flatten();
        open.any(|session| session.holds())
    }

    /// Lets sessions release what they hold. Says whether something was appended.
    pub fn poll(&mut self, now: Micros, out: &mut impl Outbox) -> bool {
        let out = out.buffer();
        let mut wrote = false;
        for session in self.sessions.by_service.iter_mut().flatten() {
            wrote |= session.poll(now, out);
        }
        wrote
    }

    /// Offers all bytes that were received and not taken. `local` is this process as it is now.
    pub fn handle(
        &mut self,
        now: Micros,
        local: Party,
        bytes: &[u8],
        out: &mut impl Outbox,
    ) -> Dispatched {
        let expect = Expect::accepted(local, self.sessions.peer.party);
        let mut batch = Batch::expecting(bytes, expect);
        let offered = self.sessions.offer(&self.router, now, &mut batch, out);
        self.left = batch.peek().is_some();
        let needed = if self.left { 0 } else { batch.needed() };
        let unreadable = batch.failure().cloned().map(Parting::Refuse);
        let taken = batch.taken();
        let outcome = offered.and(unreadable.map_or(Ok(()), Err));
        Dispatched {
            taken,
            needed,
            outcome: outcome.and_then(|()| self.judge_left(taken, out)),
        }
    }

    fn judge_left(&self, taken: usize, out: &impl Outbox) -> Result<bool, Parting> {
        if self.left && taken == 0 && out.unsent() == 0 && !self.holds() {
            tracing::error!("a session neither took an envelope nor holds a reply");
            return Err(Parting::Refuse(Refusal::Busy));
        }
        Ok(taken > 0 || !self.left)
    }
}

impl Sessions {
    fn offer<'a>(
        &mut self,
        router: &'a Router,
        now: Micros,
        batch: &mut Batch<'a>,
        out: &mut impl Outbox,
    ) -> Result<(), Parting> {
        while let Some(kind) = batch.peek() {
            let index = router.table()[kind as usize];
            if index == UNROUTED {
                return Err(Parting::of_unserved(kind, batch));
            }
            let session = self.by_service[usize::from(index)]
                .get_or_insert_with(|| router.service(index).open(&self.peer, self.wake.clone()));
            let before = batch.taken();
            batch.restrict(Some((router.table(), index)));
            let handled = session.handle_batch(now, batch, out.buffer());
            batch.restrict(None);
            handled.map_err(Parting::Refuse)?;
            if batch.taken() == before || !Dispatch::may_offer(out) {
                break;
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for Dispatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dispatch")
            .field("peer", self.peer())
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
