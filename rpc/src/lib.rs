//! Authenticated envelopes over TCP and Unix sockets, polled.
//!
//! The accepting side is a [`WorkerPool`] whose workers own connections and run each request to
//! completion where it arrives, through [`Service`] and [`Session`]. The connecting side is a
//! [`Link`], which any number of tasks share. Both poll their sockets while there is traffic and
//! sleep when there is none ([`PollMode`]).
#![forbid(unsafe_code)]

pub mod address;
pub mod caller;
pub mod clock;
mod handshake;
pub mod identity;
mod link;
pub mod polling;
mod receive;
mod send;
mod server;
pub mod service;
mod socket;
mod wake;
pub mod wires;
mod wiring;

pub use address::{Address, AddressError};
pub use caller::{CallError, Caller};
pub use handshake::HandshakeError;
pub use identity::Identity;
pub use link::{Closed, ConnectError, Link, SendError, Unreached, WaitError, poll_until};
pub use polling::PollMode;
pub use receive::Batch;
pub use server::{BindError, Serving, WorkerPool};
pub use service::{Peer, Router, Service, Session};
pub use wake::Wake;
pub use wiring::{WireHandler, Wiring};
