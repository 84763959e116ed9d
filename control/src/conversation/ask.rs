//! One request to the coordinators: when it is to be sent, for how long it is waited for, and what is
//! known of it when nobody has answered.

use ramkeep_wire::coordinator::{Answer, Once, Refused, Request};
use ramkeep_wire::{ClientId, Micros, RpcId};

use super::outcome::{Answered, Sequencing, Unanswered};
use crate::limits::SLOW_PATIENCE;
use crate::peers::PATIENCE;

/// Who wants the answer.
#[derive(Debug, PartialEq)]
pub(super) enum Asker<O> {
    Owner(O),
    /// The conversation itself: does the coordinator live that takes long for something else?
    Probe,
}

/// The send of a request that counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) peer: usize,
    pub(super) correlation: u64,
    pub(super) at: Micros,
}

/// A request that is not over.
#[derive(Debug)]
pub(super) struct Ask<O> {
    pub(super) asker: Asker<O>,
    pub(super) request: Request,
    pub(super) deadline: Option<Micros>,
    /// None: to be sent (again).
    pub(super) sent: Option<Sent>,
    /// When it was sent last; before, when it was asked.
    pub(super) latest: Micros,
    /// Sends that may have been carried out, as far as is known.
    pub(super) unsettled: u32,
    pub(super) not_before: Micros,
    pub(super) attempts: u32,
    /// As what it runs once; given at the first send.
    pub(super) once: Option<(ClientId, RpcId)>,
}

impl<O> Ask<O> {
    pub(super) fn new(
        now: Micros,
        asker: Asker<O>,
        request: Request,
        deadline: Option<Micros>,
    ) -> Self {
        Self {
            asker,
            request,
            deadline,
            sent: None,
            latest: now,
            unsettled: 0,
            not_before: Micros(0),
            attempts: 0,
            once: None,
        }
    }

    pub(super) fn is_due(&self, now: Micros, sequencing: Sequencing, has_room: bool) -> bool {
        let held_back = self.once.is_none()
            && is_mutation(&self.request)
            && match sequencing {
                Sequencing::AsGiven => false,
                Sequencing::AwaitsLease => true,
                Sequencing::Under(_) => !has_room,
            };
        self.sent.is_none() && self.not_before <= now && !held_back
    }

    pub(super) fn is_slow(&self) -> bool {
        is_slow(&self.request)
    }

    /// When its coordinator is to be given up.
    pub(super) fn silent_at(&self) -> Option<Micros> {
        let sent = self.sent.filter(|_| !self.is_slow())?;
        Some(sent.at + PATIENCE)
    }

    /// When it is to be sent again where it was sent.
    pub(super) fn again_at(&self) -> Option<Micros> {
        let sent = self.sent.filter(|_| self.is_slow())?;
        Some(sent.at + SLOW_PATIENCE)
    }

    /// The leader has answered the last send: that one did nothing.
    pub(super) fn last_did_nothing(&mut self) {
        self.sent = None;
        self.unsettled = self.unsettled.saturating_sub(1);
    }

    /// Why the leader's answer is none, and the request must be made again later.
    pub(super) fn not_now(&self, answer: &Answer) -> Option<String> {
        match answer {
            Answer::Refused(refused @ Refused::NoMaster) => Some(refused.to_string()),
            Answer::Map(_) => None,
            _ if matches!(self.request, Request::Map { .. }) => {
                Some("no map in its answer".to_owned())
            }
            _ => None,
        }
    }

    /// What is known of it without an answer.
    pub(super) fn unanswered(&self, reason: Option<String>) -> Unanswered {
        Unanswered {
            maybe_applied: self.unsettled > 0 && !is_question(&self.request),
            reason,
        }
    }

    /// What its owner is told, if it has one.
    pub(super) fn end(
        self,
        outcome: Result<ramkeep_wire::coordinator::Response, Unanswered>,
    ) -> Option<Answered<O>> {
        let Asker::Owner(owner) = self.asker else {
            return None;
        };
        Some(Answered {
            owner,
            request: self.request,
            sent: self.latest,
            outcome,
        })
    }
}

/// Whether a request runs once, with a client lease.
#[must_use]
pub fn is_mutation(request: &Request) -> bool {
    matches!(
        request,
        Request::CreateTable { .. } | Request::DropTable { .. }
    )
}

/// Whether a request's answer may wait for others than the leader.
#[must_use]
pub fn is_slow(request: &Request) -> bool {
    is_mutation(request)
        || matches!(
            request,
            Request::ReplaceCoordinator { .. } | Request::AcceptLoss(_)
        )
        // The one whose directory it has is asked whether it runs.
        || matches!(request, Request::Enlist(enlist) if enlist.replaces.is_some())
}

/// Whether it changes nothing.
fn is_question(request: &Request) -> bool {
    matches!(
        request,
        Request::Map { .. } | Request::Servers { .. } | Request::Status | Request::Counters
    )
}

pub(super) fn once_of(request: &mut Request) -> Option<&mut Option<Once>> {
    match request {
        Request::CreateTable { once, .. } | Request::DropTable { once, .. } => Some(once),
        _ => None,
    }
}
