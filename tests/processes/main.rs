//! Behaviours of real processes, named as sentences. Every cluster takes free ports and ends with
//! its test.

// A test fails by panicking, in its helpers too.
#![allow(clippy::unwrap_used)]

mod backups;
mod cluster;
mod cold;
mod command_line;
mod drills;
mod harness;
mod identity;
mod leases;
mod once;
mod supervision;
mod tools;
