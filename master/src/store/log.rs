//! The log: every byte this master owns, in write order.
//!
//! # Invariants
//! 1. Exactly one segment takes appends: the head. It begins with its header, a digest that names
//!    every segment of the log, and the safe version.
//! 2. At most one head before it is not durably closed. That one is sealed, and its certificate is
//!    in the head's digest. While it is not durably closed, no third head opens (SAFETY 11).
//! 3. The head gets its active mark when its predecessor is durably closed, and keeps the room for
//!    it until then.
//! 4. A group of entries lands in one segment, or not at all.
//! 5. Segment ids grow in creation order.
//!
//! The log gives positions; what of it is durable is replication's to say. Without a key (no
//! replicas) nothing is hashed, and whatever is appended counts as closed and durable at once.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use ramkeep_memory::{Guard, SegmentMemory};
use ramkeep_wire::certificate::{CertificateKey, Claim};
use ramkeep_wire::entry::{DigestItem, NewEntry, SegmentHeader};
use ramkeep_wire::limits::{MAX_SEGMENTS_PER_LOG, SEGMENT_SIZE};
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::{
    Certificate, ClusterId, LogPosition, ReplicationEpoch, SegmentId, SegmentKind, ServerId,
    Version,
};

use super::durability::Durability;
use super::segment::{ClosedSegment, Head};
use crate::index::Reference;

pub use super::segment::SegmentInfo;

/// Entries a group may have: an object, the tombstone of the one it replaces, a completion.
pub const MAX_GROUP_ENTRIES: usize = 3;

/// Whose log it is and how large it may become.
#[derive(Clone, Copy, Debug)]
pub struct LogConfig {
    /// The cluster.
    pub cluster: ClusterId,
    /// The master.
    pub master: ServerId,
    /// Certifies segments; none for a log without replicas.
    pub key: Option<CertificateKey>,
    /// Bytes of a segment, at most [`SEGMENT_SIZE`].
    pub segment_size: u32,
    /// Segments the log may have at once.
    pub max_segments: usize,
}

/// Where a group was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Of each of its entries.
    references: [Option<Reference>; MAX_GROUP_ENTRIES],
    /// The segment it is in.
    pub segment: SegmentId,
    /// Where it ends. Durable when the durable position has come this far.
    pub end: LogPosition,
}

impl Appended {
    /// Where the entry `number` of the group is.
    ///
    /// # Panics
    /// If the group has no such entry.
    #[must_use]
    #[inline]
    pub fn reference(&self, number: usize) -> Reference {
        self.references[number].expect("asked for an entry that the group has")
    }
}

/// Why a group was not appended. The log is as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// A new head is needed, and there is no memory for one.
    #[error("the log has no memory for another segment")]
    Full,
    /// A new head is needed, and the last one's predecessor is not durably closed yet.
    #[error("the previous head is not closed on its backups yet")]
    Rolling,
    /// No segment can hold the group.
    #[error("the entry group is larger than a segment can hold")]
    TooLarge,
}

/// The log can't be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// Segments of that size, or so many, are not possible in the given memory.
    #[error("a log can't have segments of {segment_size} bytes in slots of {slot_size}")]
    Size {
        /// The size asked for.
        segment_size: u32,
        /// The size of the memory's slots.
        slot_size: usize,
    },
    /// There is no memory for the first segment.
    #[error("the log has no memory for its first segment")]
    NoMemory,
}

/// The log. Owned by the writer.
#[derive(Debug)]
pub struct Log {
    config: LogConfig,
    memory: SegmentMemory,
    durability: Arc<Durability>,
    head: Head,
    previous: Option<Head>,
    closed: BTreeMap<SegmentId, ClosedSegment>,
    next: SegmentId,
    safe_version: Version,
    /// Live bytes by slot, for the cleaner.
    live: Box<[u64]>,
}

impl Log {
    /// A log whose first segment has id 1.
    ///
    /// # Errors
    /// If segments of that size can't be, or there is no memory for the first.
    pub fn new(config: LogConfig, memory: SegmentMemory) -> Result<Self, LogError> {
        Self::starting_at(config, memory, SegmentId(1))
    }

