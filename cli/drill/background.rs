//! Load beside the drill: a thread with a runtime of its own, so that the drill's measurements
//! don't wait for its polling.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use tokio::sync::oneshot;

use crate::failure::Failure;
use crate::runtime;

/// Whether the load is to end.
#[derive(Clone, Debug, Default)]
pub(super) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Whether it is.
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Relaxed)
    }
}

/// A running load; told to end when dropped.
#[derive(Debug)]
pub(super) struct Background<T> {
    stop: Stop,
    end: oneshot::Receiver<Result<T, Failure>>,
}

impl<T: Send + 'static> Background<T> {
    /// Starts it.
    pub(super) fn start<F>(load: impl FnOnce(Stop) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let stop = Stop::default();
        let (tell, end) = oneshot::channel();
        let until = stop.clone();
        std::thread::spawn(move || {
            let ended = runtime::current_thread().and_then(|runtime| runtime.block_on(load(until)));
            // Nobody waits for it when the drill itself has failed.
            let _ = tell.send(ended);
        });
        Self { stop, end }
    }

    /// Tells it to end, and waits for what it made of it.
    pub(super) async fn finish(mut self) -> Result<T, Failure> {
        self.stop.0.store(true, Relaxed);
        let ended = (&mut self.end).await;
        ended.unwrap_or_else(|_| Err(Failure::new("the load of the drill ended by a panic")))
    }
}

impl<T> Drop for Background<T> {
    fn drop(&mut self) {
        self.stop.0.store(true, Relaxed);
    }
}
