//! Where the processes of `up` keep their files.
//!
//! Without `--data` that is a fresh directory in memory (tmpfs), which ends with `up`. An `up` that
//! is killed cannot clear up, so each holds a lock in its directory for life, and the next `up`
//! removes those whose lock is free.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::failure::Failure;

const SHARED_MEMORY: &str = "/dev/shm";
const PREFIX: &str = "ramkeep-up-";
const LOCK: &str = "lock";

/// A directory for the files of a cluster's processes.
#[derive(Debug)]
pub(crate) struct Place {
    root: PathBuf,
    /// Held for life when the directory ends with this.
    temporary: Option<File>,
}

impl Place {
    /// `data`, which is kept, or else a fresh directory with room for `bytes`, in memory if there
    /// is enough.
    pub(crate) fn open(data: Option<&Path>, bytes: u64) -> Result<Self, Failure> {
        let opened = match data {
            Some(data) => private(data).and_then(|()| {
                // Processes are told of it whatever directory they run in.
                Ok(Self {
                    root: fs::canonicalize(data)?,
                    temporary: None,
                })
            }),
            None => Self::temporary(bytes),
        };
        opened.map_err(|error| {
            let shown = data.map_or("a temporary directory".into(), Path::to_string_lossy);
            Failure::new(format_args!(
                "cannot use {shown} for the cluster's files: {error}"
            ))
        })
    }

    /// The directory of one process, made if it is not there yet.
    pub(crate) fn directory(&self, name: &str) -> Result<PathBuf, Failure> {
        let path = self.root.join(name);
        private(&path).map_err(|error| {
            Failure::new(format_args!("cannot make {}: {error}", path.display()))
        })?;
        Ok(path)
    }

    fn temporary(bytes: u64) -> io::Result<Self> {
        let parent = roomy(bytes);
        sweep(&parent);
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let name = format!("{PREFIX}{:016x}", u64::from_le_bytes(random));
        let root = parent.join(&name);
        // It has its name only once its lock is held: another `up` may be sweeping just now.
        let unlocked = parent.join(format!(".{name}"));
        private(&unlocked)?;
        let lock = File::create(unlocked.join(LOCK))?;
        lock.try_lock()?;
        fs::rename(&unlocked, &root)?;
        Ok(Self {
            root,
            temporary: Some(lock),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.temporary.is_some()
            && let Err(error) = fs::remove_dir_all(&self.root)
        {
            tracing::warn!(path = %self.root.display(), %error, "directory could not be removed");
        }
    }
}

/// Makes a directory that only its owner may look into.
fn private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Shared memory if it has room, else the directory for temporary files.
fn roomy(bytes: u64) -> PathBuf {
    let free = rustix::fs::statvfs(SHARED_MEMORY)
        .map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    if free >= bytes {
        return SHARED_MEMORY.into();
    }
    let fallback = std::env::temp_dir();
    tracing::warn!(
        wanted = bytes, free, used = %fallback.display(),
        "not enough shared memory for the frames; copies go to the directory for temporary files"
    );
    fallback
}

/// Removes directories of clusters that were killed.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        let ours = path.file_name().and_then(|name| name.to_str());
        if !ours.is_some_and(|name| name.starts_with(PREFIX)) {
            continue;
        }
        // Without its lock file it is being removed just now.
        let Ok(lock) = File::open(path.join(LOCK)) else {
            continue;
        };
        if lock.try_lock().is_ok() {
            tracing::info!(path = %path.display(), "removing what a killed cluster left");
            drop(fs::remove_dir_all(&path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temporary_place_ends_with_its_holder_and_a_given_one_stays() {
        let place = Place::open(None, 0).unwrap();
        let inside = place.directory("server-1").unwrap();
        assert!(inside.is_dir());
        drop(place);
        assert!(!inside.exists());

        let given = tempfile::tempdir().unwrap();
        let place = Place::open(Some(given.path()), 0).unwrap();
        let inside = place.directory("server-1").unwrap();
        drop(place);
        assert!(inside.is_dir());
    }

    #[test]
    fn a_sweep_takes_only_what_nobody_holds() {
        let parent = tempfile::tempdir().unwrap();
        let [held, left, other] = [
            format!("{PREFIX}held"),
            format!("{PREFIX}left"),
            "other".to_owned(),
        ]
        .map(|name| parent.path().join(name));
        for path in [&held, &left, &other] {
            fs::create_dir(path).unwrap();
            File::create(path.join(LOCK)).unwrap();
        }
        let lock = File::open(held.join(LOCK)).unwrap();
        lock.try_lock().unwrap();
        sweep(parent.path());
        assert!(held.exists() && other.exists() && !left.exists());
    }
}
