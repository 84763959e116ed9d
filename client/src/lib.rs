//! The Ramkeep client.
//!
//! ```
//! use ramkeep_client::{Client, Error, Reject};
//!
//! # // Runs for real when a cluster is named, as CI does: RAMKEEP_COORDINATORS=127.0.0.1:7100
//! # async fn session(coordinators: Vec<String>) -> Result<(), Error> {
//! # let client = Client::connect(coordinators).await?;
//! # /*
//! let client = Client::connect(["127.0.0.1:7100", "127.0.0.1:7101"]).await?;
//! # */
//! let flights = client.create_table("flights").await?;
//!
//! let version = flights.write(b"LH400", b"on time").await?; // durable on all backups
//! let found = flights.read(b"LH400").await?.expect("just written");
//! assert_eq!((&found.value[..], found.version), (&b"on time"[..], version));
//!
//! // Compare and swap: refused, because the version has moved on.
//! flights.write(b"LH400", b"delayed").await?;
//! let swap = Reject::unless_version(version);
//! let refused = flights.write_with(b"LH400", b"boarding", swap).await;
//! assert!(matches!(refused, Err(Error::Rejected { version: Some(newer) }) if newer > version));
//!
//! let seats: i64 = flights.increment(b"LH400/seats", -1).await?;
//! let many = flights.multi_read(&["LH400", "LH401"]).await?; // in the order of the keys
//! assert!(many[1].is_none());
//!
//! let mut scan = flights.scan();
//! while let Some(entry) = scan.next().await {
//!     let (key, object) = entry?;
//!     println!("{key:?} {:?}", object.value);
//! }
//! # let _ = seats;
//! # client.drop_table("flights").await?;
//! # Ok(()) }
//! # if let Ok(coordinators) = std::env::var("RAMKEEP_COORDINATORS") {
//! #     let coordinators = coordinators.split(',').map(str::to_owned).collect();
//! #     let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
//! #     runtime.expect("a runtime").block_on(session(coordinators)).expect("the session works");
//! # }
//! ```
//!
//! Retries, redirects and failover are this library's business; they end at a deadline, and whatever is
//! sent again takes effect exactly once (RIFL, Lee et al., SOSP 2015). What comes back as an [`Error`] says whether the operation may have been applied.
//!
//! # Latency
//! Whoever awaits an answer polls for it, so that one read at a time costs little more than a bare
//! echo over the same socket. That holds on current-thread runtimes; a multi-thread runtime also
//! wakes one of its idle threads for each answer, which costs some microseconds. Poll modes are a
//! setting of `Builder`.
//!
//! # Inside
//! [`session`] is a pure state machine, the same that the simulator runs. The rest drives it: whoever
//! awaits an operation sends it and polls for the answer, receiving for all others meanwhile.
#![forbid(unsafe_code)]

mod core;
mod error;
pub mod limits;
pub mod session;
mod types;

#[cfg(feature = "shell")]
mod client;
#[cfg(feature = "shell")]
mod scan;
#[cfg(feature = "shell")]
mod shell;
#[cfg(feature = "shell")]
mod table;

#[cfg(feature = "shell")]
pub use client::{Builder, Client, TableInfo};
pub use error::Error;
#[cfg(feature = "shell")]
pub use ramkeep_rpc::PollMode;
pub use ramkeep_wire::coordinator::ClusterStatus;
pub use ramkeep_wire::{TableId, Version};
#[cfg(feature = "shell")]
pub use scan::Scan;
#[cfg(feature = "shell")]
pub use table::Table;
pub use types::{Object, Operation, Outcome, Page, Reject, ScanPosition};
