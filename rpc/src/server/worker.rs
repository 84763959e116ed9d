//! Worker threads: each a tokio runtime of its own, with the connections that it was given.
//!
//! # Invariants
//! 1. A connection stays with its worker, and its requests run to completion there.
//! 2. While connections of a worker are polled, its other tasks run after at most
//!    [`TURNS_PER_DRIVER`] looks, and new readiness is seen after [`DRIVER_MICROS`] or so.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;
use std::thread::JoinHandle;

use ramkeep_wire::Micros;
use tokio::runtime::{Builder, Handle};
use tokio::sync::Notify;

use crate::clock;
use crate::polling::PollMode;

/// Connections of one worker that are polled directly at the same time; others that are busy are
/// seen through epoll, which the polling ones have looked at all the while.
pub(super) const MAX_SPINNERS: u32 = 4;
/// Looks at sockets that found nothing between two looks at epoll.
pub(super) const TURNS_PER_DRIVER: u32 = 16;
/// Time between two looks at epoll while connections are busy, in microseconds.
pub(super) const DRIVER_MICROS: u64 = 20;
/// The same while replies wait for other processes, who could use the core.
const HOLDING_DRIVER_MICROS: u64 = 200;

/// What the tasks of one worker share. Only that worker's thread touches it while running, so the
/// atomics are never contended and need no order.
pub(super) struct Worker {
    pub(super) mode: PollMode,
    spinners: AtomicU32,
    turns: AtomicU32,
    last_driver: AtomicU64,
}

/// Permission to poll a socket directly, given back when dropped.
pub(super) struct SpinSlot(Arc<Worker>);

impl Drop for SpinSlot {
    fn drop(&mut self) {
        self.0.spinners.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Worker {
    fn new(mode: PollMode) -> Self {
        Self {
            mode,
            spinners: AtomicU32::new(0),
            turns: AtomicU32::new(0),
            last_driver: AtomicU64::new(0),
        }
    }

    /// A slot to poll with, unless enough connections do.
    pub(super) fn try_spin(self: &Arc<Self>) -> Option<SpinSlot> {
        if self.spinners.load(Ordering::Relaxed) >= MAX_SPINNERS {
            return None;
        }
        self.spinners.fetch_add(1, Ordering::Relaxed);
        Some(SpinSlot(self.clone()))
    }

    /// After a look that found nothing: lets the other processes of this core run, then the other
    /// tasks of this worker as they are due.
    pub(super) async fn idle_turn(&self) {
        let turns = self.turns.load(Ordering::Relaxed) + 1;
        self.turns.store(turns, Ordering::Relaxed);
        let spinners = self.spinners.load(Ordering::Relaxed).max(1);
        if turns.is_multiple_of(spinners) {
            std::thread::yield_now();
        }
        if turns >= TURNS_PER_DRIVER {
            self.run_driver().await;
        } else if spinners > 1 {
            rotate().await;
        }
    }

    /// After a look that found something: lets the tasks run that it woke.
    pub(super) async fn busy_turn(&self, now: Micros) {
        if now
            .0
            .saturating_sub(self.last_driver.load(Ordering::Relaxed))
            >= DRIVER_MICROS
        {
            self.run_driver().await;
        } else {
            rotate().await;
        }
    }

    /// After a look that found something whose replies wait for other processes: lets these run, who
    /// may be on this core, before anything else.
    pub(super) async fn holding_turn(&self, now: Micros) {
        std::thread::yield_now();
        let since = now
            .0
            .saturating_sub(self.last_driver.load(Ordering::Relaxed));
        if since >= HOLDING_DRIVER_MICROS {
            self.run_driver().await;
        } else {
            rotate().await;
        }
    }

    /// Has tokio look at epoll and its timers.
    async fn run_driver(&self) {
        tokio::task::yield_now().await;
        self.turns.store(0, Ordering::Relaxed);
        self.last_driver.store(clock::now().0, Ordering::Relaxed);
    }
}

/// Goes to the back of the worker's queue, without a look at epoll in between.
async fn rotate() {
    let mut rotated = false;
    poll_fn(|cx| {
        if rotated {
            return Poll::Ready(());
        }
        rotated = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// A worker as others see it.
#[derive(Clone)]
pub(super) struct WorkerHandle {
    pub(super) runtime: Handle,
    pub(super) shared: Arc<Worker>,
}

/// The worker threads of a process.
pub struct WorkerPool {
    workers: Vec<WorkerHandle>,
    threads: Vec<(Arc<Notify>, JoinHandle<()>)>,
    next: Arc<AtomicUsize>,
}

impl WorkerPool {
    /// Starts `count` workers (at least one).
    ///
    /// # Errors
    /// When the system gives no thread or no epoll.
    pub fn start(count: usize, mode: PollMode) -> io::Result<Self> {
        let mut pool = Self {
            workers: Vec::new(),
            threads: Vec::new(),
            next: Arc::new(AtomicUsize::new(0)),
        };
        for index in 0..count.max(1) {
            let runtime = Builder::new_current_thread()
                .enable_all()
                .event_interval(TURNS_PER_DRIVER * 2)
                .build()?;
            pool.workers.push(WorkerHandle {
                runtime: runtime.handle().clone(),
                shared: Arc::new(Worker::new(mode)),
            });
            let stop = Arc::new(Notify::new());
            let stopped = stop.clone();
            let thread = std::thread::Builder::new()
                .name(format!("ramkeep-worker-{index}"))
                .spawn(move || runtime.block_on(stopped.notified()))?;
            pool.threads.push((stop, thread));
        }
        Ok(pool)
    }

    /// The runtime of worker 0: control loops and timers are spawned there.
    #[must_use]
    pub fn runtime(&self) -> &Handle {
        &self.workers[0].runtime
    }

    pub(super) fn workers(&self) -> &[WorkerHandle] {
        &self.workers
    }

    /// Whose turn it is to get a connection, counted over all listeners.
    pub(super) fn turn_counter(&self) -> Arc<AtomicUsize> {
        self.next.clone()
    }

    /// Ends the workers with everything that runs on them, and waits for it. Call
    /// [`super::Serving::stop`] before, so that held replies still go out. Not to be called from a
    /// worker.
    pub fn shutdown(mut self) {
        self.signal();
        for (_, thread) in std::mem::take(&mut self.threads) {
            if thread.join().is_err() {
                tracing::error!("a worker thread had panicked");
            }
        }
    }

    fn signal(&self) {
        // A worker that isn't waiting yet finds the permit.
        self.threads.iter().for_each(|(stop, _)| stop.notify_one());
    }
}

impl Drop for WorkerPool {
    fn drop(&mut self) {
        self.signal();
    }
}
