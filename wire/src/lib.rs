//! Ids, entries, segments, certificates and messages of Ramkeep: bytes and their meaning.
