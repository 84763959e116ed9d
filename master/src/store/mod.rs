//! The store: log, index and tablets of a master, and the operations on them.
//!
//! Readers hold a guard and take no lock; whoever changes something holds the [`Writer`]. Nothing
//! is shown to a client but with a [`Durable`], and nothing is done but with an [`Owned`].

mod account;
mod answer;
mod calls;
mod completions;
pub mod durability;
mod entries;
pub mod log;
mod read;
pub mod replay;
mod replies;
mod scan;
mod segment;
mod session;
#[allow(clippy::module_inception, reason = "a private module, re-exported")]
mod store;
mod sweep;
pub mod tablets;
mod writer;

pub use answer::{Answer, Shown};
pub use calls::Caller;
pub use completions::{MAX_CLIENTS, MAX_SAVED};
pub use durability::{Durability, Durable};
pub use log::{AppendError, Appended, Log, LogConfig, LogError, SegmentInfo};
pub use read::Read;
pub use replay::{Finished, Replay, ReplayError, ReplayId, Step};
pub use scan::MAX_SCANS;
pub use session::{Batch, DataSession, MasterLease};
pub use store::{Gate, Store, StoreConfig, StoreError};
pub use tablets::{NotTaken, Overlap, Owned, OwnedTablet, Tablets};
pub use writer::Writer;
