//! Calls to the coordinators.

pub mod coordinators;

pub use coordinators::{CALL_PATIENCE, Coordinators, Unreachable};
