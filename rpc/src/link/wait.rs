//! Waiting for what a link brings.
//!
//! Of all tasks that wait on one link, one leads: it polls the socket, or sleeps on it, and
//! dispatches what comes to all. The others follow: each sleeps until what it waits for was
//! dispatched, or until the lead is free.
//!
//! # Invariants
//! 1. While someone waits, someone leads or has been told that the lead is free.
//! 2. Whoever was told that the lead is free tries to take it before it looks at anything else.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use ramkeep_wire::Micros;
use ramkeep_wire::envelope::Envelope;

use super::sharing::Link;
use crate::clock;
use crate::closed::Closed;
use crate::polling::Pace;

/// Looks at the socket between two turns given to the other tasks of the runtime.
const SPINS_PER_YIELD: u32 = 16;

/// Why a wait ended without its result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// The link is closed.
    #[error(transparent)]
    Closed(#[from] Closed),
    /// The deadline has passed.
    #[error("no answer before the deadline")]
    Deadline,
}

/// Waits until `check` is ready, the link is closed or `deadline` has passed, receiving meanwhile:
/// polling for as long as the link's traffic makes it worth it, then asleep.
///
/// Envelopes go to `dispatch`, which wakes those that wait for them. `check` is like a future's
/// `poll`: when it isn't ready, it has arranged for the context's waker to be woken.
///
/// # Errors
/// When the link is closed or the deadline has passed, after a last `check`.
pub async fn poll_until<T>(
    link: &Link,
    deadline: Option<Micros>,
    mut dispatch: impl FnMut(Envelope<'_>),
    mut check: impl FnMut(&mut Context<'_>) -> Poll<T>,
) -> Result<T, WaitError> {
    loop {
        if let Some(lead) = Lead::take(link) {
            return lead.wait(deadline, &mut dispatch, &mut check).await;
        }
        if let Some(outcome) = follow(link, deadline, &mut check).await {
            return outcome;
        }
    }
}

/// Waits for `check`, or for the lead (`None`).
async fn follow<T>(
    link: &Link,
    deadline: Option<Micros>,
    check: &mut impl FnMut(&mut Context<'_>) -> Poll<T>,
) -> Option<Result<T, WaitError>> {
    // Dropped after it was notified, it passes the notification on.
    let mut lead_is_free = pin!(link.inner().lead_is_free.notified());
    let mut late = pin!(sleep_until(deadline));
    poll_fn(|cx| {
        if let Poll::Ready(found) = check(cx) {
            return Poll::Ready(Some(Ok(found)));
        }
        if lead_is_free.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        late.as_mut()
            .poll(cx)
            .map(|()| Some(Err(WaitError::Deadline)))
    })
    .await
}

async fn sleep_until(deadline: Option<Micros>) {
    match deadline {
        Some(deadline) => tokio::time::sleep(deadline.since(clock::now())).await,
        None => std::future::pending().await,
    }
}

/// The duty to receive for all who wait. Given on when dropped.
struct Lead<'a> {
    link: &'a Link,
    pace: Pace,
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        let inner = self.link.inner();
        *inner.pace.lock() = self.pace;
        inner.led.store(false, Ordering::Release);
        inner.lead_is_free.notify_one();
    }
}

/// What a leader does next.
enum Step<T> {
    Done(Result<T, WaitError>),
    Yield,
    Sleep,
}

impl<'a> Lead<'a> {
    fn take(link: &'a Link) -> Option<Self> {
        let inner = link.inner();
        if inner.led.swap(true, Ordering::Acquire) {
            return None;
        }
        let mut pace = *inner.pace.lock();
        pace.start(clock::now());
        Some(Self { link, pace })
    }

    async fn wait<T>(
        mut self,
        deadline: Option<Micros>,
        dispatch: &mut impl FnMut(Envelope<'_>),
        check: &mut impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Result<T, WaitError> {
        loop {
            match poll_fn(|cx| Poll::Ready(self.spin(cx, dispatch, check))).await {
                Step::Done(outcome) => return outcome,
                Step::Yield => {
                    tokio::task::yield_now().await;
                    if deadline.is_some_and(|deadline| clock::now() >= deadline) {
                        return self.last_look(WaitError::Deadline, check).await;
                    }
                }
                Step::Sleep => {
                    if let Some(outcome) = self.sleep(deadline, check).await {
                        return outcome;
                    }
                }
            }
        }
    }

    /// Looks at the socket a few times.
    fn spin<T>(
        &mut self,
        cx: &mut Context<'_>,
        dispatch: &mut impl FnMut(Envelope<'_>),
        check: &mut impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Step<T> {
        if let Poll::Ready(found) = check(cx) {
            return Step::Done(Ok(found));
        }
        for _ in 0..SPINS_PER_YIELD {
            if self.link.try_receive(dispatch) > 0 {
                self.pace.traffic(clock::now());
                return match check(cx) {
                    Poll::Ready(found) => Step::Done(Ok(found)),
                    // Those that were woken run before the next look.
                    Poll::Pending => Step::Yield,
                };
            }
            if let Some(reason) = self.link.inner().closed.get() {
                return Step::Done(match check(cx) {
                    Poll::Ready(found) => Ok(found),
                    Poll::Pending => Err(reason.clone().into()),
                });
            }
            if !self.pace.keeps_on(clock::now) {
                return Step::Sleep;
            }
            std::thread::yield_now();
        }
        Step::Yield
    }

    /// Sleeps until the socket has something (`None`), `check` is ready or it is too late.
    async fn sleep<T>(
        &mut self,
        deadline: Option<Micros>,
        check: &mut impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Option<Result<T, WaitError>> {
        let mut ready = pin!(self.link.ready());
        let mut late = pin!(sleep_until(deadline));
        poll_fn(|cx| {
            if let Poll::Ready(found) = check(cx) {
                return Poll::Ready(Some(Ok(found)));
            }
            if ready.as_mut().poll(cx).is_ready() {
                return Poll::Ready(None);
            }
            late.as_mut()
                .poll(cx)
                .map(|()| Some(Err(WaitError::Deadline)))
        })
        .await
    }

    async fn last_look<T>(
        &self,
        error: WaitError,
        check: &mut impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Result<T, WaitError> {
        poll_fn(|cx| {
            Poll::Ready(match check(cx) {
                Poll::Ready(found) => Ok(found),
                Poll::Pending => Err(error.clone()),
            })
        })
        .await
    }
}
