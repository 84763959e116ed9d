//! Closed replicas that turned out not to be what their backup acknowledged.
//!
//! # Invariants
//! 1. A damaged replica counts for nothing: it is freed at once, without waiting for another, and
//!    before anything is sent that could put another in its place on the same backup.
//! 2. A free that may not have come is sent again on the next connection, unless the backup has
//!    another replica of the segment by then.

use std::collections::BTreeSet;

use ramkeep_wire::{SegmentId, ServerId};

use super::{Output, Replication};

/// Damaged replicas.
#[derive(Debug, Default)]
pub(super) struct Damaged {
    all: BTreeSet<(ServerId, SegmentId)>,
    /// Of those, the ones whose backup is still to be told to free them.
    due: BTreeSet<(ServerId, SegmentId)>,
}

impl Damaged {
    /// Whether a replica of the segment on that backup was damaged.
    pub(super) fn was_on(&self, server: ServerId, id: SegmentId) -> bool {
        self.all.contains(&(server, id))
    }

    /// What was sent to it before may not have come.
    pub(super) fn connected(&mut self, server: ServerId) {
        let own = (server, SegmentId(0))..=(server, SegmentId(u64::MAX));
        self.due.extend(self.all.range(own));
    }

    /// A backup is dead.
    pub(super) fn forget(&mut self, server: ServerId) {
        self.retain(|(of, _)| *of != server);
    }

    /// A segment has left the log: all its replicas are freed.
    pub(super) fn left_log(&mut self, id: SegmentId) {
        self.retain(|(_, of)| *of != id);
    }

    fn retain(&mut self, kept: impl Fn(&(ServerId, SegmentId)) -> bool) {
        self.all.retain(&kept);
        self.due.retain(&kept);
    }
}

impl Replication {
    /// A closed replica is not what it should be: another is made.
    pub fn replica_damaged(&mut self, id: SegmentId, server: ServerId) {
        if !self.is_closed_on(id, server) {
            return;
        }
        self.lose(id, server);
        self.damaged.all.insert((server, id));
        self.damaged.due.insert((server, id));
    }

    /// Tells backups to free what is damaged.
    pub(super) fn free_damaged(&mut self, send: &mut impl FnMut(Output)) {
        let (segments, backups) = (&self.segments, &self.backups);
        self.damaged.due.retain(|(to, id)| {
            if segments.get(id).is_some_and(|segment| segment.is_on(*to)) {
                return false;
            }
            let connected = backups.is_connected(*to);
            if connected {
                send(Output::Free {
                    to: *to,
                    segments: vec![*id],
                });
            }
            !connected
        });
    }

    /// Whether a backup holds a closed replica of a segment that is closed everywhere.
    #[must_use]
    pub fn is_closed_on(&self, id: SegmentId, server: ServerId) -> bool {
        self.segments.get(&id).is_some_and(|segment| {
            let on = segment.replicas.iter().find(|one| one.backup == server);
            segment.closed_everywhere && on.is_some_and(|replica| replica.acked.closed)
        })
    }

    /// The closed replica after this one, by backup and segment; after the last, the first.
    #[must_use]
    pub fn next_closed(&self, after: (ServerId, SegmentId)) -> Option<(ServerId, SegmentId)> {
        let closed = || {
            let segments = self.segments.iter();
            segments.flat_map(|(id, segment)| {
                let replicas = segment.replicas.iter();
                let closed = replicas.filter(|one| segment.closed_everywhere && one.acked.closed);
                closed.map(|replica| (replica.backup, *id))
            })
        };
        closed()
            .filter(|replica| *replica > after)
            .min()
            .or_else(|| closed().min())
    }
}
