//! What is done to a directory, one step of the system each. Tests kill the process between any two
//! bytes of them.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::FilesError;
use crate::journal::JournalError;

const LOCK: &str = "lock";
/// Largest file that is read back.
const MAX_FILE: u64 = 2 << 30;

pub(super) fn io_at<T>(path: &Path, outcome: io::Result<T>) -> Result<T, FilesError> {
    outcome.map_err(|error| FilesError::Io {
        path: path.to_owned(),
        error,
    })
}

/// Makes a directory with those above it, so that all of them stay.
pub(super) fn make_directory(directory: &Path) -> Result<(), FilesError> {
    let missing: Vec<&Path> = directory
        .ancestors()
        .take_while(|path| !path.as_os_str().is_empty() && !path.is_dir())
        .collect();
    io_at(directory, std::fs::create_dir_all(directory))?;
    for made in missing {
        let parent = made.canonicalize().ok();
        if let Some(parent) = parent.as_deref().and_then(Path::parent) {
            sync_directory(parent)?;
        }
    }
    Ok(())
}

/// Holds the directory for this process alone.
pub(super) fn lock(directory: &Path) -> Result<File, FilesError> {
    let path = directory.join(LOCK);
    let mut options = OpenOptions::new();
    let file = options.create(true).truncate(false).write(true).open(&path);
    let file = io_at(&path, file)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(error) if error == rustix::io::Errno::WOULDBLOCK => {
            Err(FilesError::Locked(directory.to_owned()))
        }
        Err(error) => io_at(&path, Err(error.into())),
    }
}

/// The whole of a file, if it is there.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, FilesError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => io_at(path, other)?,
    };
    let mut bytes = Vec::new();
    io_at(path, file.take(MAX_FILE + 1).read_to_end(&mut bytes))?;
    if bytes.len() as u64 <= MAX_FILE {
        return Ok(Some(bytes));
    }
    Err(FilesError::Bad {
        path: path.to_owned(),
        error: JournalError::TooLong {
            what: "a file",
            len: bytes.len() as u64,
            limit: MAX_FILE as usize,
        },
    })
}

/// A file that is written in place.
#[derive(Debug)]
pub(super) struct InPlace {
    path: PathBuf,
    file: File,
}

impl InPlace {
    pub(super) fn open(path: PathBuf) -> Result<Self, FilesError> {
        let file = io_at(&path, OpenOptions::new().write(true).open(&path))?;
        Ok(Self { path, file })
    }

    pub(super) fn write(&self, bytes: &[u8], at: u64) -> Result<(), FilesError> {
        let written = killable(bytes.len(), |len| self.file.write_all_at(&bytes[..len], at));
        io_at(&self.path, written)
    }

    pub(super) fn cut(&self, len: u64) -> Result<(), FilesError> {
        let cut = killable(1, |may| {
            if may == 1 {
                self.file.set_len(len)
            } else {
                Ok(())
            }
        });
        io_at(&self.path, cut)
    }

    /// Waits until the disk has everything, a shorter length too.
    pub(super) fn sync_all(&self) -> Result<(), FilesError> {
        io_at(&self.path, sync(|| self.file.sync_all()))
    }

    /// Waits until the disk has the bytes, and the length if it has grown.
    pub(super) fn sync(&self) -> Result<(), FilesError> {
        io_at(&self.path, sync(|| self.file.sync_data()))
    }
}

/// Writes a whole file that nothing counts on yet, so that it stays.
pub(super) fn write_new(path: &Path, bytes: &[u8]) -> Result<(), FilesError> {
    let write = || {
        killable(1, |_| Ok(()))?;
        let file = File::create(path)?;
        killable(bytes.len(), |len| file.write_all_at(&bytes[..len], 0))?;
        sync(|| file.sync_all())
    };
    io_at(path, write())?;
    sync_parent(path)
}

/// Puts a file in the place of another at once.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), FilesError> {
    let renamed = killable(1, |may| {
        if may == 1 {
            std::fs::rename(from, to)
        } else {
            Ok(())
        }
    });
    io_at(from, renamed)?;
    sync_parent(to)
}

fn sync_parent(path: &Path) -> Result<(), FilesError> {
    path.parent().map_or(Ok(()), sync_directory)
}

fn sync_directory(directory: &Path) -> Result<(), FilesError> {
    let synced = sync(|| File::open(directory)?.sync_all());
    io_at(directory, synced)
}

/// Does all of a step that changes the disk.
#[cfg(not(test))]
fn killable(len: usize, step: impl FnOnce(usize) -> io::Result<()>) -> io::Result<()> {
    step(len)
}

/// Waits until the disk has a file.
#[cfg(not(test))]
fn sync(wait: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    wait()
}

#[cfg(test)]
pub(super) use kill::{kill_after, killable, sync};

#[cfg(test)]
mod kill {
    use std::cell::Cell;
    use std::io;

    thread_local! {
        /// What this thread may still do to a disk, in bytes; steps that write none count as one.
        static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
    }

    /// From now on this thread is killed after so many bytes: what follows does nothing. `None`:
    /// it is not.
    pub(in super::super) fn kill_after(bytes: Option<usize>) {
        LEFT.set(bytes);
    }

    /// A process that is killed leaves what it wrote, synced or not: tests need not wait.
    pub(in super::super) fn sync(_: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        killable(0, |_| Ok(()))
    }

    pub(in super::super) fn killable(
        len: usize,
        step: impl FnOnce(usize) -> io::Result<()>,
    ) -> io::Result<()> {
        let Some(left) = LEFT.get() else {
            return step(len);
        };
        LEFT.set(Some(left.saturating_sub(len)));
        step(len.min(left))?;
        if len <= left {
            return Ok(());
        }
        Err(io::Error::other("killed"))
    }
}
