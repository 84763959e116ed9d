//! The connections over which a master replicates: which of them is current, and what the master is
//! told of them, in which order.
//!
//! Shared by all workers: whoever polls sends, and takes in acknowledgements. Which connections are
//! made, and when again, is decided under the server's lock ([`super::ServerCore`]).
//!
//! # Invariants
//! 1. To one backup there is one connection at most. Acknowledgements reach the master only from that
//!    one: when it ends it is taken out, and the master told, before another is put in.
//! 2. Connections are put in and taken out in one step with telling the master, so that it never
//!    takes the end of one for the end of the next.
//! 3. A connection that is taken out is closed. Messages carry its number, which grows, and by which a
//!    backup refuses what is left of an earlier one.
//! 4. Lock order: changes of connections, then the master's.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use ramkeep_master::core::{Master, Sink};
use ramkeep_wire::backup::BackupRequest;
use ramkeep_wire::envelope::{self, Envelope, Header, Kind};
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::replicate::{Replicate, ReplicateAck};
use ramkeep_wire::{Micros, Party, SegmentId, ServerId, postcards};

/// What carries envelopes to one backup: a socket, or a wire of the simulator. Clones are the same.
pub trait LinkCarrier: Clone {
    /// Sends one envelope, which `build` appends. False: nothing more can be sent.
    fn send(&self, build: impl FnOnce(&mut Vec<u8>)) -> bool;
    /// Ends the connection. Whoever carries it tells the core of the end.
    fn close(&self);
}

/// A connection to a backup.
#[derive(Clone, Debug)]
pub struct BackupLink<C> {
    server: ServerId,
    number: u64,
    /// What carries it.
    pub carrier: C,
}

/// All connections to backups.
#[derive(Debug)]
pub struct BackupLinks<C> {
    links: ArcSwap<Vec<BackupLink<C>>>,
    changes: Mutex<()>,
}

impl<C> Default for BackupLinks<C> {
    fn default() -> Self {
        Self {
            links: ArcSwap::default(),
            changes: Mutex::default(),
        }
    }
}

impl<C: LinkCarrier> BackupLinks<C> {
    /// Puts in the connection of this number, the only one to `server` from now on.
    pub(super) fn add(&self, master: &Master, server: ServerId, number: u64, carrier: C) {
        let _one = self.changes.lock();
        self.take_out(master, |link| link.server == server);
        let mut links = Vec::clone(&self.links.load());
        links.push(BackupLink {
            server,
            number,
            carrier,
        });
        self.links.store(Arc::new(links));
        master.link_up(server);
    }

    /// Closes the connections that are `over`, takes them out, and tells the master.
    pub(super) fn remove(&self, master: &Master, over: impl Fn(ServerId, u64) -> bool) {
        let _one = self.changes.lock();
        self.take_out(master, |link| over(link.server, link.number));
    }

    /// To be called with the changes locked.
    fn take_out(&self, master: &Master, over: impl Fn(&BackupLink<C>) -> bool) {
        let before = self.links.load();
        if !before.iter().any(&over) || mutants::active(Mutant::KeepOldLink) {
            return;
        }
        let (over, left): (Vec<_>, Vec<_>) = before.iter().cloned().partition(over);
        self.links.store(Arc::new(left));
        for link in over {
            link.carrier.close();
            master.link_down(link.server);
        }
    }

    fn is_current(&self, link: &BackupLink<C>) -> bool {
        let is_link = |known: &BackupLink<C>| known.number == link.number;
        self.links.load().iter().any(is_link)
    }

    /// The connections as they are now.
    pub fn all(&self) -> Guard<Arc<Vec<BackupLink<C>>>> {
        self.links.load()
    }

    /// Takes in what came over a connection; says whether that was an acknowledgement.
    pub fn handle_received(
        &self,
        now: Micros,
        master: &Master,
        from: &BackupLink<C>,
        envelope: &Envelope<'_>,
    ) -> bool {
        if envelope.header.kind != Kind::ReplicateAck {
            return false;
        }
        match ReplicateAck::read(envelope.payload) {
            Ok(ack) => {
                master.handle_ack_if(now, from.server, &ack, || self.is_current(from));
                true
            }
            Err(error) => {
                let server = from.server;
                tracing::warn!(%server, %error, "a backup's acknowledgement can't be read");
                from.carrier.close();
                false
            }
        }
    }

    /// Sends what is due to backups; a connection that takes no more is taken out. Returns whether more
    /// has become durable.
    pub(super) fn pump(&self, now: Micros, master: &Master) -> bool {
        let mut sink = LinkSink {
            me: master.me(),
            links: self,
            current: None,
            lost: Vec::new(),
        };
        let moved = master.pump(now, &mut sink);
        let lost = sink.lost;
        if !lost.is_empty() {
            self.remove(master, |_, number| lost.contains(&number));
        }
        moved
    }
}

impl<C> BackupLink<C> {
    /// Its number: that of its wire.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }
}

/// Sends what the master derives over the connections.
struct LinkSink<'a, C> {
    me: ServerId,
    links: &'a BackupLinks<C>,
    /// The connections, as they were when the master began to send: from then on it will hear of the
    /// end of any of them, and what goes to one that ended is sent again.
    current: Option<Guard<Arc<Vec<BackupLink<C>>>>>,
    /// Numbers of those that could not be sent on.
    lost: Vec<u64>,
}

impl<C: LinkCarrier> LinkSink<'_, C> {
    fn send(&mut self, kind: Kind, to: ServerId, build: impl FnOnce(&mut Vec<u8>)) {
        let links = self.current.get_or_insert_with(|| self.links.links.load());
        // The master is about to hear of the end of one that is not there.
        let Some(found) = links.iter().find(|known| known.server == to) else {
            return;
        };
        let (to, from) = (Party::server(to), Party::server(self.me));
        let header = Header::new(kind, found.number, to, from);
        let sent = found.carrier.send(|out| {
            let start = envelope::begin(out, header);
            build(out);
            envelope::seal(out, start);
        });
        if !sent && !self.lost.contains(&found.number) {
            self.lost.push(found.number);
        }
    }
}

impl<C: LinkCarrier> Sink for LinkSink<'_, C> {
    fn replicate(&mut self, to: ServerId, message: &Replicate<'_>) {
        self.send(Kind::Replicate, to, |out| message.write(out));
    }

    fn free(&mut self, to: ServerId, segments: Vec<SegmentId>) {
        let master = self.me;
        let request = BackupRequest::Free { master, segments };
        self.send(Kind::BackupRequest, to, |out| {
            out.extend_from_slice(&postcards::encode(&request));
        });
    }
}
