//! Calls to the coordinators' leader, whichever of the group that is.
//!
//! # Invariants
//! 1. Whoever waits lets time pass: while there is a call, its conversation goes on.
//! 2. What no call waits for any more is not asked any more.
//! 3. Wires are handled in the order in which the conversation wants it: under its lock.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use ramkeep_rpc::wires::{WireEnd, WireId, WireOutput};
use ramkeep_rpc::{Address, Identity, PollMode, WireHandler, Wiring, clock};
use ramkeep_wire::coordinator::{Request, Response};
use ramkeep_wire::envelope::Envelope;
use ramkeep_wire::{ClusterId, Micros, Party};
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};

use crate::{Asking, Sequencing, Unanswered, is_slow};

/// How long a call goes on trying, so that an election is bridged.
pub const CALL_PATIENCE: Duration = Duration::from_secs(1);
/// How much longer a call may take that waits for others than the leader.
const SLOW_PATIENCE: Duration = Duration::from_secs(10);
/// Nobody else makes wires over this wiring.
const ROOM: u8 = 0;

/// The coordinators that this process knows, and its connections to them.
#[derive(Debug)]
pub struct Coordinators {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    identity: Identity,
    state: Mutex<State>,
    /// Made by the first call, on its runtime.
    wiring: OnceLock<Wiring>,
    ears: Arc<Ears>,
    /// Something came in: the next look at the time may be another.
    moved: Notify,
}

/// Hears what becomes of the wires, for as long as the coordinators are asked.
#[derive(Debug)]
struct Ears(Weak<Shared>);

#[derive(Debug)]
struct State {
    asking: Asking<u64>,
    waiting: BTreeMap<u64, oneshot::Sender<Result<Response, Unanswered>>>,
    next: u64,
}

/// No coordinator answered as the leader.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no coordinator answers: {0}")]
pub struct Unreachable(pub String);

impl Coordinators {
    /// At these addresses; others of the group are learned from them.
    #[must_use]
    pub fn new(addresses: &[Address], identity: Identity) -> Self {
        let addresses = addresses.iter().map(Address::to_string).collect();
        let state = State {
            asking: Asking::new(ROOM, identity.clone(), addresses, Sequencing::AsGiven),
            waiting: BTreeMap::new(),
            next: 1,
        };
        let shared = Arc::new_cyclic(|shared| Shared {
            identity,
            state: Mutex::new(state),
            wiring: OnceLock::new(),
            ears: Arc::new(Ears(shared.clone())),
            moved: Notify::new(),
        });
        Self { shared }
    }

    /// Asks the leader, for at most [`CALL_PATIENCE`].
    ///
    /// # Errors
    /// If none answers as leader; says what each of them said.
    pub async fn call(&self, request: &Request) -> Result<Response, Unreachable> {
        self.call_within(request, CALL_PATIENCE).await
    }

    /// Asks the leader. The request may be made more than once; one that waits for others than the
    /// leader may take some seconds more.
    ///
    /// # Errors
    /// If none answers as leader in time.
    pub async fn call_within(
        &self,
        request: &Request,
        time: Duration,
    ) -> Result<Response, Unreachable> {
        let extra = if is_slow(request) {
            SLOW_PATIENCE
        } else {
            Duration::ZERO
        };
        let answered = self.shared.wait_for(request, time + extra).await;
        answered.map_err(|unanswered| Unreachable(unanswered.why().to_owned()))
    }
}

impl Drop for Coordinators {
    fn drop(&mut self) {
        self.shared.step(|state, now| state.asking.reconnect(now));
    }
}

/// A call that is waited for; given up when this is dropped.
struct Waiter<'a> {
    shared: &'a Shared,
    owner: u64,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        if state.waiting.remove(&self.owner).is_some() {
            state.asking.cancel(&self.owner);
        }
    }
}

impl Shared {
    async fn wait_for(&self, request: &Request, time: Duration) -> Result<Response, Unanswered> {
        let (answer, mut answered) = oneshot::channel();
        let owner = self.begin(answer);
        let _waiter = Waiter {
            shared: self,
            owner,
        };
        let asked = self.step(|state, now| {
            let deadline = Some(now + time);
            state.asking.ask(now, owner, request.clone(), deadline)
        });
        if asked.is_err() {
            return Err(Unanswered {
                maybe_applied: false,
                reason: Some("too many requests are under way".to_owned()),
            });
        }
        loop {
            let moved = self.moved.notified();
            let next = self.state.lock().asking.next_timeout();
            let rest = next.map_or(time, |next| next.since(clock::now()));
            tokio::select! {
                biased;
                answer = &mut answered => {
                    return answer.expect("a call that is waited for is answered");
                }
                () = moved => {}
                () = tokio::time::sleep(rest) => {
                    self.step(|state, now| state.asking.handle_tick(now));
                }
            }
        }
    }

    fn begin(&self, answer: oneshot::Sender<Result<Response, Unanswered>>) -> u64 {
        let mut state = self.state.lock();
        let owner = state.next;
        state.next += 1;
        state.waiting.insert(owner, answer);
        owner
    }

    /// Gives the conversation an input, and does what follows.
    fn step<T>(&self, input: impl FnOnce(&mut State, Micros) -> T) -> T {
        let mut state = self.state.lock();
        let result = input(&mut state, clock::now());
        while let Some(answered) = state.asking.poll_answered() {
            if let Some(waits) = state.waiting.remove(&answered.owner) {
                // Whoever gave up meanwhile hears nothing.
                let _ = waits.send(answered.outcome);
            }
        }
        while let Some(output) = state.asking.poll_output() {
            self.perform(output);
        }
        drop(state);
        self.moved.notify_waiters();
        result
    }

    fn perform(&self, output: WireOutput) {
        let wiring = self.wiring.get_or_init(|| {
            let identity = self.identity.clone();
            Wiring::new(identity, PollMode::Never, Handle::current())
        });
        wiring.perform(output, &self.ears);
    }
}

impl Ears {
    fn step(&self, input: impl FnOnce(&mut State, Micros) -> bool) {
        if let Some(shared) = self.0.upgrade() {
            shared.step(input);
        }
    }
}

impl WireHandler for Ears {
    fn up(&self, wire: WireId, local: Party, peer: Party, cluster: ClusterId) {
        self.step(|state, now| state.asking.handle_up(now, wire, (local, peer), cluster));
    }

    fn received(&self, wire: WireId, envelope: &Envelope<'_>) {
        self.step(|state, now| state.asking.handle_received(now, wire, envelope));
    }

    fn down(&self, wire: WireId, end: WireEnd) {
        self.step(|state, now| state.asking.handle_down(now, wire, &end));
    }
}
