//! The futures that callers await. Dropped early, they give up what they began.

use std::future::poll_fn;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ramkeep_rpc::clock;
use ramkeep_wire::Micros;
use ramkeep_wire::coordinator::{Answer, Request};

use super::lane::{Lane, State, Turn};
use crate::error::Error;
use crate::session::{CallId, LATE, NotStarted, OpId};
use crate::types::{Operation, Outcome};

/// Operations of one call that are under way at once.
const WINDOW: usize = 4_096;

type OpResult = Result<Outcome, Error>;

/// A call with one operation under way; given up when dropped.
struct One<'a> {
    lane: &'a Lane,
    deadline: Micros,
    running: Option<(CallId, OpId, Turn)>,
}

impl Drop for One<'_> {
    fn drop(&mut self) {
        if let Some((call, op, _)) = self.running.take() {
            let mut state = self.lane.lock();
            state.session.cancel(op);
            self.lane.close(state, call);
        }
    }
}

impl One<'_> {
    /// Begins, or waits for room to.
    fn begin(
        &mut self,
        may_lead: bool,
        start: &mut impl FnMut(&mut State, Micros, CallId) -> Result<OpId, NotStarted>,
        waker: &Waker,
    ) -> Poll<Result<(), Error>> {
        let now = clock::now();
        let mut state = self.lane.lock();
        let call = state.session.open(may_lead);
        let begun = match start(&mut state, now, call) {
            Ok(op) => {
                self.running = Some((call, op, Turn::new(now)));
                Poll::Ready(Ok(()))
            }
            Err(why) => {
                state.session.close(call);
                match why {
                    NotStarted::Refused(error) => Poll::Ready(Err(error)),
                    NotStarted::Full if now >= self.deadline => Poll::Ready(Err(LATE)),
                    NotStarted::Full => {
                        state.session.wait_for_room(waker);
                        Poll::Pending
                    }
                }
            }
        };
        if std::mem::take(&mut state.dozing) {
            self.lane.driver.notify_one();
        }
        self.lane.release(state);
        begun
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<OpResult> {
        let Some((call, op, turn)) = &mut self.running else {
            return Poll::Ready(Err(LATE));
        };
        if self.lane.poll_call(*call, turn, cx).is_pending() {
            return Poll::Pending;
        }
        let mut state = self.lane.lock();
        let result = state.session.take(*op);
        state.session.close(*call);
        self.running = None;
        Poll::Ready(result)
    }
}

async fn run(
    lane: &Lane,
    time: Duration,
    may_lead: bool,
    mut start: impl FnMut(&mut State, Micros, CallId, Micros) -> Result<OpId, NotStarted>,
) -> OpResult {
    let deadline = clock::now() + time;
    let mut one = One {
        lane,
        deadline,
        running: None,
    };
    let mut start =
        |state: &mut State, now: Micros, call: CallId| start(state, now, call, deadline);
    poll_fn(|cx| {
        if one.running.is_none() {
            match one.begin(may_lead, &mut start, cx.waker()) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        one.poll(cx)
    })
    .await
}

/// One operation.
pub(crate) async fn one(lane: &Lane, operation: Operation<'_>, time: Duration) -> OpResult {
    run(lane, time, true, |state, now, call, deadline| {
        state.session.begin(now, call, operation, deadline)
    })
    .await
}

/// One request to the coordinator.
pub(crate) async fn ask(lane: &Lane, request: Request, time: Duration) -> Result<Answer, Error> {
    let start =
        |state: &mut State, _, call, deadline| state.session.ask(call, request.clone(), deadline);
    match run(lane, time, false, start).await? {
        Outcome::Answer(answer) => Ok(*answer),
        other => Err(Error::Protocol(format!("{other:?} is no answer"))),
    }
}

/// Many operations, a window of them at a time; given up when dropped.
struct Many<'a> {
    lane: &'a Lane,
    deadline: Micros,
    running: Option<(CallId, Turn)>,
    /// Of the present window.
    begun: Vec<Result<OpId, Error>>,
    results: Vec<OpResult>,
}

impl Drop for Many<'_> {
    fn drop(&mut self) {
        if let Some((call, _)) = self.running.take() {
            let mut state = self.lane.lock();
            for op in self.begun.drain(..).flatten() {
                state.session.cancel(op);
            }
            self.lane.close(state, call);
        }
    }
}

impl Many<'_> {
    /// Begins the next window. Pending: there is no room for any.
    fn begin<'o>(
        &mut self,
        operation: &impl Fn(usize) -> Operation<'o>,
        count: usize,
        waker: &Waker,
    ) -> Poll<()> {
        let now = clock::now();
        let mut state = self.lane.lock();
        let call = state.session.open(true);
        let from = self.results.len();
        let window = (from..count.min(from + WINDOW)).map(operation);
        let session = &mut state.session;
        session.begin_many(now, call, window, self.deadline, &mut self.begun);
        let begun = if self.begun.is_empty() {
            state.session.close(call);
            state.session.wait_for_room(waker);
            Poll::Pending
        } else {
            self.running = Some((call, Turn::new(now)));
            Poll::Ready(())
        };
        if std::mem::take(&mut state.dozing) {
            self.lane.driver.notify_one();
        }
        self.lane.release(state);
        begun
    }

    /// Waits for the window and takes its results.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some((call, turn)) = &mut self.running else {
            return Poll::Ready(());
        };
        if self.lane.poll_call(*call, turn, cx).is_pending() {
            return Poll::Pending;
        }
        let mut state = self.lane.lock();
        let results = self.begun.drain(..);
        let results = results.map(|begun| begun.and_then(|op| state.session.take(op)));
        self.results.extend(results);
        state.session.close(*call);
        self.running = None;
        Poll::Ready(())
    }
}

/// Many operations. The results are in the order of the operations.
pub(crate) async fn many<'o>(
    lane: &Lane,
    count: usize,
    operation: impl Fn(usize) -> Operation<'o>,
    time: Duration,
) -> Vec<OpResult> {
    let mut many = Many {
        lane,
        deadline: clock::now() + time,
        running: None,
        begun: Vec::with_capacity(count.min(WINDOW)),
        results: Vec::with_capacity(count),
    };
    poll_fn(|cx| {
        while many.results.len() < count {
            if many.running.is_none() && many.begin(&operation, count, cx.waker()).is_pending() {
                return Poll::Pending;
            }
            if many.poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    })
    .await;
    std::mem::take(&mut many.results)
}

/// Waits until the refresh of this number was answered.
pub(crate) async fn wait_for_map(lane: &Lane, number: u64, time: Duration) -> Result<(), Error> {
    let answered = poll_fn(|cx| {
        let session = &mut lane.lock().session;
        match session.has_map(number) {
            Ok(true) => Poll::Ready(Ok(())),
            Ok(false) => {
                session.wait_for_room(cx.waker());
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(error)),
        }
    });
    match tokio::time::timeout(time, answered).await {
        Ok(result) => result,
        Err(_elapsed) => Err(match lane.lock().session.trouble() {
            Some(reason) => Error::Unavailable {
                reason: reason.to_owned(),
            },
            None => LATE,
        }),
    }
}
