//! Benchmarks of Ramkeep, alone and beside other systems.
