//! The Ramkeep client.
#![forbid(unsafe_code)]

pub mod core;
mod error;
pub mod limits;
mod types;

pub use error::Error;
pub use ramkeep_wire::{TableId, Version};
pub use types::{Object, Operation, Outcome, Page, Reject, ScanPosition};
