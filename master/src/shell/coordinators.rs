//! Calls to the coordinator's leader, whichever of the group that is.

use std::time::Duration;

use parking_lot::Mutex;
use ramkeep_rpc::{Address, Caller, Identity, Link, PollMode};
use ramkeep_wire::coordinator::{Answer, Refused, Request, Response};
use ramkeep_wire::envelope::Kind;
use ramkeep_wire::{Party, postcards};

/// How long one coordinator may take to answer.
const CALL_DEADLINE: Duration = Duration::from_secs(2);

/// The coordinators that this process knows, and a connection to the one that answered last.
#[derive(Debug)]
pub struct Coordinators {
    addresses: Vec<Address>,
    identity: Identity,
    current: Mutex<(usize, Option<Caller>)>,
}

/// No coordinator answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no coordinator answers: {0}")]
pub struct Unreachable(pub String);

impl Coordinators {
    /// At these addresses.
    #[must_use]
    pub fn new(addresses: Vec<Address>, identity: Identity) -> Self {
        Self {
            addresses,
            identity,
            current: Mutex::new((0, None)),
        }
    }

    /// Asks the leader. Tries each coordinator once.
    ///
    /// # Errors
    /// If none of them answers as leader.
    pub async fn call(&self, request: &Request) -> Result<Response, Unreachable> {
        let payload = postcards::encode(request);
        let mut last = String::from("none is known");
        for _ in 0..=self.addresses.len() {
            match self.call_current(&payload).await {
                Ok(Response {
                    answer: Answer::Refused(Refused::NotLeader { .. }),
                    ..
                }) => {
                    last = "none of them leads".into();
                }
                Ok(response) => return Ok(response),
                Err(error) => last = error,
            }
            self.rotate();
        }
        Err(Unreachable(last))
    }

    async fn call_current(&self, payload: &[u8]) -> Result<Response, String> {
        let caller = self.connected().await?;
        let answer = caller
            .call(Kind::CoordinatorRequest, payload, CALL_DEADLINE)
            .await
            .map_err(|error| error.to_string())?;
        postcards::decode(&answer).map_err(|error| error.to_string())
    }

    async fn connected(&self) -> Result<Caller, String> {
        let (index, known) = self.current.lock().clone();
        if let Some(caller) = known.filter(|caller| !caller.link().is_closed()) {
            return Ok(caller);
        }
        let address = self.addresses.get(index).ok_or("no coordinator is known")?;
        let link = Link::connect(address, &self.identity, Party::NONE, PollMode::Never)
            .await
            .map_err(|error| format!("{address}: {error}"))?;
        let caller = Caller::new(link);
        self.current.lock().1 = Some(caller.clone());
        Ok(caller)
    }

    fn rotate(&self) {
        let mut current = self.current.lock();
        current.0 = (current.0 + 1) % self.addresses.len().max(1);
        current.1 = None;
    }
}
