//! The thread that owns the files: it alone waits for the disk.
//!
//! # Invariants
//! 1. Jobs are done in order. Records that wait together are written as one record of the journal,
//!    with one sync: a machine that fails keeps all of them or none.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;

use paxos::Record;
use ramkeep_wire::postcards;

use super::files::{Files, FilesError};
use super::hub::Hub;
use crate::desk::DiskJob;

/// Bytes of records that are written with one sync, unless one job alone has more.
const MAX_TOGETHER: usize = 4 << 20;

/// What it is asked to do, in order.
pub(super) enum Job {
    /// Put this on the disk, and say when it is safe.
    Persist(DiskJob),
    /// End.
    Close,
}

/// Starts it.
pub(super) fn start(
    files: Files,
    jobs: Receiver<Job>,
    hub: Arc<Hub>,
) -> io::Result<JoinHandle<()>> {
    let thread = std::thread::Builder::new().name("ramkeep-journal".into());
    thread.spawn(move || {
        if let Err(error) = run(files, &jobs, &hub) {
            tracing::error!(%error, "the journal can't be written: this process ends");
            hub.fail(error);
        }
    })
}

fn run(mut files: Files, jobs: &Receiver<Job>, hub: &Arc<Hub>) -> Result<(), FilesError> {
    let mut next = None;
    while let Some(job) = next.take().or_else(|| jobs.recv().ok()) {
        match job {
            Job::Persist(DiskJob {
                seq,
                snapshot: None,
                records,
            }) => {
                let mut batch = Batch::default();
                batch.add(seq, records);
                next = batch.gather(jobs);
                files.append(&postcards::encode(&batch.records))?;
                hub.input(|desk, now| desk.handle_persisted(now, batch.seq));
            }
            Job::Persist(DiskJob {
                seq,
                snapshot: Some(snapshot),
                records,
            }) => {
                let records = records
                    .iter()
                    .map(|record| postcards::encode(&[record].as_slice()));
                let records: Vec<_> = records.collect();
                files.snapshot(&postcards::encode(&snapshot), &records)?;
                hub.input(|desk, now| desk.handle_persisted(now, seq));
            }
            Job::Close => return Ok(()),
        }
    }
    Ok(())
}

/// Records that are written together.
#[derive(Default)]
struct Batch {
    /// Of the last job in it.
    seq: u64,
    records: Vec<Record>,
    /// About as many bytes as they take.
    bytes: usize,
}

impl Batch {
    fn add(&mut self, seq: u64, records: Vec<Record>) {
        self.seq = seq;
        self.bytes += records.iter().map(Record::size).sum::<usize>();
        self.records.extend(records);
    }

    /// Adds the records that wait by now. The job that comes after them, if one does.
    fn gather(&mut self, jobs: &Receiver<Job>) -> Option<Job> {
        while self.bytes < MAX_TOGETHER {
            match jobs.try_recv() {
                Ok(Job::Persist(DiskJob {
                    seq,
                    snapshot: None,
                    records,
                })) => self.add(seq, records),
                Ok(other) => return Some(other),
                Err(_) => return None,
            }
        }
        None
    }
}
