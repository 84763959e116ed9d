//! The Ramkeep client.
