//! The backup: replicas of other masters' segments, and the leases that go with them. Pure.
//!
//! # Invariants
//! 1. What is acknowledged as complete is in its frame, under its certificate, before the
//!    acknowledgement exists; a kill at any moment leaves the last complete state (SAFETY 15).
//! 2. A copy under way is invisible: only a complete state is in an inventory or fetched (SAFETY 3).
//! 3. A fenced master changes nothing here, and frees nothing (DESIGN, invariant 6).
//! 4. Recovery is answered only once the master can hold no lease granted here (SAFETY 5).
//! 5. A replica from before a restart stays as it is until its master has completed a new copy here
//!    or has freed it.
//! 6. One of so many frames is kept for recovery: it is taken only while replicas of a fenced master are
//!    here (SAFETY 24).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use ramkeep_wire::coordinator::BackupStats;
use ramkeep_wire::limits::KEPT_OF_FRAMES;
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::replicate::{Replicate, ReplicateAck, ReplicateStatus, flags};
use ramkeep_wire::{BootId, ClusterId, Micros, ReplicationEpoch, SegmentId, ServerId};

use crate::frames::{FrameId, Frames, FramesError, Identity};
use crate::layout::Slot;
use crate::masters::Masters;
use crate::replica::{Replica, Verdict};
use crate::store::{Area, FrameStore};

const KNOWN_FLAGS: u8 = flags::OPEN | flags::CLOSED | flags::COMPLETE | flags::LEASE;

/// Names a replica.
pub(crate) type Name = (ServerId, SegmentId);

/// A replica from before this process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inherited {
    pub(crate) frame: FrameId,
    pub(crate) slot: Slot,
}

/// The backup's state machine.
#[derive(Clone, Debug)]
pub struct Backup<S> {
    pub(crate) frames: Frames<S>,
    pub(crate) replicas: BTreeMap<Name, Replica>,
    pub(crate) inherited: BTreeMap<Name, Inherited>,
    pub(crate) masters: Masters,
    server: Option<ServerId>,
    former: ServerId,
    damaged: u32,
}

impl<S: FrameStore> Backup<S> {
    /// Takes over a formatted store at `now`. Nothing is granted until [`assign`](Self::assign).
    ///
    /// # Errors
    /// [`FramesError`] if the store is not ours to use.
    pub fn open(store: S, boot: BootId, now: Micros) -> Result<Self, FramesError> {
        let (mut frames, found) = Frames::open(store, boot)?;
        let mut inherited = BTreeMap::new();
        for (frame, slot) in found.replicas {
            let newer = Inherited { frame, slot };
            let older = inherited
                .get(&(slot.master, slot.segment))
                .is_some_and(|other: &Inherited| rank(&other.slot) > rank(&slot));
            if older {
                frames.free(frame);
            } else if let Some(other) = inherited.insert((slot.master, slot.segment), newer) {
                frames.free(other.frame);
            }
        }
        Ok(Self {
            frames,
            replicas: BTreeMap::new(),
            inherited,
            masters: Masters::new(now, found.superblock.lease_us),
            server: None,
            former: found.superblock.server,
            damaged: found.damaged,
        })
    }

    /// The server that used these frames before; enlistment names it, so that it is decided
    /// crashed (SAFETY 6).
    #[must_use]
    pub fn replaces(&self) -> Option<ServerId> {
        (self.former != ServerId(0)).then_some(self.former)
    }

    /// This server, once it is enlisted.
    #[must_use]
    pub fn server(&self) -> Option<ServerId> {
        self.server
    }

