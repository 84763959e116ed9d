//! The Ramkeep backup: frames that hold replicas.
//!
//! [`Backup`] is the pure core: replication messages and requests in, acknowledgements and answers
//! out, time as an argument. It keeps replicas in a [`FrameStore`]: [`MappedStore`] in servers,
//! [`MemoryStore`] in the simulator. [`layout`] draws the frame file.
#![forbid(unsafe_code)]

mod answer;
mod core;
mod frames;
pub mod layout;
mod lists;
mod mapped;
mod masters;
mod replica;
mod requests;
#[cfg(feature = "shell")]
pub mod shell;
mod spares;
mod store;

pub use crate::core::Backup;
pub use answer::KINDS;
pub use frames::{Certified, Found, FrameId, Frames, FramesError, Identity};
pub use layout::Geometry;
pub use mapped::{MappedStore, Spare};
pub use requests::Answer;
pub use store::{Area, FrameStore, MemoryStore};
