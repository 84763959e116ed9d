//! A link that any number of tasks share.
//!
//! # Invariants
//! 1. Sending and receiving have a lock each; what a dispatched envelope makes its receiver do
//!    (sending included) happens under the receive lock only.
//! 2. Everything appended is sent in order, by the sender or, once the socket is full, by one
//!    flushing task; nobody needs to wait for it.
//! 3. Whoever sleeps for bytes has seen the socket empty after its readiness was cleared.
//! 4. A link that is closed stays closed, with the first reason.

use std::io;
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use ramkeep_wire::envelope::{Envelope, Header, Kind};
use ramkeep_wire::limits::MAX_UNSENT;
use ramkeep_wire::{ClusterId, Party};
use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::buffer::ReceiveBuffer;
use crate::clock;
use crate::closed::{Closed, hand_over};
use crate::dispatch::Outbox;
use crate::hello::{Opened, refusal_envelope};
use crate::polling::{Pace, PollMode};
use crate::receive::{Batch, Expect};
use crate::send::SendQueue;
use crate::socket::{Moved, Socket};

/// Why nothing was sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The link is closed.
    #[error(transparent)]
    Closed(#[from] Closed),
    /// The peer doesn't read fast enough: `MAX_UNSENT` bytes wait for it.
    #[error("{MAX_UNSENT} bytes wait to be sent and the peer does not read them")]
    Full,
}

/// An authenticated connection to a process. Clones are the same link; dropping the last closes it.
#[derive(Clone)]
pub struct Link(Arc<Owner>);

/// Closes the link when no user is left, whatever tasks of its own still hold it.
struct Owner(Arc<Inner>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.close(Closed::Here);
    }
}

pub(super) struct Inner {
    pub(super) socket: Socket,
    /// Where the socket is watched, and where flushing tasks run.
    runtime: Handle,
    expect: Expect,
    cluster: ClusterId,
    send: Mutex<SendQueue>,
    /// A flushing task has the send queue in hand.
    flushing: AtomicBool,
    pub(super) receive: Mutex<ReceiveBuffer>,
    pub(super) closed: OnceLock<Closed>,
    /// Sending failed. What the peer said before is still received, then the link is closed.
    pub(super) broken: OnceLock<Closed>,
    /// Someone waits for all who wait: see `wait`.
    pub(super) led: AtomicBool,
    pub(super) lead_is_free: Notify,
    pub(super) pace: Mutex<Pace>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("peer", &self.peer())
            .field("closed", &self.closed_reason())
            .finish_non_exhaustive()
    }
}

impl Link {
    pub(super) fn new(socket: Socket, opened: &Opened, mode: PollMode) -> Self {
        Self(Arc::new(Owner(Arc::new(Inner {
            socket,
            runtime: Handle::current(),
            expect: Expect::made(opened.local, opened.peer),
            cluster: opened.cluster,
            send: Mutex::default(),
            flushing: AtomicBool::new(false),
            receive: Mutex::new(ReceiveBuffer::new(&opened.rest)),
            closed: OnceLock::new(),
            broken: OnceLock::new(),
            led: AtomicBool::new(false),
            lead_is_free: Notify::new(),
            pace: Mutex::new(Pace::new(mode, clock::now())),
        }))))
    }

    pub(super) fn inner(&self) -> &Arc<Inner> {
        &(self.0).0
    }

    /// Who is at the other end, as it said when the link was made.
    #[must_use]
    pub fn peer(&self) -> Party {
        self.inner().expect.from()
    }

    /// Who this process said it was when the link was made.
    #[must_use]
    pub fn local(&self) -> Party {
        self.inner().expect.to()
    }

