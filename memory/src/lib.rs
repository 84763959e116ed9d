//! The mapped memory under Ramkeep's segments, index and frames; the only crate with unsafe code.
