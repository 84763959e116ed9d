//! Frames in a locked, mapped file: in tmpfs they outlive the process, on disk also the machine.

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
    region: Region,
    reserved: bool,
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
                    region: file.region(start..start + geometry.frame_len())?,
                    reserved: false,
                })
            })
            .collect::<Result<_, RegionTaken>>()?;
        Ok(Self {
            geometry,
            superblock,
            frames,
        })
    }

    fn region(&mut self, area: Area) -> &mut Region {
        match area {
            Area::Superblock => &mut self.superblock,
            Area::Frame(index) => &mut self.frames[index as usize].region,
        }
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
            Area::Frame(index) => &self.frames[index as usize].region,
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
        let frame = &mut self.frames[index as usize];
        if !frame.reserved {
            frame.region.reserve()?;
            frame.reserved = true;
        }
        Ok(())
    }

    fn sync(&mut self, area: Area) -> io::Result<()> {
        self.region(area).sync()
    }
}