    /// A log whose first segment has id `first`.
    ///
    /// # Errors
    /// If segments of that size can't be, or there is no memory for the first.
    pub fn starting_at(
        config: LogConfig,
        memory: SegmentMemory,
        first: SegmentId,
    ) -> Result<Self, LogError> {
        let size = config.segment_size as usize;
        if size != memory.slot_size() || size > SEGMENT_SIZE || size < fixed_len(1) * 2 {
            let (segment_size, slot_size) = (config.segment_size, memory.slot_size());
            return Err(LogError::Size {
                segment_size,
                slot_size,
            });
        }
        let slots = memory.slots();
        let durability = Arc::new(Durability::new(slots));
        let appender = memory.claim().ok_or(LogError::NoMemory)?;
        durability.opened(appender.slot(), first);
        let max_segments = config.max_segments.min(MAX_SEGMENTS_PER_LOG).min(slots);
        let mut log = Self {
            config: LogConfig {
                max_segments,
                ..config
            },
            memory,
            durability,
            head: Head::new(first, appender, config.key.as_ref()),
            previous: None,
            closed: BTreeMap::new(),
            next: SegmentId(first.0 + 1),
            safe_version: Version(1),
            live: vec![0; slots].into(),
        };
        log.begin_head();
        log.append_active(SegmentId(0));
        Ok(log)
    }

    /// Appends a group of 1 to [`MAX_GROUP_ENTRIES`] entries to the head, whole, opening a new head
    /// if the log then has at most `budget` segments. Does not guarantee that it is durable.
    ///
    /// # Errors
    /// See [`AppendError`].
    #[inline]
    pub fn append(
        &mut self,
        group: &[NewEntry<'_>],
        budget: usize,
    ) -> Result<Appended, AppendError> {
        let len: usize = group.iter().map(NewEntry::encoded_len).sum();
        if len > self.room() {
            self.roll(len, budget)?;
        }
        let slot = self.head.slot();
        let mut references = [None; MAX_GROUP_ENTRIES];
        self.head.append(group, len, |number, at| {
            references[number] = Some(Reference::new(slot, at as usize));
        });
        if !self.is_replicated() {
            self.durability.head_is_durable(slot, self.head.length());
        }
        Ok(Appended {
            references,
            segment: self.head.id,
            end: self.appended_position(),
        })
    }

    /// The segment that takes appends.
    #[must_use]
    pub fn head(&self) -> SegmentId {
        self.head.id
    }

    /// The head before it, if that is sealed but not durably closed yet.
    #[must_use]
    pub fn previous_head(&self) -> Option<SegmentId> {
        self.previous.as_ref().map(|previous| previous.id)
    }

    /// All segments, in the order of their ids.
    pub fn segments(&self) -> impl Iterator<Item = SegmentId> + '_ {
        self.closed
            .keys()
            .copied()
            .chain(self.previous_head())
            .chain([self.head.id])
    }

    /// How many segments the log has.
    #[must_use]
    pub fn segment_count(&self) -> usize {
        self.closed.len() + usize::from(self.previous.is_some()) + 1
    }

    /// What a segment is, if it is in the log.
    #[must_use]
    pub fn info(&self, id: SegmentId) -> Option<SegmentInfo> {
        match self.open_head(id) {
            Some(head) => Some(head.info()),
            None => self.closed.get(&id).map(ClosedSegment::info),
        }
    }

