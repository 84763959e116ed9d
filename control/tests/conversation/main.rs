//! Talking to the coordinators: whom is asked, for how long, and what comes of it.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is its failure")]

mod bench;
mod clusters;
mod finding_the_leader;
mod group;
mod mutations;
mod random;
