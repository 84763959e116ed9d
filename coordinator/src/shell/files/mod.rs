//! A peer's directory: lock, journal and snapshot. Blocking; one thread owns it.
//!
//! ```text
//! lock          held exclusively for life, so that two processes never share a journal
//! journal       header, records, and space for more; made anew after each snapshot
//! snapshot      what the journal goes on from: the one with the index that its header names
//! snapshot.new  the next one, or what is left of it: counts once a journal names it
//! ```
//! # Invariants
//! 1. A whole file is written aside, synced with its directory, and then renamed: at every instant
//!    one whole version of each is there.
//! 2. Snapshot and records count together: it is the rename of the journal that makes both new.
//!    Until then the old ones count, with whatever the last snapshot did not cover.
//! 3. `append` returns when the disk has its record for good. What is not synced is one record at
//!    most, so that a machine that fails, and keeps any part of it, leaves a torn tail and no hole.
//! 4. After an error nothing more is written: what the disk then holds is not known.

mod disk;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use ramkeep_wire::PeerId;
use ramkeep_wire::directory::{FRAMES, JOURNAL};

use crate::journal::{self, JournalError, Owner};
use disk::InPlace;

const JOURNAL_NEW: &str = "journal.new";
const SNAPSHOT: &str = "snapshot";
const SNAPSHOT_NEW: &str = "snapshot.new";
/// Bytes of a journal that are made ahead of its records.
const SPACE_AHEAD: usize = if cfg!(test) { 64 } else { 1 << 20 };

/// Why a directory can't be used, or used any longer.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The system said no.
    #[error("{path}: {error}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
    /// Another process has it.
    #[error("{0} is in use by another coordinator process")]
    Locked(PathBuf),
    /// It is a server's.
    #[error(
        "{0} is the directory of a server: nothing in it was changed. Start `ramkeep server` with it, and this \
         coordinator with its own directory"
    )]
    Servers(PathBuf),
    /// A file is not what it must be.
    #[error("{path}: {error}; restore the directory from a copy, or remove it to begin anew")]
    Bad {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        error: JournalError,
    },
    /// A file belongs to another peer or another directory.
    #[error("{path} belongs to another coordinator ({found}); use its own directory")]
    Foreign {
        /// Which file.
        path: PathBuf,
        /// Whose it is.
        found: String,
    },
    /// A file is not there although another one says that it was.
    #[error("{0} is missing: what it held is lost; restore the directory from a copy")]
    Missing(PathBuf),
    /// Not the snapshot that the journal goes on from.
    #[error(
        "{path} is as of {at}, and the journal goes on from {index}; restore the directory from a copy"
    )]
    Other {
        /// Which file.
        path: PathBuf,
        /// Its index.
        at: u64,
        /// The one that the journal names.
        index: u64,
    },
    /// An earlier error left the disk in a state that is not known.
    #[error("{0} failed before: start the process again")]
    Failed(PathBuf),
}

/// What a directory held.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The payload of the last snapshot.
    pub snapshot: Option<Vec<u8>>,
    /// The payloads of the records since, in order.
    pub records: Vec<Vec<u8>>,
}

/// Whether a directory holds nothing of any group: it is not there, or nothing was ever recorded in its
/// journal. Looks only.
///
/// # Errors
/// When it can't be read, or is damaged.
pub fn is_blank(directory: &Path) -> Result<bool, FilesError> {
    let path = directory.join(JOURNAL);
    let Some(bytes) = disk::read(&path)? else {
        return Ok(![SNAPSHOT, SNAPSHOT_NEW]
            .iter()
            .any(|file| directory.join(file).exists()));
    };
    let read = bad(&path, journal::read(&bytes))?;
    Ok(read.after == 0 && read.records.is_empty())
}

/// Whose a directory is; none if it has no journal. Looks only.
///
/// # Errors
/// When it can't be read, or is damaged.
pub fn owner(directory: &Path) -> Result<Option<Owner>, FilesError> {
    let path = directory.join(JOURNAL);
    let Some(bytes) = disk::read(&path)? else {
        return Ok(None);
    };
    Ok(Some(bad(&path, journal::read(&bytes))?.owner))
}

