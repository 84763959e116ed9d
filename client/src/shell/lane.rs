//! One lane: a core with one connection per server, shared by all who use it.

use std::task::{Context, Poll, Waker};

use parking_lot::{Mutex, MutexGuard};
use ramkeep_rpc::{Identity, PollMode, SendError, clock};
use ramkeep_wire::coordinator::Table;
use ramkeep_wire::{Micros, envelope, postcards};
use tokio::sync::Notify;

use super::calls::CallId;
use super::spin::Spin;
use super::state::{Connection, State};
use crate::core::{Core, Target};
use crate::limits::MAX_LINK_UNSENT;

/// Looks at the sockets in one turn of a leader that nobody else waits for. Bounds how long other
/// tasks of its runtime wait.
const LOOKS_ALONE: u32 = 16;

/// A core and all that drives it.
pub(crate) struct Lane {
    state: Mutex<State>,
    /// Wakes the driver.
    pub(super) driver: Notify,
    pub(super) identity: Identity,
    pub(super) mode: PollMode,
}

/// How far a call's polling is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    /// Its operations may not have been sent yet.
    pub(super) fresh: bool,
    spin: Spin,
}

impl Turn {
    pub(super) fn new(now: Micros) -> Self {
        Self {
            fresh: true,
            spin: Spin::new(now),
        }
    }
}

