//! Which key an operation is on: uniform, scrambled zipfian or latest, as in YCSB (Cooper et al.,
//! SoCC'10; the zipfian generator is Gray et al.'s, SIGMOD'94).

use ramkeep_wire::{TableId, key_hash};

/// YCSB's zipfian constant.
const THETA: f64 = 0.99;
/// Bytes of a key: `user` and 16 decimal digits.
pub(super) const KEY_LEN: usize = 20;

/// Random numbers for the workload: repeatable, and cheap beside an operation.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// xorshift64*.
    pub(super) fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Uniform in 0..1.
    pub(super) fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in 0..n.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(n)) >> 64) as u64
    }
}

/// How keys are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Distribution {
    /// Each as likely as any other.
    Uniform,
    /// Few are hot, spread over the key space.
    Zipfian,
    /// The newest are hot.
    Latest,
}

/// Chooses keys among `0..items`.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    distribution: Distribution,
    items: u64,
    zeta: f64,
    eta: f64,
    alpha: f64,
    half_power: f64,
}

impl Keys {
    /// Over `items` keys. Takes time in proportion to `items` for all but uniform.
    pub(super) fn new(distribution: Distribution, items: u64) -> Self {
        let items = items.max(1);
        let zeta = match distribution {
            Distribution::Uniform => 1.0,
            Distribution::Zipfian | Distribution::Latest => zeta(items),
        };
        let eta = (1.0 - (2.0 / items as f64).powf(1.0 - THETA)) / (1.0 - zeta_of_two() / zeta);
        let (alpha, half_power) = (1.0 / (1.0 - THETA), 1.0 + 0.5f64.powf(THETA));
        Self {
            distribution,
            items,
            zeta,
            eta,
            alpha,
            half_power,
        }
    }

    /// A key of those that exist; `newest` is the number of the last one.
    pub(super) fn choose(&self, random: &mut Random, newest: u64) -> u64 {
        match self.distribution {
            Distribution::Uniform => random.below(self.items),
            Distribution::Zipfian => scramble(self.rank(random)) % self.items,
            Distribution::Latest => newest.saturating_sub(self.rank(random)),
        }
    }

    /// 0 is the hottest.
    fn rank(&self, random: &mut Random) -> u64 {
        let u = random.unit();
        let uz = u * self.zeta;
        if uz < 1.0 {
            return 0;
        }
        if uz < self.half_power {
            return 1;
        }
        let rank = self.items as f64 * (self.eta * u - self.eta + 1.0).powf(self.alpha);
        (rank as u64).min(self.items - 1)
    }
}

fn zeta(items: u64) -> f64 {
    (1..=items).map(|i| (i as f64).powf(-THETA)).sum()
}

fn zeta_of_two() -> f64 {
    zeta(2)
}

/// Spreads hot keys over the key space.
fn scramble(rank: u64) -> u64 {
    key_hash(TableId(0), &rank.to_le_bytes()).0
}

/// The text of a key.
pub(super) fn key_text(number: u64) -> [u8; KEY_LEN] {
    let mut text = *b"user0000000000000000";
    let mut rest = number;
    for digit in text[4..].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(distribution: Distribution) -> Vec<u32> {
        let (keys, mut random) = (Keys::new(distribution, 1000), Random::new(1));
        let mut counts = vec![0; 1000];
        for _ in 0..100_000 {
            counts[keys.choose(&mut random, 999) as usize] += 1;
        }
        counts
    }

    #[test]
    fn uniform_keys_are_even_and_zipfian_ones_are_not() {
        let uniform = counts(Distribution::Uniform);
        assert!(uniform.iter().all(|count| (40..200).contains(count)));
        let mut zipfian = counts(Distribution::Zipfian);
        zipfian.sort_unstable();
        let hot: u32 = zipfian.iter().rev().take(10).sum();
        assert!(
            (30_000..60_000).contains(&hot),
            "the ten hottest got {hot} of 100,000"
        );
    }

    #[test]
    fn latest_keys_are_the_newest() {
        let latest = counts(Distribution::Latest);
        assert!(latest[999] > latest[0] * 10 && latest[999] > 5_000);
    }

    #[test]
    fn key_texts_are_distinct_and_of_one_length() {
        assert_eq!(&key_text(42), b"user0000000000000042");
        assert_ne!(key_text(1), key_text(10));
    }
}