/// A peer's directory, open and locked.
#[derive(Debug)]
pub struct Files {
    directory: PathBuf,
    owner: Owner,
    journal: InPlace,
    /// Index of the last record, or of the snapshot.
    last: u64,
    /// Where the next record goes.
    end: u64,
    /// Up to where the file has space.
    space: u64,
    buffer: Vec<u8>,
    failed: bool,
    _lock: File,
}

impl Files {
    /// Opens the directory of `peer`, making it if it isn't there; `fresh` are random bytes for a
    /// new one. Cuts off a torn tail of the journal.
    pub fn open(
        directory: &Path,
        peer: PeerId,
        fresh: [u8; 16],
    ) -> Result<(Self, Recovered), FilesError> {
        let path = directory.join(JOURNAL);
        // A directory that has both already goes on.
        if !path.exists() && directory.join(FRAMES).exists() {
            return Err(FilesError::Servers(directory.to_owned()));
        }
        disk::make_directory(directory)?;
        let lock = disk::lock(directory)?;
        let Some(bytes) = disk::read(&path)? else {
            for snapshot in [SNAPSHOT, SNAPSHOT_NEW] {
                if directory.join(snapshot).exists() {
                    return Err(FilesError::Missing(path));
                }
            }
            let incarnation = fresh;
            let owner = Owner { peer, incarnation };
            replace_journal(directory, &journal::header(owner, 0))?;
            let files = Self::with_journal(directory, owner, (0, journal::HEADER_LEN), lock)?;
            return Ok((files, Recovered::default()));
        };
        let read = bad(&path, journal::read(&bytes))?;
        check_owner(&path, peer, read.owner)?;
        let snapshot = match read.after {
            0 => None,
            index => Some(snapshot(directory, read.owner, index)?),
        };
        if read.torn > 0 {
            tracing::warn!(path = %path.display(), bytes = read.torn, kept = read.records.len(),
                "cut off a torn record that was never reported as written");
        }
        let last = read.after + read.records.len() as u64;
        let files = Self::with_journal(directory, read.owner, (last, read.whole), lock)?;
        let recovered = Recovered {
            snapshot,
            records: read.records.into_iter().map(|(_, record)| record).collect(),
        };
        Ok((files, recovered))
    }

    /// Whose directory it is.
    #[must_use]
    pub fn incarnation(&self) -> [u8; 16] {
        self.owner.incarnation
    }

    /// Goes on after the `last` record, which ends at byte `end`.
    fn with_journal(
        directory: &Path,
        owner: Owner,
        (last, end): (u64, usize),
        lock: File,
    ) -> Result<Self, FilesError> {
        let mut files = Self {
            journal: InPlace::open(directory.join(JOURNAL))?,
            directory: directory.to_owned(),
            owner,
            last,
            end: end as u64,
            space: 0,
            buffer: Vec::new(),
            failed: false,
            _lock: lock,
        };
        files.begin_at_end()?;
        Ok(files)
    }

    /// Cuts off what is after the last record, and makes space.
    fn begin_at_end(&mut self) -> Result<(), FilesError> {
        self.space = self.end;
        self.journal.cut(self.end)?;
        self.make_space(0)?;
        self.journal.sync_all()
    }

    /// Writes zeros ahead, for `needed` bytes at least: records written over them change nothing
    /// but data, and a sync of data alone is the cheaper one.
    fn make_space(&mut self, needed: usize) -> Result<(), FilesError> {
        let wanted = self.end + needed as u64;
        if wanted <= self.space && self.space > self.end {
            return Ok(());
        }
        let zeros = vec![0; SPACE_AHEAD + needed];
        self.journal.write(&zeros, self.space)?;
        self.space += zeros.len() as u64;
        Ok(())
    }

