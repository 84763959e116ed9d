//! The part of a backup with files, locks and envelopes.

mod directory;
mod keeper;
mod service;

pub use directory::{OpenError, boot_id};
pub use keeper::Stock;
pub use service::BackupService;
