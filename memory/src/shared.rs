//! A file in tmpfs or on disk, mapped and shared, so that what is written outlives a killed process.
//!
//! # Invariants
//! 1. Whoever has the file mapped holds its exclusive lock, from before mapping to after unmapping,
//!    and the file is never shorter than the mapping meanwhile.
//! 2. Regions do not overlap: each byte belongs to at most one [`Region`], and is written only
//!    through `&mut` of it.
//!
//! The lock is advisory: a program that writes to the file or cuts it off without asking for the
//! lock breaks invariant 1 from outside, as one that writes to `/proc/PID/mem` would. The file's
//! folder is for its owner only.

#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::{MmapOptions, MmapRaw};

/// Why a file could not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum SharedFileError {
    /// Another process, or this one, has the file open already.
    #[error("the file is in use by another process")]
    InUse,
    /// The file holds more than was asked for; it is left alone.
    #[error("the file is {found} bytes long, longer than the {wanted} wanted")]
    TooLong {
        /// Its length.
        found: u64,
        /// The length asked for.
        wanted: u64,
    },
    /// The system's error.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A region overlaps one that is taken, or the end of the file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bytes {} to {} are not free to take", range.start, range.end)]
pub struct RegionTaken {
    /// The range asked for.
    pub range: Range<usize>,
}

#[derive(Debug)]
struct Inner {
    /// Before `file`, so that it is unmapped before the lock goes.
    map: MmapRaw,
    file: File,
    /// Start to end of the regions that exist.
    taken: Mutex<BTreeMap<usize, usize>>,
}

/// A locked, mapped file of fixed length. Clones share it; it closes when they and all its regions
/// are gone.
#[derive(Clone, Debug)]
pub struct SharedFile {
    inner: Arc<Inner>,
}

impl SharedFile {
    /// Opens or creates the file, locks it, extends it with zeros to `len` and maps it.
    ///
    /// Extending reserves no room; see [`Region::reserve`].
    ///
    /// # Errors
    /// [`SharedFileError::InUse`] if somebody holds its lock, [`SharedFileError::TooLong`] if it is
    /// longer than `len`, or the system's.
    pub fn open(path: &Path, len: usize) -> Result<Self, SharedFileError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(SharedFileError::InUse),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        let (found, wanted) = (file.metadata()?.len(), len as u64);
        if found > wanted {
            return Err(SharedFileError::TooLong { found, wanted });
        }
        if found < wanted {
            file.set_len(wanted)?;
        }
        let map = MmapOptions::new().len(len).map_raw(&file)?;
        Ok(Self {
            inner: Arc::new(Inner {
                map,
                file,
                taken: Mutex::new(BTreeMap::new()),
            }),
        })
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.map.len()
    }

    /// Whether it has no bytes at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the bytes `range`, until the region is dropped.
    ///
    /// # Errors
    /// [`RegionTaken`] if they are not all free or not all in the file.
    pub fn region(&self, range: Range<usize>) -> Result<Region, RegionTaken> {
        if range.start >= range.end || range.end > self.len() {
            return Err(RegionTaken { range });
        }
        let mut taken = self
            .inner
            .taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // Regions do not overlap, so only the last that begins below `end` can reach into `range`.
        let before = taken.range(..range.end).next_back();
        if before.is_some_and(|(_, &end)| end > range.start) {
            return Err(RegionTaken { range });
        }
        taken.insert(range.start, range.end);
        drop(taken);
        Ok(Region {
            file: Arc::clone(&self.inner),
            start: range.start,
            len: range.len(),
        })
    }
}

/// A byte range of a [`SharedFile`] that belongs to its holder alone; it derefs to the bytes.
///
/// What was stored before a kill is in the file after it, in program order as far as
/// [`store_u64_release`](Self::store_u64_release) separates it.
#[derive(Debug)]
pub struct Region {
    file: Arc<Inner>,
    start: usize,
    len: usize,
}

impl Region {
    /// Copies `bytes` to `offset`.
    ///
    /// # Panics
    /// If they reach past the region's end.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        self[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// Copies bytes from `offset` on into `buffer`.
    ///
    /// # Panics
    /// If they reach past the region's end.
    pub fn read_into(&self, offset: usize, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self[offset..offset + buffer.len()]);
    }

    /// Stores a little-endian number after everything written before it.
    ///
    /// # Panics
    /// If the place is not in the region, or not aligned to 8 bytes in the file.
    pub fn store_u64_release(&mut self, offset: usize, value: u64) {
        self.word(offset).store(value.to_le(), Ordering::Release);
    }

    /// Loads a little-endian number before everything read after it.
    ///
    /// # Panics
    /// If the place is not in the region, or not aligned to 8 bytes in the file.
    #[must_use]
    pub fn load_u64_acquire(&self, offset: usize) -> u64 {
        u64::from_le(self.word(offset).load(Ordering::Acquire))
    }

    /// Makes sure the file system has room for all of the region, so that no write to it can fail
    /// (a write to a full tmpfs would kill the process). Contents stay.
    ///
    /// # Errors
    /// The system's, such as no space left.
    pub fn reserve(&self) -> io::Result<()> {
        let (start, len) = (self.start as u64, self.len as u64);
        rustix::fs::fallocate(
            &self.file.file,
            rustix::fs::FallocateFlags::empty(),
            start,
            len,
        )?;
        Ok(())
    }

    /// Maps the pages of `range`, so that the first write to each costs no page fault. Contents
    /// stay; for room, [`reserve`](Self::reserve) first. Only a hint: a system that can't do it
    /// ahead does it at the first write.
    ///
    /// # Panics
    /// If the range reaches past the region's end.
    pub fn populate(&mut self, range: Range<usize>) {
        assert!(range.start <= range.end && range.end <= self.len);
        #[cfg(target_os = "linux")]
        {
            let start = self.start + range.start;
            let advice = memmap2::Advice::PopulateWrite;
            let _refused = self.file.map.advise_range(advice, start, range.len());
        }
    }

    /// Waits until the region's bytes are on the disk under the file, if there is one.
    ///
    /// # Errors
    /// The system's; then what the disk holds is unknown.
    pub fn sync(&self) -> io::Result<()> {
        self.file.map.flush_range(self.start, self.len)
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        let bytes = &self[offset..offset + size_of::<u64>()];
        assert!(
            bytes.as_ptr().cast::<AtomicU64>().is_aligned(),
            "word at odd offset {offset}"
        );
        // SAFETY: eight aligned bytes of this region in a writable mapping. They are stored to only
        // through `&mut self`, so no `&[u8]` of them is alive when they change (invariant 2). The
        // pointer comes from the mapping, not from `bytes`, so that it may be written through.
        unsafe { AtomicU64::from_ptr(self.base().add(offset).cast()) }
    }

    fn base(&self) -> *mut u8 {
        // In bounds: `region` checked that the range lies in the file.
        self.file.map.as_mut_ptr().wrapping_add(self.start)
    }
}

impl Deref for Region {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range lies in the mapping, which lives as long as `self.file`, and is backed
        // by a file that cannot shrink or be written by others while its lock is held (invariant
        // 1, upheld by `open` and by all who respect the lock). In this process it changes only
        // through `&mut self` (invariant 2, upheld by `SharedFile::region`).
        unsafe { std::slice::from_raw_parts(self.base(), self.len) }
    }
}

impl DerefMut for Region {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` is the only access to the range (invariant 2).
        unsafe { std::slice::from_raw_parts_mut(self.base(), self.len) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        self.file
            .taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.start);
    }
}
