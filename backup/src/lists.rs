//! What a backup draws from a server list: whom it fences, and whose replicas it frees.
//!
//! # Invariants
//! 1. Replicas of a master that was decided crashed are freed only once the list says that nothing of
//!    it is needed any more: it says `recovered`, or has forgotten the master, which comes after.
//! 2. An old list frees nothing that a newer one would not: ids are issued in order and never
//!    reused, so one below the highest listed that is not listed was forgotten.

use std::collections::BTreeSet;

use ramkeep_wire::coordinator::{ServerEntry, ServerList, ServerState};
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::{SegmentId, ServerId};

use crate::core::Backup;
use crate::store::FrameStore;

impl<S: FrameStore> Backup<S> {
    /// Fences who was decided crashed, and frees all replicas, also inherited ones, of masters that
    /// were recovered or forgotten. Repeating it changes nothing.
    pub fn take_list(&mut self, list: &ServerList) {
        let is_crashed = |entry: &&ServerEntry| entry.state == ServerState::Crashed;
        for entry in list.servers.iter().filter(is_crashed) {
            self.fence(entry.server);
        }
        let Some(highest) = list.servers.iter().map(|entry| entry.server).max() else {
            return;
        };
        for master in self.masters_held() {
            let listed = list.servers.iter().find(|entry| entry.server == master);
            let is_over = match listed {
                Some(entry) => {
                    let recovered = entry.recovered || mutants::active(Mutant::FreeTheCrashed);
                    recovered && is_crashed(&entry)
                }
                None => master < highest,
            };
            if is_over {
                self.fence(master);
                self.free_master(master);
            }
        }
    }

    /// The masters of which replicas are here.
    pub(crate) fn masters_held(&self) -> BTreeSet<ServerId> {
        let mut held = BTreeSet::new();
        let mut next = Some(ServerId(0));
        // From one master to the next: there are few of them, and many replicas.
        while let Some(from) = next {
            let after = (from, SegmentId(0))..;
            let fresh = self.replicas.range(after.clone()).next();
            let old = self.inherited.range(after).next();
            let names = fresh.map(|(name, _)| name.0).into_iter();
            let first = names.chain(old.map(|(name, _)| name.0)).min();
            held.extend(first);
            next = first
                .and_then(|master| master.0.checked_add(1))
                .map(ServerId);
        }
        held
    }
}
