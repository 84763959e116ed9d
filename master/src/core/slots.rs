//! The log as replication sees it, and where its segments stand in memory.

use ramkeep_memory::Slot;
use ramkeep_wire::{Certificate, ReplicationEpoch, SegmentId};

use crate::replication::{LogSegment, ReplicatedLog};
use crate::store::Log;

/// The log as replication sees it.
pub(super) struct SlotLog<'a> {
    log: &'a mut Log,
    last: Option<(SegmentId, Slot)>,
}

impl<'a> SlotLog<'a> {
    pub(super) fn new(log: &'a mut Log) -> Self {
        Self { log, last: None }
    }

    /// Where a segment stands in memory.
    pub(super) fn slot(&mut self, id: SegmentId) -> Option<Slot> {
        if let Some((known, slot)) = self.last
            && known == id
        {
            return Some(slot);
        }
        let slot = self.log.info(id)?.slot;
        self.last = Some((id, slot));
        Some(slot)
    }
}

impl ReplicatedLog for SlotLog<'_> {
    fn open_heads(&self) -> [Option<SegmentId>; 2] {
        [self.log.previous_head(), Some(self.log.head())]
    }

    fn segment(&self, id: SegmentId) -> Option<LogSegment> {
        let info = self.log.info(id)?;
        Some(LogSegment {
            kind: info.kind,
            length: info.length,
            sealed: info.sealed,
        })
    }

    fn certify(&mut self, id: SegmentId, epoch: ReplicationEpoch) -> (u32, Certificate) {
        self.log.certify(id, epoch)
    }

    fn set_durable(&mut self, id: SegmentId, length: u32) {
        self.log.set_durable(id, length);
    }

    fn predecessor_closed(&mut self, id: SegmentId) {
        self.log.predecessor_closed(id);
    }

    fn active_end(&self, id: SegmentId) -> Option<u32> {
        self.log.active_end(id)
    }
}
