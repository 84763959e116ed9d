//! This crate's own limits, by name. Those of messages are in [`ramkeep_wire::limits`].

use std::time::Duration;

use crate::peers::PATIENCE;

/// Requests of one conversation begun and not finished.
pub const MAX_ASKS: usize = 2_048;
/// First wait before trying again; each further one is twice as long.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(1);
/// Longest wait before trying again.
pub const BACKOFF_LAST: Duration = Duration::from_millis(128);
/// A request that may take long is sent again after this, to a coordinator that answers others.
pub const SLOW_PATIENCE: Duration = Duration::from_secs(2);

const _: () = assert!(PATIENCE.as_micros() < SLOW_PATIENCE.as_micros());

/// The wait before try number `attempts` (1: the first retry).
#[must_use]
pub fn backoff(attempts: u32) -> Duration {
    (BACKOFF_FIRST * 2u32.saturating_pow(attempts.saturating_sub(1).min(16))).min(BACKOFF_LAST)
}
