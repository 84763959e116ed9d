//! The deterministic simulator: a seed makes a cluster, a workload and a fault plan, runs the very
//! cores that serve users in virtual time over the very bytes that go over sockets, and checks what
//! came of it. The same seed gives the same run, byte by byte.
#![forbid(unsafe_code)]

pub mod check;
pub mod clock;
pub mod connections;
pub mod crash_points;
pub mod disk;
pub mod events;
pub mod faults;
pub mod history;
pub mod inspect;
pub mod network;
pub mod node;
pub mod promise;
mod right;
pub mod rng;
pub mod run;
pub mod scenarios;
pub mod strangers;
pub mod trace;
pub mod watch;
pub mod workload;
pub mod world;
