//! Carries what scrubbing reads back from backups, at a pace that leaves them to others.
//!
//! # Invariants
//! 1. Every request of the core is answered, if only with nothing.

use std::sync::Arc;
use std::time::Duration;

use ramkeep_rpc::{Caller, clock};
use ramkeep_wire::backup::BackupResponse;
use ramkeep_wire::envelope::Kind;
use ramkeep_wire::{ServerId, postcards};
use tokio::time::MissedTickBehavior;

use super::MasterShell;
use super::recovery::connect;
use crate::core::ScrubAsk;

/// Between two requests: 5 MB/s are read back, so that 256 MiB in two copies are seen every two
/// minutes.
const EVERY: Duration = Duration::from_millis(50);
/// A backup may take as long to answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(1);

/// Reads back until the master is fenced.
pub(super) async fn run(shell: Arc<MasterShell>) {
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut connection = None;
    while !shell.master.is_fenced() {
        tick.tick().await;
        let Some(ask) = shell.master.poll_scrub() else {
            continue;
        };
        let payload = carry(&shell, &mut connection, &ask).await;
        let answer = payload.as_deref();
        let answer = answer.and_then(|payload| BackupResponse::read(payload).ok());
        if answer.is_none() {
            connection = None;
        }
        if shell.master.handle_scrubbed(answer.as_ref()) {
            shell.pump(clock::now());
        }
    }
}

async fn carry(
    shell: &MasterShell,
    connection: &mut Option<(ServerId, Caller)>,
    ask: &ScrubAsk,
) -> Option<Vec<u8>> {
    let usable = |(to, caller): &(ServerId, Caller)| *to == ask.to && !caller.link().is_closed();
    if !connection.as_ref().is_some_and(usable) {
        *connection = Some((ask.to, connect(shell, ask.to).await?));
    }
    let (_, caller) = connection.as_ref()?;
    let payload = postcards::encode(&ask.request);
    let answer = caller.call(Kind::BackupRequest, &payload, ANSWER_DEADLINE);
    answer.await.ok()
}