    /// The cluster, as either side knew it; all zero if neither did.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.inner().cluster
    }

    /// A header from this process to the peer.
    #[must_use]
    pub fn header(&self, kind: Kind, correlation: u64) -> Header {
        Header::new(kind, correlation, self.peer(), self.local())
    }

    /// Whether the link is of no more use.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.inner().closed.get().is_some() || self.inner().broken.get().is_some()
    }

    /// Why it is closed, if it is. A peer that refused and closed may be found broken first, by
    /// sending; what it said is known once all was received.
    #[must_use]
    pub fn closed_reason(&self) -> Option<Closed> {
        let inner = self.inner();
        inner.closed.get().or(inner.broken.get()).cloned()
    }

    /// Closes it for all users.
    pub fn close(&self) {
        self.inner().close(Closed::Here);
    }

    /// Bytes appended that the socket hasn't taken yet.
    #[must_use]
    pub fn unsent(&self) -> usize {
        self.inner().send.lock().unsent()
    }

    /// Has `append` write whole envelopes, and sends what the socket takes right away.
    ///
    /// # Errors
    /// When the link is closed, or too much is unsent; then `append` isn't called. When the socket
    /// breaks while sending, which says nothing of how much the peer got.
    pub fn send<T>(&self, append: impl FnOnce(&mut Vec<u8>) -> T) -> Result<T, SendError> {
        let inner = self.inner();
        if self.is_closed() {
            return Err(self.closed_reason().unwrap_or(Closed::Here).into());
        }
        let mut queue = inner.send.lock();
        if queue.unsent() >= MAX_UNSENT {
            return Err(SendError::Full);
        }
        let appended = append(queue.buffer());
        if inner.flushing.load(Ordering::Relaxed) {
            return Ok(appended);
        }
        match queue.flush(&inner.socket) {
            Ok(_) if queue.unsent() == 0 => {}
            Ok(_) => {
                inner.flushing.store(true, Ordering::Relaxed);
                inner.runtime.spawn(inner.clone().flush_all());
            }
            Err(error) => {
                return Err(inner.break_off(&error).into());
            }
        }
        Ok(appended)
    }

    /// Reads once what is there and gives whole envelopes to `dispatch`; says how many. Never
    /// waits: nothing happens when another task is just receiving.
    ///
    /// `dispatch` may send on this link, and wakes whoever waits for what it was given.
    pub fn try_receive(&self, dispatch: &mut dyn FnMut(Envelope<'_>)) -> usize {
        let inner = self.inner();
        if inner.closed.get().is_some() {
            return 0;
        }
        let Some(mut received) = inner.receive.try_lock() else {
            return 0;
        };
        let outcome = received.fill(&inner.socket);
        if matches!(outcome, Ok(Moved::Blocked)) {
            return 0;
        }
        // Bytes may have come with the handshake, so also look when the stream has ended.
        let count = inner.dispatch(&mut received, dispatch);
        match outcome {
            Ok(Moved::Bytes(0)) => {
                inner.close(inner.broken.get().cloned().unwrap_or(Closed::ByPeer));
            }
            Ok(_) => {}
            Err(error) => inner.close(Closed::Broken(error.to_string())),
        }
        count
    }

    /// Sleeps until there is something to receive, or the link is closed.
    pub async fn ready(&self) {
        let inner = self.inner();
        while inner.closed.get().is_none() {
            let looked = match inner.socket.readable().await {
                Ok(()) => inner.socket.try_read(Socket::peek),
                Err(error) => Err(error),
            };
            match looked {
                Ok(Moved::Bytes(_)) => return,
                Ok(Moved::Blocked) => {}
                Err(error) => inner.close(Closed::Broken(error.to_string())),
            }
        }
    }
}

impl Inner {
    fn dispatch(
        &self,
        received: &mut ReceiveBuffer,
        dispatch: &mut dyn FnMut(Envelope<'_>),
    ) -> usize {
        let mut batch = Batch::expecting(received.pending(), self.expect);
        let (count, end) = hand_over(&mut batch, dispatch);
        if let Some(end) = end {
            self.end(end);
        }
        let (taken, needed) = (batch.taken(), batch.needed());
        let whole = batch.peek().is_some();
        received.consume(taken, if whole { 0 } else { needed });
        count
    }

    /// The peer ends the link, or gave reason to; then it is told so.
    fn end(&self, reason: Closed) {
        if let Some(refusal) = reason.farewell() {
            let bytes = refusal_envelope(refusal, self.expect.to(), self.expect.from());
            let mut queue = self.send.lock();
            queue.buffer().extend_from_slice(&bytes);
            // The link is given up either way.
            let _ = queue.flush(&self.socket);
        }
        self.close(reason);
    }

    /// Sending failed for good. The receiving side closes the link, having received what is left.
    fn break_off(&self, error: &io::Error) -> Closed {
        let reason = Closed::Broken(error.to_string());
        self.socket.shutdown(Shutdown::Write);
        self.broken.get_or_init(|| reason).clone()
    }

    /// Also wakes all who sleep on the socket: it is readable once shut.
    fn close(&self, reason: Closed) {
        if self.closed.set(reason).is_ok() {
            self.socket.shutdown(Shutdown::Both);
        }
    }

    /// Sends the rest of the queue as the socket takes it.
    async fn flush_all(self: Arc<Self>) {
        while self.closed.get().is_none() && self.broken.get().is_none() {
            let flushed = match self.socket.writable().await {
                Ok(()) => self.socket.try_write(|s| self.flush_some(s)),
                Err(error) => Err(error),
            };
            match flushed {
                Ok(Moved::Bytes(0)) => return,
                Ok(_) => {}
                Err(error) => {
                    self.break_off(&error);
                }
            }
        }
    }

    /// Bytes still unsent after a write; zero hands the queue back to the senders.
    fn flush_some(&self, socket: &Socket) -> io::Result<Moved> {
        let mut queue = self.send.lock();
        let moved = queue.flush(socket)?;
        let unsent = queue.unsent();
        if unsent == 0 {
            self.flushing.store(false, Ordering::Relaxed);
        } else if moved == 0 {
            return Ok(Moved::Blocked);
        }
        Ok(Moved::Bytes(unsent))
    }
}
