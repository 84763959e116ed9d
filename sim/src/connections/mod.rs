//! The connections of a simulated process, between its cores and the network: hellos, addresses
//! tried in turn, envelopes that are not for it, refusals. A node sees none of that.
//!
//! # Invariants
//! 1. Whether a connection comes to be, what may come on it and why it ends is judged by
//!    `ramkeep_rpc`, as it is over sockets; here bytes and time are carried.
//! 2. A wire's up comes before anything received on it, its down once and last. Nothing is heard of a
//!    wire that the process has closed.
//! 3. An accepted connection is told of once its peer is known, its end once and last, but for one
//!    that the process closed.

mod accepting;
mod carrier;
mod making;
mod table;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod toys;
mod words;

pub use carrier::{Carried, WireCarrier};
pub use table::Connections;
pub use words::Happening;
