//! The Ramkeep master: log, index, tablets, replication, recovery.
#![forbid(unsafe_code)]

pub mod core;
pub mod index;
mod lease;
pub mod recovery;
pub mod replication;
pub mod store;
