//! Every atomic of the index comes from here, so that loom can model what readers and the writer do.

pub(super) use ramkeep_memory::AtomicWord;
pub(super) use std::sync::atomic::Ordering;

/// Figures for people to read. They order nothing, so loom need not know them.
pub(super) type Figure = std::sync::atomic::AtomicU64;

/// Lets the writer go on before a reader tries again.
#[inline]
pub(super) fn pause() {
    #[cfg(loom)]
    loom::thread::yield_now();
    #[cfg(not(loom))]
    std::hint::spin_loop();
}
