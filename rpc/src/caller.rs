//! Calls: a request, and the answer that repeats its correlation id. For control messages; data
//! operations keep tables of their own.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use ramkeep_wire::envelope::{self, Envelope, Kind};
use ramkeep_wire::limits::MAX_PAYLOAD;

use crate::clock;
use crate::closed::Closed;
use crate::link::{Link, SendError, WaitError, poll_until};

/// Calls in flight on one link.
pub const MAX_CALLS: usize = 1_024;

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The link is closed; the request may have been carried out.
    #[error(transparent)]
    Closed(#[from] Closed),
    /// No answer in time; the request may have been carried out.
    #[error("no answer before the deadline")]
    Deadline,
    /// Too much is under way on this link; the request was not sent.
    #[error("too many requests are under way on this connection")]
    Busy,
    /// The request is over the limit; it was not sent.
    #[error("a request of {0} bytes is over the limit of {MAX_PAYLOAD}")]
    TooLong(usize),
    /// The answer is of another kind than the request asks for.
    #[error("the peer answered with {0:?}")]
    Unexpected(Kind),
}

impl From<SendError> for CallError {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Closed(reason) => Self::Closed(reason),
            SendError::Full => Self::Busy,
        }
    }
}

impl From<WaitError> for CallError {
    fn from(error: WaitError) -> Self {
        match error {
            WaitError::Closed(reason) => Self::Closed(reason),
            WaitError::Deadline => Self::Deadline,
        }
    }
}

/// Makes calls on a link whose receiving side is all its own. Clones share it.
#[derive(Clone)]
pub struct Caller(Arc<Inner>);

struct Inner {
    link: Link,
    calls: Mutex<BTreeMap<u64, Slot>>,
    next: AtomicU64,
    unmatched: AtomicU64,
}

enum Slot {
    Waiting(Option<Waker>),
    Answered(Kind, Vec<u8>),
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Caller").field(&self.0.link).finish()
    }
}

/// A call's place in the table, given back when dropped.
struct Call<'a> {
    inner: &'a Inner,
    correlation: u64,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.inner.calls.lock().remove(&self.correlation);
    }
}

impl Caller {
    /// Calls on `link`.
    #[must_use]
    pub fn new(link: Link) -> Self {
        Self(Arc::new(Inner {
            link,
            calls: Mutex::default(),
            next: AtomicU64::new(1),
            unmatched: AtomicU64::new(0),
        }))
    }

    /// The link.
    #[must_use]
    pub fn link(&self) -> &Link {
        &self.0.link
    }

    /// Envelopes that answered no call under way, as after a deadline. They are dropped.
    #[must_use]
    pub fn unmatched(&self) -> u64 {
        self.0.unmatched.load(Ordering::Relaxed)
    }

    /// Sends `payload` as `kind`, and waits for the payload of the answer.
    ///
    /// # Errors
    /// When there is no answer of the kind that belongs to `kind` within `patience`.
    pub async fn call(
        &self,
        kind: Kind,
        payload: &[u8],
        patience: Duration,
    ) -> Result<Vec<u8>, CallError> {
        if payload.len() > MAX_PAYLOAD {
            return Err(CallError::TooLong(payload.len()));
        }
        let inner = &*self.0;
        let deadline = clock::now() + patience;
        let call = inner.begin()?;
        let header = inner.link.header(kind, call.correlation);
        inner.send(|out| envelope::append(out, header, payload))?;
        let (answered, payload) = poll_until(
            &inner.link,
            Some(deadline),
            |envelope| inner.dispatch(&envelope),
            |cx| inner.check(call.correlation, cx),
        )
        .await?;
        if answered.answers() == Some(kind) {
            Ok(payload)
        } else {
            Err(CallError::Unexpected(answered))
        }
    }
}

impl Inner {
    fn begin(&self) -> Result<Call<'_>, CallError> {
        let correlation = self.next.fetch_add(1, Ordering::Relaxed);
        let mut calls = self.calls.lock();
        if calls.len() >= MAX_CALLS {
            return Err(CallError::Busy);
        }
        calls.insert(correlation, Slot::Waiting(None));
        Ok(Call {
            inner: self,
            correlation,
        })
    }

    fn send(&self, append: impl FnOnce(&mut Vec<u8>)) -> Result<(), SendError> {
        let Err(error) = self.link.send(append) else {
            return Ok(());
        };
        // A peer that closed may have said why.
        self.link
            .try_receive(&mut |envelope| self.dispatch(&envelope));
        match (error, self.link.closed_reason()) {
            (SendError::Closed(_), Some(reason)) => Err(reason.into()),
            (error, _) => Err(error),
        }
    }

    fn dispatch(&self, envelope: &Envelope<'_>) {
        let mut calls = self.calls.lock();
        match calls.get_mut(&envelope.header.correlation) {
            Some(slot @ Slot::Waiting(_)) => {
                let answered = Slot::Answered(envelope.header.kind, envelope.payload.to_vec());
                if let Slot::Waiting(Some(waker)) = std::mem::replace(slot, answered) {
                    waker.wake();
                }
            }
            _ => {
                self.unmatched.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn check(&self, correlation: u64, cx: &mut Context<'_>) -> Poll<(Kind, Vec<u8>)> {
        let mut calls = self.calls.lock();
        match calls.get_mut(&correlation) {
            Some(Slot::Answered(kind, payload)) => Poll::Ready((*kind, std::mem::take(payload))),
            Some(Slot::Waiting(waker)) => {
                if !waker.as_ref().is_some_and(|old| old.will_wake(cx.waker())) {
                    *waker = Some(cx.waker().clone());
                }
                Poll::Pending
            }
            None => Poll::Pending,
        }
    }
}
