//! The Ramkeep master: log, index, tablets, replication.
