//! The Ramkeep coordinator: one deterministic state machine that knows who is in the cluster and
//! who owns what.
//!
//! ```text
//!  sessions, wires, disk, time ──> desk::Desk ──> DeskOutput: persist, wires, reply
//!                                   │    ▲
//!  requests, replies, time ──> core::Coordinator ──> Output: persist, send, reply, order
//!                                   │    ▲
//!                          propose  ▼    │ decided
//!                              consensus::Consensus      (one peer of a Paxos group)
//!                                        │
//!                                        ▼
//!                              state::State::apply       (the same on every peer)
//! ```
//! Everything here but `shell` is pure: time and random bytes come in as arguments.
#![forbid(unsafe_code)]

pub mod command;
pub mod consensus;
pub mod core;
pub mod desk;
mod entropy;
pub mod journal;
pub mod limits;
pub mod rescue;
#[cfg(feature = "shell")]
pub mod shell;
pub mod state;

pub use crate::command::{Applied, Command};
pub use crate::core::{Config, Coordinator, Output};
pub use crate::desk::{Desk, DeskEnd, DeskOutput, DiskJob, SessionId};
pub use crate::state::State;
