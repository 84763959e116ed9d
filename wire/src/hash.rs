//! The key hash: places a key in a tablet, a partition and the index.
//!
//! XXH3-64 of the key, seeded with the table id. Persisted through tablet bounds and scan cursors,
//! so it is fixed for good by golden values below.

use std::fmt;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::ids::TableId;

/// Hash of a key within its table. Uniform over all 64 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct KeyHash(pub u64);

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The hash of `key` in `table`.
#[must_use]
#[inline]
pub fn key_hash(table: TableId, key: &[u8]) -> KeyHash {
    KeyHash(xxh3_64_with_seed(key, u64::from(table.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_values_never_change() {
        let seen: Vec<u64> = [
            (1, &b"k"[..]),
            (1, b"flights/0001"),
            (2, b"k"),
            (7, &[0xff; 300]),
        ]
        .iter()
        .map(|(table, key)| key_hash(TableId(*table), key).0)
        .collect();
        assert_eq!(seen, GOLDEN, "{seen:#x?}");
    }

    const GOLDEN: [u64; 4] = [
        0xfe24_b369_8b5c_3c0e,
        0xa5eb_8542_e68b_04f5,
        0x1fcb_2fac_0aa1_fc73,
        0xda4f_ac2c_e39b_c738,
    ];
}
