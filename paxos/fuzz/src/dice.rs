//! What a seed decides.

use paxos::rng::SplitMix;

/// The source of all chance in a run.
#[derive(Clone, Debug)]
pub(crate) struct Dice(SplitMix);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = SplitMix(seed ^ 0x7061_786f_7366_757a);
        rng.draw();
        Self(rng)
    }

    /// From `low` to below `high`.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.0.below(high.saturating_sub(low))
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0.below(bound as u64) as usize
    }

    /// True in so many of 1,000 cases.
    pub(crate) fn chance(&mut self, permille: u64) -> bool {
        self.0.below(1_000) < permille
    }

    pub(crate) fn bytes(&mut self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.0.draw().to_le_bytes());
        bytes[8..].copy_from_slice(&self.0.draw().to_le_bytes());
        bytes
    }

    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        (!of.is_empty()).then(|| of[self.below(of.len())])
    }
}
