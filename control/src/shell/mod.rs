//! Asking over sockets, for whoever runs on tokio: the command line, drills, benchmarks, tests.

mod coordinators;
mod direct;

pub use coordinators::{CALL_PATIENCE, Coordinators, Unreachable};
pub use direct::{Direct, NoAnswer};
