//! The client's sockets, clock and tasks: drives sessions.
//!
//! A caller drives the core itself: it queues its operations, sends what is queued, and polls the
//! sockets until its answers are there. Of all callers one *leads*, receiving for the others, which
//! sleep; what they queue meanwhile leaves in the leader's next envelope. When there is nothing
//! to poll for, or polling has gone on for too long, the *driver*, a task of its own, sleeps on the
//! sockets instead. It also connects and watches the time.
//!
//! # Invariants
//! 1. Locks are taken in this order: a link's receive lock, its send lock, a lane's state. Nothing
//!    is sent, received or awaited under the state's.
//! 2. While a call waits, someone leads, or the driver sleeps on the sockets or is about to.
//! 3. A leader that nobody polls any more is replaced by the driver at its next turn.

mod call;
mod driver;
mod lane;
mod spin;

pub(crate) use call::{ask, many, one, wait_for_map};
pub(crate) use driver::drive;
pub(crate) use lane::Lane;
