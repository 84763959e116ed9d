//! Carries out what a core wants of its wires, over sockets: one task a wire, which connects, receives
//! and notices the end.
//!
//! # Invariants
//! 1. A handler hears of a wire's up before anything is received on it, of its down once and last, and
//!    of nothing that happens after the core has closed it, but for what is being handed over just then.
//! 2. No lock of this file is held while a handler is called.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use ramkeep_wire::envelope::Envelope;
use ramkeep_wire::{ClusterId, Party};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use crate::address::Address;
use crate::handshake::HandshakeError;
use crate::identity::Identity;
use crate::link::{ConnectError, Link};
use crate::polling::PollMode;
use crate::wires::{Attempt, Reach, WireEnd, WireId, WireOutput};

/// Hears what becomes of wires: from any thread, and never twice at a time for one wire.
pub trait WireHandler: Send + Sync + 'static {
    /// A wire is up: who this process said it was, who is there, and the cluster of who is there, as far as
    /// that knew it.
    fn up(&self, wire: WireId, local: Party, peer: Party, cluster: ClusterId);
    /// An envelope came.
    fn received(&self, wire: WireId, envelope: &Envelope<'_>);
    /// All that had come was handed over: time to draw the conclusions.
    fn received_all(&self) {}
    /// A wire has ended, or could not be made.
    fn down(&self, wire: WireId, end: WireEnd);
}

/// The wires of a process, with the sockets under them. Clones share them.
#[derive(Clone, Debug)]
pub struct Wiring {
    identity: Identity,
    mode: PollMode,
    runtime: Handle,
    wires: Arc<Mutex<BTreeMap<WireId, Wire>>>,
}

#[derive(Debug)]
enum Wire {
    Connecting(AbortHandle),
    Up(Link),
}

impl Wiring {
    /// No wires yet. Their tasks run on `runtime`.
    #[must_use]
    pub fn new(identity: Identity, mode: PollMode, runtime: Handle) -> Self {
        Self {
            identity,
            mode,
            runtime,
            wires: Arc::default(),
        }
    }

    /// Does what a core wants done.
    pub fn perform(&self, output: WireOutput, handler: &Arc<impl WireHandler>) {
        match output {
            WireOutput::Connect {
                wire,
                addresses,
                to,
            } => self.connect(wire, addresses, to, handler.clone()),
            WireOutput::Send { wire, bytes } => self.send(wire, &bytes),
            WireOutput::Close { wire } => self.close(wire),
        }
    }

    /// The link under a wire that is up.
    #[must_use]
    pub fn link(&self, wire: WireId) -> Option<Link> {
        match self.wires.lock().get(&wire)? {
            Wire::Up(link) => Some(link.clone()),
            Wire::Connecting(_) => None,
        }
    }

    fn connect(
        &self,
        wire: WireId,
        addresses: Vec<String>,
        to: Party,
        handler: Arc<impl WireHandler>,
    ) {
        // Locked until it is in the table: the task may be quicker.
        let mut wires = self.wires.lock();
        let reach = Reach::new(addresses, to);
        let task = self
            .runtime
            .spawn(self.clone().run(wire, reach, to, handler));
        wires.insert(wire, Wire::Connecting(task.abort_handle()));
    }

    fn send(&self, wire: WireId, bytes: &[u8]) {
        let Some(link) = self.link(wire) else { return };
        // One that is closed is found closed by its task; from one that does not read, the answer is
        // missed.
        if let Err(error) = link.send(|out| out.extend_from_slice(bytes)) {
            tracing::debug!(peer = ?link.peer(), %error, "an envelope is lost");
        }
    }

    fn close(&self, wire: WireId) {
        let closed = self.wires.lock().remove(&wire);
        match closed {
            Some(Wire::Connecting(task)) => task.abort(),
            Some(Wire::Up(link)) => link.close(),
            None => {}
        }
    }

    /// One wire, from the wish for it to its end.
    async fn run(self, wire: WireId, reach: Reach, to: Party, handler: Arc<impl WireHandler>) {
        let end = match self.reach(reach, to).await {
            Ok(link) => {
                if !self.is_up(wire, &link) {
                    return;
                }
                handler.up(wire, link.local(), link.peer(), link.cluster());
                receive(wire, &link, &*handler).await;
                let why = link.closed_reason();
                WireEnd::Closed(why.map_or_else(String::new, |why| why.to_string()))
            }
            Err(end) => end,
        };
        let known = self.wires.lock().remove(&wire).is_some();
        if known {
            handler.down(wire, end);
        }
    }

    /// Notes the link under a wire. False: it was closed meanwhile.
    fn is_up(&self, wire: WireId, link: &Link) -> bool {
        let mut wires = self.wires.lock();
        let known = wires.get_mut(&wire);
        known.map(|known| *known = Wire::Up(link.clone())).is_some()
    }

    async fn reach(&self, mut reach: Reach, to: Party) -> Result<Link, WireEnd> {
        loop {
            let text = reach.next_address()?;
            match self.try_address(&text, to).await {
                Ok(link) => return Ok(link),
                Err(attempt) => {
                    tracing::debug!(?to, %text, ?attempt, "can't connect");
                    reach.failed(attempt);
                }
            }
        }
    }

    async fn try_address(&self, text: &str, to: Party) -> Result<Link, Attempt> {
        let address: Address = text
            .parse()
            .map_err(|error| Attempt::Failed(format!("{error}")))?;
        let link = Link::connect(&address, &self.identity, to, self.mode).await;
        link.map_err(|error| attempt(&error))
    }
}

/// Hands over what comes until the link is closed.
async fn receive(wire: WireId, link: &Link, handler: &impl WireHandler) {
    loop {
        let mut any = false;
        let mut hand_over = |envelope: Envelope<'_>| handler.received(wire, &envelope);
        while link.try_receive(&mut hand_over) > 0 {
            any = true;
        }
        if any {
            handler.received_all();
        }
        if link.is_closed() {
            return;
        }
        link.ready().await;
    }
}

/// What a failed connect says of who was looked for.
pub(crate) fn attempt(error: &ConnectError) -> Attempt {
    use io::ErrorKind::{ConnectionRefused, NotFound};
    match error {
        ConnectError::Handshake {
            error: HandshakeError::Hello(error),
            ..
        } => error.into(),
        ConnectError::Io { error: io, .. } if matches!(io.kind(), ConnectionRefused | NotFound) => {
            Attempt::NobodyListens(error.to_string())
        }
        other => Attempt::Failed(other.to_string()),
    }
}
