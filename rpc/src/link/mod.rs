//! The connecting side: making links, sharing them, and waiting for what they bring.

mod connect;
mod sharing;
mod wait;

pub use connect::ConnectError;
pub use sharing::{Link, SendError};
pub use wait::{WaitError, poll_until};
