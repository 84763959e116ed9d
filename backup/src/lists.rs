//! What a backup draws from a server list: whom it fences, and whose replicas it frees.
//!
//! # Invariants
//! 1. Replicas of a master that was decided crashed are freed only once the list says that nothing of
//!    it is needed any more: it says `recovered`, or has forgotten the master, which comes after.
//! 2. An old list frees nothing that a newer one would not: ids are issued in order and never
//!    reused, so one below the highest listed that is not listed was forgotten.

use std::collections::BTreeSet;

use ramkeep_wire::ServerId;
use ramkeep_wire::coordinator::{ServerEntry, ServerList, ServerState};

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
                Some(entry) => entry.recovered && is_crashed(&entry),
                None => master < highest,
            };
            if is_over {
                self.fence(master);
                self.free_master(master);
            }
        }
    }

    fn masters_held(&self) -> BTreeSet<ServerId> {
        let names = self.replicas.keys().chain(self.inherited.keys());
        names.map(|(master, _)| *master).collect()
    }
}
