//! The deterministic simulator of a whole Ramkeep cluster.
