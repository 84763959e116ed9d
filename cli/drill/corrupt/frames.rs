//! Frames of a backup that runs, through its file: the mapping is shared, so that what is written to
//! the file is what the backup has.
//!
//! # Invariants
//! 1. Only bytes under a certificate are damaged: others prove nothing, and may yet be written.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use ramkeep_backup::layout::{
    FRAME_FILE, Geometry, HEADER, Header, SUPERBLOCK_AREA, Slot, Superblock,
};
use ramkeep_wire::{ReplicationEpoch, SegmentId, ServerId};

use crate::drill::values::Random;
use crate::failure::Failure;

/// Places in a replica at which a bit is flipped.
const FLIPS: u64 = 3;

/// The frame file of a backup.
#[derive(Debug)]
pub(super) struct FrameFile {
    file: File,
    geometry: Geometry,
}

/// A replica in a frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    frame: u32,
    slot: Slot,
}

/// A frame as it was once, header page and contents.
#[derive(Debug)]
pub(super) struct Saved {
    frame: u32,
    pub(super) segment: SegmentId,
    pub(super) length: u32,
    bytes: Vec<u8>,
}

impl Held {
    pub(super) fn segment(&self) -> SegmentId {
        self.slot.segment
    }

    pub(super) fn epoch(&self) -> ReplicationEpoch {
        self.slot.epoch
    }

    pub(super) fn is_closed(&self) -> bool {
        self.slot.closed
    }
}

impl FrameFile {
    /// Of the backup with this directory.
    pub(super) fn open(directory: &Path) -> Result<Self, Failure> {
        let path = directory.join(FRAME_FILE);
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let mut area = vec![0; SUPERBLOCK_AREA];
        file.read_exact_at(&mut area, 0)?;
        let (superblock, _) = Superblock::choose(&area)
            .map_err(|error| Failure::new(error).within(path.display()))?;
        Ok(Self {
            file,
            geometry: superblock.geometry,
        })
    }

    /// The complete replicas of that master.
    pub(super) fn replicas_of(&self, master: ServerId) -> Result<Vec<Held>, Failure> {
        let mut found = Vec::new();
        let mut page = vec![0; HEADER];
        for frame in 0..self.geometry.frames() {
            self.file.read_exact_at(&mut page, self.at(frame))?;
            let state = Header::read(&page, self.geometry.segment_size()).state;
            if let Some((slot, _)) = state.filter(|(slot, _)| slot.master == master) {
                found.push(Held { frame, slot });
            }
        }
        Ok(found)
    }

    /// Flips a few bits of a replica.
    pub(super) fn damage(&self, held: &Held, random: &mut Random) -> Result<(), Failure> {
        // The same bit twice would be none.
        let part = u64::from(held.slot.length) / FLIPS;
        for flip in 0..FLIPS.min(u64::from(held.slot.length)) {
            let offset = flip * part + random.next() % part.max(1);
            let at = self.at(held.frame) + HEADER as u64 + offset;
            let mut byte = [0];
            self.file.read_exact_at(&mut byte, at)?;
            byte[0] ^= 1 << (random.next() % 8);
            self.file.write_all_at(&byte, at)?;
        }
        Ok(())
    }

    /// Copies a frame as it is.
    pub(super) fn save(&self, held: &Held) -> Result<Saved, Failure> {
        let mut bytes = vec![0; self.geometry.frame_len()];
        self.file.read_exact_at(&mut bytes, self.at(held.frame))?;
        // Both slots were perhaps rewritten meanwhile; what counts is what the copy says.
        let header = Header::read(&bytes[..HEADER], self.geometry.segment_size());
        let Some((slot, _)) = header.state else {
            return Err(Failure::new("a frame was freed while it was copied"));
        };
        Ok(Saved {
            frame: held.frame,
            segment: slot.segment,
            length: slot.length,
            bytes,
        })
    }

    /// Makes a frame what it was.
    pub(super) fn bring_back(&self, saved: &Saved) -> Result<(), Failure> {
        Ok(self.file.write_all_at(&saved.bytes, self.at(saved.frame))?)
    }

    fn at(&self, frame: u32) -> u64 {
        self.geometry.frame_at(frame) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ramkeep_backup::layout::{PAGE, SUPERBLOCK_SLOT};
    use ramkeep_wire::{BootId, Certificate, ClusterId, ReplicationEpoch, SegmentKind};

    const LENGTH: u32 = 100;

    /// Two frames, the second with a replica of server 7.
    fn directory() -> tempfile::TempDir {
        let geometry = Geometry::new(2, PAGE as u32).unwrap();
        let superblock = Superblock {
            sequence: 1,
            cluster: ClusterId([1; 16]),
            server: ServerId(2),
            boot: BootId([2; 16]),
            lease_us: 1,
            geometry,
        };
        let slot = Slot {
            sequence: 1,
            master: ServerId(7),
            segment: SegmentId(3),
            epoch: ReplicationEpoch(1),
            length: LENGTH,
            boot: BootId([2; 16]),
            kind: SegmentKind::Head,
            closed: true,
            certificate: Certificate {
                algorithm: 1,
                hash: [3; 32],
            },
        };
        let mut bytes = vec![0; geometry.file_len()];
        let put = |bytes: &mut [u8], at: usize, what: &[u8]| {
            bytes[at..at + what.len()].copy_from_slice(what);
        };
        put(&mut bytes, SUPERBLOCK_SLOT, &superblock.to_bytes());
        put(&mut bytes, geometry.frame_at(1), &slot.to_bytes());
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(FRAME_FILE), bytes).unwrap();
        directory
    }

    #[test]
    fn a_replica_is_found_damaged_under_its_certificate_and_brought_back() {
        let directory = directory();
        let file = FrameFile::open(directory.path()).unwrap();
        assert!(file.replicas_of(ServerId(8)).unwrap().is_empty());
        let held = file.replicas_of(ServerId(7)).unwrap();
        let [held] = &held[..] else {
            panic!("{held:?}")
        };
        assert_eq!((held.segment(), held.is_closed()), (SegmentId(3), true));
        let saved = file.save(held).unwrap();
        file.damage(held, &mut Random(1)).unwrap();
        let after = file.save(held).unwrap();
        let changed: Vec<usize> = (0..saved.bytes.len())
            .filter(|at| saved.bytes[*at] != after.bytes[*at])
            .collect();
        assert_eq!(changed.len() as u64, FLIPS);
        let certified = HEADER..HEADER + LENGTH as usize;
        assert!(
            changed.iter().all(|at| certified.contains(at)),
            "{changed:?}"
        );
        file.bring_back(&saved).unwrap();
        assert_eq!(file.save(held).unwrap().bytes, saved.bytes);
    }
}
