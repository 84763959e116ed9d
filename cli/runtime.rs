//! The runtime under commands that wait.

use crate::failure::Failure;

/// A runtime on the calling thread, with sockets and timers.
pub(crate) fn current_thread() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format_args!("cannot start: {error}")))
}
