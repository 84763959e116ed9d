//! The tablet map as bytes: thousands of clients ask for the same one when it changes.

use std::sync::Arc;

use ramkeep_wire::{Ballot, ListVersion, MapVersion};

use super::callers;
use crate::core::Coordinator;

/// The answer with the map that was asked for last.
#[derive(Debug, Default)]
pub(super) struct EncodedMap {
    of: Option<(Ballot, ListVersion, MapVersion)>,
    payload: Arc<[u8]>,
    /// How often one was made.
    #[cfg(test)]
    pub(super) made: usize,
}

impl EncodedMap {
    /// The answer with the map as it is now.
    pub(super) fn current(&mut self, core: &Coordinator) -> Arc<[u8]> {
        let of = Some(core.map_stamp());
        if self.of != of {
            self.of = of;
            self.payload = callers::encode(&core.map_response()).into();
            #[cfg(test)]
            {
                self.made += 1;
            }
        }
        Arc::clone(&self.payload)
    }
}
