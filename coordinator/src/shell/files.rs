//! A peer's directory: lock, journal and snapshot. Blocking; one thread owns it.
//!
//! ```text
//! lock       held exclusively for life, so that two processes never share a journal
//! journal    header, records, and space for more; made anew after each snapshot
//! snapshot   the state as of some slot; replaced whole
//! ```
//! # Invariants
//! 1. A file is replaced by writing another, syncing it, renaming it over and syncing the
//!    directory: at every instant one whole version of each is there.
//! 2. The journal is made anew only after the snapshot that covers its records is safe, with all
//!    records that still count in it from the first moment.
//! 3. `append` returns when the records are on the disk for good.
//! 4. After an error nothing more is written: what the disk then holds is not known.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ramkeep_wire::PeerId;
use rustix::fs::{FlockOperation, flock};

use crate::journal::{self, JournalError, Owner};

const LOCK: &str = "lock";
const JOURNAL: &str = "journal";
const SNAPSHOT: &str = "snapshot";
/// Bytes of a journal that are made ahead of its records.
const SPACE_AHEAD: usize = if cfg!(test) { 4 << 10 } else { 1 << 20 };
/// Largest file that is read back.
const MAX_FILE: u64 = 2 << 30;

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
    /// An earlier error left the disk in a state that is not known.
    #[error("{0} failed before: start the process again")]
    Failed(PathBuf),
}

/// What a directory held.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The payload of the last snapshot.
    pub snapshot: Option<Vec<u8>>,
    /// The payloads of the records, in order. Some of them may be older than the snapshot.
    pub records: Vec<Vec<u8>>,
}

/// A peer's directory, open and locked.
#[derive(Debug)]
pub struct Files {
    directory: PathBuf,
    owner: Owner,
    journal: File,
    /// Index of the last record.
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
        make_directory(directory)?;
        let lock = lock(directory)?;
        let snapshot_path = directory.join(SNAPSHOT);
        let snapshot = read_file(&snapshot_path)?;
        let snapshot = match &snapshot {
            None => None,
            Some(bytes) => Some(bad(&snapshot_path, journal::read_snapshot(bytes))?),
        };
        let path = directory.join(JOURNAL);
        let Some(bytes) = read_file(&path)? else {
            if snapshot.is_some() {
                return Err(FilesError::Missing(path));
            }
            let owner = Owner {
                peer,
                incarnation: fresh,
            };
            replace(directory, JOURNAL, &journal::header(owner, 0))?;
            let files = Self::with_journal(directory, owner, (0, journal::HEADER_LEN), lock)?;
            return Ok((files, Recovered::default()));
        };
        let read = bad(&path, journal::read(&bytes))?;
        check_owner(&path, peer, None, read.owner)?;
        if let Some((owner, ..)) = snapshot {
            check_owner(&snapshot_path, peer, Some(read.owner), owner)?;
        }
        let covered = snapshot.map_or(0, |(_, index, _)| index);
        if read.after > covered {
            return Err(FilesError::Missing(snapshot_path));
        }
        if read.torn > 0 {
            tracing::warn!(path = %path.display(), bytes = read.torn, kept = read.records.len(),
                "cut off a torn record that was never reported as written");
        }
        let last = read.after + read.records.len() as u64;
        let files = Self::with_journal(directory, read.owner, (last, read.whole), lock)?;
        let recovered = Recovered {
            snapshot: snapshot.map(|(.., bytes)| bytes.to_vec()),
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
            journal: open_journal(directory)?,
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
        let cut = self.journal.set_len(self.end);
        io_at(&self.directory.join(JOURNAL), cut)?;
        self.make_space(0)?;
        let synced = self.journal.sync_all();
        io_at(&self.directory.join(JOURNAL), synced)
    }

    /// Writes zeros ahead, for `needed` bytes at least: records written over them change nothing
    /// but data, and a sync of data alone is the cheaper one.
    fn make_space(&mut self, needed: usize) -> Result<(), FilesError> {
        let wanted = self.end + needed as u64;
        if wanted <= self.space && self.space > self.end {
            return Ok(());
        }
        let zeros = vec![0; SPACE_AHEAD + needed];
        let written = self.journal.write_all_at(&zeros, self.space);
        io_at(&self.directory.join(JOURNAL), written)?;
        self.space += zeros.len() as u64;
        Ok(())
    }

    /// Writes records and waits until the disk has them: one sync for all.
    pub fn append(&mut self, payloads: &[Vec<u8>]) -> Result<(), FilesError> {
        self.guarded(|files| files.try_append(payloads))
    }

    fn try_append(&mut self, payloads: &[Vec<u8>]) -> Result<(), FilesError> {
        let path = self.directory.join(JOURNAL);
        self.buffer.clear();
        for (index, payload) in (self.last + 1..).zip(payloads) {
            let appended = journal::append_record(&mut self.buffer, index, payload);
            bad(&path, appended)?;
        }
        self.make_space(self.buffer.len())?;
        io_at(&path, self.journal.write_all_at(&self.buffer, self.end))?;
        io_at(&path, self.journal.sync_data())?;
        self.last += payloads.len() as u64;
        self.end += self.buffer.len() as u64;
        Ok(())
    }

