//! Asking one coordinator, whether or not it leads.

use std::time::Duration;

use ramkeep_rpc::{Address, Caller, Identity, Link, PollMode};
use ramkeep_wire::coordinator::{Request, Response};
use ramkeep_wire::envelope::Kind;
use ramkeep_wire::{Party, postcards};

/// How long a coordinator may take before its connection is given up.
const ANSWER_PATIENCE: Duration = Duration::from_millis(500);

/// A connection to one coordinator, made anew when it breaks.
#[derive(Debug)]
pub struct Direct {
    address: Address,
    identity: Identity,
    caller: Option<Caller>,
}

impl Direct {
    /// To the process at this address. Connects when it is first asked.
    #[must_use]
    pub fn new(address: Address, identity: Identity) -> Self {
        Self {
            address,
            identity,
            caller: None,
        }
    }

    /// Its answer, if it gives one in time. It may have acted on a request without one.
    pub async fn ask(&mut self, request: &Request) -> Option<Response> {
        let answered = tokio::time::timeout(ANSWER_PATIENCE, self.call(request)).await;
        let answer = answered.ok().flatten();
        if answer.is_none() {
            self.caller = None;
        }
        answer
    }

    async fn call(&mut self, request: &Request) -> Option<Response> {
        let caller = match &self.caller {
            Some(caller) => caller,
            None => {
                let mode = PollMode::Never;
                let link = Link::connect(&self.address, &self.identity, Party::NONE, mode).await;
                self.caller.insert(Caller::new(link.ok()?))
            }
        };
        let payload = postcards::encode(request);
        let kind = Kind::CoordinatorRequest;
        let answer = caller.call(kind, &payload, ANSWER_PATIENCE).await.ok()?;
        postcards::decode(&answer).ok()
    }
}
