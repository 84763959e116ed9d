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
    /// At once, twice as many. What is taken from it is replaced as by [`Stock::WhenQuiet`]: a recovery
    /// does not wait for frames that nobody needs yet.
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
            next: Preparing::start("frame keeper", core, move |frames| {
                frames.prepare_always(SPARES, Duration::ZERO);
            })?,
            stock: Preparing::start("frame stock", core, move |frames| {
                let wanted = match stock {
                    Stock::WhenQuiet => usual,
                    Stock::AtOnce => 2 * usual,
                };
                if stock == Stock::AtOnce && frames.prepare(wanted, Duration::ZERO).is_none() {
                    return;
                }
                yield_all();
                frames.prepare_always(wanted, QUIET);
            })?,
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

/// A thread that prepares frames when it is woken.
#[derive(Debug)]
struct Preparing {
    wake: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The frames, and who says that some were taken.
struct Preparer {
    core: Weak<Mutex<Backup<MappedStore>>>,
    woken: Receiver<()>,
}

impl Preparing {
    fn start(
        name: &str,
        core: &Arc<Mutex<Backup<MappedStore>>>,
        work: impl FnOnce(&Preparer) + Send + 'static,
    ) -> io::Result<Self> {
        let (wake, woken) = sync_channel(1);
        let preparer = Preparer {
            core: Arc::downgrade(core),
            woken,
        };
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || work(&preparer))?;
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

impl Preparer {
    /// Has so many frames prepared, again and again, until nobody can wake it any more.
    fn prepare_always(&self, wanted: usize, quiet: Duration) {
        while self.prepare(wanted, quiet).is_some() {}
    }

    /// Once it is woken, prepares frames whenever there was no wake for so long, until there are so
    /// many; `None` once nobody can wake it any more.
    fn prepare(&self, wanted: usize, quiet: Duration) -> Option<()> {
        self.woken.recv().ok()?;
        let mut wait = quiet;
        loop {
            match self.woken.recv_timeout(wait) {
                Ok(()) => wait = quiet,
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) if prepare_one(&self.core, wanted) => {
                    wait = Duration::ZERO;
                }
                Err(RecvTimeoutError::Timeout) => return Some(()),
            }
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
