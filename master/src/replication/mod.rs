//! Replication: keeps k replicas of every segment, and says what is durable.
//!
//! # Invariants
//! 1. Nothing is durable in a head until every one of its k backups holds it under the head's
//!    replication epoch, and that epoch, unless it is the first, is recorded at the coordinator.
//! 2. From the first message of a change of a head's backups until its record is confirmed,
//!    nothing more becomes durable in it (SAFETY 3). Each attempt uses a fresh epoch.
//! 3. A head is closed on its backups only after the next one is open on all of its own; nothing
//!    is durable in the next one before its active mark is, which is appended only once the
//!    previous head is closed on all its backups (SAFETY 11).
//! 4. A replica that replaces another counts only when it is complete (SAFETY 3).
//!
//! Driven by progress: [`Replication::pump`] derives the next messages from the difference between
//! the log and what the backups acknowledged. A pure state machine; the shell sends what comes out.

mod acks;
pub mod placement;
pub mod replica;
mod segment;
#[cfg(test)]
mod tests;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::replicate::{Replicate, flags};
use ramkeep_wire::{Certificate, Micros, ReplicationEpoch, SegmentId, SegmentKind, ServerId};

pub use acks::AckEffect;
use placement::{Backups, Health};
use replica::Wanted;
use segment::Replicated;

/// Copies of closed segments under way at once (SAFETY 10).
pub const MAX_COPIES: usize = 4;
/// Segments freed by one message.
pub const MAX_FREES: usize = 256;

/// What replication needs of the log. Implemented by the store's writer.
pub trait ReplicatedLog {
    /// The head and, while it is not durably closed, the one before it; oldest first.
    fn open_heads(&self) -> [Option<SegmentId>; 2];
    /// What a segment is, if it is in the log.
    fn segment(&self, id: SegmentId) -> Option<LogSegment>;
    /// Length and certificate of an open or sealed head at its appended length, under `epoch`.
    fn certify(&mut self, id: SegmentId, epoch: ReplicationEpoch) -> (u32, Certificate);
    /// Publishes that the first `length` bytes of a segment are durable.
    fn set_durable(&mut self, id: SegmentId, length: u32);
    /// The head before the current one is closed on all its backups: append the active mark.
    fn predecessor_closed(&mut self, id: SegmentId);
    /// Where the head's active mark ends, once it is appended.
    fn active_end(&self, id: SegmentId) -> Option<u32>;
}

/// A segment as the log has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSegment {
    /// What it is for.
    pub kind: SegmentKind,
    /// Bytes appended.
    pub length: u32,
    /// Its closed certificate once nothing more will be appended.
    pub sealed: Option<Certificate>,
}

/// Constants of replication.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// This master: never its own backup.
    pub me: ServerId,
    /// Copies of each segment on backups.
    pub replicas: usize,
    /// Longest time without an acknowledgement before a head's backup is replaced, microseconds.
    pub slow_backup_us: u64,
    /// How long a backup is left alone after its connection broke or it found no frame.
    pub retry_us: u64,
    /// How long writes wait for enough backups before they are refused (SAFETY 9).
    pub backup_wait_us: u64,
    /// Seeds the placement of replicas.
    pub seed: u64,
}

/// What the shell has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a replication message; its bytes are `offset..length` of the segment.
    Replicate {
        /// To which backup.
        to: ServerId,
        /// Without its bytes.
        message: Replicate<'static>,
    },
    /// Tell a backup that this master has no use for its replicas of these segments any more.
    Free {
        /// Which backup.
        to: ServerId,
        /// Which segments.
        segments: Vec<SegmentId>,
    },
    /// Have the coordinator record the replication epoch of a head; answer with
    /// [`Replication::epoch_recorded`].
    RecordEpoch {
        /// Which segment.
        segment: SegmentId,
        /// The epoch that all its backups hold.
        epoch: ReplicationEpoch,
        /// Those backups.
        backups: Vec<ServerId>,
    },
}

/// The replication of one master's log.
#[derive(Debug)]
pub struct Replication {
    config: Config,
    backups: Backups,
    segments: BTreeMap<SegmentId, Replicated>,
    /// Segments that are not closed on k backups: all that `pump` has to look at.
    active: BTreeSet<SegmentId>,
    /// Replicas left behind by changes, to be freed once they are not needed.
    orphans: BTreeMap<ServerId, BTreeSet<SegmentId>>,
    /// Since when the newest head has had fewer backups than it needs.
    short_since: Option<Micros>,
    /// Closed segments that are being copied.
    copies: usize,
    next_change_not_before: Micros,
    change_back_off_us: u64,
}

