//! Ramkeep's bytes and their meaning: ids, log entries, segments, certificates and messages.
//!
//! Pure: no IO, no clock, no randomness, no unsafe. Every role depends on this crate and on no other
//! role; they meet here. The layouts are drawn in `docs/format.md` and pinned by golden files.
#![forbid(unsafe_code)]

pub mod backup;
pub mod bytes;
pub mod certificate;
pub mod clients;
pub mod coordinator;
pub mod data;
pub mod directory;
pub mod entry;
pub mod envelope;
pub mod hash;
pub mod hello;
pub mod ids;
pub mod limits;
pub mod mutants;
mod named;
pub mod order;
pub mod postcards;
pub mod replicate;
pub mod segment;
pub mod time;
pub mod tries;

pub use certificate::{Certificate, CertificateKey, SegmentKind};
pub use clients::{EndedClients, EndedRound, KnownEnded};
pub use hash::{KeyHash, key_hash};
pub use ids::*;
pub use time::Micros;
pub use tries::{HeldTry, TryId};
