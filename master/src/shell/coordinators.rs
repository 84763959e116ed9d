//! Calls to the coordinators' leader, whichever of the group that is.
//!
//! # Invariants
//! 1. An answer is the leader's, under no lower ballot than any before ([`Peers`]).
//! 2. At most one connection is being opened at a time.
//! 3. A call ends after its patience and one more attempt, at the latest.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use ramkeep_control::peers::{self, Peers};
use ramkeep_rpc::{Address, CallError, Caller, Identity, Link, PollMode, clock};
use ramkeep_wire::coordinator::{Request, Response};
use ramkeep_wire::envelope::Kind;
use ramkeep_wire::{Micros, Party, postcards};

/// How long a call goes on trying, so that an election is bridged.
pub const CALL_PATIENCE: Duration = Duration::from_secs(1);
/// How long one coordinator may take for what must wait for others.
const SLOW_PATIENCE: Duration = Duration::from_secs(10);

/// The coordinators that this process knows, and its connections to them.
#[derive(Debug)]
pub struct Coordinators {
    identity: Identity,
    state: Mutex<State>,
    connecting: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    peers: Peers,
    callers: BTreeMap<usize, Caller>,
}

/// No coordinator answered as the leader.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no coordinator answers: {0}")]
pub struct Unreachable(pub String);

/// Why one coordinator gave no answer.
enum Trouble {
    /// It was not heard of in time.
    Silent(String),
    /// It can't be talked to.
    Broken(String),
}

/// What comes next.
enum Step {
    Ask(usize),
    Rest(Option<Micros>),
}

impl Coordinators {
    /// At these addresses; others of the group are learned from them.
    #[must_use]
    pub fn new(addresses: &[Address], identity: Identity) -> Self {
        let addresses = addresses.iter().map(Address::to_string).collect();
        Self {
            identity,
            state: Mutex::new(State {
                peers: Peers::new(addresses),
                callers: BTreeMap::new(),
            }),
            connecting: tokio::sync::Mutex::default(),
        }
    }

    /// Asks the leader, for at most about [`CALL_PATIENCE`].
    ///
    /// # Errors
    /// If none answers as leader; says what each of them said.
    pub async fn call(&self, request: &Request) -> Result<Response, Unreachable> {
        self.call_within(request, CALL_PATIENCE).await
    }

    /// Asks the leader. The request may be made more than once.
    ///
    /// # Errors
    /// If none answers as leader within `time`, give or take one attempt.
    pub async fn call_within(
        &self,
        request: &Request,
        time: Duration,
    ) -> Result<Response, Unreachable> {
        let payload = postcards::encode(request);
        let patience = match request {
            Request::CreateTable { .. }
            | Request::DropTable { .. }
            | Request::ReplaceCoordinator { .. } => SLOW_PATIENCE,
            _ => peers::PATIENCE,
        };
        let end = clock::now() + time;
        loop {
            match self.next() {
                Step::Ask(peer) => {
                    if let Some(response) = self.attempt(peer, &payload, patience).await {
                        return Ok(response);
                    }
                }
                Step::Rest(until) => {
                    let until = until.unwrap_or(end).min(end);
                    tokio::time::sleep(until.since(clock::now())).await;
                }
            }
            if clock::now() >= end {
                let state = self.state.lock();
                let trouble = state.peers.trouble().unwrap_or("none is known");
                return Err(Unreachable(trouble.to_owned()));
            }
        }
    }

    fn next(&self) -> Step {
        let now = clock::now();
        let mut state = self.state.lock();
        state.peers.tick(now);
        match state.peers.ready(now) {
            Some(peer) => Step::Ask(peer),
            None => Step::Rest(state.peers.next_timeout()),
        }
    }

    /// One coordinator's answer, if it is the leader's.
    async fn attempt(&self, peer: usize, payload: &[u8], patience: Duration) -> Option<Response> {
        let asked = self.ask(peer, payload, patience).await;
        let now = clock::now();
        let mut state = self.state.lock();
        match asked {
            Ok(response) => return state.peers.judge(now, peer, &response).then_some(response),
            Err(Trouble::Silent(reason)) => {
                state.callers.remove(&peer);
                state.peers.give_up(now, peer, &reason);
            }
            Err(Trouble::Broken(reason)) => {
                state.peers.link_down(now, peer, &reason);
            }
        }
        None
    }

    async fn ask(
        &self,
        peer: usize,
        payload: &[u8],
        patience: Duration,
    ) -> Result<Response, Trouble> {
        let caller = self.connected(peer).await?;
        let answer = caller
            .call(Kind::CoordinatorRequest, payload, patience)
            .await
            .map_err(|error| match error {
                CallError::Deadline => Trouble::Silent("no answer".into()),
                error => Trouble::Broken(error.to_string()),
            })?;
        postcards::decode(&answer).map_err(|error| Trouble::Broken(error.to_string()))
    }

    async fn connected(&self, peer: usize) -> Result<Caller, Trouble> {
        if let Some(caller) = self.caller(peer) {
            return Ok(caller);
        }
        let _alone = self.connecting.lock().await;
        if let Some(caller) = self.caller(peer) {
            return Ok(caller);
        }
        // Whoever was connecting may have given this one up.
        if self.state.lock().peers.current() != peer {
            return Err(Trouble::Broken("another is asked by now".into()));
        }
        let address = self.address(peer)?;
        let link = Link::connect(&address, &self.identity, Party::NONE, PollMode::Never);
        let link = tokio::time::timeout(peers::PATIENCE, link)
            .await
            .map_err(|_| Trouble::Silent("no connection in time".into()))?
            .map_err(|error| Trouble::Broken(error.to_string()))?;
        let caller = Caller::new(link);
        self.state.lock().callers.insert(peer, caller.clone());
        Ok(caller)
    }

    fn caller(&self, peer: usize) -> Option<Caller> {
        let state = self.state.lock();
        let caller = state.callers.get(&peer);
        caller.filter(|caller| !caller.link().is_closed()).cloned()
    }

    fn address(&self, peer: usize) -> Result<Address, Trouble> {
        let state = self.state.lock();
        let address = state.peers.address(peer).map_or("", String::as_str);
        let parsed = address.parse();
        parsed.map_err(|error: ramkeep_rpc::AddressError| Trouble::Broken(error.to_string()))
    }
}
