//! The accepting side: worker threads that own connections.

mod connection;
mod listen;
mod places;
mod shared;
mod worker;

pub use listen::{BindError, Serving};
pub use worker::WorkerPool;
