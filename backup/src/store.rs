//! What frames are kept in: a few areas of bytes that outlive the process.
//!
//! # Invariants
//! 1. After a kill the areas hold what was stored before it, in the order of the calls: a
//!    [`store_release`](FrameStore::store_release) is there only if every write before it is.
//! 2. Areas never move or change size, and start at multiples of 8 bytes.

use std::io;

use crate::layout::{Geometry, SUPERBLOCK_AREA};

/// One area of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// The two superblock slots.
    Superblock,
    /// One frame: header page and contents.
    Frame(u32),
}

/// Bytes that outlive the process. Offsets past an area's end are a bug of the caller and panic.
pub trait FrameStore {
    /// The frames it has, each of [`Geometry::frame_len`] bytes.
    fn geometry(&self) -> Geometry;

    /// The bytes of an area.
    fn bytes(&self, area: Area) -> &[u8];

    /// Copies `bytes` to `offset` of an area.
    fn write(&mut self, area: Area, offset: usize, bytes: &[u8]);

    /// Stores a little-endian number, at a multiple of 8, after everything stored before.
    fn store_release(&mut self, area: Area, offset: usize, value: u64);

    /// Makes sure that there is room for an area, so that no write to it can fail.
    ///
    /// # Errors
    /// The system's, such as no space left.
    fn reserve(&mut self, area: Area) -> io::Result<()>;

    /// Waits until an area is on the disk below, if there is one.
    ///
    /// # Errors
    /// The system's.
    fn sync(&mut self, area: Area) -> io::Result<()>;
}

/// Frames in the process's own memory, for the simulator and for tests: whoever kills the backup
/// keeps the store and opens it again.
#[derive(Clone, Debug)]
pub struct MemoryStore {
    geometry: Geometry,
    superblock: Vec<u8>,
    /// A frame's bytes exist once it was reserved.
    frames: Vec<Vec<u8>>,
    /// What an untouched frame reads as.
    zeros: Vec<u8>,
    /// Bytes that may still be stored before the kill; `None` for no kill to come.
    left: Option<usize>,
    /// Frames that may still be reserved; `None` for no limit.
    room: Option<u32>,
}

impl MemoryStore {
    /// All zeros, as a new file is.
    #[must_use]
    pub fn new(geometry: Geometry) -> Self {
        Self {
            geometry,
            superblock: vec![0; SUPERBLOCK_AREA],
            frames: vec![Vec::new(); geometry.frames() as usize],
            zeros: vec![0; geometry.frame_len()],
            left: None,
            room: None,
        }
    }

    /// Kills the process after `bytes` more bytes are stored: what it stores later is lost. A
    /// number stored whole (`store_release`) is there whole or not at all.
    pub fn kill_after(&mut self, bytes: usize) {
        self.left = Some(bytes);
    }

    /// Another process has opened the store: bytes are stored again.
    pub fn revive(&mut self) {
        self.left = None;
    }

    /// The system has room for `frames` more frames.
    pub fn limit_room(&mut self, frames: u32) {
        self.room = Some(frames);
    }

    /// Everything is lost, as memory is when its machine loses power.
    pub fn lose_everything(&mut self) {
        *self = Self::new(self.geometry);
    }

    /// One area becomes what it was in `older`: pages come back old after a machine's reboot.
    pub fn bring_back(&mut self, older: &Self, area: Area) {
        match area {
            Area::Superblock => self.superblock.clone_from(&older.superblock),
            Area::Frame(index) => {
                self.frames[index as usize].clone_from(&older.frames[index as usize]);
            }
        }
    }

    /// Flips one bit of an area that was stored to.
    pub fn flip(&mut self, area: Area, offset: usize, bit: u8) {
        self.area_mut(area)[offset] ^= 1 << (bit % 8);
    }

    fn area_mut(&mut self, area: Area) -> &mut [u8] {
        match area {
            Area::Superblock => &mut self.superblock,
            Area::Frame(index) => {
                let frame = &mut self.frames[index as usize];
                if frame.is_empty() {
                    frame.resize(self.geometry.frame_len(), 0);
                }
                frame
            }
        }
    }

    /// How many of `wanted` bytes are stored before the kill.
    fn spend(&mut self, wanted: usize, whole: bool) -> usize {
        let Some(left) = &mut self.left else {
            return wanted;
        };
        let granted = match wanted.min(*left) {
            part if whole && part < wanted => 0,
            part => part,
        };
        // Once something is lost, so is everything after it.
        *left = if granted < wanted { 0 } else { *left - wanted };
        granted
    }
}

impl FrameStore for MemoryStore {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn bytes(&self, area: Area) -> &[u8] {
        match area {
            Area::Superblock => &self.superblock,
            Area::Frame(index) => match self.frames[index as usize].as_slice() {
                [] => &self.zeros,
                frame => frame,
            },
        }
    }

    fn write(&mut self, area: Area, offset: usize, bytes: &[u8]) {
        let granted = self.spend(bytes.len(), false);
        let end = offset + bytes.len();
        let target = &mut self.area_mut(area)[offset..end];
        target[..granted].copy_from_slice(&bytes[..granted]);
    }

    fn store_release(&mut self, area: Area, offset: usize, value: u64) {
        assert!(offset.is_multiple_of(8), "number at odd offset {offset}");
        if self.spend(8, true) == 8 {
            self.area_mut(area)[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        }
    }

    fn reserve(&mut self, area: Area) -> io::Result<()> {
        if let (Area::Frame(index), Some(room)) = (area, &mut self.room)
            && self.frames[index as usize].is_empty()
        {
            *room = room
                .checked_sub(1)
                .ok_or_else(|| io::Error::from(io::ErrorKind::StorageFull))?;
        }
        self.area_mut(area);
        Ok(())
    }

    fn sync(&mut self, _area: Area) -> io::Result<()> {
        Ok(())
    }
}