    /// The cluster these frames belong to, unless they are new.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterId> {
        let cluster = self.frames.superblock().cluster;
        (cluster != ClusterId::default()).then_some(cluster)
    }

    /// The boot of the machine, as given to [`open`](Self::open).
    #[must_use]
    pub fn boot(&self) -> BootId {
        self.frames.boot()
    }

    /// Frames found torn or damaged when the store was opened.
    #[must_use]
    pub fn damaged(&self) -> u32 {
        self.damaged
    }

    /// Enlistment is done: the frames are this server's, and leases are this long.
    ///
    /// # Errors
    /// [`FramesError`] if the frames hold another cluster's replicas, or the disk fails.
    pub fn assign(
        &mut self,
        cluster: ClusterId,
        server: ServerId,
        lease_us: u32,
    ) -> Result<(), FramesError> {
        self.frames.assign(cluster, server, lease_us)?;
        self.masters.set_lease(lease_us);
        self.server = Some(server);
        Ok(())
    }

    /// Whether a message may be heard that came over `master`'s connection number `link`: not once
    /// there was one over a later connection. The master takes what was on its way over the
    /// earlier one as lost, and a late freeing would take away what it has sent since.
    pub fn hears(&mut self, now: Micros, master: ServerId, link: u64) -> bool {
        self.masters.is_newest(now, master, link)
    }

    /// The master was decided crashed: it changes nothing here any more.
    pub fn fence(&mut self, master: ServerId) {
        self.masters.fence(master);
    }

    /// Whether a master is known here to have been decided crashed.
    #[must_use]
    pub fn has_fenced(&self, master: ServerId) -> bool {
        self.masters.is_fenced(master)
    }

    /// Frees every replica of a master that has been recovered, or never will be.
    pub fn free_master(&mut self, master: ServerId) {
        let whole = (master, SegmentId(0))..=(master, SegmentId(u64::MAX));
        let mut names: Vec<Name> = Vec::new();
        names.extend(self.replicas.range(whole.clone()).map(|(name, _)| *name));
        names.extend(self.inherited.range(whole).map(|(name, _)| *name));
        for name in names {
            self.free_replica(name);
        }
    }

    /// Frees a replica, new and inherited; nothing if there is none.
    pub(crate) fn free_replica(&mut self, name: Name) {
        if let Some(replica) = self.replicas.remove(&name) {
            self.frames.free(replica.frame);
        }
        self.free_inherited(name);
    }

    fn free_inherited(&mut self, name: Name) {
        if let Some(inherited) = self.inherited.remove(&name) {
            self.frames.free(inherited.frame);
        }
    }

    /// What is reported to the coordinator.
    #[must_use]
    pub fn stats(&self) -> BackupStats {
        let used = self.replicas.len() + self.inherited.len();
        BackupStats {
            frames: self.frames.geometry().frames(),
            used: used as u32,
            inherited: self.inherited.len() as u32,
            damaged: self.damaged,
            kept: self.kept_frames().min(self.frames.free_count()) as u32,
        }
    }

    /// Frames that may be taken.
    #[must_use]
    pub fn free_frames(&self) -> usize {
        self.frames.free_count()
    }

    /// Frames that are not given out now: those kept for recovery, unless something is left here that
    /// a recovery needs (SAFETY 24).
    fn kept_frames(&self) -> usize {
        let mut held = self.masters_held().into_iter();
        if held.any(|master| self.masters.is_fenced(master)) {
            return 0;
        }
        self.frames.geometry().frames() as usize / KEPT_OF_FRAMES
    }

    /// Where the bytes are.
    #[must_use]
    pub fn store(&self) -> &S {
        self.frames.store()
    }

    /// Where the bytes are, to damage or limit them in a test.
    pub fn store_mut(&mut self) -> &mut S {
        self.frames.store_mut()
    }

    /// Where a replica's bytes are, to damage them in a test.
    #[must_use]
    pub fn area_of(&self, master: ServerId, segment: SegmentId) -> Option<Area> {
        let name = (master, segment);
        let fresh = self.replicas.get(&name).map(|replica| replica.frame);
        let frame = fresh.or_else(|| Some(self.inherited.get(&name)?.frame))?;
        Some(Area::Frame(frame.0))
    }

    /// The store as a kill leaves it.
    #[must_use]
    pub fn into_store(self) -> S {
        self.frames.into_store()
    }

    /// Makes a replica what `master` wants it to be, received at `now`.
    pub fn handle_replicate(
        &mut self,
        now: Micros,
        master: ServerId,
        message: &Replicate<'_>,
    ) -> ReplicateAck {
        let mut ack = ReplicateAck {
            segment: message.segment,
            epoch: ReplicationEpoch(0),
            length: 0,
            status: ReplicateStatus::Refused,
            flags: 0,
            lease_us: 0,
        };
        let name = (master, message.segment);
        let fenced = self.masters.is_fenced(master);
        if fenced && !mutants::active(Mutant::HearFenced) {
            ack.status = ReplicateStatus::Fenced;
        } else if self.well_formed(master, message) {
            ack.status = self.replicate(name, message, &mut ack);
        } else if let Some(replica) = self.replicas.get(&name) {
            describe(replica, &mut ack);
        }
        if ack.status == ReplicateStatus::Done && message.has(flags::LEASE) && !fenced {
            ack.lease_us = self.masters.grant(now, master);
        }
        ack
    }

    /// Whether a message makes sense by itself.
    fn well_formed(&self, master: ServerId, message: &Replicate<'_>) -> bool {
        let end = (message.offset as usize).checked_add(message.bytes.len());
        let complete = message.has(flags::COMPLETE);
        master != ServerId(0)
            && message.segment != SegmentId(0)
            && message.flags & !KNOWN_FLAGS == 0
            && end == Some(message.length as usize)
            && message.length <= self.frames.geometry().segment_size()
            && (!complete || message.certificate.is_some())
            && (complete || !message.has(flags::CLOSED))
    }

    /// Carries out a well-formed message, and has `ack` say how the replica is then.
    fn replicate(
        &mut self,
        name: Name,
        message: &Replicate<'_>,
        ack: &mut ReplicateAck,
    ) -> ReplicateStatus {
        let kept = match self.replicas.contains_key(&name) {
            true => 0,
            false => self.kept_frames(),
        };
        let replica = match self.replicas.entry(name) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(_) if !message.has(flags::OPEN) => return ReplicateStatus::Unknown,
            Entry::Vacant(_) if self.frames.free_count() <= kept => {
                return ReplicateStatus::NoFrame;
            }
            Entry::Vacant(vacant) => {
                let Some(frame) = self.frames.take() else {
                    return ReplicateStatus::NoFrame;
                };
                let identity = Identity {
                    master: name.0,
                    segment: name.1,
                    kind: message.kind,
                };
                vacant.insert(Replica::new(frame, identity, message.epoch))
            }
        };
        let verdict = replica.judge(message, self.frames.contents(replica.frame));
        let status = match verdict {
            Verdict::Refuse(status) => status,
            Verdict::Gap => {
                replica.epoch = message.epoch;
                ReplicateStatus::Gap
            }
            Verdict::Apply { certify } => {
                apply(&mut self.frames, replica, message, certify);
                ReplicateStatus::Done
            }
        };
        describe(replica, ack);
        if matches!(verdict, Verdict::Apply { certify: Some(_) }) {
            self.free_inherited(name);
        }
        status
    }
}

/// Has an acknowledgement say how the replica is.
fn describe(replica: &Replica, ack: &mut ReplicateAck) {
    ack.epoch = replica.epoch;
    ack.length = replica.held;
    ack.flags = replica.flags();
}

/// Bytes first, then the certificate; what returns from here may be acknowledged.
#[inline]
fn apply<S: FrameStore>(
    frames: &mut Frames<S>,
    replica: &mut Replica,
    message: &Replicate<'_>,
    certify: Option<crate::frames::Certified>,
) {
    if message.length > replica.held {
        let known = replica.held - message.offset;
        frames.put(
            replica.frame,
            replica.held,
            &message.bytes[known as usize..],
        );
        replica.held = message.length;
    }
    replica.epoch = message.epoch;
    if let Some(certified) = certify {
        frames.certify(replica.frame, &replica.identity, &certified);
        // Bytes past a new certificate were a copy that the master has thought better of.
        replica.held = certified.length;
        replica.certified = Some(certified);
    }
}

/// Of two states of one replica the better one: a closed one can't be outdated.
fn rank(slot: &Slot) -> (bool, ReplicationEpoch, u32, u64) {
    (slot.closed, slot.epoch, slot.length, slot.sequence)
}
