//! Asking the coordinators: finding the one that leads, staying with it, and saying truthfully what
//! came of a request. Clients, servers, the command line and the simulator ask through this crate.
//!
//! [`Conversation`] is a pure state machine, [`Asking`] adds the connections that it needs. Nothing else
//! in the workspace decides whom to ask.
#![forbid(unsafe_code)]

mod asking;
pub mod conversation;
pub mod limits;
pub mod peers;
mod rpc_ids;

pub use asking::Asking;
pub use conversation::{Answered, Conversation, Sequencing, Unanswered};
pub use limits::backoff;
pub use rpc_ids::RpcIds;
