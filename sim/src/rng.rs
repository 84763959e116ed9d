//! The one source of chance in a run: xoshiro256++ seeded through SplitMix64.
//!
//! # Invariants
//! 1. The same seed gives the same numbers on every machine, for ever: replays depend on it.

use std::ops::Range;
use std::time::Duration;

/// A stream of pseudo-random numbers.
#[derive(Clone, Debug)]
pub struct Rng([u64; 4]);

fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Rng {
    /// The stream of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut state = seed;
        Self(std::array::from_fn(|_| split_mix(&mut state)))
    }

    /// A stream of its own for one purpose: draws from it don't move this stream.
    #[must_use]
    pub fn fork(&self, purpose: u64) -> Self {
        let mut state = self.0[0] ^ self.0[3].rotate_left(17) ^ purpose.wrapping_mul(0x2545_f491);
        Self(std::array::from_fn(|_| split_mix(&mut state)))
    }

    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// Uniform in `range`, which must not be empty.
    pub fn below(&mut self, range: Range<u64>) -> u64 {
        assert!(range.start < range.end, "a draw needs a choice");
        let width = u128::from(range.end - range.start);
        range.start + ((u128::from(self.bits()) * width) >> 64) as u64
    }

    /// Uniform index into something of length `len`, which must not be 0.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(0..len as u64) as usize
    }

    /// One of `items`, which must not be empty.
    pub fn choose<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.index(items.len())]
    }

    /// True `percent` times in a hundred.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(0..100) < percent
    }

    /// True `n` times in a thousand.
    pub fn per_mille(&mut self, n: u64) -> bool {
        self.below(0..1000) < n
    }

    /// A time in `range` of microseconds.
    pub fn micros(&mut self, range: Range<u64>) -> Duration {
        Duration::from_micros(self.below(range))
    }

    /// Random bytes.
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.bits().to_le_bytes()[..chunk.len()]);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_for_ever() {
        let mut rng = Rng::new(7);
        let seen: Vec<u64> = (0..3).map(|_| rng.bits()).collect();
        assert_eq!(seen, GOLDEN, "{seen:#x?}");
    }

    const GOLDEN: [u64; 3] = [
        0x0e2c_1a00_2aae_913d,
        0x2c0f_c8dd_fa4e_9e14,
        0xb7b3_11b3_b0d4_5872,
    ];

    #[test]
    fn draws_stay_in_their_range_and_reach_all_of_it() {
        let mut rng = Rng::new(1);
        let mut seen = [false; 5];
        for _ in 0..200 {
            let n = rng.below(10..15);
            seen[(n - 10) as usize] = true;
        }
        assert_eq!(seen, [true; 5]);
    }

    #[test]
    fn a_forked_stream_leaves_the_first_alone() {
        let (mut one, mut two) = (Rng::new(3), Rng::new(3));
        let mut fork = one.fork(1);
        fork.bits();
        assert_eq!(one.bits(), two.bits());
        assert_ne!(Rng::new(3).fork(1).bits(), Rng::new(3).fork(2).bits());
    }
}
