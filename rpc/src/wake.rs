//! A handle by which any thread tells a sleeping connection that a held reply may be ready.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

/// Wakes one connection. Cheap to clone, and cheap to call while the connection is polling.
#[derive(Clone, Default)]
pub struct Wake(Arc<Inner>);

#[derive(Default)]
struct Inner {
    /// Someone woke and the connection hasn't looked since.
    raised: AtomicBool,
    sleeper: Mutex<Option<Waker>>,
}

impl Wake {
    /// A handle that nothing sleeps on: for tests and for sessions driven by hand.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Has the connection call its session's `poll` soon. Never blocks for long, never lost.
    pub fn wake(&self) {
        if self.0.raised.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(waker) = self.0.sleeper.lock().take() {
            waker.wake();
        }
    }

    /// Whether it was woken since the last look.
    #[must_use]
    pub fn take(&self) -> bool {
        self.0.raised.load(Ordering::Relaxed) && self.0.raised.swap(false, Ordering::AcqRel)
    }

    /// Ready once woken. The waker is stored before the flag is read, so that a wake between the
    /// two is seen by one side or the other.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        *self.0.sleeper.lock() = Some(cx.waker().clone());
        if self.0.raised.swap(false, Ordering::AcqRel) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

impl fmt::Debug for Wake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wake(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake as StdWake;

    struct Count(AtomicUsize);
    impl StdWake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_wake_before_sleeping_is_not_lost() {
        let wake = Wake::new();
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(count.clone());
        let mut cx = Context::from_waker(&waker);
        wake.wake();
        assert!(wake.poll(&mut cx).is_ready());
        assert!(wake.poll(&mut cx).is_pending());
        wake.wake();
        wake.wake();
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert!(wake.take());
        assert!(!wake.take());
    }
}
