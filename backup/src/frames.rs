//! Frames: taking, filling, certifying and freeing them, and finding them again.
//!
//! # Invariants
//! 1. Bytes first, then the inactive certificate slot, then its sequence number; whoever
//!    acknowledges does so after [`Frames::certify`] has returned (SAFETY 15).
//! 2. Bytes under the newest certificate are never written again while it holds.
//! 3. A free frame has no slot that counts. Freeing clears the older slot first, so that a kill in
//!    between can't bring back an older state of the replica.

use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::{
    BootId, Certificate, ClusterId, ReplicationEpoch, SegmentId, SegmentKind, ServerId,
};

use crate::layout::{
    CERTIFICATE_SLOT, Geometry, HEADER, Header, LayoutError, MAX_SEQUENCE, SLOT_SEQUENCE,
    SUPERBLOCK_SEQUENCE, SUPERBLOCK_SLOT, Slot, Superblock,
};
use crate::store::{Area, FrameStore};

/// Why frames can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FramesError {
    /// The superblock is not one, or is damaged.
    #[error("superblock: {0}")]
    Superblock(#[from] LayoutError),
    /// Frames of another size, or more of them than are wanted now.
    #[error(
        "it has {} frames of {} bytes, wanted are {} of {}: only more frames can be had",
        found.frames(), found.segment_size(), wanted.frames(), wanted.segment_size()
    )]
    Geometry {
        /// What the superblock says.
        found: Geometry,
        /// What was asked for.
        wanted: Geometry,
    },
    /// The frames hold replicas of another cluster.
    #[error("the frames belong to cluster {found}, not to {wanted}")]
    OtherCluster {
        /// What the superblock says.
        found: ClusterId,
        /// What was asked for.
        wanted: ClusterId,
    },
    /// The disk did not take the superblock; whose frames these are after a reboot is unknown.
    #[error("the superblock could not be written to disk: {0}")]
    Sync(std::io::ErrorKind),
}

/// A frame that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FrameId(pub(crate) u32);

/// What a certificate slot is to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Certified {
    /// The replica's epoch.
    pub epoch: ReplicationEpoch,
    /// Bytes under the certificate.
    pub length: u32,
    /// Nothing follows.
    pub closed: bool,
    /// Proof of them.
    pub certificate: Certificate,
}

/// A replica's name and kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Whose segment.
    pub master: ServerId,
    /// Which.
    pub segment: SegmentId,
    /// What it is for.
    pub kind: SegmentKind,
}

/// What was in the store when it was opened.
#[derive(Debug)]
pub struct Found {
    /// The superblock as it was.
    pub superblock: Superblock,
    /// Complete replicas, in order of their frames.
    pub replicas: Vec<(FrameId, Slot)>,
    /// Frames with a slot that was torn by a kill or is damaged.
    pub damaged: u32,
}

/// All frames of one store.
#[derive(Clone, Debug)]
pub struct Frames<S> {
    store: S,
    boot: BootId,
    superblock: Superblock,
    superblock_slot: usize,
    /// The last sequence number used in a certificate slot.
    sequence: u64,
    /// Per frame, the slot that holds its state.
    active: Vec<u8>,
    /// The last freed is taken first: its memory is there already.
    pub(crate) free: Vec<u32>,
}

impl<S: FrameStore> Frames<S> {
    /// Writes the first superblock of an empty store.
    ///
    /// # Errors
    /// [`LayoutError`] if the store is not empty.
    pub fn format(store: &mut S, boot: BootId) -> Result<(), FramesError> {
        match Superblock::choose(store.bytes(Area::Superblock)) {
            Err(LayoutError::Empty) => {}
            Ok(_) => return Err(LayoutError::Impossible("superblock in a new file").into()),
            Err(error) => return Err(error.into()),
        }
        let first = Superblock {
            sequence: 1,
            cluster: ClusterId::default(),
            server: ServerId(0),
            boot,
            lease_us: 0,
            geometry: store.geometry(),
        };
        write_superblock(store, 0, &first);
        Ok(())
    }

