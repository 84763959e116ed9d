//! A server on a machine: sockets, threads, files and the clock around [`ServerCore`](crate::core::ServerCore).
//!
//! # Invariants
//! 1. What the core wants is done in its order, under its lock; nothing done there waits.
//! 2. Data requests and acknowledgements of replication do not touch the core's lock.

mod memory;
mod ports;
mod replaying;
mod server;
mod threads;

pub use server::{BeginError, ServerOptions, ServerShell};
