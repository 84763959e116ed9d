//! The threads that replay, to be woken.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Wake;
use std::thread::Thread;

use parking_lot::Mutex;

/// The threads that replay.
#[derive(Debug, Default)]
pub(super) struct Threads {
    count: AtomicUsize,
    all: Mutex<Vec<Thread>>,
}

impl Threads {
    /// There may be something to do for them.
    pub(super) fn unpark(&self) {
        // One that comes just now looks before it sleeps.
        if self.count.load(Ordering::Relaxed) > 0 {
            self.all.lock().iter().for_each(Thread::unpark);
        }
    }

    pub(super) fn enter(&self) {
        let mut all = self.all.lock();
        all.push(std::thread::current());
        self.count.store(all.len(), Ordering::Relaxed);
    }

    pub(super) fn leave(&self) {
        let me = std::thread::current().id();
        let mut all = self.all.lock();
        all.retain(|thread| thread.id() != me);
        self.count.store(all.len(), Ordering::Relaxed);
    }
}

impl Wake for Threads {
    fn wake(self: Arc<Self>) {
        self.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.unpark();
    }
}
