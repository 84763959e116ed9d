//! Why a comparison ended early.

/// Why the comparison ended early: what happened, where.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Failure(String);

/// The result of anything that can end the comparison.
pub type Outcome<T> = Result<T, Failure>;

impl Failure {
    /// With these words.
    pub fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }

    /// The same, saying of which system and in which test it was.
    #[must_use]
    pub fn during(self, system: &str, test: &str) -> Self {
        Self(format!("{system}, {test}: {}", self.0))
    }
}

/// Makes `?` take these errors as they are worded.
#[macro_export]
macro_rules! failures_from {
    ($($source:ty),+ $(,)?) => {
        $(impl From<$source> for $crate::Failure {
            fn from(source: $source) -> Self {
                $crate::Failure::new(source.to_string())
            }
        })+
    };
}

failures_from!(
    std::io::Error,
    std::num::ParseIntError,
    rustix::io::Errno,
    hdrhistogram::CreationError,
    ramkeep_wire::envelope::EnvelopeError,
    ramkeep_wire::hello::Refusal,
    ramkeep_wire::postcards::Malformed,
    serde_json::Error,
);