    /// Writes a record and waits until the disk has it.
    pub fn append(&mut self, payload: &[u8]) -> Result<(), FilesError> {
        self.guarded(|files| files.try_append(payload))
    }

    fn try_append(&mut self, payload: &[u8]) -> Result<(), FilesError> {
        let path = self.directory.join(JOURNAL);
        let index = self.last + 1;
        self.buffer.clear();
        let appended = journal::append_record(&mut self.buffer, index, payload);
        bad(&path, appended)?;
        self.make_space(self.buffer.len())?;
        self.journal.write(&self.buffer, self.end)?;
        self.journal.sync()?;
        self.last = index;
        self.end += self.buffer.len() as u64;
        Ok(())
    }

    /// Keeps a snapshot, and begins a new journal with `records`: all that still counts beside it.
    pub fn snapshot(&mut self, payload: &[u8], records: &[Vec<u8>]) -> Result<(), FilesError> {
        self.guarded(|files| files.try_snapshot(payload, records))
    }

    fn try_snapshot(&mut self, payload: &[u8], records: &[Vec<u8>]) -> Result<(), FilesError> {
        let path = self.directory.join(JOURNAL);
        // No other snapshot has this index, nor has a record.
        let index = self.last + 1;
        let mut bytes = journal::header(self.owner, index);
        for (index, record) in (index + 1..).zip(records) {
            bad(&path, journal::append_record(&mut bytes, index, record))?;
        }
        let fresh = self.directory.join(SNAPSHOT_NEW);
        let snapshot = bad(&fresh, journal::snapshot(self.owner, index, payload))?;
        disk::write_new(&fresh, &snapshot)?;
        replace_journal(&self.directory, &bytes)?;
        disk::rename(&fresh, &self.directory.join(SNAPSHOT))?;
        self.journal = InPlace::open(path)?;
        self.last = index + records.len() as u64;
        self.end = bytes.len() as u64;
        self.begin_at_end()
    }

    fn guarded(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<(), FilesError>,
    ) -> Result<(), FilesError> {
        if self.failed {
            return Err(FilesError::Failed(self.directory.clone()));
        }
        let outcome = work(self);
        self.failed = outcome.is_err();
        outcome
    }
}

fn bad<T>(path: &Path, outcome: Result<T, JournalError>) -> Result<T, FilesError> {
    outcome.map_err(|error| FilesError::Bad {
        path: path.to_owned(),
        error,
    })
}

fn replace_journal(directory: &Path, bytes: &[u8]) -> Result<(), FilesError> {
    let fresh = directory.join(JOURNAL_NEW);
    disk::write_new(&fresh, bytes)?;
    disk::rename(&fresh, &directory.join(JOURNAL))
}

/// The snapshot that a journal goes on from. If its own rename did not come to pass, it does now.
fn snapshot(directory: &Path, owner: Owner, index: u64) -> Result<Vec<u8>, FilesError> {
    let (path, fresh) = (directory.join(SNAPSHOT), directory.join(SNAPSHOT_NEW));
    if let Some(bytes) = disk::read(&fresh)?
        && let Ok((found, at, payload)) = journal::read_snapshot(&bytes)
        && (found, at) == (owner, index)
    {
        disk::rename(&fresh, &path)?;
        return Ok(payload.to_vec());
    }
    let Some(bytes) = disk::read(&path)? else {
        return Err(FilesError::Missing(path));
    };
    let (found, at, payload) = bad(&path, journal::read_snapshot(&bytes))?;
    check_owner(&path, owner.peer, found)?;
    if found != owner {
        let found = "of another directory".into();
        return Err(FilesError::Foreign { path, found });
    }
    if at != index {
        return Err(FilesError::Other { path, at, index });
    }
    Ok(payload.to_vec())
}

fn check_owner(path: &Path, peer: PeerId, found: Owner) -> Result<(), FilesError> {
    if found.peer == peer {
        return Ok(());
    }
    Err(FilesError::Foreign {
        path: path.to_owned(),
        found: format!("{:?}, this is {peer:?}", found.peer),
    })
}
