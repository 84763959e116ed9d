//! Processes that do not belong to the cluster, or no longer: they connect to its processes and say
//! what they must not, and they listen at addresses that were another's.
//!
//! # Invariants
//! 1. They speak `ramkeep_rpc::hello` with identities of their own, and send valid envelopes only.
//! 2. Whatever a process of the cluster does for one of them that it must not is among
//!    [`StrangerNode::wrongs`].

mod manner;
mod stranger;
#[cfg(test)]
mod tests;
mod visit;

pub use manner::{Manner, StrangerConfig, VISITOR};
pub use stranger::StrangerNode;
