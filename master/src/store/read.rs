//! Reading without a lock.

use ramkeep_memory::Guard;
use ramkeep_wire::entry::Object;

use super::Store;
use super::answer::Shown;
use super::tablets::Owned;

/// What a read found, and when that may be shown.
#[derive(Clone, Copy, Debug)]
pub struct Read<'g> {
    /// The object; none if there is none.
    pub object: Option<Object<'g>>,
    /// When the client may know.
    pub shown: Shown,
}

impl Store {
    /// The object of a key. What `guard` was made before is seen.
    #[must_use]
    #[inline]
    pub fn read<'g>(&'g self, guard: &'g Guard, owned: Owned<'_>) -> Read<'g> {
        match self.entries(guard).find(self.index(), owned) {
            Some(found) => Read {
                object: Some(found.object),
                shown: self.durability().entry(found.reference.slot(), found.end()),
            },
            None => Read {
                object: None,
                shown: self.durability().miss(),
            },
        }
    }

    /// Fetches the memory of several keys at the same time, so that reading or writing them next
    /// waits for memory once and not once each. Only a hint; pays for a dozen keys or so.
    #[inline]
    pub fn prefetch(&self, guard: &Guard, keys: &[Owned<'_>]) {
        keys.iter()
            .for_each(|owned| self.index().prefetch(owned.hash()));
        let entries = self.entries(guard);
        keys.iter()
            .for_each(|owned| entries.prefetch_likely(self.index(), owned.hash()));
    }
}
