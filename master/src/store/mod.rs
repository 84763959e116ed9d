//! The store: log, index and tablets of a master, and the operations on them.

pub mod durability;
pub mod log;
mod segment;

pub use durability::{Durability, Durable};
pub use log::{AppendError, Appended, Log, LogConfig, LogError, SegmentInfo};
