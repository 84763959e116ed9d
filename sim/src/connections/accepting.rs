//! Accepted connections.

use ramkeep_rpc::hello::refusal_envelope;
use ramkeep_rpc::{Batch, Expect, Handshake, Parting};
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::{ClusterId, Party};

use super::table::Connections;
use super::words::{End, Happening, ON_THIS_MACHINE, Side};
use crate::network::ConnectionId;
use crate::node::Context;

impl Connections {
    /// Who is at the other end of an accepted connection.
    #[must_use]
    pub fn peer(&self, inbound: ConnectionId) -> Option<Party> {
        match self.ends.get(&inbound)? {
            End::Inbound { peer } => Some(*peer),
            End::Asked(_) | End::Shaking { .. } | End::Wire { .. } => None,
        }
    }

    /// Sends envelopes on an accepted connection, if it is still there.
    pub fn send_inbound(&mut self, context: &mut Context<'_>, inbound: ConnectionId, bytes: &[u8]) {
        if self.peer(inbound).is_some() {
            context.send(inbound, bytes);
        }
    }

    /// Closes an accepted connection.
    pub fn close_inbound(&mut self, context: &mut Context<'_>, inbound: ConnectionId) {
        self.take_end(inbound);
        context.close(inbound);
    }

    /// Says why, and closes an accepted connection.
    pub fn refuse_inbound(
        &mut self,
        context: &mut Context<'_>,
        inbound: ConnectionId,
        refusal: &Refusal,
    ) {
        let to = self.peer(inbound).unwrap_or(Party::NONE);
        context.say(format_args!("refuses {to:?}: {refusal}"));
        let told = refusal_envelope(refusal, self.identity.party(), to);
        context.send(inbound, &told);
        self.close_inbound(context, inbound);
    }

    pub(super) fn accept(&mut self, context: &mut Context<'_>, connection: ConnectionId) {
        if self.serves.is_empty() {
            return context.close(connection);
        }
        let (nonce, mut out) = (context.rng.bytes(), Vec::new());
        let begun = Handshake::accept(&self.identity, ON_THIS_MACHINE, nonce, &mut out);
        self.shake(context, connection, Side::Accepting, begun, &out);
    }

    pub(super) fn is_accepted(&mut self, inbound: ConnectionId, peer: Party, cluster: ClusterId) {
        self.ends.insert(inbound, End::Inbound { peer });
        self.news.push(Happening::Accepted {
            inbound,
            peer,
            cluster,
        });
    }

    pub(super) fn requested(
        &mut self,
        context: &mut Context<'_>,
        inbound: ConnectionId,
        peer: Party,
        bytes: &[u8],
    ) {
        let expect = Expect::accepted(self.identity.party(), peer);
        let mut batch = Batch::expecting(bytes, expect);
        let judged = match batch.peek() {
            Some(kind) if !self.serves.contains(&kind) => {
                Some(Parting::of_unserved(kind, &mut batch))
            }
            _ => match batch.next() {
                Some(_) => None,
                None => batch.failure().cloned().map(Parting::Refuse),
            },
        };
        match judged {
            None => {
                let bytes = bytes.to_vec();
                return self.news.push(Happening::Request { inbound, bytes });
            }
            Some(Parting::Told(_)) => self.close_inbound(context, inbound),
            Some(Parting::Refuse(refusal)) => self.refuse_inbound(context, inbound, &refusal),
        }
        self.news.push(Happening::Gone { inbound, peer });
    }
}
