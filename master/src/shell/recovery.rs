//! Carries what recoveries ask of backups, over connections of their own so that replication does
//! not wait behind segments.
//!
//! # Invariants
//! 1. Every request of the core is answered, if only with nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ramkeep_rpc::{Caller, Link, PollMode, clock};
use ramkeep_wire::backup::BackupResponse;
use ramkeep_wire::envelope::Kind;
use ramkeep_wire::{ServerId, postcards};
use tokio::sync::Notify;

use super::MasterShell;
use super::replaying::{self, Threads};
use crate::recovery::Ask;

/// How often it is looked for what is due.
const TICK: Duration = Duration::from_millis(10);
/// A backup may take as long to answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(1);

/// Connections to backups for recoveries, and the threads that replay.
#[derive(Debug, Default)]
pub(super) struct RecoveryLinks {
    callers: Mutex<BTreeMap<ServerId, Caller>>,
    pub(super) threads: Threads,
    due: Notify,
}

impl RecoveryLinks {
    /// Something of a recovery may have changed.
    pub(super) fn look(&self) {
        self.due.notify_one();
    }
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
        replaying::start(shell, id, replayer);
    }
    loop {
        let ask = shell.master.recoveries().poll_ask(clock::now());
        let Some(ask) = ask else { break };
        tokio::spawn(carry(shell.clone(), ask));
    }
    let idle = shell.master.recoveries().is_idle();
    shell.recovery.threads.wake();
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
    shell.recovery.look();
}

async fn caller(shell: &MasterShell, server: ServerId) -> Option<Caller> {
    let known = shell.recovery.callers.lock().get(&server).cloned();
    if let Some(caller) = known.filter(|caller| !caller.link().is_closed()) {
        return Some(caller);
    }
    let caller = connect(shell, server).await?;
    shell.recovery.callers.lock().insert(server, caller.clone());
    Some(caller)
}

/// A connection to a backup for requests that replication is not to wait behind.
pub(super) async fn connect(shell: &MasterShell, server: ServerId) -> Option<Caller> {
    let addresses = shell.master.addresses_of(server);
    let link = Link::reach(server, &addresses, &shell.identity, PollMode::Never);
    Some(Caller::new(link.await.ok()?))
}
