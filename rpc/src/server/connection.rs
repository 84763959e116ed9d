//! One connection: read, handle, reply, on the worker that owns it.
//!
//! # Invariants
//! 1. All whole envelopes of one read are handled in one go, and their replies go out together.
//! 2. While more than `MAX_UNSENT` bytes of replies are in the send queue, nothing is read.
//! 3. It sleeps only when the socket was seen empty after the readiness it sleeps on was cleared,
//!    so that no bytes and no wake are missed.
//! 4. A peer that sends nothing more still gets its replies, within [`HALF_CLOSED_GRACE`].

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ramkeep_wire::Micros;
use ramkeep_wire::hello::Refusal;

use super::shared::{Place, Shared};
use super::worker::{SpinSlot, Worker};
use crate::buffer::ReceiveBuffer;
use crate::clock;
use crate::closed::Parting;
use crate::dispatch::{Dispatch, Outbox};
use crate::handshake;
use crate::hello::{Opened, refusal_envelope};
use crate::polling::Pace;
use crate::send::SendQueue;
use crate::service::Peer;
use crate::socket::{Moved, Socket, Unwatched};

/// Between two looks at a connection that is about to end.
const ENDING_TICK: Duration = Duration::from_millis(1);
/// How long replies may take that are held or unsent when the peer has ended its side.
const HALF_CLOSED_GRACE: Duration = Duration::from_secs(5);

pub(super) struct Connection {
    socket: Socket,
    shared: Arc<Shared>,
    worker: Arc<Worker>,
    place: Place,
    received: ReceiveBuffer,
    /// Bytes were received that no session has seen.
    unseen: bool,
    /// Woken from sleep for the sake of the sessions.
    woken: bool,
    out: SendQueue,
    dispatch: Dispatch,
    pace: Pace,
    slot: Option<SpinSlot>,
}

/// Why a connection ends.
enum End {
    /// The peer sends nothing more: it closed, or ended its side and waits for replies.
    Silent,
    /// It broke.
    Gone(io::Error),
    /// The peer said why it closes.
    Told(Refusal),
    /// This side refuses.
    Refuse(Refusal),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Gone(error)
    }
}

impl From<Parting> for End {
    fn from(parting: Parting) -> Self {
        match parting {
            Parting::Told(refusal) => Self::Told(refusal),
            Parting::Refuse(refusal) => Self::Refuse(refusal),
        }
    }
}

