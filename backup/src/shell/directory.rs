//! The frame directory: found or made, locked for life, and refused when it isn't ours.
//!
//! # Invariants
//! 1. The directory's lock is held from before its frame file is looked at until the process ends,
//!    so that two processes never share frames (SAFETY 6).
//! 2. A frame file has a whole superblock from the moment it has its name.
//! 3. Nothing is written to a file that was not judged to be ours first.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use ramkeep_memory::{RegionTaken, SharedFile, SharedFileError};
use ramkeep_wire::directory::JOURNAL;
use ramkeep_wire::{BootId, Micros};

use crate::core::Backup;
use crate::frames::{Frames, FramesError, check_growth};
use crate::layout::{FRAME_FILE, Geometry, SUPERBLOCK_AREA, Superblock};
use crate::mapped::MappedStore;
use crate::store::{Area, FrameStore};

const NEW_FRAME_FILE: &str = "frames.new";
/// Replicas are their owner's business only.
const DIRECTORY_MODE: u32 = 0o700;
const BOOT_ID_FILE: &str = "/proc/sys/kernel/random/boot_id";

/// Why a frame directory can't be used. Says what to do where something can be done.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error(
        "{} is in use by another process: stop that one, or use another directory", .0.display()
    )]
    InUse(PathBuf),
    /// It is a coordinator's.
    #[error(
        "{} is the directory of a coordinator: nothing in it was changed. Start `ramkeep coordinator` with it, \
         and this server with its own directory", .0.display()
    )]
    Coordinators(PathBuf),
    /// The file was cut off.
    #[error(
        "{} is cut off: {found} bytes where its superblock says {wanted}; its replicas can't be \
         trusted, use another directory", path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Its length.
        found: u64,
        /// The length it should have.
        wanted: u64,
    },
    /// Not a frame file, or damaged, or of another size.
    #[error("{}: {error}; use another directory", path.display())]
    NotOurs {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: FramesError,
    },
    /// It is longer than its superblock and the wanted number of frames say.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: SharedFileError,
    },
    /// No thread could be started.
    #[error("the frame keeper could not be started: {0}")]
    Keeper(#[source] io::Error),
    /// The same file was mapped twice in this process.
    #[error(transparent)]
    Region(#[from] RegionTaken),
    /// The system's error.
    #[error("{}: {error}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What.
        error: io::Error,
    },
}

/// The lock on a frame directory, until dropped.
#[derive(Debug)]
pub(super) struct DirectoryLock {
    _directory: File,
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> OpenError + '_ {
    move |error| OpenError::Io {
        path: path.to_owned(),
        error,
    }
}

fn file_at(path: &Path) -> impl FnOnce(SharedFileError) -> OpenError + '_ {
    move |error| match error {
        SharedFileError::InUse => OpenError::InUse(path.to_owned()),
        error => OpenError::File {
            path: path.to_owned(),
            error,
        },
    }
}

fn not_ours(path: &Path) -> impl FnOnce(FramesError) -> OpenError + '_ {
    move |error| OpenError::NotOurs {
        path: path.to_owned(),
        error,
    }
}

/// The boot of this machine.
///
/// # Errors
/// The system's, or if it has no such thing.
pub fn boot_id() -> io::Result<BootId> {
    let text = fs::read_to_string(BOOT_ID_FILE)?;
    parse_boot_id(&text)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "boot id is not a UUID"))
}

fn parse_boot_id(text: &str) -> Option<BootId> {
    let digits: Vec<u32> = text
        .trim()
        .chars()
        .filter(|c| *c != '-')
        .map(|c| c.to_digit(16))
        .collect::<Option<_>>()?;
    let (pairs, []) = digits.as_chunks::<2>() else {
        return None;
    };
    let bytes: Vec<u8> = pairs
        .iter()
        .map(|[high, low]| (high << 4 | low) as u8)
        .collect();
    bytes.try_into().ok().map(BootId)
}

