//! The disk below both systems: where their data lies, and what a sync of it costs.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

use hdrhistogram::Histogram;
use rustix::fs::{FallocateFlags, fallocate, fdatasync, statfs};
use serde::Serialize;
use tempfile::TempDir;

use crate::{Failure, Outcome};

/// Bytes of one append.
const BLOCK: usize = 4096;
/// Appends that are measured.
const APPENDS: usize = 1_000;
/// Syncs above this count as this. Nanoseconds.
const HIGHEST: u64 = 60_000_000_000;
/// Type numbers of file systems in memory: tmpfs and ramfs.
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// Cost of an append of 4 KiB to a file whose blocks are there, with its `fdatasync`.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct SyncCost {
    /// Microseconds, median.
    pub(crate) p50_us: f64,
    /// Microseconds.
    pub(crate) p99_us: f64,
    /// One after the other.
    pub(crate) per_s: f64,
}

/// Both ways of having the blocks of a file beforehand.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct DiskCost {
    /// The blocks were written before, so that a sync need not write what the file looks like.
    pub(crate) written_before: SyncCost,
    /// The blocks were reserved by `fallocate` only, as etcd does it.
    pub(crate) reserved_only: SyncCost,
}

/// A directory of its own in `parent`, which must lie on a disk.
pub(crate) fn directory(parent: &Path) -> Outcome<TempDir> {
    let kind = statfs(parent)
        .map_err(|e| Failure::new(format!("{}: {e}", parent.display())))?
        .f_type as i64;
    if IN_MEMORY.contains(&kind) {
        return Err(Failure::new(format!(
            "{} lies in memory, where a sync costs nothing: name a directory on a disk with --data",
            parent.display()
        )));
    }
    let made = tempfile::Builder::new()
        .prefix("ramkeep-commands-")
        .tempdir_in(parent);
    Ok(made?)
}

/// Measures what syncs cost in this directory.
pub(crate) fn measure(directory: &Path) -> Outcome<DiskCost> {
    Ok(DiskCost {
        written_before: appends(&directory.join("written"), true)?,
        reserved_only: appends(&directory.join("reserved"), false)?,
    })
}

fn appends(path: &Path, written: bool) -> Outcome<SyncCost> {
    let mut options = OpenOptions::new();
    let file = options.create_new(true).write(true).open(path)?;
    fallocate(&file, FallocateFlags::empty(), 0, (BLOCK * APPENDS) as u64)?;
    if written {
        (&file).write_all(&vec![0; BLOCK * APPENDS])?;
    }
    file.sync_all()?;
    let mut file = OpenOptions::new().write(true).open(path)?;
    let mut took = Histogram::<u64>::new_with_bounds(1, HIGHEST, 3)?;
    let begin = Instant::now();
    for number in 0..APPENDS {
        let start = Instant::now();
        file.write_all(&[number as u8; BLOCK])?;
        fdatasync(&file)?;
        took.saturating_record(start.elapsed().as_nanos() as u64);
    }
    let elapsed = begin.elapsed();
    std::fs::remove_file(path)?;
    let us = |percentile| took.value_at_percentile(percentile) as f64 / 1e3;
    Ok(SyncCost {
        p50_us: us(50.0),
        p99_us: us(99.0),
        per_s: APPENDS as f64 / elapsed.as_secs_f64(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_in_memory_is_refused() {
        let memory = Path::new("/dev/shm");
        if memory.is_dir() {
            let error = directory(memory).unwrap_err().to_string();
            assert!(error.contains("--data"), "{error}");
        }
    }
}
