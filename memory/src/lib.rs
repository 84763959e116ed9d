//! The mapped memory under Ramkeep's segments, index and frames: the only crate with unsafe code.
//!
//! Three kinds of memory, each behind an API that safe code cannot misuse:
//! - [`SegmentMemory`]: equal slots that are appended to by one owner and read by anyone who holds
//!   a [`Guard`]; a freed slot is reused only when no guard that could see it remains.
//! - [`AtomicArray`]: a reservation of atomic words that costs memory only where it is touched.
//! - [`SharedFile`]: a locked file in tmpfs or on disk, handed out as [`Region`]s that never overlap.
//!
//! # Invariants
//! 1. A byte that a `&[u8]` can see is not written while that slice lives.
//! 2. No mapping is unmapped, moved or shrunk while anything borrowed from it lives.
//! 3. Every block of unsafe code names the fact that makes it sound and who upholds it.

mod array;
mod guard;
mod mapping;
mod segment;
mod shared;

pub use array::{AtomicArray, AtomicWord, Line, WORDS_PER_LINE};
pub use guard::Guard;
pub use segment::{Appender, Closed, Full, SegmentMemory, Slot};
pub use shared::{Region, RegionTaken, SharedFile, SharedFileError};