/// Opens the frames in `directory`, making both if they aren't there, at `now`.
pub(super) fn open(
    directory: &Path,
    geometry: Geometry,
    now: Micros,
) -> Result<(Backup<MappedStore>, DirectoryLock), OpenError> {
    let boot = boot_id().map_err(at(Path::new(BOOT_ID_FILE)))?;
    let path = directory.join(FRAME_FILE);
    check_role(directory, &path)?;
    let lock = lock(directory)?;
    if path.try_exists().map_err(at(&path))? {
        judge(&path, geometry)?;
    } else {
        create(directory, geometry, boot)?;
    }
    let file = SharedFile::open(&path, geometry.file_len()).map_err(file_at(&path))?;
    let store = MappedStore::new(&file, geometry)?;
    let backup = Backup::open(store, boot, now).map_err(not_ours(&path))?;
    Ok((backup, lock))
}

/// No frames are made beside a coordinator's journal. A directory that has both already goes on.
fn check_role(directory: &Path, frames: &Path) -> Result<(), OpenError> {
    let journal = directory.join(JOURNAL);
    let both = frames.try_exists().map_err(at(frames))?;
    if !both && journal.try_exists().map_err(at(&journal))? {
        return Err(OpenError::Coordinators(directory.to_owned()));
    }
    Ok(())
}

fn lock(directory: &Path) -> Result<DirectoryLock, OpenError> {
    DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(directory)
        .map_err(at(directory))?;
    let opened = File::open(directory).map_err(at(directory))?;
    match opened.try_lock() {
        Ok(()) => Ok(DirectoryLock { _directory: opened }),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse(directory.to_owned())),
        Err(TryLockError::Error(error)) => Err(at(directory)(error)),
    }
}

/// Makes a frame file under another name, and gives it its own once it is whole.
fn create(directory: &Path, geometry: Geometry, boot: BootId) -> Result<(), OpenError> {
    let new = directory.join(NEW_FRAME_FILE);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&new)(error)),
        _ => {}
    }
    let file = SharedFile::open(&new, geometry.file_len()).map_err(file_at(&new))?;
    let mut store = MappedStore::new(&file, geometry)?;
    store.reserve(Area::Superblock).map_err(at(&new))?;
    Frames::format(&mut store, boot).map_err(not_ours(&new))?;
    store.sync(Area::Superblock).map_err(at(&new))?;
    fs::rename(&new, directory.join(FRAME_FILE)).map_err(at(&new))?;
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(at(directory))
}

/// Refuses what is not ours before anything maps or extends it.
fn judge(path: &Path, geometry: Geometry) -> Result<(), OpenError> {
    let mut file = File::open(path).map_err(at(path))?;
    let found = file.metadata().map_err(at(path))?.len();
    let mut area = Vec::with_capacity(SUPERBLOCK_AREA);
    (&mut file)
        .take(SUPERBLOCK_AREA as u64)
        .read_to_end(&mut area)
        .map_err(at(path))?;
    area.resize(SUPERBLOCK_AREA, 0);
    let superblock = match Superblock::choose(&area) {
        Ok((superblock, _)) => superblock,
        Err(error) => return Err(not_ours(path)(error.into())),
    };
    check_growth(superblock.geometry, geometry).map_err(not_ours(path))?;
    let wanted = superblock.geometry.file_len() as u64;
    if found < wanted {
        return Err(OpenError::Truncated {
            path: path.to_owned(),
            found,
            wanted,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_id_is_sixteen_bytes_of_hex() {
        let id = parse_boot_id("00112233-4455-6677-8899-aabbccddeeff\n").expect("a UUID");
        assert_eq!(id.to_string(), "00112233445566778899aabbccddeeff");
        for wrong in ["", "0011", "zz112233-4455-6677-8899-aabbccddeeff"] {
            assert_eq!(parse_boot_id(wrong), None, "{wrong}");
        }
        assert!(boot_id().is_ok());
    }
}