impl Connection {
    /// Serves `socket` until it ends.
    pub(super) async fn serve(
        socket: Unwatched,
        shared: Arc<Shared>,
        worker: Arc<Worker>,
        place: Place,
    ) {
        let socket = match socket.watch() {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!(%error, "cannot watch a connection");
                return;
            }
        };
        let address = socket.describe_peer();
        match handshake::accept(&socket, &shared.identity).await {
            Ok(opened) if !place.prove(clock::now(), opened.peer) => {
                let refusal = refusal_envelope(&Refusal::Busy, opened.local, opened.peer);
                // Best effort: else the peer sees it closed.
                let _ = socket.send(&refusal);
                handshake::linger(&socket).await;
            }
            Ok(opened) => {
                let connection = Self::new(socket, shared, worker, place, address, &opened);
                Box::pin(connection.run()).await;
            }
            Err(error) => {
                tracing::info!(%address, %error, "no connection");
                handshake::linger(&socket).await;
            }
        }
    }

    fn new(
        socket: Socket,
        shared: Arc<Shared>,
        worker: Arc<Worker>,
        place: Place,
        address: String,
        opened: &Opened,
    ) -> Self {
        let peer = Peer {
            party: opened.peer,
            cluster: opened.cluster,
            address,
        };
        Self {
            socket,
            dispatch: Dispatch::new(shared.router.clone(), peer, place.wake.clone()),
            place,
            unseen: !opened.rest.is_empty(),
            received: ReceiveBuffer::new(&opened.rest),
            woken: false,
            out: SendQueue::default(),
            pace: Pace::new(worker.mode, clock::now()),
            slot: None,
            shared,
            worker,
        }
    }

    async fn run(mut self) {
        let end = loop {
            if self.shared.stopping.load(Ordering::Acquire) {
                self.finish_held(self.shared.stop_by()).await;
                break End::Refuse(Refusal::Stopping);
            }
            if self.place.leaves() && !self.dispatch.holds() {
                break End::Refuse(Refusal::Busy);
            }
            match self.turn() {
                Err(End::Silent) => {
                    self.finish_held(clock::now() + HALF_CLOSED_GRACE).await;
                    break End::Silent;
                }
                Err(end) => break end,
                Ok(Some(now)) => {
                    self.place.use_at(now);
                    self.pace.traffic(now);
                    if self.dispatch.holds() {
                        self.worker.holding_turn(now).await;
                    } else {
                        self.worker.busy_turn(now).await;
                    }
                }
                Ok(None) if self.keeps_polling() => self.worker.idle_turn().await,
                Ok(None) => {
                    self.slot = None;
                    self.received.rest();
                    if let Err(error) = self.sleep().await {
                        break error.into();
                    }
                }
            }
        };
        self.end(end).await;
    }

    fn keeps_polling(&mut self) -> bool {
        if !self.pace.keeps_on(clock::now) {
            return false;
        }
        if self.slot.is_none() {
            self.slot = self.worker.try_spin();
        }
        self.slot.is_some()
    }

    /// One look at everything, without waiting. The time, if something moved.
    #[inline]
    fn turn(&mut self) -> Result<Option<Micros>, End> {
        let mut moved = None;
        if self.out.unsent() > 0 && self.out.flush(&self.socket)? > 0 {
            moved = Some(clock::now());
        }
        if std::mem::take(&mut self.woken) || self.place.wake.take() || self.dispatch.holds() {
            let now = clock::now();
            if self.dispatch.poll(now, &mut self.out) {
                self.out.flush(&self.socket)?;
                moved = Some(now);
            }
        }
        if self.may_read() && !self.unseen && !self.dispatch.left() {
            match self.received.fill(&self.socket)? {
                Moved::Bytes(0) => return Err(End::Silent),
                Moved::Bytes(_) => self.unseen = true,
                Moved::Blocked => {}
            }
        }
        if self.may_read() && (self.unseen || self.dispatch.left()) {
            let now = clock::now();
            let outcome = self.handle(now);
            let flushed = self.out.flush(&self.socket)?;
            if outcome? || flushed > 0 {
                moved = Some(now);
            }
        }
        Ok(moved)
    }

    fn may_read(&self) -> bool {
        Dispatch::may_offer(&self.out)
    }

    /// Gives what was received to the sessions. False: they left it all, for later.
    fn handle(&mut self, now: Micros) -> Result<bool, End> {
        self.unseen = false;
        let local = self.shared.identity.party();
        let pending = self.received.pending();
        let dispatched = self.dispatch.handle(now, local, pending, &mut self.out);
        self.received.consume(dispatched.taken, dispatched.needed);
        Ok(dispatched.outcome?)
    }

    /// Until there is something to do: bytes, room for bytes, or a wake.
    async fn sleep(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_ready(cx)).await
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.place.wake.poll(cx).is_ready() {
            self.woken = true;
            return Poll::Ready(Ok(()));
        }
        if self.may_read()
            && !self.dispatch.left()
            && let Poll::Ready(outcome) = self.poll_fill(cx)
        {
            return Poll::Ready(outcome);
        }
        if self.out.unsent() > 0 {
            return self.poll_flush(cx);
        }
        Poll::Pending
    }

    /// Reads once the socket is readable.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.socket.poll_readable(cx))?;
            // An ended stream is found by the next turn, which reads again.
            if let Moved::Bytes(count) = self.socket.try_read(|s| self.received.fill(s))? {
                self.unseen = count > 0;
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Writes once the socket is writable.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.socket.poll_writable(cx))?;
            let flushed = self.socket.try_write(|s| match self.out.flush(s)? {
                0 => Ok(Moved::Blocked),
                count => Ok(Moved::Bytes(count)),
            });
            if flushed? != Moved::Blocked {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Lets held replies go out, until `by` or the deadline of a stop.
    async fn finish_held(&mut self, by: Micros) {
        loop {
            let now = clock::now();
            self.dispatch.poll(now, &mut self.out);
            if self.out.flush(&self.socket).is_err() {
                return;
            }
            let by = by.min(self.shared.stop_by());
            if (!self.dispatch.holds() && self.out.unsent() == 0) || now >= by {
                return;
            }
            tokio::time::sleep(ENDING_TICK).await;
        }
    }

    async fn end(mut self, end: End) {
        let Peer { address, party, .. } = self.dispatch.peer();
        match end {
            End::Silent => tracing::debug!(%address, "the peer closed"),
            End::Gone(error) => tracing::debug!(%address, %error, "the connection broke"),
            End::Told(refusal) => tracing::info!(%address, %refusal, "the peer refused"),
            End::Refuse(refusal) => {
                tracing::info!(%address, %refusal, "refused the peer");
                let from = self.shared.identity.party();
                let bytes = refusal_envelope(&refusal, from, *party);
                self.out.buffer().extend_from_slice(&bytes);
                // Best effort: a peer that doesn't read isn't waited for.
                if self.out.flush(&self.socket).is_ok() {
                    drop(self.dispatch);
                    handshake::linger(&self.socket).await;
                }
            }
        }
    }
}
