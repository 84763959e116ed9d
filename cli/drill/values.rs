//! Values that say what they are: table, key and sequence number, and a filling that follows from
//! them, so that no byte of a value can be another's without being noticed.
//!
//! ```text
//!  0       4     12         20
//!  | table | key | sequence | filling ...
//!  |  u32  | u64 |   u64    |
//! ```

use ramkeep_client::TableId;

/// Shortest value.
pub(super) const MIN_VALUE: usize = 20;

/// The key of an object's number.
pub(super) fn key(number: u64) -> String {
    format!("object {number:08}")
}

/// The value of that object's write of this sequence number, `len` bytes long.
pub(super) fn value(table: TableId, number: u64, sequence: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len.max(MIN_VALUE) + 8);
    bytes.extend_from_slice(&table.0.to_le_bytes());
    bytes.extend_from_slice(&number.to_le_bytes());
    bytes.extend_from_slice(&sequence.to_le_bytes());
    let mut filling = Random(u64::from(table.0) ^ number.rotate_left(32) ^ sequence);
    while bytes.len() < len {
        bytes.extend_from_slice(&filling.next().to_le_bytes());
    }
    bytes.truncate(len.max(MIN_VALUE));
    bytes
}

/// The sequence number of a value, if it is whole and that object's.
pub(super) fn sequence_of(table: TableId, number: u64, found: &[u8]) -> Option<u64> {
    let bytes = found.get(12..MIN_VALUE)?;
    let sequence = u64::from_le_bytes(bytes.try_into().ok()?);
    (found == value(table, number, sequence, found.len())).then_some(sequence)
}

/// Numbers that look random (splitmix64), the same for the same seed.
#[derive(Debug)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One of them. `among` is not empty.
    pub(super) fn pick<'a, T>(&mut self, among: &'a [T]) -> &'a T {
        &among[(self.next() % among.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_tells_its_sequence_and_any_other_byte_is_noticed() {
        let table = TableId(3);
        let whole = value(table, 7, 42, 101);
        assert_eq!(whole.len(), 101);
        assert_eq!(sequence_of(table, 7, &whole), Some(42));
        assert_eq!(sequence_of(table, 8, &whole), None);
        assert_eq!(sequence_of(TableId(4), 7, &whole), None);
        for at in 0..whole.len() {
            let mut other = whole.clone();
            other[at] ^= 1;
            assert_ne!(sequence_of(table, 7, &other), Some(42), "byte {at}");
        }
        assert_eq!(sequence_of(table, 7, &[]), None);
    }
}
