//! What came of an operation, and when it may be shown.

use ramkeep_wire::data::Status;
use ramkeep_wire::{LogPosition, Version};

use super::durability::Durable;

/// When an answer may be shown: now, with the proof; or once the log is durable up to a position.
pub type Shown = Result<Durable, LogPosition>;

/// An operation that was refused before it looked at or changed any object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused(pub(super) Status);

/// What came of a mutation.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// How it went.
    pub status: Status,
    /// See [`Status`].
    pub version: Version,
    /// The new value of a counter.
    pub counter: Option<i64>,
    /// When the client may know.
    pub shown: Shown,
    /// Whether something was appended. If not, the answer is a read, whatever was asked (SAFETY 1).
    pub appended: bool,
}

impl Answer {
    #[inline]
    pub(super) fn new(status: Status, version: Version, shown: Shown) -> Self {
        Self {
            status,
            version,
            counter: None,
            shown,
            appended: false,
        }
    }

    /// The answer to what was appended.
    #[inline]
    pub(super) fn appended(version: Version, shown: Shown) -> Self {
        Self {
            appended: true,
            ..Self::new(Status::Ok, version, shown)
        }
    }

    /// The answer to what was refused unseen.
    #[inline]
    pub(super) fn refused(status: Status) -> Self {
        Self::new(status, Version(0), Ok(Durable::of_nothing()))
    }

    pub(super) fn with_counter(self, counter: i64) -> Self {
        Self {
            counter: Some(counter),
            ..self
        }
    }
}