impl Replication {
    /// For a log that starts empty.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            backups: Backups::new(config.seed),
            config,
            segments: BTreeMap::new(),
            active: BTreeSet::new(),
            orphans: BTreeMap::new(),
            short_since: None,
            copies: 0,
            next_change_not_before: Micros(0),
            change_back_off_us: 0,
        }
    }

    /// The connection to a backup is there (again): it may be chosen.
    pub fn link_up(&mut self, server: ServerId) {
        if server != self.config.me {
            self.backups.connected(server);
        }
    }

    /// The connection to a backup broke or could not be made: what was in flight is sent again if
    /// it comes back; heads replace it at once.
    pub fn link_down(&mut self, server: ServerId) {
        self.backups.set(server, Health::Away);
        for segment in self.segments.values_mut() {
            segment
                .replicas
                .iter_mut()
                .filter(|r| r.backup == server)
                .for_each(|r| r.rewind());
        }
        self.replace_on_heads(server);
    }

    /// The coordinator decided that a backup is dead: every segment replaces it.
    pub fn crashed(&mut self, server: ServerId) {
        self.replace_on_heads(server);
        for (id, segment) in &mut self.segments {
            if segment.drop_replica(server) {
                self.active.insert(*id);
            }
        }
        self.backups.set(server, Health::Crashed);
        self.orphans.remove(&server);
    }

    /// `server` took over the frames of `old` by restarting with its directory: the replicas in
    /// them are freed once their segments are whole elsewhere.
    pub fn inherited(&mut self, server: ServerId, old: ServerId) {
        let held: BTreeSet<SegmentId> = self
            .segments
            .iter()
            .filter(|(_, segment)| segment.ever_on.contains(&old))
            .map(|(id, _)| *id)
            .collect();
        if !held.is_empty() {
            self.orphans.entry(server).or_default().extend(held);
        }
    }

    fn replace_on_heads(&mut self, server: ServerId) {
        for (id, segment) in self
            .segments
            .iter_mut()
            .filter(|(_, s)| !s.closed_everywhere)
        {
            if segment.lose(server) {
                self.orphans.entry(server).or_default().insert(*id);
            }
        }
    }

    /// Sends what is due and says whether more has become durable.
    pub fn pump(
        &mut self,
        now: Micros,
        log: &mut impl ReplicatedLog,
        send: &mut impl FnMut(Output),
    ) -> bool {
        if self.config.replicas == 0 {
            return self.pump_without_backups(log);
        }
        for head in log.open_heads().into_iter().flatten() {
            if let Entry::Vacant(vacant) = self.segments.entry(head) {
                vacant.insert(Replicated::new());
                self.active.insert(head);
            }
        }
        let mut moved = false;
        let mut cursor = None;
        while let Some(id) = self.next_active(cursor) {
            cursor = Some(id);
            moved |= self.pump_segment(now, id, log, send);
        }
        moved
    }

    fn next_active(&self, after: Option<SegmentId>) -> Option<SegmentId> {
        let from = after.map_or(SegmentId(0), |id| SegmentId(id.0 + 1));
        self.active.range(from..).next().copied()
    }

    fn pump_without_backups(&mut self, log: &mut impl ReplicatedLog) -> bool {
        let mut moved = false;
        for id in log.open_heads().into_iter().flatten() {
            let Some(info) = log.segment(id) else {
                continue;
            };
            log.set_durable(id, info.length);
            moved = true;
            if info.sealed.is_some() {
                log.predecessor_closed(id);
            }
        }
        moved
    }

    fn pump_segment(
        &mut self,
        now: Micros,
        id: SegmentId,
        log: &mut impl ReplicatedLog,
        send: &mut impl FnMut(Output),
    ) -> bool {
        let Some(info) = log.segment(id) else {
            self.forget(id);
            return false;
        };
        self.replace_slow(now, id);
        self.place(now, id);
        self.send_steps(now, id, &info, log, send);
        self.progress(now, id, &info, log, send)
    }

    /// A segment that has left the log: its replicas are freed.
    fn forget(&mut self, id: SegmentId) {
        self.active.remove(&id);
        if let Some(segment) = self.segments.remove(&id) {
            for replica in segment.replicas {
                self.orphans.entry(replica.backup).or_default().insert(id);
            }
        }
    }

    /// Suspects the backups of a head that let it wait too long. Backs off: a loaded machine
    /// doesn't answer slowness with copying (SAFETY 10).
    fn replace_slow(&mut self, now: Micros, id: SegmentId) {
        let Some(segment) = self.segments.get_mut(&id) else {
            return;
        };
        if segment.closed_everywhere || now < self.next_change_not_before {
            return;
        }
        let limit = u128::from(self.config.slow_backup_us);
        let slow = segment
            .replicas
            .iter()
            .find(|r| r.in_flight > 0 && now.since(r.waiting_since).as_micros() > limit)
            .map(|r| r.backup);
        let Some(slow) = slow else { return };
        let spare = self.backups.choose(now, &segment.backups());
        self.change_back_off_us =
            (self.change_back_off_us * 2).clamp(self.config.slow_backup_us, 30_000_000);
        self.next_change_not_before =
            now + std::time::Duration::from_micros(self.change_back_off_us);
        if spare.is_none() {
            return;
        }
        let until = now + std::time::Duration::from_micros(self.config.retry_us);
        self.backups.set(slow, Health::Suspect { until });
        segment.lose(slow);
        self.orphans.entry(slow).or_default().insert(id);
    }

    /// Fills up a segment's set of backups.
    fn place(&mut self, now: Micros, id: SegmentId) {
        let Some(segment) = self.segments.get_mut(&id) else {
            return;
        };
        let is_copy = segment.closed_everywhere;
        if segment.replicas.len() >= self.config.replicas || (is_copy && self.copies >= MAX_COPIES)
        {
            return;
        }
        while segment.replicas.len() < self.config.replicas {
            let Some(backup) = self.backups.choose(now, &segment.backups()) else {
                break;
            };
            segment.add(backup);
        }
        if is_copy {
            self.copies = self.segments.values().filter(|s| s.copying()).count();
        }
    }

    fn send_steps(
        &mut self,
        now: Micros,
        id: SegmentId,
        info: &LogSegment,
        log: &mut impl ReplicatedLog,
        send: &mut impl FnMut(Output),
    ) {
        let may_close = info.sealed.is_some() && self.may_close(id);
        let Some(segment) = self.segments.get_mut(&id) else {
            return;
        };
        let wanted = Wanted {
            length: info.length,
            epoch: segment.wanted_epoch(),
            close: may_close,
            lease: !segment.closed_everywhere,
        };
        for replica in &mut segment.replicas {
            while let Some(step) = replica.next_step(&wanted) {
                let certificate = match (step.flags & flags::COMPLETE, info.sealed) {
                    (0, _) => Certificate::NONE,
                    (_, Some(sealed)) if wanted.close => sealed,
                    _ => log.certify(id, wanted.epoch).1,
                };
                send(Output::Replicate {
                    to: replica.backup,
                    message: Replicate {
                        segment: id,
                        epoch: wanted.epoch,
                        offset: step.offset,
                        length: step.length,
                        kind: info.kind,
                        flags: step.flags,
                        certificate,
                        bytes: &[],
                    },
                });
                replica.sent(now, &step, wanted.epoch);
            }
        }
    }

    /// Whether a sealed segment's replicas may be closed now (invariant 3).
    fn may_close(&self, id: SegmentId) -> bool {
        let Some(segment) = self.segments.get(&id) else {
            return false;
        };
        if segment.closed_everywhere {
            return true;
        }
        let next = self.segments.range(SegmentId(id.0 + 1)..).next();
        segment.change.is_none()
            && next.is_some_and(|(_, next)| {
                next.open_on_all(self.config.replicas) || mutants::active(Mutant::CloseBeforeOpen)
            })
    }

    /// Draws the conclusions from what was acknowledged.
    fn progress(
        &mut self,
        now: Micros,
        id: SegmentId,
        info: &LogSegment,
        log: &mut impl ReplicatedLog,
        send: &mut impl FnMut(Output),
    ) -> bool {
        let replicas = self.config.replicas;
        let Some(segment) = self.segments.get_mut(&id) else {
            return false;
        };
        if let Some(record) = segment.due_record(replicas) {
            if mutants::active(Mutant::SkipEpochRecord) {
                segment.recorded(record);
            } else {
                let backups = segment.backups();
                send(Output::RecordEpoch {
                    segment: id,
                    epoch: record,
                    backups,
                });
            }
        }
        let mut moved = false;
        let segment = self.segments.get_mut(&id).expect("looked up above");
        if !segment.closed_everywhere {
            moved = segment.advance(replicas, log.active_end(id), |length| {
                log.set_durable(id, length);
            });
        }
        if info.sealed.is_some() && mutants::active(Mutant::ActiveTooEarly) {
            log.predecessor_closed(id);
        }
        if info.sealed.is_some() && segment.closed_on_all(replicas) {
            let first_time = !segment.closed_everywhere;
            segment.closed_everywhere = true;
            self.active.remove(&id);
            if first_time {
                log.predecessor_closed(id);
            }
            self.copies = self.segments.values().filter(|s| s.copying()).count();
        }
        self.note_shortage(now, id);
        self.free_orphans(send);
        moved
    }

    fn note_shortage(&mut self, now: Micros, id: SegmentId) {
        let Some(segment) = self.segments.get(&id) else {
            return;
        };
        if segment.closed_everywhere {
            return;
        }
        let whole = segment.replicas.len() >= self.config.replicas;
        let newest = self.active.last() == Some(&id);
        if newest && whole {
            self.short_since = None;
        } else if !whole && self.short_since.is_none() {
            self.short_since = Some(now);
        }
    }

    /// Frees replicas that were left behind, once their segments are whole without them.
    fn free_orphans(&mut self, send: &mut impl FnMut(Output)) {
        let (segments, active, backups) = (&self.segments, &self.active, &self.backups);
        self.orphans.retain(|to, ids| {
            ids.retain(|id| !segments.get(id).is_some_and(|segment| segment.is_on(*to)));
            if backups.health(*to) == Health::Good {
                let due = ids.iter().filter(|id| !active.contains(id)).copied();
                let due: Vec<SegmentId> = due.take(MAX_FREES).collect();
                if !due.is_empty() {
                    ids.retain(|id| !due.contains(id));
                    send(Output::Free {
                        to: *to,
                        segments: due,
                    });
                }
            }
            !ids.is_empty()
        });
    }

    /// The coordinator recorded `epoch` for `segment`.
    pub fn epoch_recorded(&mut self, segment: SegmentId, epoch: ReplicationEpoch) {
        if let Some(known) = self.segments.get_mut(&segment) {
            known.recorded(epoch);
        }
    }

    /// The coordinator could not be asked, or refused the epoch as too low: try again.
    pub fn epoch_refused(&mut self, segment: SegmentId, epoch: ReplicationEpoch, too_low: bool) {
        if let Some(known) = self.segments.get_mut(&segment) {
            known.refused(epoch, too_low);
        }
    }

    /// Whether writes have waited too long for enough backups and are refused from now on.
    #[must_use]
    pub fn too_few_backups(&self, now: Micros) -> bool {
        let limit = u128::from(self.config.backup_wait_us);
        self.short_since
            .is_some_and(|since| now.since(since).as_micros() >= limit)
    }

    /// Whether the first head is open on all its backups: tablets may be taken (SAFETY 22).
    #[must_use]
    pub fn ready(&self) -> bool {
        self.config.replicas == 0
            || self
                .segments
                .values()
                .any(|s| s.closed_everywhere || s.open_on_all(self.config.replicas))
    }

    /// Segments that lack a replica, or whose replicas are not closed though they should be.
    #[must_use]
    pub fn under_replicated(&self) -> usize {
        let whole = |s: &Replicated| {
            s.replicas.len() >= self.config.replicas
                && s.change.is_none()
                && s.replicas
                    .iter()
                    .all(|r| r.acked.opened && (!s.closed_everywhere || r.acked.closed))
        };
        self.segments.values().filter(|s| !whole(s)).count()
    }

    /// The segment and epoch below which no open replica of this log counts (SAFETY 13): the
    /// oldest head that is not durably closed.
    #[must_use]
    pub fn floor(&self) -> Option<(SegmentId, ReplicationEpoch)> {
        self.segments
            .iter()
            .find(|(_, s)| !s.closed_everywhere)
            .map(|(id, s)| (*id, s.epoch))
    }

    /// The backups of a segment, for status and tests.
    #[must_use]
    pub fn backups_of(&self, id: SegmentId) -> Vec<ServerId> {
        self.segments
            .get(&id)
            .map(Replicated::backups)
            .unwrap_or_default()
    }

    /// The changes of heads' backups under way, for tests and status.
    #[must_use]
    pub fn changes(&self) -> usize {
        self.segments
            .values()
            .filter(|s| s.change.is_some())
            .count()
    }
}
