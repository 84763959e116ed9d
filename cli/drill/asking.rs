//! Asking one coordinator, whether or not it leads, and finding out who leads.

use std::time::{Duration, Instant};

use ramkeep_rpc::{Address, Caller, Identity, Link, PollMode};
use ramkeep_wire::coordinator::{Answer, ClusterStatus, Request, Response};
use ramkeep_wire::envelope::Kind;
use ramkeep_wire::{Ballot, Party, postcards};
use tokio::task::JoinSet;

use crate::coordinators::parse;
use crate::failure::Failure;

/// Between two questions to one coordinator.
pub(super) const ASK_EVERY: Duration = Duration::from_millis(2);
/// How long a coordinator may take before it is asked again.
const ANSWER_PATIENCE: Duration = Duration::from_millis(500);

/// A connection to one coordinator, made anew when it breaks.
#[derive(Debug)]
pub(super) struct Direct {
    address: Address,
    identity: Identity,
    caller: Option<Caller>,
}

/// A leader's answer to a status request.
#[derive(Debug)]
pub(super) struct Led {
    /// When it came.
    pub(super) at: Instant,
    /// Under which ballot.
    pub(super) ballot: Ballot,
    /// What it says.
    pub(super) status: ClusterStatus,
}

impl Direct {
    /// To the process at this address. Connects when it is first asked.
    pub(super) fn new(address: Address) -> Self {
        Self {
            address,
            identity: Identity::new(None),
            caller: None,
        }
    }

    /// To each of these.
    pub(super) fn all(addresses: &[String]) -> Result<Vec<Self>, Failure> {
        Ok(parse(addresses)?.into_iter().map(Self::new).collect())
    }

    /// Its answer, if it gives one in time.
    pub(super) async fn ask(&mut self, request: &Request) -> Option<Response> {
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

    async fn until_led(mut self) -> Led {
        loop {
            if let Some(response) = self.ask(&Request::Status).await
                && let Answer::Status(status) = response.answer
            {
                return Led {
                    at: Instant::now(),
                    ballot: response.ballot,
                    status: *status,
                };
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }
}

/// The first answer of a leader among these coordinators, each of which is asked again and again.
/// `None`: there is none within `patience`.
pub(super) async fn first_led(
    addresses: &[String],
    patience: Duration,
) -> Result<Option<Led>, Failure> {
    let mut asked = JoinSet::new();
    for direct in Direct::all(addresses)? {
        asked.spawn(direct.until_led());
    }
    let first = tokio::time::timeout(patience, asked.join_next()).await;
    match first {
        Err(_) => Ok(None),
        Ok(Some(Ok(led))) => Ok(Some(led)),
        Ok(_) => Err(Failure::new("the coordinators could not be asked")),
    }
}
