//! A conversation with the coordinators and the connections that it needs: what a process embeds that
//! asks them.
//!
//! Pure. After any input the caller drains [`Asking::poll_answered`] and [`Asking::poll_output`], then
//! looks at [`Asking::next_timeout`]. `ramkeep_rpc::Wiring` carries the outputs out over sockets.
//!
//! # Invariants
//! 1. There is one wire to a coordinator at most; an answer counts only from the wire that the request
//!    left on.
//! 2. A wire on which something comes that is no answer is closed.

use ramkeep_rpc::Identity;
use ramkeep_rpc::wires::{WireEnd, WireId, WireOutput, WireRules, Wires};
use ramkeep_wire::coordinator::Request;
use ramkeep_wire::envelope::{Envelope, Kind};
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::{ClusterId, Micros, Party, postcards};

use crate::conversation::{Answered, Conversation, Sequencing};
use crate::limits::MAX_ASKS;

/// The conversation paces its attempts by itself, and sends only on what is up.
const RULES: WireRules = WireRules {
    rest: std::time::Duration::ZERO,
    max_waiting: MAX_ASKS,
};

/// A conversation over wires. `O` says who asked.
#[derive(Debug)]
pub struct Asking<O> {
    conversation: Conversation<O>,
    wires: Wires<usize>,
    payload: Vec<u8>,
}

impl<O: PartialEq> Asking<O> {
    /// With the coordinators at these addresses; its wires are of this room.
    #[must_use]
    pub fn new(
        room: u8,
        identity: Identity,
        addresses: Vec<String>,
        sequencing: Sequencing,
    ) -> Self {
        Self {
            conversation: Conversation::new(identity, addresses, sequencing),
            wires: Wires::new(room, RULES),
            payload: Vec::new(),
        }
    }

    /// What is under way, and with whom.
    #[must_use]
    pub fn conversation(&self) -> &Conversation<O> {
        &self.conversation
    }

    /// Asks the leader, until `deadline` if there is one.
    ///
    /// # Errors
    /// Hands `owner` back when [`MAX_ASKS`] requests are under way.
    pub fn ask(
        &mut self,
        now: Micros,
        owner: O,
        request: Request,
        deadline: Option<Micros>,
    ) -> Result<(), O> {
        self.conversation.ask(now, owner, request, deadline)?;
        self.pump(now);
        Ok(())
    }

    /// The owner wants no answer any more. What was sent may still be carried out.
    pub fn cancel(&mut self, owner: &O) {
        self.conversation.cancel(owner);
    }

    /// How mutations are numbered from now on.
    pub fn set_sequencing(&mut self, now: Micros, sequencing: Sequencing) {
        self.conversation.set_sequencing(sequencing);
        self.pump(now);
    }

    /// See [`Conversation::pop_forgotten`].
    pub fn pop_forgotten(&mut self) -> Option<ramkeep_wire::ClientId> {
        self.conversation.pop_forgotten()
    }

    /// A wire is up, between these parties of this cluster. False: of an older life.
    pub fn handle_up(
        &mut self,
        now: Micros,
        wire: WireId,
        (local, peer): (Party, Party),
        cluster: ClusterId,
    ) -> bool {
        let Some(key) = self.wires.handle_up(wire, local, peer) else {
            return false;
        };
        self.conversation.link_up(key, cluster);
        self.pump(now);
        true
    }

    /// An envelope came. False: its wire is of an older life.
    pub fn handle_received(&mut self, now: Micros, wire: WireId, envelope: &Envelope<'_>) -> bool {
        let Some(&peer) = self.wires.key(wire) else {
            return false;
        };
        if let Err(what) = self.take(now, peer, envelope) {
            self.wires.forget(&peer);
            self.conversation.link_down(now, peer, &what);
        }
        self.pump(now);
        true
    }

    fn take(&mut self, now: Micros, peer: usize, envelope: &Envelope<'_>) -> Result<(), String> {
        let header = &envelope.header;
        if header.kind != Kind::CoordinatorResponse {
            return Err(format!("{:?} instead of an answer", header.kind));
        }
        let response = postcards::decode(envelope.payload).map_err(|error| error.to_string())?;
        self.conversation
            .handle_response(now, peer, header.correlation, response);
        Ok(())
    }

    /// A wire has ended, or could not be made. False: of an older life.
    pub fn handle_down(&mut self, now: Micros, wire: WireId, end: &WireEnd) -> bool {
        let Some((peer, _)) = self.wires.handle_down(now, wire) else {
            return false;
        };
        if let WireEnd::Refused(Refusal::Cluster(cluster)) = end {
            self.conversation.met(*cluster);
        }
        self.conversation.link_down(now, peer, &end.to_string());
        self.pump(now);
        true
    }

    /// Closes all connections: this process is somebody else from now on. What is under way is asked
    /// again on new ones.
    pub fn reconnect(&mut self, now: Micros) {
        let connected: Vec<_> = self.wires.keys().copied().collect();
        for peer in connected {
            self.wires.forget(&peer);
            self.conversation.link_closed(peer);
        }
        self.conversation.ask_anew();
        self.pump(now);
    }

    /// Lets time pass.
    pub fn handle_tick(&mut self, now: Micros) {
        self.conversation.handle_tick(now);
        self.pump(now);
    }

    /// When [`Asking::handle_tick`] has something to do.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Micros> {
        self.conversation.next_timeout()
    }

    /// A request that is over.
    pub fn poll_answered(&mut self) -> Option<Answered<O>> {
        self.conversation.pop_answered()
    }

    /// What is to be done with a wire.
    pub fn poll_output(&mut self) -> Option<WireOutput> {
        self.wires.poll_output()
    }

    /// Closes what was silent, and sends what is due or connects for it.
    fn pump(&mut self, now: Micros) {
        while let Some(peer) = self.conversation.pop_closing() {
            self.wires.forget(&peer);
            self.conversation.link_closed(peer);
        }
        while let Some(peer) = self.conversation.ready(now) {
            if !self.wires.is_up(&peer) {
                let address = self.conversation.address(peer).cloned();
                let addresses: Vec<_> = address.into_iter().collect();
                self.wires.ensure(now, &peer, &addresses, Party::NONE);
                self.conversation.connecting(peer);
                continue;
            }
            self.payload.clear();
            let filled = self.conversation.fill(now, peer, &mut self.payload);
            let Some(correlation) = filled else { return };
            let kind = Kind::CoordinatorRequest;
            self.wires.send(&peer, kind, correlation, &self.payload);
        }
    }
}
