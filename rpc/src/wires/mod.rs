//! The connections that a core makes, as it sees them: what it wants of them goes out as
//! [`WireOutput`], what becomes of them comes in. Pure: sockets carry them out ([`crate::Wiring`]),
//! and so does the simulator's network.
//!
//! # Invariants
//! 1. To each key there is one wire at most. A [`WireId`] is never used again: what comes of a wire that
//!    another has replaced, or that was given up, is not looked at.
//! 2. What is sent to one key on one wire leaves in order. When a wire ends, what it carried is lost,
//!    and so is what waited for it; whoever sent hears of the end.
//! 3. At most [`WireRules::max_waiting`] envelopes wait for a connection; the oldest go first.
//! 4. After a wire ended, the next to that key is made [`WireRules::rest`] later at the earliest.

mod calls;
mod reach;
mod table;
#[cfg(test)]
mod tests;
mod words;

pub use calls::{CallLost, CallRules, Calls, EndedCalls};
pub use reach::{Attempt, Reach};
pub use table::{WireRules, Wires};
pub use words::{WireEnd, WireId, WireOutput};
