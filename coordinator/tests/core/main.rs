//! The core in virtual time: one coordinator alone, a group, and recovery with servers that answer.
#![allow(clippy::unwrap_used, reason = "helpers of tests panic like tests")]

mod budgets;
mod claims;
mod damage;
mod group;
mod lost_disks;
mod newcomers;
mod orders;
mod recovery;
mod rescue;
mod room;
mod stepping;
mod tries;
#[allow(unreachable_pub, reason = "a module of a test")]
mod world;
