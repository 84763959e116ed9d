//! The Ramkeep master: log, index, tablets, replication.
#![forbid(unsafe_code)]

pub mod index;
pub mod replication;
pub mod store;