impl Lane {
    pub(crate) fn new(core: Core, identity: Identity, mode: PollMode) -> Self {
        Self {
            state: Mutex::new(State::new(core)),
            driver: Notify::new(),
            identity,
            mode,
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Lets go of the state, and of those who are to be woken. The driver is woken when the core
    /// has something for it.
    pub(super) fn release(&self, mut state: MutexGuard<'_, State>) {
        if state.core.take_attention() {
            self.driver.notify_one();
        }
        if state.wakes.is_empty() {
            return;
        }
        let mut wakes = std::mem::take(&mut state.wakes);
        drop(state);
        wakes.drain(..).for_each(Waker::wake);
        // The buffer goes back, so that waking takes no memory once warm.
        let mut state = self.state.lock();
        if state.wakes.is_empty() {
            state.wakes = wakes;
        }
    }

    /// Asks for the map anew; returns the number to wait for.
    pub(crate) fn refresh_map(&self) -> u64 {
        let mut state = self.lock();
        let number = state.core.refresh_map();
        self.release(state);
        number
    }

    /// Looks at the tables of the map.
    pub(crate) fn with_tables<T>(&self, look: impl FnOnce(&[Table]) -> T) -> T {
        look(self.lock().core.tables())
    }

    /// No user is left.
    pub(crate) fn shut(&self) {
        let mut state = self.lock();
        state.stopping = true;
        let farewell = state.core.farewell();
        let said = farewell.and_then(|(to, request)| {
            Some((
                state.connection(to)?.link.clone(),
                state.core.header(to),
                request,
            ))
        });
        drop(state);
        if let Some((link, header, request)) = said {
            let payload = postcards::encode(&request);
            // If it isn't heard, the lease runs out.
            let _ = link.send(|out| envelope::append(out, header, &payload));
        }
        self.driver.notify_one();
    }

    /// Waits for a call's results; receives for all meanwhile, or follows who does.
    pub(super) fn poll_call(
        &self,
        call: CallId,
        turn: &mut Turn,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let mut state = self.lock();
        if state.is_over(call) {
            self.leave(state, call);
            return Poll::Ready(());
        }
        if state.leader.is_some_and(|leader| leader != call) {
            state.calls.follow(call, cx.waker());
            self.release(state);
            return Poll::Pending;
        }
        state.leader = Some(call);
        state.turns += 1;
        // Where operations came in company before, those of other tasks get their turn first.
        let wait_for_company = turn.fresh && state.core.last_batch() > 1;
        let alone = state.calls.waiting() == 1;
        self.release(state);
        if !wait_for_company {
            self.pump();
        }
        let looks = match (std::mem::take(&mut turn.fresh), alone) {
            (true, _) => 0,
            (false, true) => LOOKS_ALONE,
            (false, false) => 1,
        };
        self.look(call, turn, looks, cx)
    }

    /// The leader looks at the sockets some times, then lets the other tasks of its runtime run, or
    /// goes to sleep.
    fn look(&self, call: CallId, turn: &mut Turn, looks: u32, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..looks {
            if self.receive() > 0 {
                let state = self.lock();
                if state.is_over(call) {
                    self.learn(state, call, turn);
                    return Poll::Ready(());
                }
                self.release(state);
                turn.spin.restart(clock::now());
                break;
            }
            let window = self.lock().window;
            if !turn.spin.keeps_on(self.mode, window, clock::now) {
                return self.sleep(call, cx);
            }
            std::thread::yield_now();
        }
        if self.mode == PollMode::Never {
            return self.sleep(call, cx);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn learn(&self, mut state: MutexGuard<'_, State>, call: CallId, turn: &Turn) {
        let elapsed = turn.spin.elapsed(clock::now());
        state.window.learn(elapsed);
        self.leave(state, call);
    }

    /// The leader has polled for long enough: the driver takes over.
    fn sleep(&self, call: CallId, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if state.is_over(call) {
            self.leave(state, call);
            return Poll::Ready(());
        }
        state.calls.follow(call, cx.waker());
        if state.leader == Some(call) {
            state.leader = None;
        }
        state.window.learn(u64::MAX);
        self.release(state);
        self.driver.notify_one();
        Poll::Pending
    }

    /// The call is over or given up; if it led, another does.
    fn leave(&self, mut state: MutexGuard<'_, State>, call: CallId) {
        if state.leader == Some(call) && !state.pass_lead() {
            self.driver.notify_one();
        }
        self.release(state);
    }

    /// The caller is done with the call.
    pub(super) fn close(&self, mut state: MutexGuard<'_, State>, call: CallId) {
        state.calls.close(call);
        self.leave(state, call);
    }

    /// Sends what is queued, and has the driver connect where there is no connection.
    pub(super) fn pump(&self) {
        let now = clock::now();
        loop {
            let mut state = self.lock();
            let Some(target) = state.core.next_ready(now) else {
                return self.release(state);
            };
            let Some(connection) = state.connection(target).cloned() else {
                state.core.handle_connecting(target);
                state.to_connect.push(target);
                self.release(state);
                self.driver.notify_one();
                continue;
            };
            self.release(state);
            self.send(now, target, &connection);
        }
    }

    /// Sends what is queued for one target, as far as its socket takes it.
    fn send(&self, now: Micros, target: Target, connection: &Connection) {
        if connection.link.unsent() > MAX_LINK_UNSENT {
            return self.rest(now, target);
        }
        let sent = connection.link.send(|out| {
            let mut state = self.lock();
            let begin = out.len();
            while out.len() - begin <= MAX_LINK_UNSENT {
                let start = envelope::begin(out, state.core.header(target));
                if state.core.fill(now, target, out).is_none() {
                    out.truncate(start);
                    break;
                }
                envelope::seal(out, start);
            }
        });
        match sent {
            Ok(()) => {}
            Err(SendError::Full) => self.rest(now, target),
            Err(SendError::Closed(reason)) => {
                let mut state = self.lock();
                let number = Some(connection.number);
                state.lost(now, target, number, &reason.to_string());
                self.release(state);
            }
        }
    }

    /// The target's socket takes no more: its turn comes again a moment later.
    fn rest(&self, now: Micros, target: Target) {
        let mut state = self.lock();
        state.core.handle_full(now, target);
        self.release(state);
    }

    /// Looks once at every socket on which an answer is owed. Returns the envelopes received.
    pub(super) fn receive(&self) -> usize {
        let mut received = 0;
        let mut after = None;
        loop {
            let next = self.lock().next_expecting(after);
            let Some((target, connection)) = next else {
                return received;
            };
            received += self.receive_from(target, &connection);
            after = Some(target);
        }
    }

    /// Looks once at one socket.
    pub(super) fn receive_from(&self, target: Target, connection: &Connection) -> usize {
        let link = &connection.link;
        let received = link.try_receive(&mut |envelope| {
            let mut state = self.lock();
            let now = clock::now();
            if let Err(what) = state.receive(now, target, &envelope) {
                tracing::warn!(?target, what, "connection closed");
                state.lost(now, target, Some(connection.number), &what);
            }
            self.release(state);
        });
        match link.closed_reason() {
            None => received,
            Some(reason) => {
                let mut state = self.lock();
                let number = Some(connection.number);
                state.lost(clock::now(), target, number, &reason.to_string());
                self.release(state);
                received + 1
            }
        }
    }
}
