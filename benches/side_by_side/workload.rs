//! What every system is asked for: the keys, the values, and which key each request named.
//!
//! # Invariants
//! 1. Key `n` and its value are functions of `n` alone, so that any reply can be checked.
//! 2. Every system sees the same sequence of keys in the same round.

/// Bytes of every key.
pub(crate) const KEY_BYTES: usize = 20;
/// Bytes of every value. A value begins with its own key.
pub(crate) const VALUE_BYTES: usize = 100;
/// Requests that may be unanswered on one connection.
pub(crate) const MAX_WINDOW: usize = 1024;

const _: () = assert!(MAX_WINDOW.is_power_of_two() && VALUE_BYTES > KEY_BYTES);

const HEX: &[u8; 16] = b"0123456789abcdef";

/// The key with number `n`: a fixed prefix and eight hexadecimal digits.
#[inline]
pub(crate) fn key(n: u32) -> [u8; KEY_BYTES] {
    let mut key = *b"user:profile00000000";
    for (i, digit) in key[KEY_BYTES - 8..].iter_mut().rev().enumerate() {
        *digit = HEX[(n >> (4 * i) & 0xf) as usize];
    }
    key
}

/// The value of key `n`: the key, then filling.
#[inline]
pub(crate) fn value(n: u32) -> [u8; VALUE_BYTES] {
    let mut value = [b'.'; VALUE_BYTES];
    value[..KEY_BYTES].copy_from_slice(&key(n));
    value
}

/// Whether `bytes` is the value of key `n`: its length and the key that it begins with.
#[inline]
pub(crate) fn is_value(n: u32, bytes: &[u8]) -> bool {
    bytes.len() == VALUE_BYTES && bytes[..KEY_BYTES] == key(n)
}

/// An endless sequence of key numbers.
pub(crate) enum Keys {
    /// Each key once, in order; for loading.
    InOrder(u32),
    /// Uniformly random below `bound`, from a seed (xorshift64*).
    Random {
        /// One past the highest key number.
        bound: u32,
        /// Never zero.
        state: u64,
    },
}

impl Keys {
    /// Uniform keys below `bound`; the same seed gives the same keys.
    pub(crate) fn random(bound: u32, seed: u64) -> Self {
        let state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Self::Random { bound, state }
    }

    /// The next key number.
    #[inline]
    pub(crate) fn draw(&mut self) -> u32 {
        match self {
            Self::InOrder(next) => {
                *next += 1;
                *next - 1
            }
            Self::Random { bound, state } => {
                *state ^= *state >> 12;
                *state ^= *state << 25;
                *state ^= *state >> 27;
                let high = (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32;
                ((u64::from(high) * u64::from(*bound)) >> 32) as u32
            }
        }
    }
}

/// Which key each unanswered request asked for, by the request's sequence number on its connection.
pub(crate) struct Asked([u32; MAX_WINDOW]);

impl Asked {
    /// Nothing asked yet.
    pub(crate) fn new() -> Self {
        Self([0; MAX_WINDOW])
    }

    /// Records that request `sequence` asks for key `n`.
    #[inline]
    pub(crate) fn put(&mut self, sequence: u32, n: u32) {
        self.0[sequence as usize % MAX_WINDOW] = n;
    }

    /// The key that request `sequence` asked for.
    #[inline]
    pub(crate) fn key_number(&self, sequence: u32) -> u32 {
        self.0[sequence as usize % MAX_WINDOW]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_and_values_name_their_key() {
        assert_eq!(&key(0xabc), b"user:profile00000abc");
        assert_ne!(key(1), key(2));
        assert!(is_value(7, &value(7)));
        assert!(!is_value(8, &value(7)));
        assert!(!is_value(7, &value(7)[..99]));
    }

    #[test]
    fn one_seed_gives_one_sequence_within_its_bound() {
        let draw = |seed| {
            let mut keys = Keys::random(1000, seed);
            (0..5000).map(|_| keys.draw()).collect::<Vec<_>>()
        };
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
        assert!(draw(3).iter().all(|&n| n < 1000));
    }
}
