//! The Ramkeep server role: one process with a master, a backup, or both, and what it owes its
//! cluster.
//!
//! [`core`] decides and is pure; `shell` brings sockets, threads, files and the clock. The simulator
//! runs the same core over its own network.
#![forbid(unsafe_code)]

pub mod core;
#[cfg(feature = "shell")]
pub mod shell;
