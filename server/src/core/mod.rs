//! The server role: it joins the cluster, reports, carries out orders, keeps in touch with the other
//! servers, and ends when it was decided crashed.
//!
//! Pure: envelopes, the ends of connections and the time come in, [`ServerOutput`]s come out. After
//! any input the caller drains [`ServerCore::poll_output`], then looks at
//! [`ServerCore::next_timeout`]. Data requests and replication do not come by here: workers share the
//! [`DataPlane`], and the backup answers by itself ([`ramkeep_backup::Backup::answer`]).
//!
//! # Invariants
//! 1. A server is one identity for life: once it was decided crashed it does nothing more (SAFETY 6).
//! 2. Orders below the highest ballot that was heard of are refused, whoever carries them out.
//! 3. The backup fences whom a server list names as crashed before anybody is told that this server
//!    knows the list (SAFETY 5).
//! 4. Nothing is done with a connection of an older life: numbers of wires are never used again.
//! 5. Lock order: the backup's and the master's come after this core's, the backup's before the
//!    master's.

mod data;
mod enlisted;
mod fetching;
mod joining;
mod links;
mod orders;
mod plane;
mod prober;
mod probes;
mod server;
mod words;

pub use data::DataLine;
pub use links::{BackupLink, BackupLinks, LinkCarrier};
pub use plane::DataPlane;
pub use prober::{ProbeStep, Prober};
pub use server::ServerCore;
pub use words::{
    CONTROL_KINDS, DATA_KINDS, RECONNECT, Room, SCRUB_EVERY, ServerConfig, ServerEnd, ServerOutput,
    serves,
};
