//! Gives each recovery a thread, so that no client waits for hashes.
//!
//! # Invariants
//! 1. A thread ends when its recovery has failed, is finished, or was given up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ramkeep_master::recovery::{Driven, Outcome, RecoveryId, Replayer};
use ramkeep_rpc::{Link, clock};
use ramkeep_wire::LogPosition;

use super::server::ServerShell;
use crate::core::DataPlane;

/// A thread that waits for backups looks again after as long, if nobody wakes it.
const DURABLE_WAIT: Duration = Duration::from_millis(2);
/// A thread without work looks again after as long, if nobody wakes it.
const IDLE_WAIT: Duration = Duration::from_millis(20);
/// Bytes appended by a replay that go to the backups in one message, so that hashing them never
/// takes the lock for long.
const SEND_AFTER: u32 = 128 << 10;

impl ServerShell {
    /// Starts the thread of a recovery.
    pub(super) fn start_replay(self: &Arc<Self>, id: RecoveryId, replayer: Replayer) {
        let Some(plane) = self.plane().cloned() else {
            return;
        };
        let work = {
            let (shell, plane) = (self.clone(), plane.clone());
            move || {
                shell.threads.enter();
                replay(&shell, &plane, id, replayer);
                shell.threads.leave();
            }
        };
        let spawned = std::thread::Builder::new()
            .name("replay".into())
            .spawn(work);
        if let Err(error) = spawned {
            let failed = Outcome::Failed(format!("no thread to replay on: {error}"));
            plane.master().recoveries().handle_outcome(id, failed);
        }
    }
}

fn replay(shell: &ServerShell, plane: &DataPlane<Link>, id: RecoveryId, mut replayer: Replayer) {
    let (master, store) = (plane.master(), plane.master().store());
    let mut sent = LogPosition::ZERO;
    let mut spent = Spent::new();
    while !master.is_fenced() {
        send_if_enough(plane, &mut sent, &mut spent);
        let driven = replayer.drive(id, store, || master.recoveries());
        spent.add(|spent| &mut spent.working);
        match driven {
            Driven::Worked => {}
            Driven::Told => {
                shell.look();
                // What the next segment goes into.
                store.populate_ahead();
            }
            Driven::WaitsForBackups => {
                wait_for_backups(shell, plane);
                spent.add(|spent| &mut spent.durable);
            }
            Driven::WaitsForSegments => {
                plane.pump(clock::now());
                std::thread::park_timeout(IDLE_WAIT);
                spent.add(|spent| &mut spent.fetching);
            }
            Driven::Finished(_) => {
                shell.look();
                plane.pump(clock::now());
                return spent.tell();
            }
            Driven::Ended => return shell.look(),
        }
    }
}

/// Sends what was appended if it is enough for a message.
fn send_if_enough(plane: &DataPlane<Link>, sent: &mut LogPosition, spent: &mut Spent) {
    let appended = plane.master().store().writer().log().appended_position();
    if appended.bytes_since(*sent) >= SEND_AFTER {
        *sent = appended;
        plane.pump(clock::now());
        spent.add(|spent| &mut spent.sending);
    }
}

/// Takes in what the backups answered, or sleeps until they have.
fn wait_for_backups(shell: &ServerShell, plane: &DataPlane<Link>) {
    if !shell.drive(plane, clock::now()) {
        plane.pump(clock::now());
        std::thread::park_timeout(DURABLE_WAIT);
    }
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
