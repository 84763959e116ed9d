//! Finding out who leads, by asking every coordinator.

use std::time::{Duration, Instant};

use ramkeep_control::shell::Direct;
use ramkeep_rpc::Identity;
use ramkeep_wire::Ballot;
use ramkeep_wire::coordinator::{Answer, ClusterStatus, Request};
use tokio::task::JoinSet;

use crate::coordinators::parse;
use crate::failure::Failure;

/// Between two questions to one coordinator.
pub(super) const ASK_EVERY: Duration = Duration::from_millis(2);
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

/// To each of these.
pub(super) fn directly(addresses: &[String]) -> Result<Vec<Direct>, Failure> {
    let identity = Identity::new(None);
    let to = |address| Direct::new(address, identity.clone());
    Ok(parse(addresses)?.into_iter().map(to).collect())
}

async fn until_led(mut direct: Direct) -> Led {
    loop {
        if let Ok(response) = direct.ask(&Request::Status).await
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

/// The first answer of a leader among these coordinators, each of which is asked again and again.
/// `None`: there is none within `patience`.
pub(super) async fn first_led(
    addresses: &[String],
    patience: Duration,
) -> Result<Option<Led>, Failure> {
    let mut asked = JoinSet::new();
    for direct in directly(addresses)? {
        asked.spawn(until_led(direct));
    }
    let first = tokio::time::timeout(patience, asked.join_next()).await;
    match first {
        Err(_) => Ok(None),
        Ok(Some(Ok(led))) => Ok(Some(led)),
        Ok(_) => Err(Failure::new("the coordinators could not be asked")),
    }
}
