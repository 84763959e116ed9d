//! What goes out: queues of servers become envelopes.

use ramkeep_wire::data;
use ramkeep_wire::envelope::{Header, Kind};
use ramkeep_wire::limits::MAX_ITEMS;
use ramkeep_wire::{ClientId, Micros, Party, ServerId};

use super::slots::{Awaited, OpId, Phase};
use super::{Core, Target};
use crate::limits::{MAX_BATCH_BYTES, MAX_PENDING};

impl Core {
    pub(super) fn enqueue(&mut self, server: ServerId, op: OpId) {
        let link = self.servers.get_mut(&server).expect("the caller looked");
        if link.queue.len() >= 2 * MAX_PENDING {
            let slots = &self.slots;
            let waits = |op: &OpId| slots.get(*op).map(|slot| slot.phase);
            link.queue
                .retain(|op| waits(op) == Some(Phase::Queued(server)));
        }
        link.queue.push_back(op);
        self.list(server);
    }

    pub(super) fn list(&mut self, server: ServerId) {
        if let Some(link) = self.servers.get_mut(&server)
            && !link.listed
            && link.is_ready()
        {
            link.listed = true;
            self.ready.push_back(server);
        }
    }

    /// Someone for whom there is something to send.
    pub(crate) fn next_ready(&mut self, now: Micros) -> Option<Target> {
        if let Some(peer) = self.control.ready(now, self.lease.client()) {
            return Some(Target::Coordinator(peer));
        }
        while let Some(&server) = self.ready.front() {
            match self.servers.get_mut(&server) {
                Some(link) if link.is_ready() => return Some(Target::Server(server)),
                Some(link) => link.listed = false,
                None => {}
            }
            self.ready.pop_front();
        }
        None
    }

    /// The header of the next envelope for `to`, should there be one.
    #[must_use]
    pub(crate) fn header(&self, to: Target) -> Header {
        // A connection outlives a lease, and envelopes name who said hello on it; the client's id is
        // in the payload.
        let from = Party::NONE;
        match to {
            Target::Coordinator(_) => {
                let correlation = self.control.next_correlation();
                Header::new(Kind::CoordinatorRequest, correlation, Party::NONE, from)
            }
            Target::Server(server) => {
                let (kind, party) = (Kind::DataRequest, Party::server(server));
                Header::new(kind, self.next_correlation, party, from)
            }
        }
    }

    /// Appends the payload of the next envelope for `to`, which goes out under [`Core::header`] as it
    /// was before. False: there is nothing (more) to send now.
    pub(crate) fn fill(&mut self, now: Micros, to: Target, payload: &mut Vec<u8>) -> bool {
        match to {
            Target::Coordinator(peer) => {
                let client = self.lease.client();
                self.control.fill(now, peer, client, payload)
            }
            Target::Server(server) => {
                let filled = self.fill_items(now, server, payload);
                self.next_correlation += u64::from(filled);
                filled
            }
        }
    }

    /// Items in the envelope filled last for a server.
    #[must_use]
    pub(crate) fn last_batch(&self) -> usize {
        self.last_batch
    }

    pub(super) fn fill_items(
        &mut self,
        now: Micros,
        server: ServerId,
        payload: &mut Vec<u8>,
    ) -> bool {
        let Some(link) = self.servers.get_mut(&server) else {
            return false;
        };
        let leased = self.lease.client();
        let start = data::begin_request(payload, leased, self.rpcs.ack());
        let (mut count, mut caller) = (0, None);
        while link.is_ready() && count < MAX_ITEMS && payload.len() - start < MAX_BATCH_BYTES {
            let Some(&op) = link.queue.front() else { break };
            let slot = self.slots.get_mut(op);
            let Some(slot) = slot.filter(|slot| slot.phase == Phase::Queued(server)) else {
                link.queue.pop_front();
                continue;
            };
            if count > 0 && payload.len() - start + slot.item.len() > MAX_BATCH_BYTES {
                break;
            }
            if slot.op.mutates() {
                let client = match slot.client {
                    _ if slot.unremembered => ClientId(0),
                    ClientId(0) => leased,
                    first => first,
                };
                if client == ClientId(0)
                    && !slot.unremembered
                    && let Some(until) = self.lease.waits(now)
                {
                    let awaited = Awaited::Lease;
                    slot.phase = Phase::Waiting { awaited, until };
                    self.wake_bound = self.wake_bound.min(until);
                    self.attention = true;
                    link.queue.pop_front();
                    continue;
                }
                // An envelope carries the calls of one client.
                if *caller.get_or_insert(client) != client {
                    break;
                }
                slot.client = client;
            }
            payload.extend_from_slice(&slot.item);
            slot.phase = Phase::Sent;
            slot.wire = Some(server);
            link.queue.pop_front();
            link.in_flight += 1;
            count += 1;
        }
        if count == 0 {
            payload.truncate(start);
            return false;
        }
        if link.in_flight == count {
            link.heard = now;
        }
        data::set_count(payload, start, count as u32);
        data::set_client(payload, start, caller.unwrap_or(leased));
        self.last_batch = count;
        true
    }
}
