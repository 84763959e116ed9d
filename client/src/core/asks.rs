//! One request to the coordinators: when it is to be sent, for how long it is waited for, and what its
//! answer is to who asked.

use ramkeep_control::peers::PATIENCE;
use ramkeep_wire::coordinator::{Answer, Once, Refused, Request};
use ramkeep_wire::{ClientId, Micros, RpcId};

use crate::core::slots::OpId;
use crate::error::Error;
use crate::limits::SLOW_PATIENCE;

/// Who wants the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Caller(OpId),
    Map,
    Lease,
}

/// A request that is not over.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) owner: Owner,
    pub(super) request: Request,
    pub(super) deadline: Micros,
    /// Under which correlation and when; none: to be sent (again).
    pub(super) sent: Option<(u64, Micros)>,
    pub(super) sends: u32,
    pub(super) not_before: Micros,
    pub(super) attempts: u32,
    /// As what it runs once; given at the first send.
    pub(super) once: Option<(ClientId, RpcId)>,
}

impl Ask {
    pub(super) fn is_due(&self, now: Micros, client: ClientId) -> bool {
        let waits_for_lease = self.once.is_none() && self.mutates() && client == ClientId(0);
        self.sent.is_none() && self.not_before <= now && !waits_for_lease
    }

    /// Whether it runs once.
    fn mutates(&self) -> bool {
        is_mutation(&self.request)
    }

    /// Whether its answer may wait for others than the coordinators.
    pub(super) fn is_slow(&self) -> bool {
        self.mutates() || matches!(self.request, Request::ReplaceCoordinator { .. })
    }

    /// When its coordinator is to be given up.
    pub(super) fn silent_at(&self) -> Option<Micros> {
        let (_, at) = self.sent.filter(|_| !self.is_slow())?;
        Some(at + PATIENCE)
    }

    /// When it is to be sent again where it was sent.
    pub(super) fn again_at(&self) -> Option<Micros> {
        let (_, at) = self.sent.filter(|_| self.is_slow())?;
        Some(at + SLOW_PATIENCE)
    }

    pub(super) fn expiry(&self, trouble: Option<&str>) -> Error {
        match trouble {
            _ if self.sends > 0 && self.is_slow() => Error::Timeout {
                maybe_applied: true,
            },
            Some(reason) => Error::Unavailable {
                reason: reason.to_owned(),
            },
            None => Error::Timeout {
                maybe_applied: false,
            },
        }
    }
}

/// Whether a request runs once, with a client lease.
pub(crate) fn is_mutation(request: &Request) -> bool {
    matches!(
        request,
        Request::CreateTable { .. } | Request::DropTable { .. }
    )
}

pub(super) fn once_of(request: &mut Request) -> Option<&mut Option<Once>> {
    match request {
        Request::CreateTable { once, .. } | Request::DropTable { once, .. } => Some(once),
        _ => None,
    }
}

/// What a refusal is to the caller.
pub(super) fn refusal(refused: Refused) -> Error {
    match refused {
        Refused::NoSuchTable => Error::TableNotFound,
        Refused::TableName => Error::InvalidTableName,
        Refused::Limit(limit) => Error::LimitReached(limit),
        other => Error::Protocol(format!("the coordinator refused: {other}")),
    }
}

/// The answer, if it is one to this request.
pub(super) fn fits(request: &Request, answer: Answer) -> Result<Box<Answer>, Error> {
    let fits = matches!(
        (request, &answer),
        (Request::CreateTable { .. }, Answer::Table(_))
            | (Request::DropTable { .. }, Answer::Dropped)
            | (Request::Servers { .. }, Answer::Servers(_))
            | (Request::Status, Answer::Status(_))
            | (Request::ReplaceCoordinator { .. }, Answer::Noted)
    );
    if fits {
        Ok(Box::new(answer))
    } else {
        Err(Error::Protocol(
            "the coordinator answered another question".to_owned(),
        ))
    }
}
