//! Traces on standard error, quiet unless asked for.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

/// Starts tracing: by `filter` if given (as in `info,ramkeep_master=debug`), else everything of
/// Ramkeep when `verbose`, else warnings.
pub(crate) fn start(filter: Option<&str>, verbose: bool) {
    let fallback = if verbose { "debug" } else { "warn" };
    let filter = EnvFilter::new(filter.unwrap_or(fallback));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
}
