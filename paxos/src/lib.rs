//! Multi-Paxos as a pure state machine: classic per-slot acceptors, a stable leader, leases for
//! local reads, snapshots, paged catch-up, and members that can be replaced.
//!
//! ```text
//!   handle_message, handle_persisted, handle_timeout, propose ──> Node ──> poll_action
//!                                                                          Send, Persist,
//!                                                                          SaveSnapshot, Apply, ...
//! ```
//! Lamport, "Paxos Made Simple" (2001), with the leader of its section 3; leases as in Chandra et
//! al., "Paxos Made Live" (PODC 2007), section 5.2; one slot that changes the group at a time, as
//! in Lamport, Malkhi and Zhou, "Reconfiguring a State Machine" (2010), with a window of one.
//!
//! # Invariants
//! 1. Two members never apply different entries in one slot. Entries are applied in order of
//!    slots, without gaps, each once in a life.
//! 2. What a message promises is on the disk before the message leaves; a leader's own vote counts
//!    only then too.
//! 3. While a leader holds its lease no other ballot gets a quorum of promises.
//! 4. A member is known by its id and the incarnation of its disk: one that lost its disk is
//!    another member, and votes only once the group has taken it in.
//! 5. Slots above one that changes the group are proposed only once that one is decided.
//!
//! What a group guarantees: any minority of its members may stop, lose their disks, be cut off or
//! slow; messages may be lost, repeated, delayed and reordered. Clocks may differ in rate by one
//! part in [`limits::CLOCK_RATE_PARTS`]. Not guaranteed: anything against members that lie.
#![forbid(unsafe_code)]

pub mod limits;
mod message;
pub mod mutants;
mod node;
mod record;
pub mod rng;
pub mod sessions;
mod types;

pub use message::{Body, Envelope, Reported};
pub use node::{Action, Node, ProposeError, ReplaceError, RestoreError, Setup, Stats, Token};
pub use node::{LearnerStatus, MemberStatus};
pub use record::{Record, Snapshot, Stored};
pub use types::{Ballot, Entry, Group, GroupId, Incarnation, Member, PeerId, Slot, Time};
