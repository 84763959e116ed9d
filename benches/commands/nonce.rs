//! Sixteen bytes that did not come before.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Numbers the sequences of this process.
static SEQUENCES: AtomicU64 = AtomicU64::new(0);

/// A sequence of nonces, each used once; two sequences of one run have none in common.
pub(crate) struct Nonces {
    first: u64,
    next: u64,
}

impl Nonces {
    /// A new sequence.
    pub(crate) fn new() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            first: SEQUENCES.fetch_add(1, Ordering::Relaxed),
            next: since.map_or(0, |elapsed| elapsed.as_nanos() as u64),
        }
    }

    /// The next.
    pub(crate) fn draw(&mut self) -> [u8; 16] {
        self.next = self.next.wrapping_add(1);
        let mut nonce = [0; 16];
        nonce[..8].copy_from_slice(&self.first.to_le_bytes());
        nonce[8..].copy_from_slice(&self.next.to_le_bytes());
        nonce
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_nonce_comes_twice() {
        let (mut one, mut other) = (Nonces::new(), Nonces::new());
        let drawn = [one.draw(), one.draw(), other.draw(), other.draw()];
        let distinct: std::collections::BTreeSet<_> = drawn.iter().collect();
        assert_eq!(distinct.len(), drawn.len());
    }
}
