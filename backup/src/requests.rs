//! What is asked of a backup beside replication: inventory, bytes, freeing.

use std::ops::Bound;

use ramkeep_wire::backup::{BackupRequest, BackupResponse, ReplicaInfo};
use ramkeep_wire::limits::{MAX_INVENTORY, MAX_REPLICATE_BYTES};
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::{Certificate, Micros, Party, SegmentId, ServerId};

use crate::core::{Backup, Inherited, Name};
use crate::frames::{Certified, FrameId};
use crate::replica::Replica;
use crate::store::FrameStore;

/// A response and the bytes that follow it.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer<'a> {
    /// What goes into the payload first.
    pub response: BackupResponse,
    /// What follows it; empty unless the response is `Bytes`.
    pub bytes: &'a [u8],
}

impl From<BackupResponse> for Answer<'_> {
    fn from(response: BackupResponse) -> Self {
        Self {
            response,
            bytes: &[],
        }
    }
}

impl<S: FrameStore> Backup<S> {
    /// Answers a request of `from`, received at `now`.
    pub fn handle_request(
        &mut self,
        now: Micros,
        from: Party,
        request: BackupRequest,
    ) -> Answer<'_> {
        match request {
            BackupRequest::Free { master, segments } => {
                self.free_segments(from, master, &segments).into()
            }
            BackupRequest::Inventory { master, after } => match self.may_see(now, from, master) {
                Ok(()) => BackupResponse::Inventory(self.inventory(master, after)).into(),
                Err(refusal) => refusal.into(),
            },
            BackupRequest::Fetch {
                master,
                segment,
                offset,
                length,
            } => match self.may_see(now, from, master) {
                Ok(()) => self.fetch((master, segment), offset, length),
                Err(refusal) => refusal.into(),
            },
        }
    }

    /// Only a living master frees its segments: a fenced one's are what its recovery needs.
    fn free_segments(
        &mut self,
        from: Party,
        master: ServerId,
        segments: &[SegmentId],
    ) -> BackupResponse {
        if from.as_server() != Some(master) {
            return refused("only a master frees its own replicas");
        }
        if self.masters.is_fenced(master) {
            return refused("the master was decided crashed");
        }
        for &segment in segments {
            self.free_replica((master, segment));
        }
        BackupResponse::Done
    }

    /// A master sees its own replicas. Anyone else sees them for recovery: the master is fenced
    /// here first, and the last lease granted to it has run out (SAFETY 5).
    fn may_see(&self, now: Micros, from: Party, master: ServerId) -> Result<(), BackupResponse> {
        if !self.masters.is_fenced(master) {
            return if from.as_server() == Some(master) {
                Ok(())
            } else {
                Err(refused("the master is not fenced here"))
            };
        }
        let left = self.masters.lease_left(now, master);
        if left.is_zero() {
            return Ok(());
        }
        let wait_us = u64::try_from(left.as_micros()).unwrap_or(u64::MAX);
        Err(BackupResponse::NotYet { wait_us })
    }

    /// Complete replicas of `master` after a segment, at most [`MAX_INVENTORY`], in order.
    fn inventory(&self, master: ServerId, after: Option<SegmentId>) -> Vec<ReplicaInfo> {
        let after = (master, after.unwrap_or(SegmentId(0)));
        let range = (
            Bound::Excluded(after),
            Bound::Included((master, SegmentId(u64::MAX))),
        );
        let mut fresh = self
            .replicas
            .range(range)
            .filter_map(|(name, replica)| Some((*name, self.fresh_info(replica)?)))
            .peekable();
        let mut old = self
            .inherited
            .range(range)
            .map(|(name, inherited)| (*name, inherited_info(inherited)))
            .peekable();
        let merged = std::iter::from_fn(|| match (fresh.peek(), old.peek()) {
            (Some(a), Some(b)) if b.0 < a.0 => old.next(),
            (Some(_), _) => fresh.next(),
            (None, _) => old.next(),
        });
        merged
            .take(MAX_INVENTORY)
            .map(|(_, info): (Name, ReplicaInfo)| info)
            .collect()
    }

    fn fetch(&self, name: Name, offset: u32, length: u32) -> Answer<'_> {
        let Some((frame, replica)) = self.complete(name) else {
            return BackupResponse::Unknown.into();
        };
        let wanted = length.min(MAX_REPLICATE_BYTES as u32);
        let end = offset.saturating_add(wanted).min(replica.length);
        let start = offset.min(end);
        let response = BackupResponse::Bytes {
            replica,
            length: end - start,
        };
        let bytes = &self.frames.contents(frame)[start as usize..end as usize];
        Answer { response, bytes }
    }

    /// The complete replica of that name: the new one, or the inherited one until there is a new.
    fn complete(&self, name: Name) -> Option<(FrameId, ReplicaInfo)> {
        let fresh = self
            .replicas
            .get(&name)
            .and_then(|replica| Some((replica.frame, self.fresh_info(replica)?)));
        fresh.or_else(|| {
            let inherited = self.inherited.get(&name)?;
            Some((inherited.frame, inherited_info(inherited)))
        })
    }

    fn fresh_info(&self, replica: &Replica) -> Option<ReplicaInfo> {
        let under_way = Certified {
            epoch: replica.epoch,
            length: replica.held,
            closed: false,
            certificate: Certificate::NONE,
        };
        let shown = mutants::active(Mutant::ShowIncomplete).then_some(under_way);
        let Certified {
            epoch,
            length,
            closed,
            certificate,
        } = replica.certified.or(shown)?;
        Some(ReplicaInfo {
            master: replica.identity.master,
            segment: replica.identity.segment,
            kind: replica.identity.kind,
            epoch,
            length,
            closed,
            certificate,
            boot: self.frames.boot(),
            inherited: false,
        })
    }
}

fn inherited_info(inherited: &Inherited) -> ReplicaInfo {
    let slot = &inherited.slot;
    ReplicaInfo {
        master: slot.master,
        segment: slot.segment,
        kind: slot.kind,
        epoch: slot.epoch,
        length: slot.length,
        closed: slot.closed,
        certificate: slot.certificate,
        boot: slot.boot,
        inherited: true,
    }
}

fn refused(reason: &str) -> BackupResponse {
    BackupResponse::Refused(reason.to_owned())
}
