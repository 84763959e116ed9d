//! A thread that keeps spare frames prepared, so that no worker waits for the system's memory.

use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;

use crate::core::Backup;
use crate::mapped::MappedStore;

/// Runs until dropped; then it has given back what was lent to it.
#[derive(Debug)]
pub(super) struct Keeper {
    wake: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    pub(super) fn start(core: &Arc<Mutex<Backup<MappedStore>>>) -> io::Result<Self> {
        let (wake, woken) = sync_channel(1);
        let core = Arc::downgrade(core);
        let thread = thread::Builder::new()
            .name("frame keeper".to_owned())
            .spawn(move || {
                while woken.recv().is_ok() {
                    while prepare_one(&core) {}
                }
            })?;
        Ok(Self {
            wake: Some(wake),
            thread: Some(thread),
        })
    }

    /// A frame was taken: see whether more are wanted.
    pub(super) fn wake(&self) {
        if let Some(wake) = &self.wake {
            // Full: it will look anyway.
            let _ = wake.try_send(());
        }
    }
}

/// Prepares one frame without the lock; false when no more are wanted, or there is no memory.
fn prepare_one(core: &Weak<Mutex<Backup<MappedStore>>>) -> bool {
    let Some(mut spare) = core.upgrade().and_then(|core| core.lock().lend_spare()) else {
        return false;
    };
    spare.prepare(thread::yield_now);
    let prepared = spare.is_prepared();
    if let Some(core) = core.upgrade() {
        core.lock().give_back(spare);
    }
    prepared
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.wake = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the frame keeper panicked");
        }
    }
}
