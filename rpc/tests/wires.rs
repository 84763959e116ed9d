//! Wires over real sockets: what a core hears of them.

// A test fails by panicking, in its helpers too.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{PATIENCE, echo_router, loopback, server_identity};
use parking_lot::Mutex;
use ramkeep_rpc::wires::{CallLost, CallRules, Calls, WireEnd, WireId, WireRules};
use ramkeep_rpc::{PollMode, WireHandler, Wiring, WorkerPool};
use ramkeep_wire::envelope::{Envelope, Kind};
use ramkeep_wire::{ClusterId, Party, ServerId};
use tokio::runtime::Handle;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

const SERVER: ServerId = ServerId(7);

/// Calls over sockets, and what came of them.
struct Caller {
    calls: Mutex<Calls<ServerId, u32>>,
    wiring: Wiring,
    heard: UnboundedSender<Heard>,
}

#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Up(ClusterId),
    Answered(u32, Vec<u8>),
    Down(WireEnd, CallLost, Vec<u32>),
}

impl Caller {
    fn new() -> (Arc<Self>, UnboundedReceiver<Heard>) {
        let (heard, hears) = unbounded_channel();
        let wires = WireRules {
            rest: Duration::ZERO,
            max_waiting: 8,
        };
        let rules = CallRules {
            patience: PATIENCE,
            max_in_flight: 8,
        };
        let caller = Self {
            calls: Mutex::new(Calls::new(1, wires, rules)),
            wiring: Wiring::new(common::member(None), PollMode::Never, Handle::current()),
            heard,
        };
        (Arc::new(caller), hears)
    }

    fn call(self: &Arc<Self>, address: &str, tag: u32, payload: &[u8]) -> WireId {
        let to = Party::server(SERVER);
        let mut calls = self.calls.lock();
        let addresses = [address.to_owned()];
        let now = ramkeep_rpc::clock::now();
        let began = calls.call(now, &SERVER, &addresses, to, Kind::Order, payload, tag);
        began.unwrap();
        self.perform(&mut calls);
        calls.wires().wire(&SERVER).unwrap()
    }

    fn perform(self: &Arc<Self>, calls: &mut Calls<ServerId, u32>) {
        while let Some(output) = calls.wires().poll_output() {
            self.wiring.perform(output, &Arc::new(Ear(self.clone())));
        }
    }
}

/// What the wiring tells.
struct Ear(Arc<Caller>);

impl WireHandler for Ear {
    fn up(&self, wire: WireId, local: Party, peer: Party, cluster: ClusterId) {
        let mut calls = self.0.calls.lock();
        if calls.handle_up(wire, local, peer).is_some() {
            self.0.heard.send(Heard::Up(cluster)).unwrap();
        }
        self.0.perform(&mut calls);
    }

    fn received(&self, wire: WireId, envelope: &Envelope<'_>) {
        if let Some((_, tag)) = self.0.calls.lock().handle_received(wire, envelope) {
            let answered = Heard::Answered(tag, envelope.payload.to_vec());
            self.0.heard.send(answered).unwrap();
        }
    }

    fn down(&self, wire: WireId, end: WireEnd) {
        let now = ramkeep_rpc::clock::now();
        if let Some(ended) = self.0.calls.lock().handle_down(now, wire, &end) {
            let down = Heard::Down(end, ended.lost, ended.calls);
            self.0.heard.send(down).unwrap();
        }
    }
}

#[tokio::test]
async fn a_wire_is_made_answers_and_ends_with_its_peer() {
    let pool = WorkerPool::start(1, PollMode::Never).unwrap();
    let identity = server_identity(None);
    let router = echo_router(&Arc::default());
    let serving = pool.serve(&loopback(), &identity, router).unwrap();
    let address = serving.address().to_string();
    let (caller, mut hears) = Caller::new();
    caller.call(&address, 1, b"one");
    caller.call(&address, 2, b"two");
    assert_eq!(hears.recv().await, Some(Heard::Up(identity.cluster())));
    let answered = |tag, payload: &[u8]| Some(Heard::Answered(tag, payload.to_vec()));
    assert_eq!(hears.recv().await, answered(1, b"one"));
    assert_eq!(hears.recv().await, answered(2, b"two"));
    serving.stop(Duration::ZERO).await;
    let down = hears.recv().await.unwrap();
    assert!(
        matches!(down, Heard::Down(WireEnd::Closed(_), CallLost::Closed, calls) if calls.is_empty())
    );
    // Nobody listens there any more.
    caller.call(&address, 3, b"three");
    let down = Heard::Down(WireEnd::Nobody, CallLost::Nobody, vec![3]);
    assert_eq!(hears.recv().await, Some(down));
}

#[tokio::test]
async fn of_a_wire_that_was_closed_here_nothing_more_is_heard() {
    let pool = WorkerPool::start(1, PollMode::Never).unwrap();
    let router = echo_router(&Arc::default());
    let serving = pool.serve(&loopback(), &server_identity(None), router);
    let serving = serving.unwrap();
    let address = serving.address().to_string();
    let (caller, mut hears) = Caller::new();
    let first = caller.call(&address, 1, b"one");
    {
        let mut calls = caller.calls.lock();
        assert_eq!(calls.forget(&SERVER), [1]);
        caller.perform(&mut calls);
    }
    assert!(caller.wiring.link(first).is_none());
    let second = caller.call(&address, 2, b"two");
    assert!(second.number > first.number);
    assert!(matches!(hears.recv().await, Some(Heard::Up(_))));
    let answered = Heard::Answered(2, b"two".to_vec());
    assert_eq!(hears.recv().await, Some(answered));
}