    /// The bytes `range` of a segment, if the log has them.
    #[must_use]
    pub fn bytes<'g>(
        &'g self,
        guard: &'g Guard,
        id: SegmentId,
        range: Range<u32>,
    ) -> Option<&'g [u8]> {
        let slot = self.info(id)?.slot;
        self.memory
            .slice(guard, slot, range.start as usize..range.end as usize)
    }

    /// Length and certificate, under `epoch`, of all that is appended to one of the two heads; no
    /// certificate in a log without a key.
    ///
    /// # Panics
    /// If `id` is not one of the heads.
    pub fn certify(&mut self, id: SegmentId, epoch: ReplicationEpoch) -> (u32, Certificate) {
        let LogConfig {
            cluster, master, ..
        } = self.config;
        let head = match &mut self.previous {
            Some(previous) if previous.id == id => previous,
            _ => &mut self.head,
        };
        assert_eq!(head.id, id, "only heads are certified anew");
        let certificate = head.certify(&self.memory, |length| Claim {
            cluster,
            master,
            segment: id,
            kind: SegmentKind::Head,
            epoch,
            length,
            closed: false,
        });
        (head.length(), certificate)
    }

    /// The first `length` bytes of a segment are on all its backups. Of the closed ones only their
    /// order in the log is of interest, and all before a head's durable bytes is durable.
    pub fn set_durable(&mut self, id: SegmentId, length: u32) {
        if let Some(head) = self.open_head(id) {
            assert!(
                length <= head.length(),
                "what was not appended can't be durable"
            );
            self.durability.head_is_durable(head.slot(), length);
        }
    }

    /// The head before the current one is closed on all its backups: appends the active mark.
    /// Nothing happens if that is known already.
    pub fn predecessor_closed(&mut self, id: SegmentId) {
        let Some(previous) = self.previous.take_if(|previous| previous.id == id) else {
            return;
        };
        self.durability
            .head_is_durable(previous.slot(), previous.length());
        let (id, closed) = previous.close();
        self.closed.insert(id, closed);
        self.append_active(id);
    }

    /// Where a head's active mark ends, once it is appended.
    #[must_use]
    pub fn active_end(&self, id: SegmentId) -> Option<u32> {
        self.open_head(id)?.active_end
    }

    /// Where the next group will be, at the earliest.
    #[must_use]
    #[inline]
    pub fn appended_position(&self) -> LogPosition {
        LogPosition::new(self.head.id, self.head.length())
    }

    /// What of the log is durable, for readers.
    #[must_use]
    pub fn durability(&self) -> &Arc<Durability> {
        &self.durability
    }

    /// The memory that the segments are in.
    #[must_use]
    pub fn memory(&self) -> &SegmentMemory {
        &self.memory
    }

    /// Whether there are backups to wait for.
    #[must_use]
    #[inline]
    pub fn is_replicated(&self) -> bool {
        self.config.key.is_some()
    }

    /// Versions of new keys are at least this.
    #[must_use]
    #[inline]
    pub fn safe_version(&self) -> Version {
        self.safe_version
    }

    /// Makes the safe version at least `version`. Written at the front of each head from now on; the
    /// caller appends something that proves it for the segments until then.
    #[inline]
    pub(super) fn raise_safe_version(&mut self, version: Version) {
        self.safe_version = self.safe_version.max(version);
    }

    /// Bytes that can be appended to the head.
    #[must_use]
    #[inline]
    pub(super) fn room(&self) -> usize {
        let kept = if self.head.active_end.is_none() {
            ACTIVE_LEN
        } else {
            0
        };
        self.head.left().saturating_sub(kept)
    }

    /// Bytes that groups can take of a fresh head, when the log has at most `segments` segments.
    #[must_use]
    #[inline]
    pub(super) fn fresh_room(&self, segments: usize) -> usize {
        (self.config.segment_size as usize).saturating_sub(fixed_len(segments))
    }

    /// Bytes of a segment.
    #[must_use]
    #[inline]
    pub fn segment_size(&self) -> usize {
        self.config.segment_size as usize
    }

    /// Segments that the log may have at most.
    #[must_use]
    #[inline]
    pub(super) fn max_segments(&self) -> usize {
        self.config.max_segments
    }

    /// The segment in which the entry at `reference` stands.
    #[must_use]
    #[inline]
    pub(super) fn segment_of(&self, reference: Reference) -> SegmentId {
        self.durability.segment_in(reference.slot())
    }

    /// Bytes of entries that count in the segment of `slot`.
    #[inline]
    pub(super) fn live_mut(&mut self, reference: Reference) -> &mut u64 {
        &mut self.live[reference.slot().0 as usize]
    }

    /// Bytes of entries in a segment that count.
    #[must_use]
    pub fn live_bytes(&self, id: SegmentId) -> Option<u64> {
        self.info(id).map(|info| self.live[info.slot.0 as usize])
    }

    fn open_head(&self, id: SegmentId) -> Option<&Head> {
        [Some(&self.head), self.previous.as_ref()]
            .into_iter()
            .flatten()
            .find(|head| head.id == id)
    }

    /// Opens a new head for a group of `len` bytes; the one that was the head is sealed before.
    #[cold]
    fn roll(&mut self, len: usize, budget: usize) -> Result<(), AppendError> {
        let segments = self.segment_count() + 1;
        if len > self.fresh_room(segments) {
            return Err(AppendError::TooLarge);
        }
        if self.previous.is_some() {
            return Err(AppendError::Rolling);
        }
        if segments > budget.min(self.config.max_segments) {
            return Err(AppendError::Full);
        }
        let appender = self.memory.claim().ok_or(AppendError::Full)?;
        self.seal_head();
        let id = self.next;
        self.next = SegmentId(id.0 + 1);
        self.durability.opened(appender.slot(), id);
        self.live[appender.slot().0 as usize] = 0;
        let head = Head::new(id, appender, self.config.key.as_ref());
        let sealed = std::mem::replace(&mut self.head, head);
        let sealed_id = sealed.id;
        self.previous = Some(sealed);
        self.begin_head();
        if !self.is_replicated() {
            self.predecessor_closed(sealed_id);
        }
        Ok(())
    }

    fn seal_head(&mut self) {
        let LogConfig {
            cluster, master, ..
        } = self.config;
        let id = self.head.id;
        let certificate = self.head.certify(&self.memory, |length| {
            Claim::closed(cluster, master, id, SegmentKind::Head, length)
        });
        self.head.sealed = Some(certificate);
    }

    /// Appends what every head begins with.
    fn begin_head(&mut self) {
        let header = NewEntry::SegmentHeader(SegmentHeader {
            kind: SegmentKind::Head,
            cluster: self.config.cluster,
            master: self.config.master,
            segment: self.head.id,
            size: self.config.segment_size,
        });
        let items = self.digest();
        let entries = [
            header,
            NewEntry::Digest(&items),
            NewEntry::SafeVersion(self.safe_version),
        ];
        self.append_own(&entries);
    }

    fn digest(&self) -> Vec<DigestItem> {
        let closed = self
            .closed
            .iter()
            .map(|(id, segment)| segment.digest_item(*id));
        let previous = self.previous.iter().map(|head| DigestItem {
            segment: head.id,
            length: head.length(),
            certificate: head
                .sealed
                .expect("sealed before the next head's digest is written"),
        });
        let forgotten = mutants::active(Mutant::DigestForgetsSegment);
        let own = DigestItem {
            segment: self.head.id,
            length: 0,
            certificate: Certificate::NONE,
        };
        closed
            .chain(previous.filter(|_| !forgotten))
            .chain([own])
            .collect()
    }

    fn append_active(&mut self, previous: SegmentId) {
        self.append_own(&[NewEntry::Active(previous)]);
        self.head.active_end = Some(self.head.length());
    }

    /// Appends entries of the log's own making, for which there is always room.
    fn append_own(&mut self, entries: &[NewEntry<'_>]) {
        let len = entries.iter().map(NewEntry::encoded_len).sum();
        self.head.append(entries, len, |_, _| ());
        if !self.is_replicated() {
            self.durability
                .head_is_durable(self.head.slot(), self.head.length());
        }
    }
}

const ACTIVE_LEN: usize = ramkeep_wire::entry::HEADER_LEN + 8;

/// Bytes at the front of a head in a log of `segments` segments, its active mark included.
fn fixed_len(segments: usize) -> usize {
    const DIGEST_ITEM_LEN: usize = 8 + 4 + Certificate::LEN;
    const SEGMENT_HEADER_LEN: usize = ramkeep_wire::entry::HEADER_LEN + 40;
    const SAFE_VERSION_LEN: usize = ramkeep_wire::entry::HEADER_LEN + 8;
    SEGMENT_HEADER_LEN
        + (ramkeep_wire::entry::HEADER_LEN + 4 + segments * DIGEST_ITEM_LEN)
        + SAFE_VERSION_LEN
        + ACTIVE_LEN
}
