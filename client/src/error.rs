//! What can go wrong, as a program can act on it.

use ramkeep_wire::Version;
use ramkeep_wire::limits::{MAX_KEY, MAX_TABLE_NAME, MAX_VALUE};

/// Why an operation has no result.
///
/// Redirects, retries and reconnecting are over when one of these comes back.
///
/// ```
/// use ramkeep_client::{Error, Version};
///
/// fn advice(error: &Error) -> &'static str {
///     match error {
///         Error::Rejected { version: Some(_) } => "read again, then decide",
///         Error::Rejected { version: None } => "it was removed meanwhile",
///         Error::Timeout { maybe_applied: true } => "read to find out whether it happened",
///         error if error.is_safe_to_repeat() => "try again",
///         _ => "give up",
///     }
/// }
/// let error = Error::Rejected { version: Some(Version(3)) };
/// assert_eq!(advice(&error), "read again, then decide");
/// assert_eq!(advice(&Error::Timeout { maybe_applied: false }), "try again");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A reject rule applied; nothing was changed.
    #[error("rejected: {}", describe(.version))]
    Rejected {
        /// The object's version; `None`: there is no such object.
        version: Option<Version>,
    },
    /// There is no such table, or it was dropped.
    #[error("no such table")]
    TableNotFound,
    /// Key or value over its limit; nothing was sent.
    #[error("too large: a key has at most {MAX_KEY} bytes and a value at most {MAX_VALUE}")]
    TooLarge,
    /// Keys have at least one byte; nothing was sent.
    #[error("a key has at least one byte")]
    EmptyKey,
    /// Empty or over its limit.
    #[error("a table's name has 1 to {MAX_TABLE_NAME} bytes")]
    InvalidTableName,
    /// Live data fills the memory of the server; removing makes room.
    #[error("the server's memory is full of live data; remove objects or add servers")]
    OutOfMemory,
    /// Fewer backups are there than copies were asked for; nothing was written.
    #[error("fewer backups are in service than copies are to be kept; nothing was written")]
    NotEnoughBackups,
    /// The object to increment is not 8 bytes long.
    #[error("not a counter: the object to increment is not 8 bytes long")]
    NotACounter,
    /// The sum would not fit in 64 bits; the counter stays as it was.
    #[error("the sum would not fit in 64 bits; the counter stays as it was")]
    Overflow,
    /// A limit of the cluster is reached.
    #[error("a limit of the cluster is reached: {0}")]
    LimitReached(String),
    /// No answer within the deadline. A broken connection alone is none of the caller's business: what was
    /// sent is sent again, and runs once. Only when no client lease could be had does it end here at once.
    #[error("no answer in time{}", if *.maybe_applied { "; the operation may or may not have been applied" } else { "; the operation was not applied" })]
    Timeout {
        /// The operation was sent and may have taken effect, now or a little later.
        maybe_applied: bool,
    },
    /// Who has to answer could not be reached within the deadline; nothing was applied.
    #[error("cannot reach the cluster: {reason}")]
    Unavailable {
        /// What was tried, and how it failed.
        reason: String,
    },
    /// The shared key file could not be used.
    #[error("key file: {0}")]
    KeyFile(String),
    /// A server answered what it must not. A bug, or something else listens there.
    #[error("the answer makes no sense: {0}")]
    Protocol(String),
}

fn describe(version: &Option<Version>) -> String {
    match version {
        Some(version) => format!("the object is there, at version {version}"),
        None => "there is no such object".to_owned(),
    }
}

impl Error {
    /// Whether repeating the same call can't apply it twice and may succeed.
    #[must_use]
    pub fn is_safe_to_repeat(&self) -> bool {
        matches!(
            self,
            Self::Timeout {
                maybe_applied: false
            } | Self::Unavailable { .. }
                | Self::OutOfMemory
                | Self::NotEnoughBackups
        )
    }
}
