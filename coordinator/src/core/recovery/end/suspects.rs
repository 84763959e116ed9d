//! Segments that a recovery master could not prove. What backups say of them counts no more: a copy
//! does once it was read and proved here.
//!
//! # Invariants
//! 1. Each search reads them anew: what could not be read then may be whole by now.

use std::collections::{BTreeMap, BTreeSet};

use ramkeep_wire::{SegmentId, ServerId};

use super::{Held, Proved, proved};

#[derive(Debug, Default)]
pub(in crate::core::recovery) struct Suspects {
    segments: BTreeSet<SegmentId>,
    /// Replicas that were read in this search, and whether they are what they should be.
    judged: BTreeMap<(ServerId, SegmentId), (Proved, bool)>,
}

impl Suspects {
    /// A recovery master could prove none of the copies of these.
    pub(in crate::core::recovery) fn add(&mut self, segments: &[SegmentId]) {
        self.segments.extend(segments);
    }

    /// All of them were proved here.
    pub(in crate::core::recovery) fn clear(&mut self) {
        *self = Self::default();
    }

    /// A search begins.
    pub(in crate::core::recovery) fn read_again(&mut self) {
        self.judged.clear();
    }

    pub(super) fn judge(&mut self, held: &Held, is_sound: bool) {
        let name = (held.by, held.replica.segment);
        self.judged.insert(name, (proved(&held.replica), is_sound));
    }

    /// Whether a replica is what it should be, unless it must be read first.
    pub(super) fn is_sound(&self, held: &Held) -> Option<bool> {
        let segment = held.replica.segment;
        if !self.segments.contains(&segment) {
            return Some(true);
        }
        let (read, is_sound) = self.judged.get(&(held.by, segment))?;
        (*read == proved(&held.replica)).then_some(*is_sound)
    }

    /// Those that are not.
    pub(super) fn damaged(&self) -> impl Iterator<Item = (ServerId, SegmentId)> + '_ {
        let damaged = self.judged.iter().filter(|(_, (_, is_sound))| !is_sound);
        damaged.map(|(name, _)| *name)
    }
}
