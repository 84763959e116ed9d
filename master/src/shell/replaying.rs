//! Gives each recovery a thread, so that no client waits for hashes.
//!
//! # Invariants
//! 1. A thread ends when its recovery has failed, is finished, or was given up.
//! 2. What a replay appends runs at most [`MAX_AHEAD`] and a batch ahead of what is durable: writes of
//!    clients stand in the same line, and a backup that is far behind is sent bytes without a
//!    certificate, which make nothing durable until it has caught up.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::Thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use ramkeep_rpc::clock;
use ramkeep_wire::LogPosition;

use super::MasterShell;
use crate::recovery::{Driven, Outcome, RecoveryId, Replayer};
use crate::store::Store;

/// A thread that waits for backups looks again after as long, if nobody wakes it.
const DURABLE_WAIT: Duration = Duration::from_millis(2);
/// A thread without work looks again after as long, if nobody wakes it.
const IDLE_WAIT: Duration = Duration::from_millis(20);
/// Bytes appended by a replay that go to the backups in one message, so that hashing them never
/// takes the lock for long.
const SEND_AFTER: u32 = 128 << 10;
/// Bytes appended and not durable, past which a replay waits.
const MAX_AHEAD: u32 = 1 << 20;

/// The threads that replay.
#[derive(Debug, Default)]
pub(super) struct Threads {
    count: AtomicUsize,
    all: Mutex<Vec<Thread>>,
}

impl Threads {
    /// There may be something to do for them.
    pub(super) fn wake(&self) {
        // One that comes just now looks before it sleeps.
        if self.count.load(Ordering::Relaxed) > 0 {
            self.all.lock().iter().for_each(Thread::unpark);
        }
    }

    fn enter(&self) {
        let mut all = self.all.lock();
        all.push(std::thread::current());
        self.count.store(all.len(), Ordering::Relaxed);
    }

    fn leave(&self) {
        let me = std::thread::current().id();
        let mut all = self.all.lock();
        all.retain(|thread| thread.id() != me);
        self.count.store(all.len(), Ordering::Relaxed);
    }
}

/// Starts the thread of a recovery.
pub(super) fn start(shell: &Arc<MasterShell>, id: RecoveryId, replayer: Replayer) {
    let work = {
        let shell = shell.clone();
        move || {
            shell.recovery.threads.enter();
            replay(&shell, id, replayer);
            shell.recovery.threads.leave();
        }
    };
    let spawned = std::thread::Builder::new()
        .name("replay".into())
        .spawn(work);
    if let Err(error) = spawned {
        let failed = Outcome::Failed(format!("no thread to replay on: {error}"));
        shell.master.recoveries().handle_outcome(id, failed);
    }
}

fn replay(shell: &MasterShell, id: RecoveryId, mut replayer: Replayer) {
    let store = shell.master.store();
    let mut sent = LogPosition::ZERO;
    let mut spent = Spent::new();
    while !shell.master.is_fenced() {
        if lets_backups_follow(shell, &mut sent, &mut spent) {
            continue;
        }
        let driven = replayer.drive(id, store, || shell.master.recoveries());
        spent.add(|spent| &mut spent.working);
        match driven {
            Driven::Worked => {}
            Driven::Told => {
                shell.recovery.look();
                // What the next segment goes into.
                store.populate_ahead();
            }
            Driven::WaitsForBackups => {
                wait_for_backups(shell);
                spent.add(|spent| &mut spent.durable);
            }
            Driven::WaitsForSegments => {
                shell.pump(clock::now());
                std::thread::park_timeout(IDLE_WAIT);
                spent.add(|spent| &mut spent.fetching);
            }
            Driven::Finished(_) => {
                shell.recovery.look();
                shell.pump(clock::now());
                return spent.tell();
            }
            Driven::Ended => return shell.recovery.look(),
        }
    }
}

/// Sends what was appended if it is enough for a message; then, if the backups are far behind, waits
/// a while and says so.
fn lets_backups_follow(shell: &MasterShell, sent: &mut LogPosition, spent: &mut Spent) -> bool {
    let store = shell.master.store();
    let appended = store.writer().log().appended_position();
    if distance(*sent, appended) >= SEND_AFTER {
        *sent = appended;
        shell.pump(clock::now());
        spent.add(|spent| &mut spent.sending);
    }
    if is_near(store, appended) {
        return false;
    }
    wait_for_backups(shell);
    spent.add(|spent| &mut spent.durable);
    true
}

/// Takes in what the backups answered, or sleeps until they have.
fn wait_for_backups(shell: &MasterShell) {
    if !shell.drive(clock::now()) {
        shell.pump(clock::now());
        std::thread::park_timeout(DURABLE_WAIT);
    }
}

fn is_near(store: &Store, appended: LogPosition) -> bool {
    distance(store.durability().position(), appended) < MAX_AHEAD
}

/// Bytes between two positions, as far as the head has them.
fn distance(from: LogPosition, to: LogPosition) -> u32 {
    let same = from.segment() == to.segment();
    let from = if same { from.offset() } else { 0 };
    to.offset().saturating_sub(from)
}

/// What a replaying thread spent its time on.
#[derive(Clone, Copy, Debug)]
struct Spent {
    since: Instant,
    begun: Instant,
    /// Proving and replaying.
    working: Duration,
    /// Hashing for the backups and sending to them.
    sending: Duration,
    /// Waiting for the backups.
    durable: Duration,
    /// Waiting for segments.
    fetching: Duration,
}

impl Spent {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            since: now,
            begun: now,
            working: Duration::ZERO,
            sending: Duration::ZERO,
            durable: Duration::ZERO,
            fetching: Duration::ZERO,
        }
    }

    /// What passed since the last call went there.
    fn add(&mut self, to: impl FnOnce(&mut Self) -> &mut Duration) {
        let now = Instant::now();
        let passed = now - std::mem::replace(&mut self.since, now);
        *to(self) += passed;
    }

    fn tell(&self) {
        let whole = self.begun.elapsed();
        let Self {
            working,
            sending,
            durable,
            fetching,
            ..
        } = self;
        tracing::info!(
            ?whole,
            ?working,
            ?sending,
            ?durable,
            ?fetching,
            "a replay is done"
        );
    }
}
