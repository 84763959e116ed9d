//! Orders on their way to servers. May be lost: the core repeats them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ramkeep_rpc::{Address, CallError, Caller, ConnectError, Identity, Link, PollMode};
use ramkeep_wire::envelope::Kind;
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::order::{Order, OrderReply};
use ramkeep_wire::{Party, ServerId, postcards};
use tokio::sync::Mutex;

use super::hub::Hub;

/// Orders on their way to one server; more are dropped.
const MAX_IN_FLIGHT: usize = 32;
/// How long a server may take to answer an order.
const PATIENCE: Duration = Duration::from_secs(1);

/// The way to one server: its connection, made when first needed.
#[derive(Default)]
pub(super) struct Post {
    caller: Mutex<Option<Caller>>,
    in_flight: AtomicUsize,
}

/// Why an order has no reply.
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
        let caller = Caller::new(connect(identity, server, addresses).await?);
        *kept = Some(caller.clone());
        Ok(caller)
    }

    async fn send(
        &self,
        identity: &Identity,
        server: ServerId,
        addresses: &[String],
        order: &Order,
    ) -> Result<OrderReply, Lost> {
        let caller = self.caller(identity, server, addresses).await?;
        let payload = postcards::encode(order);
        match caller.call(Kind::Order, &payload, PATIENCE).await {
            Ok(reply) => postcards::decode(&reply).map_err(|error| {
                tracing::warn!(%server, %error, "unreadable reply to an order");
                Lost::Other
            }),
            Err(CallError::Closed(reason)) => {
                tracing::debug!(%server, %reason, "the connection to a server closed");
                Err(Lost::Closed)
            }
            Err(error) => {
                tracing::debug!(%server, %error, "an order has no reply");
                Err(Lost::Other)
            }
        }
    }
}

/// Sends an order, and gives the core what came of it.
pub(super) async fn deliver(
    hub: Arc<Hub>,
    post: Arc<Post>,
    server: ServerId,
    addresses: Vec<String>,
    order: Order,
) {
    let outcome = post.send(hub.identity(), server, &addresses, &order).await;
    post.in_flight.fetch_sub(1, Ordering::Relaxed);
    hub.input(|core, now| match outcome {
        Ok(reply) => core.handle_order_reply(now, server, &order.command, reply),
        Err(Lost::Refused) => core.handle_probe_failed(now, server, true),
        Err(Lost::Closed) => core.handle_link_down(now, server),
        Err(Lost::Other) => core.handle_probe_failed(now, server, false),
    });
}

async fn connect(
    identity: &Identity,
    server: ServerId,
    addresses: &[String],
) -> Result<Link, Lost> {
    let mut refused = true;
    // Sockets of this machine come last and are the quicker ones.
    for text in addresses.iter().rev() {
        let Ok(address) = text.parse::<Address>() else {
            tracing::warn!(%server, %text, "a server's address makes no sense");
            continue;
        };
        match Link::connect(&address, identity, Party::server(server), PollMode::Never).await {
            Ok(link) => return Ok(link),
            Err(error) => {
                tracing::debug!(%server, %address, %error, "can't connect to a server");
                refused &= nobody_there(&error, server);
            }
        }
    }
    Err(if refused { Lost::Refused } else { Lost::Other })
}

/// Whether the error proves that this server does not listen there.
fn nobody_there(error: &ConnectError, server: ServerId) -> bool {
    if let Some(Refusal::Party(other)) = error.refusal() {
        // Another server has its address now. One without an id may be about to learn it.
        return other.as_server().is_some_and(|other| other != server);
    }
    let ConnectError::Io { error, .. } = error else {
        return false;
    };
    use io::ErrorKind::{ConnectionRefused, NotFound};
    matches!(error.kind(), ConnectionRefused | NotFound)
}
