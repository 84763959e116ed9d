//! The thread that owns the files: it alone waits for the disk.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;

use super::files::Files;
use super::hub::Hub;

/// What it is asked to do, in order.
pub(super) enum Job {
    /// Write a record, and say when it is safe.
    Persist {
        /// Its slot.
        index: u64,
        /// Its payload.
        bytes: Vec<u8>,
    },
    /// Keep a snapshot.
    Snapshot {
        /// The slot that it ends with.
        index: u64,
        /// The state.
        bytes: Vec<u8>,
    },
    /// End.
    Close,
}

/// Starts it.
pub(super) fn start(
    mut files: Files,
    jobs: Receiver<Job>,
    hub: Arc<Hub>,
) -> io::Result<JoinHandle<()>> {
    let thread = std::thread::Builder::new().name("ramkeep-journal".into());
    thread.spawn(move || {
        for job in jobs {
            let outcome = match job {
                Job::Persist { index, bytes } => files.append(index, &bytes).map(|()| {
                    hub.input(|core, now| core.handle_persisted(now, index));
                }),
                Job::Snapshot { index, bytes } => files.snapshot(index, &bytes),
                Job::Close => return,
            };
            if let Err(error) = outcome {
                tracing::error!(%error, "the journal can't be written: this process ends");
                hub.fail(error);
                return;
            }
        }
    })
}
