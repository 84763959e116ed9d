//! The checkers: what a history and what the backups hold are judged by.

pub mod durable;
pub mod group;
pub mod linear;
pub mod log_end;
pub mod wgl;
pub mod zones;

pub use linear::check_history;
