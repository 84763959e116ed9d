//! What comes of a request, and what makes it run once.

use ramkeep_wire::coordinator::{Request, Response};
use ramkeep_wire::{ClientId, Micros};

/// What makes mutations (making and dropping tables) run once however often they are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sequencing {
    /// The `once` that the asker put into the request, if any.
    #[default]
    AsGiven,
    /// This conversation numbers them, under a client lease that is not held yet: they wait for it.
    AwaitsLease,
    /// This conversation numbers them, under this client's lease.
    Under(ClientId),
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered<O> {
    /// Who asked.
    pub owner: O,
    /// What was asked, as it was sent.
    pub request: Request,
    /// When the send left that was answered. Without an answer: the last send, or when it was asked.
    pub sent: Micros,
    /// The leader's answer, which may be a refusal.
    pub outcome: Result<Response, Unanswered>,
}

/// No answer was taken before the deadline.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no coordinator answers: {}", self.why())]
pub struct Unanswered {
    /// The request may have been carried out, or may be yet.
    pub maybe_applied: bool,
    /// What each coordinator said that was asked in vain since the leader answered last, if any.
    pub reason: Option<String>,
}

impl Unanswered {
    /// The reason in words.
    #[must_use]
    pub fn why(&self) -> &str {
        self.reason.as_deref().unwrap_or("none of them in time")
    }
}
