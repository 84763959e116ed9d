//! Frames in a locked, mapped file: in tmpfs they outlive the process, on disk also the machine.
//!
//! # Invariants
//! 1. Only a free frame is lent out to be prepared, and only a frame that is here is taken.

use std::io;

use ramkeep_memory::{Region, RegionTaken, SharedFile};

use crate::layout::{Geometry, SUPERBLOCK_AREA};
use crate::store::{Area, FrameStore};

/// Frames in a [`SharedFile`].
#[derive(Debug)]
pub struct MappedStore {
    geometry: Geometry,
    superblock: Region,
    frames: Vec<MappedFrame>,
}

#[derive(Debug)]
struct MappedFrame {
    /// Missing while it is lent out.
    region: Option<Region>,
    prepared: bool,
}

/// A free frame on loan, to be prepared without holding up the backup.
#[derive(Debug)]
pub struct Spare {
    pub(crate) index: u32,
    region: Region,
    prepared: bool,
}

/// Bytes that are prepared at a time, between which others may run.
const PREPARE_STEP: usize = 256 << 10;

impl Spare {
    /// Has the system give the frame its memory, calling `pause` now and then. A frame that there
    /// is no memory for stays as it is.
    pub fn prepare(&mut self, pause: impl Fn()) {
        self.prepared = prepare(&mut self.region, pause).is_ok();
    }

    /// Whether its memory is there.
    #[must_use]
    pub fn is_prepared(&self) -> bool {
        self.prepared
    }
}

fn prepare(region: &mut Region, pause: impl Fn()) -> io::Result<()> {
    region.reserve()?;
    let len = region.len();
    for start in (0..len).step_by(PREPARE_STEP) {
        pause();
        region.populate(start..len.min(start + PREPARE_STEP));
    }
    Ok(())
}

impl MappedStore {
    /// Takes all of `file`, which must be as long as `geometry` says.
    ///
    /// # Errors
    /// [`RegionTaken`] if a part of the file is taken already, or the file is shorter.
    pub fn new(file: &SharedFile, geometry: Geometry) -> Result<Self, RegionTaken> {
        let superblock = file.region(0..SUPERBLOCK_AREA)?;
        let frames = (0..geometry.frames())
            .map(|index| {
                let start = geometry.frame_at(index);
                Ok(MappedFrame {
                    region: Some(file.region(start..start + geometry.frame_len())?),
                    prepared: false,
                })
            })
            .collect::<Result<_, RegionTaken>>()?;
        Ok(Self {
            geometry,
            superblock,
            frames,
        })
    }

    #[inline]
    fn region(&mut self, area: Area) -> &mut Region {
        match area {
            Area::Superblock => &mut self.superblock,
            Area::Frame(index) => self.frames[index as usize]
                .region
                .as_mut()
                .expect("a frame in use is not lent out"),
        }
    }

    pub(crate) fn is_prepared(&self, index: u32) -> bool {
        self.frames[index as usize].prepared
    }

    /// Lends out a free frame.
    pub(crate) fn lend(&mut self, index: u32) -> Option<Spare> {
        let frame = &mut self.frames[index as usize];
        Some(Spare {
            index,
            region: frame.region.take()?,
            prepared: frame.prepared,
        })
    }

    /// Takes back what was lent out.
    pub(crate) fn take_back(&mut self, spare: Spare) {
        self.frames[spare.index as usize] = MappedFrame {
            region: Some(spare.region),
            prepared: spare.prepared,
        };
    }
}

impl FrameStore for MappedStore {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    #[inline]
    fn bytes(&self, area: Area) -> &[u8] {
        match area {
            Area::Superblock => &self.superblock,
            Area::Frame(index) => self.frames[index as usize]
                .region
                .as_deref()
                .expect("a frame in use is not lent out"),
        }
    }

    #[inline]
    fn write(&mut self, area: Area, offset: usize, bytes: &[u8]) {
        self.region(area).write(offset, bytes);
    }

    #[inline]
    fn store_release(&mut self, area: Area, offset: usize, value: u64) {
        self.region(area).store_u64_release(offset, value);
    }

    fn reserve(&mut self, area: Area) -> io::Result<()> {
        let Area::Frame(index) = area else {
            return self.superblock.reserve();
        };
        if !self.is_prepared(index) {
            self.region(area).reserve()?;
            self.frames[index as usize].prepared = true;
        }
        Ok(())
    }

    fn sync(&mut self, area: Area) -> io::Result<()> {
        self.region(area).sync()
    }
}
