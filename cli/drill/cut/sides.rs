//! What is to go on after a cut: tasks of the workload, commands to the coordinators, a coordinator
//! that was cut off. Each is counters that grow as long as it goes on.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use ramkeep_wire::PeerId;
use ramkeep_wire::coordinator::{Answer, ClusterStatus, Request};

use crate::coordinators::Coordinators;
use crate::drill::background::{Background, Stop};
use crate::drill::workload::{Reach, Shared};
use crate::failure::Failure;

/// Between two looks at a coordinator, and between two commands.
const PACE: Duration = Duration::from_millis(10);
/// A coordinator heard of so recently is there.
const HEARD: Duration = Duration::from_millis(500);

/// One of them.
pub(super) struct Side {
    /// For people.
    pub(super) name: String,
    counters: Counters,
    /// As they were when the cut had healed.
    before: Vec<u64>,
    /// When the first of them went on, and when the last.
    pub(super) first: Option<Instant>,
    pub(super) all: Option<Instant>,
}

enum Counters {
    /// Of the tasks on one server's keys.
    Tasks(Arc<Shared>, usize),
    Count(Arc<AtomicU64>),
}

impl Side {
    /// The tasks on the keys that this server owns.
    pub(super) fn tasks(name: String, shared: &Arc<Shared>, owner: u64) -> Result<Self, Failure> {
        let mut groups = shared.groups.iter();
        let found = groups.position(|group| group.owner.0 == owner);
        let place =
            found.ok_or_else(|| Failure::new("a server owns no key; load more with --size"))?;
        Ok(Self::new(name, Counters::Tasks(shared.clone(), place)))
    }

    /// Whatever counts there.
    pub(super) fn count(name: String, count: &Arc<AtomicU64>) -> Self {
        Self::new(name, Counters::Count(count.clone()))
    }

    fn new(name: String, counters: Counters) -> Self {
        Self {
            name,
            counters,
            before: Vec::new(),
            first: None,
            all: None,
        }
    }

    /// From now on it is to go on.
    pub(super) fn begin(&mut self) {
        self.before = self.read();
    }

    /// Looks whether it does.
    pub(super) fn look(&mut self) {
        let (now, read) = (Instant::now(), self.read());
        let went_on = || {
            self.before
                .iter()
                .zip(&read)
                .map(|(before, now)| now > before)
        };
        if self.first.is_none() && went_on().any(|on| on) {
            self.first = Some(now);
        }
        if self.all.is_none() && went_on().all(|on| on) {
            self.all = Some(now);
        }
    }

    fn read(&self) -> Vec<u64> {
        match &self.counters {
            Counters::Tasks(shared, place) => shared.groups[*place].done(),
            Counters::Count(count) => vec![count.load(Relaxed)],
        }
    }
}

/// Makes a table and drops it, again and again, where clients are.
pub(super) struct Commands {
    pub(super) done: Arc<AtomicU64>,
    background: Background<u64>,
}

impl Commands {
    /// Begins.
    pub(super) fn start(reach: Reach) -> Self {
        let done = Arc::new(AtomicU64::new(0));
        let counted = done.clone();
        let background = Background::start(move |stop: Stop| async move {
            if let Some(namespace) = &reach.namespace {
                namespace.enter()?;
            }
            let client = reach.connect().await?;
            let mut failed = 0;
            while !stop.is_set() {
                let made = client.create_table("cut").await;
                let dropped = client.drop_table("cut").await;
                match made.map(drop).and(dropped) {
                    Ok(()) => drop(counted.fetch_add(1, Relaxed)),
                    Err(error) => {
                        tracing::warn!(%error, "a command during a cut");
                        failed += 1;
                    }
                }
                tokio::time::sleep(PACE).await;
            }
            Ok(failed)
        });
        Self { done, background }
    }

    /// Ends. How many failed.
    pub(super) async fn finish(self) -> Result<u64, Failure> {
        self.background.finish().await
    }
}

/// Asks for the status again and again, from the middle of the network, and counts while a
/// coordinator is there and knows what is decided.
pub(super) struct Member {
    pub(super) there: Arc<AtomicU64>,
    background: Background<()>,
}

impl Member {
    /// Begins.
    pub(super) fn watch(addresses: Vec<String>, key_file: PathBuf, peer: PeerId) -> Self {
        let there = Arc::new(AtomicU64::new(0));
        let counted = there.clone();
        let background = Background::start(move |stop: Stop| async move {
            let coordinators = Coordinators::new(&addresses, Some(&key_file))?;
            let mut decided = 0;
            while !stop.is_set() {
                if let Ok(status) = status(&coordinators).await {
                    if is_there(&status, peer, decided) {
                        counted.fetch_add(1, Relaxed);
                    }
                    decided = status.decided;
                }
                tokio::time::sleep(PACE).await;
            }
            Ok(())
        });
        Self { there, background }
    }

    /// Ends.
    pub(super) async fn finish(self) -> Result<(), Failure> {
        self.background.finish().await
    }
}

/// The leader's.
pub(super) async fn status(coordinators: &Coordinators) -> Result<ClusterStatus, Failure> {
    match coordinators.ask(&Request::Status).await?.answer {
        Answer::Status(status) => Ok(*status),
        _ => Err(Failure::new("a status that is none")),
    }
}

/// Whether the leader hears of it, and it knows what was decided a moment ago.
fn is_there(status: &ClusterStatus, peer: PeerId, decided: u64) -> bool {
    if status.leader == peer {
        return true;
    }
    let mut coordinators = status.coordinators.iter();
    coordinators.any(|one| {
        let heard = one.silent_us.map(Duration::from_micros);
        one.peer == peer
            && heard.is_some_and(|silent| silent < HEARD)
            && one.decided.is_some_and(|known| known >= decided)
    })
}
