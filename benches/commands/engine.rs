//! The client: one thread, as many tasks as commands are to be outstanding, the same for both
//! systems.
//!
//! # Invariants
//! 1. Every worker has one command outstanding, from the warm-up to the end.
//! 2. A command counts when it ends between the end of the warm-up and the end of the run; its
//!    latency is from before its request was made until its answer was checked.
//! 3. A run ends: at its time, at the first command that fails, or when a command takes longer
//!    than [`SILENCE`].

use std::sync::Arc;
use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::process::cpu_time;
use crate::{Failure, Outcome};

/// A system that says nothing for so long has failed.
const SILENCE: Duration = Duration::from_secs(10);
/// Latencies above this count as this. Nanoseconds.
const HIGHEST: u64 = 60_000_000_000;

/// Issues commands, one at a time.
pub(crate) trait Worker: Send + 'static {
    /// One command, with its answer checked.
    fn command(&mut self) -> impl Future<Output = Outcome<()>> + Send;
}

/// How long a run is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Length {
    /// Not counted.
    pub(crate) warm_up: Duration,
    /// Counted.
    pub(crate) counted: Duration,
}

/// What a run did.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    /// Commands that ended in it.
    pub(crate) commands: u64,
    /// How long it was.
    pub(crate) elapsed: Duration,
    /// Percentiles 50 and 99 of the latency, in nanoseconds.
    pub(crate) percentiles: [u64; 2],
    /// Processor time of this process meanwhile.
    pub(crate) client_cpu: Duration,
    /// Processor time of the servers meanwhile.
    pub(crate) server_cpu: Duration,
}

/// Drives the workers for the length of a run. `servers` are process ids; `edge` is called when
/// the counted part begins and when it ends.
pub(crate) async fn drive<W: Worker, T>(
    workers: Vec<W>,
    length: Length,
    servers: &[u32],
    edge: impl Fn() -> Outcome<T>,
) -> Outcome<(Run, [T; 2])> {
    let begin = Instant::now() + length.warm_up;
    let end = begin + length.counted;
    let latency = Arc::new(Mutex::new(Histogram::new_with_bounds(1, HIGHEST, 3)?));
    let mut tasks = JoinSet::new();
    for worker in workers {
        tasks.spawn(work(worker, begin, end, latency.clone()));
    }
    let own = [std::process::id()];
    reach(begin, &mut tasks).await?;
    let (before, first) = ((cpu_time(&own)?, cpu_time(servers)?), edge()?);
    let began = Instant::now();
    reach(end, &mut tasks).await?;
    let elapsed = began.elapsed();
    let (after, last) = ((cpu_time(&own)?, cpu_time(servers)?), edge()?);
    while let Some(done) = timeout_at(end + SILENCE, tasks.join_next())
        .await
        .map_err(|_| Failure::new("the system stopped answering"))?
    {
        finished(done)?;
    }
    let latency = latency.lock();
    let run = Run {
        commands: latency.len(),
        elapsed,
        percentiles: [50.0, 99.0].map(|p| latency.value_at_percentile(p)),
        client_cpu: after.0.saturating_sub(before.0),
        server_cpu: after.1.saturating_sub(before.1),
    };
    Ok((run, [first, last]))
}

async fn work<W: Worker>(
    mut worker: W,
    begin: Instant,
    end: Instant,
    latency: Arc<Mutex<Histogram<u64>>>,
) -> Outcome<()> {
    let mut start = Instant::now();
    while start < end {
        worker.command().await?;
        let now = Instant::now();
        if (begin..end).contains(&now) {
            let took = (now - start).as_nanos() as u64;
            latency.lock().saturating_record(took.max(1));
        }
        start = now;
    }
    Ok(())
}

/// Waits for this moment; a worker that ends before it has failed.
async fn reach(moment: Instant, tasks: &mut JoinSet<Outcome<()>>) -> Outcome<()> {
    loop {
        tokio::select! {
            biased;
            () = sleep_until(moment) => return Ok(()),
            Some(done) = tasks.join_next() => finished(done)?,
        }
    }
}

fn finished(done: Result<Outcome<()>, tokio::task::JoinError>) -> Outcome<()> {
    done.map_err(|e| Failure::new(e.to_string()))?
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sleeper {
        left: u32,
    }

    impl Worker for Sleeper {
        async fn command(&mut self) -> Outcome<()> {
            self.left = (self.left.checked_sub(1)).ok_or_else(|| Failure::new("worn out"))?;
            tokio::time::sleep(Duration::from_millis(10)).await;
            Ok(())
        }
    }

    fn run(left: u32) -> Outcome<(Run, [u32; 2])> {
        let length = Length {
            warm_up: Duration::from_millis(100),
            counted: Duration::from_millis(500),
        };
        let calls = std::cell::Cell::new(0);
        let edge = || {
            calls.set(calls.get() + 1);
            Ok(calls.get())
        };
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap()
            .block_on(drive(
                vec![Sleeper { left }, Sleeper { left }],
                length,
                &[],
                edge,
            ))
    }

    #[test]
    fn only_what_ends_after_the_warm_up_and_before_the_end_counts() {
        let (run, edges) = run(1_000).unwrap();
        // Two workers, a command each 10 ms, 500 ms; give or take the edges.
        assert!((96..=102).contains(&run.commands), "{run:?}");
        assert!(run.percentiles[0] >= 9_900_000, "{run:?}");
        assert_eq!(edges, [1, 2]);
    }

    #[test]
    fn a_command_that_fails_ends_the_run() {
        let error = run(20).unwrap_err().to_string();
        assert_eq!(error, "worn out");
    }
}