    /// Takes over a store that has been formatted, on a machine in its boot `boot`. A store with
    /// more frames than its superblock says has grown.
    ///
    /// # Errors
    /// [`FramesError`] if it is not ours to use.
    pub fn open(store: S, boot: BootId) -> Result<(Self, Found), FramesError> {
        let (superblock, superblock_slot) = Superblock::choose(store.bytes(Area::Superblock))?;
        let wanted = store.geometry();
        check_growth(superblock.geometry, wanted)?;
        let mut frames = Self {
            store,
            boot,
            superblock,
            superblock_slot,
            sequence: 0,
            active: vec![1; wanted.frames() as usize],
            free: Vec::with_capacity(wanted.frames() as usize),
        };
        let found = frames.find();
        if wanted != superblock.geometry {
            frames.rewrite(Superblock {
                geometry: wanted,
                ..superblock
            });
        }
        Ok((frames, found))
    }

    /// Reads every header page; frames without a state are free.
    fn find(&mut self) -> Found {
        let mut found = Found {
            superblock: self.superblock,
            replicas: Vec::new(),
            damaged: 0,
        };
        let geometry = self.geometry();
        for index in (0..geometry.frames()).rev() {
            let page = &self.store.bytes(Area::Frame(index))[..HEADER];
            let header = Header::read(page, geometry.segment_size());
            found.damaged += u32::from(header.damaged);
            if let Some((slot, active)) = header.state {
                self.active[index as usize] = active as u8;
                self.sequence = self.sequence.max(slot.sequence);
                found.replicas.push((FrameId(index), slot));
            } else {
                self.free.push(index);
            }
            // A slot that does not count may have a number that must not be used again.
            self.sequence = self.sequence.max(self.torn_sequence(index));
        }
        found.replicas.reverse();
        found
    }

    /// The highest number in a frame's slots that may once have counted.
    fn torn_sequence(&self, index: u32) -> u64 {
        let numbers = [0, 1].map(|slot| self.slot_sequence(index, slot));
        let possible = numbers.into_iter().filter(|number| *number < MAX_SEQUENCE);
        possible.max().unwrap_or(0)
    }

    fn slot_sequence(&self, index: u32, slot: usize) -> u64 {
        let at = slot * CERTIFICATE_SLOT + SLOT_SEQUENCE;
        let bytes = &self.store.bytes(Area::Frame(index))[at..];
        bytes
            .first_chunk()
            .map_or(0, |chunk| u64::from_le_bytes(*chunk))
    }

