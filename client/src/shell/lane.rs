//! One lane: a session with one connection per server, shared by all who use it.

use std::task::{Context, Poll, Waker};

use parking_lot::{Mutex, MutexGuard};
use ramkeep_rpc::{Identity, Link, PollMode, SendError, clock};
use ramkeep_wire::Micros;
use ramkeep_wire::coordinator::Table;
use tokio::sync::Notify;

use super::spin::{Spin, Window};
use crate::limits::MAX_LINK_UNSENT;
use crate::session::{CallId, Connection, Session, Target};

/// Looks at the sockets in one turn of a leader that nobody else waits for. Bounds how long other
/// tasks of its runtime wait.
const LOOKS_ALONE: u32 = 16;

/// What a lane's lock guards.
pub(super) struct State {
    pub(super) session: Session<Link>,
    /// Who receives for all.
    pub(super) leader: Option<CallId>,
    /// Turns of leaders so far.
    pub(super) turns: u64,
    /// The driver sleeps until it is woken: the next operation wakes it.
    pub(super) dozing: bool,
    pub(super) window: Window,
    /// No user is left.
    pub(super) stopping: bool,
}

impl State {
    /// Makes a call that waits the leader. Returns false when nobody leads now though some wait.
    fn pass_lead(&mut self) -> bool {
        self.leader = self.session.pass_lead();
        self.leader.is_some() || self.session.waiting() == 0
    }
}

/// A session and all that drives it.
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
    pub(crate) fn new(session: Session<Link>, identity: Identity, mode: PollMode) -> Self {
        let state = State {
            session,
            leader: None,
            turns: 0,
            dozing: false,
            window: Window::default(),
            stopping: false,
        };
        Self {
            state: Mutex::new(state),
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
        let session = &mut state.session;
        if session.take_attention() {
            self.driver.notify_one();
        }
        while let Some(link) = session.pop_closed() {
            link.close();
        }
        if !session.has_wakes() {
            return;
        }
        let mut wakes = session.take_wakes(Vec::new());
        drop(state);
        wakes.drain(..).for_each(Waker::wake);
        // The buffer goes back, so that waking takes no memory once warm.
        let mut state = self.state.lock();
        if !state.session.has_wakes() {
            state.session.take_wakes(wakes);
        }
    }

    /// Asks for the map anew; returns the number to wait for.
    pub(crate) fn refresh_map(&self) -> u64 {
        let mut state = self.lock();
        let number = state.session.refresh_map();
        self.release(state);
        number
    }

    /// Looks at the tables of the map.
    pub(crate) fn with_tables<T>(&self, look: impl FnOnce(&[Table]) -> T) -> T {
        look(self.lock().session.tables())
    }

    /// No user is left.
    pub(crate) fn shut(&self) {
        let mut state = self.lock();
        state.stopping = true;
        let farewell = state.session.farewell();
        drop(state);
        if let Some((link, bytes)) = farewell {
            // If it isn't heard, the lease runs out.
            let _ = link.send(|out| out.extend_from_slice(&bytes));
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
        if state.session.is_over(call) {
            self.leave(state, call);
            return Poll::Ready(());
        }
        if state.leader.is_some_and(|leader| leader != call) {
            state.session.follow(call, cx.waker());
            self.release(state);
            return Poll::Pending;
        }
        state.leader = Some(call);
        state.turns += 1;
        // Where operations came in company before, those of other tasks get their turn first.
        let wait_for_company = turn.fresh && state.session.last_batch() > 1;
        let alone = state.session.waiting() == 1;
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
                if state.session.is_over(call) {
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
        if state.session.is_over(call) {
            self.leave(state, call);
            return Poll::Ready(());
        }
        state.session.follow(call, cx.waker());
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
        state.session.close(call);
        self.leave(state, call);
    }

    /// Sends what is queued, and has the driver connect where there is no connection.
    pub(super) fn pump(&self) {
        let now = clock::now();
        loop {
            let mut state = self.lock();
            let next = state.session.next_send(now);
            let wishes = state.session.has_wishes();
            self.release(state);
            if wishes {
                self.driver.notify_one();
            }
            let Some((target, connection)) = next else {
                return;
            };
            self.send(now, target, &connection);
        }
    }

    /// Sends what is queued for one target, as far as its socket takes it.
    fn send(&self, now: Micros, target: Target, connection: &Connection<Link>) {
        if connection.link.unsent() > MAX_LINK_UNSENT {
            return self.rest(now, target);
        }
        let sent = connection.link.send(|out| {
            let session = &mut self.lock().session;
            session.fill(now, target, out, MAX_LINK_UNSENT);
        });
        match sent {
            Ok(()) => {}
            Err(SendError::Full) => self.rest(now, target),
            Err(SendError::Closed(reason)) => {
                let mut state = self.lock();
                let session = &mut state.session;
                session.lost(now, target, connection.number, &reason.to_string());
                self.release(state);
            }
        }
    }

    /// The target's socket takes no more: its turn comes again a moment later.
    fn rest(&self, now: Micros, target: Target) {
        let mut state = self.lock();
        state.session.full(now, target);
        self.release(state);
    }

    /// Looks once at every socket on which an answer is owed. Returns the envelopes received.
    pub(super) fn receive(&self) -> usize {
        let mut received = 0;
        let mut after = None;
        loop {
            let next = (self.lock().session.next_expecting(after))
                .map(|(target, connection)| (target, connection.clone()));
            let Some((target, connection)) = next else {
                return received;
            };
            received += self.receive_from(target, &connection);
            after = Some(target);
        }
    }

    /// Looks once at one socket.
    pub(super) fn receive_from(&self, target: Target, connection: &Connection<Link>) -> usize {
        let link = &connection.link;
        let received = link.try_receive(&mut |envelope| {
            let mut state = self.lock();
            let now = clock::now();
            let session = &mut state.session;
            if let Err(what) = session.receive(now, target, connection.number, &envelope) {
                tracing::warn!(?target, what, "connection closed");
            }
            self.release(state);
        });
        match link.closed_reason() {
            None => received,
            Some(reason) => {
                let mut state = self.lock();
                let (now, number) = (clock::now(), connection.number);
                let session = &mut state.session;
                session.lost(now, target, number, &reason.to_string());
                self.release(state);
                received + 1
            }
        }
    }
}
