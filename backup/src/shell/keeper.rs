//! Threads that keep frames prepared, so that no worker waits for the system's memory: one sees to the
//! few that are needed next, the other, with what time the machine has left, to a stock of them.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;

use crate::core::Backup;
use crate::mapped::MappedStore;
use crate::spares::SPARES;

/// The lowest priority that there is.
const LEFT_OVER: i32 = 19;

/// The stock is filled once no frame was taken for so long: while many are, by a recovery or a load,
/// each is prepared as it is needed, and nothing beside.
const QUIET: Duration = Duration::from_secs(1);

/// When the stock of prepared frames is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stock {
    /// With what time the machine has left, after a second in which no frame was taken.
    WhenQuiet,
    /// At once, and always again: twice as many.
    AtOnce,
}

/// Runs until dropped; then it has given back what was lent to it.
#[derive(Debug)]
pub(super) struct Keeper {
    next: Preparing,
    stock: Preparing,
}

impl Keeper {
    pub(super) fn start(core: &Arc<Mutex<Backup<MappedStore>>>, stock: Stock) -> io::Result<Self> {
        let usual = core.lock().stock();
        let keeper = Self {
            next: Preparing::start("frame keeper", core, SPARES, Duration::ZERO, || ())?,
            stock: match stock {
                Stock::WhenQuiet => Preparing::start("frame stock", core, usual, QUIET, yield_all),
                Stock::AtOnce => {
                    Preparing::start("frame stock", core, 2 * usual, Duration::ZERO, || ())
                }
            }?,
        };
        if stock == Stock::AtOnce {
            keeper.wake();
        }
        Ok(keeper)
    }

    /// A frame was taken: see whether more are wanted.
    pub(super) fn wake(&self) {
        self.next.wake();
        self.stock.wake();
    }
}

fn yield_all() {
    if let Err(error) = rustix::process::nice(LEFT_OVER) {
        tracing::debug!(%error, "frames are prepared ahead at the usual priority");
    }
}

/// A thread that has so many frames prepared whenever it is woken, and not again for some time.
#[derive(Debug)]
struct Preparing {
    wake: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Preparing {
    fn start(
        name: &str,
        core: &Arc<Mutex<Backup<MappedStore>>>,
        wanted: usize,
        quiet: Duration,
        begin: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let (wake, woken) = sync_channel(1);
        let core = Arc::downgrade(core);
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                begin();
                while woken.recv().is_ok() {
                    if prepare_all(&core, wanted, quiet, &woken).is_none() {
                        return;
                    }
                }
            })?;
        Ok(Self {
            wake: Some(wake),
            thread: Some(thread),
        })
    }

    fn wake(&self) {
        if let Some(wake) = &self.wake {
            // Full: it will look anyway.
            let _ = wake.try_send(());
        }
    }
}

/// Prepares frames whenever there was no wake for so long; `None` once nobody can wake it any more.
fn prepare_all(
    core: &Weak<Mutex<Backup<MappedStore>>>,
    wanted: usize,
    quiet: Duration,
    woken: &Receiver<()>,
) -> Option<()> {
    let mut wait = quiet;
    loop {
        match woken.recv_timeout(wait) {
            Ok(()) => wait = quiet,
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) if prepare_one(core, wanted) => wait = Duration::ZERO,
            Err(RecvTimeoutError::Timeout) => return Some(()),
        }
    }
}

/// Prepares one frame without the lock; false when no more are wanted, or there is no memory.
fn prepare_one(core: &Weak<Mutex<Backup<MappedStore>>>, wanted: usize) -> bool {
    let Some(mut spare) = core
        .upgrade()
        .and_then(|core| core.lock().lend_spare(wanted))
    else {
        return false;
    };
    spare.prepare(thread::yield_now);
    let prepared = spare.is_prepared();
    if let Some(core) = core.upgrade() {
        core.lock().give_back(spare);
    }
    prepared
}

impl Drop for Preparing {
    fn drop(&mut self) {
        self.wake = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a thread that prepares frames panicked");
        }
    }
}
