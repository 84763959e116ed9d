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
//! 5. A segment that is neither active nor lacking is closed on k backups, so far as they live.
//! 6. Reads are answered under a lease from whoever recovery could have a head from: `lease.rs`.
//! 7. Copies of closed segments leave most of the way to backups to clients: `healing.rs`.
//! 8. What `pump` does is bounded by what is open or being copied, not by the log's size.
//!
//! Driven by progress: [`Replication::pump`] derives the next messages from the difference between
//! the log and what the backups acknowledged. A pure state machine; the shell sends what comes out.

mod acks;
mod damaged;
mod healing;
pub mod lease;
mod members;
mod orphans;
pub mod placement;
pub mod replica;
mod segment;
mod steps;
#[cfg(test)]
mod tests;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::replicate::Replicate;
use ramkeep_wire::{Certificate, Micros, ReplicationEpoch, SegmentId, SegmentKind, ServerId};

pub use acks::AckEffect;
use damaged::Damaged;
use healing::{Lacking, Pace};
use lease::Leases;
use orphans::Orphans;
use placement::Backups;
use segment::Replicated;

/// Copies under way at once of closed segments that no backup holds any more (SAFETY 10).
pub const MAX_COPIES: usize = 3;
/// The same of segments that lack one of several. They take turns anyway.
pub const MAX_PACED: usize = 2;
/// Copies are not begun for so long while a crashed master's tablets are recovered: those wait for the
/// same machines, and nobody waits for a copy.
pub const RECOVERY_FIRST: Duration = Duration::from_secs(5);
/// Closed segments of either kind looked at in one pump for one that can be copied.
const COPY_TRIES: usize = 16;
/// Segments freed by one message.
pub const MAX_FREES: usize = 256;
/// Longest back-off between two replacements of slow backups, microseconds.
const MAX_BACK_OFF_US: u64 = 30_000_000;
/// Slow backups that are replaced in one go (SAFETY 10); then it backs off.
const MAX_SUSPECTED: usize = 2;
/// Time passes here every few milliseconds. After a gap of this length it was the master that slept,
/// and what went unanswered meanwhile says nothing of its backups.
const OWN_PAUSE: Duration = Duration::from_millis(50);

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
    /// The same for a copy of a closed segment, which keeps nobody waiting.
    pub slow_copy_us: u64,
    /// How often a lease is asked for when there is nothing else to say, microseconds.
    pub renew_us: u64,
    /// How long a backup is left alone after its connection broke or it found no frame.
    pub retry_us: u64,
    /// How long ago the coordinator must have been asked what it answered, at most, when a head's
    /// backup is given up for being slow: the change needs its record.
    pub coordinator_fresh_us: u64,
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
    /// Heads that are not closed on k backups, and closed segments that are being copied: all that
    /// `pump` has to look at.
    active: BTreeSet<SegmentId>,
    /// Closed segments that have lost a replica and wait for their turn to be copied.
    lacking: Lacking,
    /// How fast they are copied.
    pace: Pace,
    /// Replicas left behind by changes, to be freed once they are not needed.
    orphans: Orphans,
    /// Replicas that are not what they should be.
    damaged: Damaged,
    /// Whose frames a server took over by restarting with their directory, back to the first.
    frames_of: BTreeMap<ServerId, ServerId>,
    /// Acknowledgements on their way that are of replicas given up since: they say nothing of a
    /// later replica of the same segment on the same backup.
    late_acks: BTreeMap<(ServerId, SegmentId), usize>,
    /// Since when there are tablets to be recovered, if there are.
    recovering_since: Option<Micros>,
    /// Since when a head has had fewer backups than it needs.
    short_since: Option<Micros>,
    /// What backups have granted.
    leases: Leases,
    /// When `pump` was called last.
    pumped: Micros,
    /// When the coordinator was asked what it answered last; none: it was asked in vain since.
    coordinator_heard: Option<Micros>,
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
            lacking: Lacking::default(),
            pace: Pace::default(),
            orphans: Orphans::default(),
            damaged: Damaged::default(),
            frames_of: BTreeMap::new(),
            late_acks: BTreeMap::new(),
            recovering_since: None,
            short_since: None,
            leases: Leases::default(),
            pumped: Micros(0),
            coordinator_heard: Some(Micros(0)),
            next_change_not_before: Micros(0),
            change_back_off_us: 0,
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
        self.note_own_pause(now);
        self.replace_slow(now);
        self.free_damaged(send);
        self.begin_copies(now);
        let mut moved = false;
        let mut cursor = None;
        while let Some(id) = self.next_active(cursor) {
            cursor = Some(id);
            moved |= self.pump_segment(now, id, log, send);
        }
        self.note_shortage(now);
        self.free_orphans(send);
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
        self.place(now, id);
        self.send_steps(now, id, &info, log, send);
        self.progress(now, id, &info, log, send)
    }

    /// A segment that has left the log: its replicas are freed.
    fn forget(&mut self, id: SegmentId) {
        self.active.remove(&id);
        self.lacking.remove(id);
        self.damaged.left_log(id);
        if let Some(segment) = self.segments.remove(&id) {
            for replica in segment.replicas {
                self.orphans.add(replica.backup, id);
            }
            self.orphans.due = true;
        }
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
        let Some(segment) = self.segments.get(&id) else {
            return false;
        };
        let shrinks = segment.change.is_some()
            && segment.replicas.len() < replicas
            && self.must_shrink(now, segment);
        // Reads go on under a lease from those that are left; nothing becomes durable until there
        // are k again.
        let least = if shrinks { 1 } else { replicas };
        let segment = self.segments.get_mut(&id).expect("looked up above");
        if let Some(record) = segment.due_record(least) {
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
            segment.witnesses = Vec::new();
            self.active.remove(&id);
            self.orphans.due = true;
            if first_time {
                log.predecessor_closed(id);
            }
        } else if segment.closed_everywhere && !segment.copying() {
            // Nobody to copy it to, now: others may have their turn.
            self.active.remove(&id);
            let bare = !segment.has_copy();
            self.lacking.put(id, bare);
        }
        moved
    }

    /// The segments that may be the log's end: open, or not yet closed on k backups.
    fn heads(&self) -> impl Iterator<Item = (SegmentId, &Replicated)> + '_ {
        let active = self.active.iter();
        active
            .filter_map(|id| Some((*id, self.segments.get(id)?)))
            .filter(|(_, segment)| !segment.closed_everywhere)
    }

    /// A head is short of backups as long as one is missing, or has not taken it on: a backup that
    /// is asked again and again and has no frame is none.
    fn note_shortage(&mut self, now: Micros) {
        let replicas = self.config.replicas;
        if !self.heads().any(|(_, head)| head.is_short(replicas)) {
            self.short_since = None;
        } else if self.short_since.is_none() {
            self.short_since = Some(now);
        }
    }

    /// The coordinator answered what it was asked at `heard`; `None`: it was asked in vain.
    pub fn coordinator_answered(&mut self, heard: Option<Micros>) {
        self.coordinator_heard = heard;
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
            let closed = |r: &replica::Replica| !s.closed_everywhere || r.acked.closed;
            s.change.is_none() && !s.is_short(self.config.replicas) && s.replicas.iter().all(closed)
        };
        let active = self.active.iter().filter_map(|id| self.segments.get(id));
        self.lacking.len() + active.filter(|segment| !whole(segment)).count()
    }

    /// The segment and epoch below which no open replica of this log counts (SAFETY 13): the
    /// oldest head that is not durably closed.
    #[must_use]
    pub fn floor(&self) -> Option<(SegmentId, ReplicationEpoch)> {
        self.heads().next().map(|(id, head)| (id, head.epoch))
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
        self.heads()
            .filter(|(_, head)| head.change.is_some())
            .count()
    }
}