    /// How many frames of which size.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.store.geometry()
    }

    /// The boot of the machine.
    #[must_use]
    pub fn boot(&self) -> BootId {
        self.boot
    }

    /// Whose frames these are.
    #[must_use]
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Frames that hold nothing.
    #[must_use]
    pub fn free_count(&self) -> usize {
        self.free.len()
    }

    /// Where the bytes are.
    #[must_use]
    pub fn store(&self) -> &S {
        &self.store
    }

    /// Where the bytes are, to damage or limit them in a test.
    pub fn store_mut(&mut self) -> &mut S {
        &mut self.store
    }

    /// Gives the store back, as a kill leaves it.
    #[must_use]
    pub fn into_store(self) -> S {
        self.store
    }

    /// States whose frames these are from now on, and waits until a disk has it.
    ///
    /// # Errors
    /// [`FramesError::OtherCluster`] if they hold another cluster's replicas, [`FramesError::Sync`]
    /// if the disk fails.
    pub fn assign(
        &mut self,
        cluster: ClusterId,
        server: ServerId,
        lease_us: u32,
    ) -> Result<(), FramesError> {
        let found = self.superblock.cluster;
        if found != ClusterId::default() && found != cluster {
            return Err(FramesError::OtherCluster {
                found,
                wanted: cluster,
            });
        }
        self.rewrite(Superblock {
            cluster,
            server,
            lease_us,
            boot: self.boot,
            ..self.superblock
        });
        self.store
            .sync(Area::Superblock)
            .map_err(|error| FramesError::Sync(error.kind()))
    }

    fn rewrite(&mut self, superblock: Superblock) {
        self.superblock = Superblock {
            sequence: self.superblock.sequence + 1,
            ..superblock
        };
        self.superblock_slot = 1 - self.superblock_slot;
        write_superblock(&mut self.store, self.superblock_slot, &self.superblock);
    }

    /// Takes a free frame; `None` if there is none, or no memory for one.
    pub fn take(&mut self) -> Option<FrameId> {
        let index = *self.free.last()?;
        if self.store.reserve(Area::Frame(index)).is_err() {
            return None;
        }
        self.free.pop();
        // Left by a kill or by damage; a new replica must not meet it.
        self.clear(index);
        Some(FrameId(index))
    }

    /// Copies bytes to `offset` of a frame's contents.
    #[inline]
    pub fn put(&mut self, frame: FrameId, offset: u32, bytes: &[u8]) {
        self.store
            .write(Area::Frame(frame.0), HEADER + offset as usize, bytes);
    }

    /// Makes `certified` the state of a frame whose bytes have been put.
    #[inline]
    pub fn certify(&mut self, frame: FrameId, identity: &Identity, certified: &Certified) {
        self.sequence += 1;
        let slot = Slot {
            sequence: self.sequence,
            master: identity.master,
            segment: identity.segment,
            epoch: certified.epoch,
            length: certified.length,
            boot: self.boot,
            kind: identity.kind,
            closed: certified.closed,
            certificate: certified.certificate,
        };
        if mutants::active(Mutant::AckBeforeCertificate) {
            return;
        }
        let bytes = slot.to_bytes();
        let active = &mut self.active[frame.0 as usize];
        if !mutants::active(Mutant::CertificateInPlace) {
            *active = 1 - *active;
        }
        let (area, at) = (
            Area::Frame(frame.0),
            usize::from(*active) * CERTIFICATE_SLOT,
        );
        const BODY: usize = SLOT_SEQUENCE + 8;
        self.store.write(area, at + BODY, &bytes[BODY..]);
        self.store
            .store_release(area, at + SLOT_SEQUENCE, self.sequence);
    }

    /// A frame's contents, as long as a segment; what of them counts is its replica's business.
    #[inline]
    #[must_use]
    pub fn contents(&self, frame: FrameId) -> &[u8] {
        &self.store.bytes(Area::Frame(frame.0))[HEADER..]
    }

    /// Frees a frame.
    pub fn free(&mut self, frame: FrameId) {
        self.clear(frame.0);
        debug_assert!(!self.free.contains(&frame.0), "a frame was freed twice");
        self.free.push(frame.0);
    }

    /// No slot counts any more; the newest goes last (invariant 3).
    fn clear(&mut self, index: u32) {
        let active = usize::from(self.active[index as usize]);
        for slot in [1 - active, active] {
            if self.slot_sequence(index, slot) != 0 {
                let at = slot * CERTIFICATE_SLOT + SLOT_SEQUENCE;
                self.store.store_release(Area::Frame(index), at, 0);
            }
        }
    }
}

/// Whether a file of `found` can be used as one of `wanted`: it may only grow.
pub(crate) fn check_growth(found: Geometry, wanted: Geometry) -> Result<(), FramesError> {
    if found.segment_size() == wanted.segment_size() && found.frames() <= wanted.frames() {
        Ok(())
    } else {
        Err(FramesError::Geometry { found, wanted })
    }
}

fn write_superblock<S: FrameStore>(store: &mut S, slot: usize, superblock: &Superblock) {
    let at = slot * SUPERBLOCK_SLOT;
    let bytes = superblock.to_bytes();
    const AFTER: usize = SUPERBLOCK_SEQUENCE + 8;
    let area = Area::Superblock;
    store.write(area, at, &bytes[..SUPERBLOCK_SEQUENCE]);
    store.write(area, at + AFTER, &bytes[AFTER..]);
    store.store_release(area, at + SUPERBLOCK_SEQUENCE, superblock.sequence);
}