    /// Keeps a snapshot, and begins a new journal with `records`: all that still counts.
    pub fn snapshot(&mut self, payload: &[u8], records: &[Vec<u8>]) -> Result<(), FilesError> {
        self.guarded(|files| files.try_snapshot(payload, records))
    }

    fn try_snapshot(&mut self, payload: &[u8], records: &[Vec<u8>]) -> Result<(), FilesError> {
        let path = self.directory.join(JOURNAL);
        let mut bytes = journal::header(self.owner, self.last);
        for (index, record) in (self.last + 1..).zip(records) {
            bad(&path, journal::append_record(&mut bytes, index, record))?;
        }
        let snapshot = journal::snapshot(self.owner, self.last, payload);
        let snapshot = bad(&self.directory.join(SNAPSHOT), snapshot)?;
        replace(&self.directory, SNAPSHOT, &snapshot)?;
        replace(&self.directory, JOURNAL, &bytes)?;
        self.journal = open_journal(&self.directory)?;
        self.last += records.len() as u64;
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

fn io_at<T>(path: &Path, outcome: io::Result<T>) -> Result<T, FilesError> {
    outcome.map_err(|error| FilesError::Io {
        path: path.to_owned(),
        error,
    })
}

fn bad<T>(path: &Path, outcome: Result<T, JournalError>) -> Result<T, FilesError> {
    outcome.map_err(|error| FilesError::Bad {
        path: path.to_owned(),
        error,
    })
}

fn make_directory(directory: &Path) -> Result<(), FilesError> {
    if directory.is_dir() {
        return Ok(());
    }
    io_at(directory, std::fs::create_dir_all(directory))?;
    match directory
        .canonicalize()
        .ok()
        .as_deref()
        .and_then(Path::parent)
    {
        Some(parent) => sync_directory(parent),
        None => Ok(()),
    }
}

fn lock(directory: &Path) -> Result<File, FilesError> {
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

fn read_file(path: &Path) -> Result<Option<Vec<u8>>, FilesError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => io_at(path, other)?,
    };
    let mut bytes = Vec::new();
    io_at(path, file.take(MAX_FILE + 1).read_to_end(&mut bytes))?;
    if bytes.len() as u64 > MAX_FILE {
        let error = JournalError::TooLong {
            what: "a file",
            len: bytes.len() as u64,
            limit: MAX_FILE as usize,
        };
        return bad(path, Err(error));
    }
    Ok(Some(bytes))
}

fn open_journal(directory: &Path) -> Result<File, FilesError> {
    let path = directory.join(JOURNAL);
    io_at(&path, OpenOptions::new().write(true).open(&path))
}

fn replace(directory: &Path, name: &str, bytes: &[u8]) -> Result<(), FilesError> {
    let fresh = directory.join(format!("{name}.new"));
    let write = || {
        let mut file = File::create(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&fresh, directory.join(name))
    };
    io_at(&fresh, write())?;
    sync_directory(directory)
}

fn sync_directory(directory: &Path) -> Result<(), FilesError> {
    let sync = || File::open(directory)?.sync_all();
    io_at(directory, sync())
}

fn check_owner(
    path: &Path,
    peer: PeerId,
    wanted: Option<Owner>,
    found: Owner,
) -> Result<(), FilesError> {
    let fits = found.peer == peer && wanted.is_none_or(|wanted| wanted == found);
    if fits {
        return Ok(());
    }
    let found = if found.peer == peer {
        "of another directory".into()
    } else {
        format!("{:?}, this is {peer:?}", found.peer)
    };
    Err(FilesError::Foreign {
        path: path.to_owned(),
        found,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::HEADER_LEN;

    const PEER: PeerId = PeerId(1);

    fn open(directory: &Path) -> Result<(Files, Recovered), FilesError> {
        Files::open(directory, PEER, [5; 16])
    }

    fn records(count: u64) -> Vec<Vec<u8>> {
        (1..=count).map(|index| vec![index as u8; 9]).collect()
    }

    fn written(directory: &Path, count: u64) {
        let (mut files, recovered) = open(directory).unwrap();
        for record in &records(count)[recovered.records.len()..] {
            files.append(std::slice::from_ref(record)).unwrap();
        }
    }

    fn kept(directory: &Path) -> Vec<Vec<u8>> {
        open(directory).unwrap().1.records
    }

    #[test]
    fn what_was_appended_is_there_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        written(directory.path(), 3);
        written(directory.path(), 5);
        assert_eq!(kept(directory.path()), records(5));
        let incarnation = open(directory.path()).unwrap().0.incarnation();
        let again = Files::open(directory.path(), PEER, [6; 16]).unwrap();
        assert_eq!(again.0.incarnation(), incarnation);
    }

    #[test]
    fn several_records_are_appended_at_once_and_beyond_the_space_made() {
        let directory = tempfile::tempdir().unwrap();
        let (mut files, _) = open(directory.path()).unwrap();
        let large = vec![vec![7; SPACE_AHEAD / 2]; 7];
        files.append(&large).unwrap();
        files.append(&records(2)).unwrap();
        drop(files);
        assert_eq!(kept(directory.path()), [large, records(2)].concat());
    }

    #[test]
    fn two_processes_never_share_a_directory() {
        let directory = tempfile::tempdir().unwrap();
        let held = open(directory.path()).unwrap();
        assert!(matches!(open(directory.path()), Err(FilesError::Locked(_))));
        drop(held);
        assert!(open(directory.path()).is_ok());
    }

    #[test]
    fn a_file_cut_at_any_byte_goes_on_with_the_records_before_it() {
        let directory = tempfile::tempdir().unwrap();
        written(directory.path(), 3);
        let path = directory.path().join(JOURNAL);
        let whole = std::fs::read(&path).unwrap();
        let end = HEADER_LEN + 3 * 25;
        for cut in HEADER_LEN..end {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let found = kept(directory.path());
            assert_eq!(found, records(found.len() as u64));
            assert_eq!(found.len(), (cut - HEADER_LEN) / 25);
            // And writing goes on where the torn record was.
            written(directory.path(), 4);
            assert_eq!(kept(directory.path()), records(4));
            // The same with the space behind it.
            let mut torn = whole.clone();
            torn[cut..].fill(0);
            std::fs::write(&path, &torn).unwrap();
            assert_eq!(kept(directory.path()), found);
        }
    }

    #[test]
    fn damage_before_the_end_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        written(directory.path(), 3);
        let path = directory.path().join(JOURNAL);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[HEADER_LEN + 20] ^= 0x40;
        std::fs::write(&path, &bytes).unwrap();
        assert!(matches!(
            open(directory.path()),
            Err(FilesError::Bad { .. })
        ));
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }

    #[test]
    fn a_snapshot_takes_the_place_of_the_records_before_it() {
        let directory = tempfile::tempdir().unwrap();
        written(directory.path(), 3);
        let (mut files, _) = open(directory.path()).unwrap();
        files.snapshot(b"state", &[b"kept".to_vec()]).unwrap();
        files.append(&[b"next".to_vec()]).unwrap();
        drop(files);
        let (_, recovered) = open(directory.path()).unwrap();
        assert_eq!(recovered.snapshot, Some(b"state".to_vec()));
        assert_eq!(recovered.records, [b"kept".to_vec(), b"next".to_vec()]);
    }

    #[test]
    fn a_kill_between_snapshot_and_new_journal_loses_nothing() {
        let directory = tempfile::tempdir().unwrap();
        written(directory.path(), 3);
        let old = std::fs::read(directory.path().join(JOURNAL)).unwrap();
        let (mut files, _) = open(directory.path()).unwrap();
        files.snapshot(b"state", &[b"kept".to_vec()]).unwrap();
        drop(files);
        std::fs::write(directory.path().join(JOURNAL), old).unwrap();
        let (mut files, recovered) = open(directory.path()).unwrap();
        assert_eq!(recovered.snapshot, Some(b"state".to_vec()));
        assert_eq!(recovered.records, records(3));
        files.append(&records(4)[3..]).unwrap();
        drop(files);
        assert_eq!(kept(directory.path()), records(4));
    }

    #[test]
    fn after_an_error_nothing_more_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let (mut files, _) = open(directory.path()).unwrap();
        files.append(&records(1)).unwrap();
        let too_long = vec![0; crate::limits::MAX_RECORD + 1];
        assert!(matches!(
            files.append(&[too_long]),
            Err(FilesError::Bad { .. })
        ));
        assert!(matches!(
            files.append(&records(1)),
            Err(FilesError::Failed(_))
        ));
        assert!(matches!(
            files.snapshot(b"state", &[]),
            Err(FilesError::Failed(_))
        ));
        drop(files);
        assert_eq!(kept(directory.path()), records(1));
    }

    #[test]
    fn lost_and_foreign_files_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        written(directory.path(), 3);
        let other = Files::open(directory.path(), PeerId(2), [0; 16]);
        assert!(matches!(other, Err(FilesError::Foreign { .. })));
        let (mut files, _) = open(directory.path()).unwrap();
        files.snapshot(b"state", &[]).unwrap();
        drop(files);
        let snapshot = directory.path().join(SNAPSHOT);
        let bytes = std::fs::read(&snapshot).unwrap();
        std::fs::remove_file(&snapshot).unwrap();
        assert!(matches!(
            open(directory.path()),
            Err(FilesError::Missing(_))
        ));
        std::fs::write(&snapshot, bytes).unwrap();
        std::fs::remove_file(directory.path().join(JOURNAL)).unwrap();
        assert!(matches!(
            open(directory.path()),
            Err(FilesError::Missing(_))
        ));
    }
}
