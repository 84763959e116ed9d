//! Guards: the proof a reader holds that no slot it may see is reused.
//!
//! Each memory has its own epoch collector, so that what one memory frees, and when, depends on its
//! own readers only (a simulated cluster in one process stays deterministic), and threads keep
//! their registrations in a small cache.

use std::cell::RefCell;
use std::rc::Rc;

use crossbeam_epoch::{Collector, LocalHandle};

/// Registrations a thread keeps; more memories than this on one thread only cost a registration
/// per pin.
const HANDLES_PER_THREAD: usize = 16;

thread_local! {
    static HANDLES: RefCell<Vec<Rc<LocalHandle>>> = const { RefCell::new(Vec::new()) };
}

/// Keeps every slot that was in use when it was made from being reused, until it is dropped.
///
/// Made by [`SegmentMemory::pin`](crate::SegmentMemory::pin); valid for that memory only. Cheap
/// enough to make per batch; holding one for long keeps freed memory from being reused.
#[derive(Debug)]
pub struct Guard {
    epoch: crossbeam_epoch::Guard,
    /// How many slots had been retired when this guard was made, read after the epoch was pinned.
    retirements: u64,
}

impl Guard {
    /// `retirements` is called once the epoch is pinned.
    pub(crate) fn pin(collector: &Collector, retirements: impl FnOnce() -> u64) -> Self {
        let epoch = pin_epoch(collector);
        let retirements = retirements();
        Self { epoch, retirements }
    }

    pub(crate) fn retirements(&self) -> u64 {
        self.retirements
    }

    pub(crate) fn belongs_to(&self, collector: &Collector) -> bool {
        self.epoch.collector() == Some(collector)
    }
}

/// Pins the calling thread in `collector`.
pub(crate) fn pin_epoch(collector: &Collector) -> crossbeam_epoch::Guard {
    // The handle leaves the cache before it pins: pinning may run deferred work that pins again.
    match HANDLES.try_with(|handles| cached_handle(&mut handles.borrow_mut(), collector)) {
        Ok(handle) => handle.pin(),
        // The thread is ending and its cache is gone.
        Err(_) => collector.register().pin(),
    }
}

fn cached_handle(handles: &mut Vec<Rc<LocalHandle>>, collector: &Collector) -> Rc<LocalHandle> {
    if let Some(handle) = handles
        .iter()
        .find(|handle| handle.collector() == collector)
    {
        return Rc::clone(handle);
    }
    if handles.len() == HANDLES_PER_THREAD {
        handles.remove(0);
    }
    let handle = Rc::new(collector.register());
    handles.push(Rc::clone(&handle));
    handle
}
