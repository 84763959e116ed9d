//! Orders and questions on their way to servers. May be lost: the core repeats them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ramkeep_rpc::{CallError, Caller, Identity, Link, PollMode, Unreached};
use ramkeep_wire::backup::{BackupRequest, BackupResponse};
use ramkeep_wire::envelope::Kind;
use ramkeep_wire::order::{Order, OrderReply};
use ramkeep_wire::postcards::Malformed;
use ramkeep_wire::{Micros, ServerId, postcards};
use tokio::sync::Mutex;

use super::hub::Hub;
use crate::core::Coordinator;

/// Orders and questions on their way to one server; more are dropped.
const MAX_IN_FLIGHT: usize = 32;
/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// The way to one server: its connection, made when first needed.
#[derive(Default)]
pub(super) struct Post {
    caller: Mutex<Option<Caller>>,
    in_flight: AtomicUsize,
}

/// Why there is no reply.
enum Lost {
    /// No process of this identity is at its addresses.
    Refused,
    /// The connection closed.
    Closed,
    /// Something else.
    Other,
}

impl Post {
    /// Takes a place for an order, if there is one.
    pub(super) fn begin(&self) -> bool {
        let free = |count| (count < MAX_IN_FLIGHT).then_some(count + 1);
        let order = Ordering::Relaxed;
        self.in_flight.fetch_update(order, order, free).is_ok()
    }

    async fn caller(
        &self,
        identity: &Identity,
        server: ServerId,
        addresses: &[String],
    ) -> Result<Caller, Lost> {
        let mut kept = self.caller.lock().await;
        if let Some(caller) = kept.as_ref().filter(|c| !c.link().is_closed()) {
            return Ok(caller.clone());
        }
        *kept = None;
        let link = Link::reach(server, addresses, identity, PollMode::Never);
        let link = link.await.map_err(|unreached| match unreached {
            Unreached::Nobody => Lost::Refused,
            Unreached::Unclear => Lost::Other,
        })?;
        let caller = Caller::new(link);
        *kept = Some(caller.clone());
        Ok(caller)
    }

    /// Sends a payload and waits for the reply's; then its place is free again.
    async fn send(
        &self,
        identity: &Identity,
        server: ServerId,
        addresses: &[String],
        kind: Kind,
        payload: &[u8],
    ) -> Result<Vec<u8>, Lost> {
        let reply = self.call(identity, server, addresses, kind, payload).await;
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        reply
    }

    async fn call(
        &self,
        identity: &Identity,
        server: ServerId,
        addresses: &[String],
        kind: Kind,
        payload: &[u8],
    ) -> Result<Vec<u8>, Lost> {
        let caller = self.caller(identity, server, addresses).await?;
        match caller.call(kind, payload, PATIENCE).await {
            Ok(reply) => Ok(reply),
            Err(CallError::Closed(reason)) => {
                tracing::debug!(%server, %reason, "the connection to a server closed");
                Err(Lost::Closed)
            }
            Err(error) => {
                tracing::debug!(%server, ?kind, %error, "no reply");
                Err(Lost::Other)
            }
        }
    }
}

fn unreadable(server: ServerId, error: &Malformed) -> Lost {
    tracing::warn!(%server, %error, "unreadable reply");
    Lost::Other
}

/// Sends an order, and gives the core what came of it.
pub(super) async fn deliver(
    hub: Arc<Hub>,
    post: Arc<Post>,
    server: ServerId,
    addresses: Vec<String>,
    order: Order,
) {
    let payload = postcards::encode(&order);
    let sent = post.send(hub.identity(), server, &addresses, Kind::Order, &payload);
    let reply = sent.await.and_then(|reply| {
        let reply = postcards::decode::<OrderReply>(&reply);
        reply.map_err(|error| unreadable(server, &error))
    });
    hub.input(|core, now| match reply {
        Ok(reply) => core.handle_order_reply(now, server, &order.command, reply),
        Err(lost) => tell_lost(core, now, server, &lost),
    });
}

/// Asks a server's backup, and gives the core what came of it.
pub(super) async fn ask(
    hub: Arc<Hub>,
    post: Arc<Post>,
    server: ServerId,
    addresses: Vec<String>,
    token: u64,
    request: BackupRequest,
) {
    let payload = postcards::encode(&request);
    let kind = Kind::BackupRequest;
    let sent = post.send(hub.identity(), server, &addresses, kind, &payload);
    let answer = sent.await.and_then(|reply| {
        let (response, bytes) =
            BackupResponse::read(&reply).map_err(|error| unreadable(server, &error))?;
        Ok((response, bytes.to_vec()))
    });
    hub.input(|core, now| {
        if let Err(lost) = &answer {
            tell_lost(core, now, server, lost);
        }
        core.handle_backup_answer(now, server, token, answer.ok());
    });
}

fn tell_lost(core: &mut Coordinator, now: Micros, server: ServerId, lost: &Lost) {
    match lost {
        Lost::Refused => core.handle_probe_failed(now, server, true),
        Lost::Closed => core.handle_link_down(now, server),
        Lost::Other => core.handle_probe_failed(now, server, false),
    }
}
