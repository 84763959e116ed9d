//! Authenticated envelopes over TCP and Unix sockets, polled.
//!
//! The rules are pure: [`hello`] opens a connection, [`Expect`] and [`Batch`] judge what comes on
//! it, [`Service`] and [`Session`] answer. They need no socket, and the simulator runs them.
//!
//! With the feature `sockets`, the accepting side is a `WorkerPool` whose workers own connections
//! and run each request to completion where it arrives. The connecting side is a `Link`, which any
//! number of tasks share. Both poll their sockets while there is traffic and sleep when there is
//! none (`PollMode`).
#![forbid(unsafe_code)]

pub mod address;
#[cfg(feature = "sockets")]
mod buffer;
#[cfg(feature = "sockets")]
pub mod caller;
#[cfg(feature = "sockets")]
pub mod clock;
mod closed;
mod dispatch;
#[cfg(feature = "sockets")]
mod handshake;
pub mod hello;
pub mod identity;
#[cfg(feature = "sockets")]
mod link;
#[cfg(feature = "sockets")]
pub mod polling;
mod receive;
#[cfg(feature = "sockets")]
mod send;
#[cfg(feature = "sockets")]
mod server;
pub mod service;
#[cfg(feature = "sockets")]
mod socket;
mod wake;
pub mod wires;
#[cfg(feature = "sockets")]
mod wiring;

pub use address::{Address, AddressError};
#[cfg(feature = "sockets")]
pub use caller::{CallError, Caller};
pub use closed::{Closed, Parting, hand_over};
pub use dispatch::{Dispatch, Dispatched, Outbox};
#[cfg(feature = "sockets")]
pub use handshake::HandshakeError;
pub use hello::{Handshake, HelloError, Opened};
pub use identity::Identity;
#[cfg(feature = "sockets")]
pub use link::{ConnectError, Link, SendError, WaitError, poll_until};
#[cfg(feature = "sockets")]
pub use polling::PollMode;
pub use receive::{Batch, Expect};
#[cfg(feature = "sockets")]
pub use server::{BindError, Serving, WorkerPool};
pub use service::{Peer, Router, Service, Session};
pub use wake::Wake;
#[cfg(feature = "sockets")]
pub use wiring::{WireHandler, Wiring};
