//! Benchmarks of Ramkeep, alone and beside other systems.
#![forbid(unsafe_code)]
