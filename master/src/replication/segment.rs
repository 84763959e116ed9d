//! The replication of one segment: its replicas, its epoch, and a change of its backups.

use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::replicate::ReplicateAck;
use ramkeep_wire::{ReplicationEpoch, ServerId};

use super::replica::Replica;

/// A change of an open segment's set of backups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// The epoch that the new set holds; fresh for every attempt.
    pub(super) epoch: ReplicationEpoch,
    /// The coordinator has been asked to record it.
    pub(super) recording: bool,
}

/// One segment's replication.
#[derive(Clone, Debug)]
pub(super) struct Replicated {
    /// Recorded at the coordinator, or the first, which needs no record.
    pub(super) epoch: ReplicationEpoch,
    /// Highest ever tried.
    tried: ReplicationEpoch,
    pub(super) change: Option<Change>,
    pub(super) replicas: Vec<Replica>,
    /// Closed on k backups once: lost replicas are then copied without a change of epoch.
    pub(super) closed_everywhere: bool,
    durable: u32,
    /// The longest that any replica was told to be.
    pub(super) told: u32,
    /// The frames of every backup that was ever sent a byte of it, by the first server that is
    /// known to have had them.
    ever_in: Vec<ServerId>,
    /// The backups that recovery could have this head from: each that was sent it whole, under the
    /// recorded epoch or a later one. Reads need a lease from all of them.
    pub(super) witnesses: Vec<ServerId>,
}

/// Of a segment's first set of backups.
const FIRST_EPOCH: ReplicationEpoch = ReplicationEpoch(1);

impl Replicated {
    pub(super) fn new() -> Self {
        Self {
            epoch: FIRST_EPOCH,
            tried: FIRST_EPOCH,
            change: None,
            replicas: Vec::new(),
            closed_everywhere: false,
            durable: 0,
            told: 0,
            ever_in: Vec::new(),
            witnesses: Vec::new(),
        }
    }

    /// The epoch that replicas should hold.
    pub(super) fn wanted_epoch(&self) -> ReplicationEpoch {
        self.change.map_or(self.epoch, |change| change.epoch)
    }

    pub(super) fn backups(&self) -> Vec<ServerId> {
        self.replicas.iter().map(|replica| replica.backup).collect()
    }

    pub(super) fn is_on(&self, server: ServerId) -> bool {
        self.replicas.iter().any(|replica| replica.backup == server)
    }

    pub(super) fn add(&mut self, backup: ServerId, frames: ServerId) {
        // One more in a set that is recorded, or about to be, with too few.
        let shrunk = self
            .change
            .map_or(self.epoch > FIRST_EPOCH, |change| change.recording);
        if shrunk && !self.closed_everywhere {
            self.new_attempt();
        }
        self.replicas.push(Replica::new(backup));
        if !self.was_in(frames) {
            self.ever_in.push(frames);
        }
    }

    /// Whether a byte of it was ever sent to one with these frames.
    pub(super) fn was_in(&self, frames: ServerId) -> bool {
        self.ever_in.contains(&frames)
    }

    /// Whether `server` is among its backups without holding a closed replica.
    pub(super) fn is_open_on(&self, server: ServerId) -> bool {
        let mut on = self.replicas.iter().filter(|r| r.backup == server);
        on.any(|replica| !self.closed_everywhere || !replica.acked.closed)
    }

    /// Whether fewer than `k` backups have taken it on.
    pub(super) fn is_short(&self, k: usize) -> bool {
        self.replicas.len() < k || self.replicas.iter().any(|r| !r.acked.opened)
    }

    /// Whether a backup can be as an acknowledgement says: no replica is longer than any was told
    /// to be, or has an epoch that was never tried.
    pub(super) fn is_possible(&self, ack: &ReplicateAck) -> bool {
        ack.length <= self.told && ack.epoch <= self.tried
    }

    /// Takes a backup out of the set, which needs a new epoch as long as the segment is open.
    pub(super) fn lose(&mut self, server: ServerId) -> Option<Replica> {
        let at = self.replicas.iter().position(|r| r.backup == server)?;
        let lost = self.replicas.remove(at);
        if !self.closed_everywhere {
            self.new_attempt();
        }
        Some(lost)
    }

    fn new_attempt(&mut self) {
        if !(mutants::active(Mutant::ReuseEpoch) && self.tried > FIRST_EPOCH) {
            self.tried = ReplicationEpoch(self.tried.0 + 1);
        }
        self.change = Some(Change {
            epoch: self.tried,
            recording: false,
        });
    }

    /// Whether all of `k` backups hold what was first sent of it, under a settled epoch.
    pub(super) fn open_on_all(&self, k: usize) -> bool {
        self.change.is_none()
            && self.replicas.len() >= k
            && self
                .replicas
                .iter()
                .all(|r| r.acked.opened && r.acked.certified > 0)
    }

    pub(super) fn closed_on_all(&self, k: usize) -> bool {
        self.change.is_none()
            && self.replicas.len() >= k
            && self.replicas.iter().all(|r| r.acked.closed)
    }

    /// Whether a lost replica of a closed segment is being copied.
    pub(super) fn copying(&self) -> bool {
        self.closed_everywhere && self.replicas.iter().any(|r| !r.acked.closed)
    }

    /// The epoch to have recorded now: every backup of the new set, which has `least` or more,
    /// holds it, over at least all that was ever durable.
    pub(super) fn due_record(&mut self, least: usize) -> Option<ReplicationEpoch> {
        let durable = self.durable.max(1);
        let change = self.change.as_mut()?;
        let held = self.replicas.len() >= least
            && self.replicas.iter().all(|r| r.holds(durable, change.epoch));
        if !held || change.recording {
            return None;
        }
        change.recording = true;
        Some(change.epoch)
    }

    /// The coordinator recorded `epoch`.
    pub(super) fn recorded(&mut self, epoch: ReplicationEpoch) {
        if self
            .change
            .is_some_and(|change| change.epoch == epoch && change.recording)
        {
            self.epoch = epoch;
            self.change = None;
            // Copies of those who are not in the new set are outdated from here on.
            self.witnesses.clear();
            let set = self.replicas.iter().map(|replica| replica.backup);
            self.witnesses.extend(set);
        }
    }

    /// The coordinator did not record `epoch`: ask again, under a fresh one if it was too low.
    pub(super) fn refused(&mut self, epoch: ReplicationEpoch, too_low: bool) {
        if self.change.is_none_or(|change| change.epoch != epoch) {
            return;
        }
        if too_low {
            self.new_attempt();
        } else if let Some(change) = &mut self.change {
            change.recording = false;
        }
    }

    /// Publishes what has become durable. `active_end`: where the head's active mark ends; nothing
    /// before it counts (SAFETY 11).
    pub(super) fn advance(
        &mut self,
        k: usize,
        active_end: Option<u32>,
        publish: impl FnOnce(u32),
    ) -> bool {
        if self.change.is_some() || self.replicas.len() < k {
            return false;
        }
        let counts = |r: &Replica| r.acked.closed || r.acked.epoch >= self.epoch;
        let acked = |r: &Replica| if counts(r) { r.acked.certified } else { 0 };
        let mut held = self.replicas.iter().map(acked).min().unwrap_or(0);
        if mutants::active(Mutant::OneAckIsEnough) {
            held = self
                .replicas
                .iter()
                .map(|r| r.acked.certified)
                .max()
                .unwrap_or(0);
        }
        if active_end.is_none_or(|end| held < end) || held <= self.durable {
            return false;
        }
        self.durable = held;
        publish(held);
        true
    }
}
