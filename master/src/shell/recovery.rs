//! Carries what recoveries ask of backups, over connections of their own so that replication does
//! not wait behind segments; and gives each recovery a thread, so that no client waits for hashes.
//!
//! # Invariants
//! 1. Every request of the core is answered, if only with nothing.
//! 2. A thread ends when its recovery has failed, is finished, or was given up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::Thread;
use std::time::Duration;

use parking_lot::Mutex;
use ramkeep_rpc::{Address, Caller, Link, PollMode, clock};
use ramkeep_wire::backup::BackupResponse;
use ramkeep_wire::envelope::Kind;
use ramkeep_wire::{Party, ServerId, postcards};
use tokio::sync::Notify;

use super::MasterShell;
use crate::recovery::{Ask, Next, Outcome, RecoveryId, Replayer, Stepped};

/// How often it is looked for what is due.
const TICK: Duration = Duration::from_millis(10);
/// A backup may take as long to answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(1);
/// A replay waits as long while the log is rolling over.
const ROLL_WAIT: Duration = Duration::from_millis(1);
/// A thread without work looks again after as long, if nobody wakes it.
const IDLE_WAIT: Duration = Duration::from_millis(20);

/// Connections to backups for recoveries, and the threads that replay.
#[derive(Debug, Default)]
pub(super) struct RecoveryLinks {
    callers: Mutex<BTreeMap<ServerId, Caller>>,
    threads: Mutex<Vec<Thread>>,
    due: Notify,
}

/// Drives all recoveries until the master is fenced.
pub(super) async fn run(shell: Arc<MasterShell>) {
    while !shell.master.is_fenced() {
        let _ = tokio::time::timeout(TICK, shell.recovery.due.notified()).await;
        drive(&shell);
    }
}

fn drive(shell: &Arc<MasterShell>) {
    loop {
        let started = shell.master.recoveries().poll_started();
        let Some((id, replayer)) = started else { break };
        start_thread(shell, id, replayer);
    }
    loop {
        let ask = shell.master.recoveries().poll_ask(clock::now());
        let Some(ask) = ask else { break };
        tokio::spawn(carry(shell.clone(), ask));
    }
    let idle = shell.master.recoveries().is_idle();
    for thread in shell.recovery.threads.lock().iter() {
        thread.unpark();
    }
    if idle {
        shell.recovery.callers.lock().clear();
    }
}

/// Asks a backup, and gives the answer to the core.
async fn carry(shell: Arc<MasterShell>, ask: Ask) {
    let payload = postcards::encode(&ask.request);
    let answer = match caller(&shell, ask.to).await {
        Some(caller) => caller
            .call(Kind::BackupRequest, &payload, ANSWER_DEADLINE)
            .await
            .map_err(|error| error.to_string()),
        None => Err("it can't be reached".into()),
    };
    let read = answer
        .as_ref()
        .map_err(Clone::clone)
        .and_then(|payload| BackupResponse::read(payload).map_err(|error| error.to_string()));
    let answer = match read {
        Ok(answer) => Some(answer),
        Err(error) => {
            tracing::debug!(backup = %ask.to, %error, "a backup did not answer a recovery");
            shell.recovery.callers.lock().remove(&ask.to);
            None
        }
    };
    let now = clock::now();
    shell.master.recoveries().handle_answer(now, ask.id, answer);
    shell.recovery.due.notify_one();
}

async fn caller(shell: &MasterShell, server: ServerId) -> Option<Caller> {
    let known = shell.recovery.callers.lock().get(&server).cloned();
    if let Some(caller) = known.filter(|caller| !caller.link().is_closed()) {
        return Some(caller);
    }
    // Local sockets come last in the list and are the quicker ones.
    for address in shell.master.addresses_of(server).iter().rev() {
        let Ok(address) = address.parse::<Address>() else {
            continue;
        };
        let to = Party::server(server);
        match Link::connect(&address, &shell.identity, to, PollMode::Never).await {
            Ok(link) => {
                let caller = Caller::new(link);
                shell.recovery.callers.lock().insert(server, caller.clone());
                return Some(caller);
            }
            Err(error) => tracing::debug!(%server, %address, %error, "can't connect to a backup"),
        }
    }
    None
}

fn start_thread(shell: &Arc<MasterShell>, id: RecoveryId, replayer: Replayer) {
    let work = {
        let shell = shell.clone();
        move || {
            shell.recovery.threads.lock().push(std::thread::current());
            replay(&shell, id, replayer);
            let me = std::thread::current().id();
            shell
                .recovery
                .threads
                .lock()
                .retain(|thread| thread.id() != me);
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
    while !shell.master.is_fenced() {
        match replayer.step(store) {
            // Little by little, so that hashing for the backups never takes the lock for long.
            Stepped::Worked => {
                shell.pump(clock::now());
            }
            Stepped::Wait => {
                shell.pump(clock::now());
                std::thread::park_timeout(ROLL_WAIT);
            }
            Stepped::Idle => {
                let next = shell.master.recoveries().next_job(id);
                match next {
                    Next::Job(job) => replayer.give(job),
                    Next::Nothing => std::thread::park_timeout(IDLE_WAIT),
                    Next::Ended => return replayer.abandon(store),
                }
            }
            Stepped::Said(outcome) => {
                let failed = matches!(outcome, Outcome::Failed(_));
                let finished = matches!(outcome, Outcome::Finished(_));
                shell.master.recoveries().handle_outcome(id, outcome);
                shell.pump(clock::now());
                shell.recovery.due.notify_one();
                if failed {
                    return replayer.abandon(store);
                }
                if finished {
                    return;
                }
            }
        }
    }
}
