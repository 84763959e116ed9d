//! Replicas left behind on backups: freed once their segments are whole without them.
//!
//! # Invariants
//! 1. A replica is freed only while its segment is closed on k other backups, or has left the log.

use std::collections::{BTreeMap, BTreeSet};

use ramkeep_wire::{SegmentId, ServerId};

use super::{MAX_FREES, Output, Replication};

/// Replicas left behind, by backup.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    left: BTreeMap<ServerId, BTreeSet<SegmentId>>,
    /// Something has happened after which some may be freed.
    pub(super) due: bool,
}

impl Orphans {
    /// A replica may have been left on a backup.
    pub(super) fn add(&mut self, server: ServerId, id: SegmentId) {
        self.left.entry(server).or_default().insert(id);
    }

    /// A backup is dead, and all that it held with it.
    pub(super) fn forget(&mut self, server: ServerId) {
        self.left.remove(&server);
    }
}

impl Replication {
    /// Frees what can be freed by now.
    pub(super) fn free_orphans(&mut self, send: &mut impl FnMut(Output)) {
        if !std::mem::take(&mut self.orphans.due) {
            return;
        }
        let (segments, backups) = (&self.segments, &self.backups);
        let whole = |id: &SegmentId| !self.active.contains(id) && !self.lacking.contains(*id);
        self.orphans.left.retain(|to, ids| {
            ids.retain(|id| !segments.get(id).is_some_and(|segment| segment.is_on(*to)));
            if backups.is_connected(*to) {
                let due: Vec<SegmentId> = ids.iter().filter(|id| whole(id)).copied().collect();
                ids.retain(|id| !whole(id));
                for some in due.chunks(MAX_FREES) {
                    send(Output::Free {
                        to: *to,
                        segments: some.to_vec(),
                    });
                }
            }
            !ids.is_empty()
        });
    }
}
