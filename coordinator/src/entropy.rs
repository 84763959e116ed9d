//! Random bytes from a seed given at the start: the core draws, it never asks the system.

/// An endless supply of unpredictable bytes: BLAKE3 in counter mode under a random key.
pub(crate) struct Entropy {
    key: [u8; 32],
    drawn: u64,
}

impl Entropy {
    pub(crate) fn new(key: [u8; 32]) -> Self {
        Self { key, drawn: 0 }
    }

    /// Bytes that nobody can guess and that were never drawn before.
    pub(crate) fn draw<const N: usize>(&mut self) -> [u8; N] {
        self.drawn += 1;
        let mut bytes = [0; N];
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&self.drawn.to_le_bytes());
        hasher.finalize_xof().fill(&mut bytes);
        bytes
    }
}

impl std::fmt::Debug for Entropy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Entropy(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_differ_and_follow_from_the_seed() {
        let mut one = Entropy::new([1; 32]);
        let mut again = Entropy::new([1; 32]);
        let first: [u8; 32] = one.draw();
        assert_eq!(first, again.draw());
        assert_ne!(first, one.draw::<32>());
        assert_ne!(first, Entropy::new([2; 32]).draw::<32>());
    }
}
