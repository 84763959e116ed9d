//! The connections to the backups.
//!
//! # Invariants
//! 1. Acknowledgements reach the core only from the connection that is registered for their
//!    backup: one that broke is taken out, and the core told, before another is made.
//! 2. A message for a backup without a connection is dropped, and the core told that the link is
//!    down; it sends again what was not acknowledged.

use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use ramkeep_rpc::Link;
use ramkeep_wire::backup::BackupRequest;
use ramkeep_wire::envelope::{self, Header, Kind};
use ramkeep_wire::replicate::{Replicate, ReplicateAck};
use ramkeep_wire::{Micros, Party, SegmentId, ServerId, postcards};

use crate::core::{Master, Sink};

type Links = Vec<(ServerId, Link)>;

/// All connections to backups.
#[derive(Debug, Default)]
pub(super) struct BackupLinks {
    links: ArcSwap<Links>,
    change: Mutex<()>,
}

impl BackupLinks {
    /// The connections now.
    pub(super) fn all(&self) -> arc_swap::Guard<Arc<Links>> {
        self.links.load()
    }

    /// Registers a connection.
    pub(super) fn add(&self, server: ServerId, link: Link) {
        let _one = self.change.lock();
        let mut links = Links::clone(&self.links.load());
        links.retain(|(known, _)| *known != server);
        links.push((server, link));
        self.links.store(Arc::new(links));
    }

    /// Takes a connection out.
    pub(super) fn remove(&self, server: ServerId) {
        let _one = self.change.lock();
        let mut links = Links::clone(&self.links.load());
        links.retain(|(known, _)| *known != server);
        self.links.store(Arc::new(links));
    }

    /// Whether there is a connection to `server`.
    pub(super) fn has(&self, server: ServerId) -> bool {
        self.links.load().iter().any(|(known, _)| *known == server)
    }

    /// Takes in the acknowledgements that have come; says whether there was one.
    pub(super) fn receive(&self, now: Micros, master: &Master) -> bool {
        let mut any = false;
        for (server, link) in self.links.load().iter() {
            any |= receive_from(now, master, *server, link);
        }
        any
    }
}

/// Takes in the acknowledgements that have come from one backup.
pub(super) fn receive_from(now: Micros, master: &Master, server: ServerId, link: &Link) -> bool {
    let mut any = false;
    let _ = link.try_receive(&mut |envelope| {
        if envelope.header.kind != Kind::ReplicateAck {
            return;
        }
        match ReplicateAck::read(envelope.payload) {
            Ok(ack) => {
                master.handle_ack(now, server, &ack);
                any = true;
            }
            Err(error) => {
                tracing::warn!(%server, %error, "a backup's acknowledgement can't be read");
                link.close();
            }
        }
    });
    any
}

/// Sends what the core derives over the connections.
pub(super) struct LinkSink<'a> {
    pub(super) me: ServerId,
    pub(super) links: &'a Links,
    /// Backups that could not be sent to.
    pub(super) lost: Vec<ServerId>,
}

impl LinkSink<'_> {
    fn send(&mut self, to: ServerId, build: impl FnOnce(&mut Vec<u8>)) {
        let link = self.links.iter().find(|(known, _)| *known == to);
        if !link.is_some_and(|(_, link)| link.send(build).is_ok()) && !self.lost.contains(&to) {
            self.lost.push(to);
        }
    }

    fn header(&self, kind: Kind, to: ServerId) -> Header {
        Header::new(kind, 0, Party::server(to), Party::server(self.me))
    }
}

impl Sink for LinkSink<'_> {
    fn replicate(&mut self, to: ServerId, message: &Replicate<'_>) {
        let header = self.header(Kind::Replicate, to);
        self.send(to, |out| {
            let start = envelope::begin(out, header);
            message.write(out);
            envelope::seal(out, start);
        });
    }

    fn free(&mut self, to: ServerId, segments: Vec<SegmentId>) {
        let header = self.header(Kind::BackupRequest, to);
        let payload = postcards::encode(&BackupRequest::Free {
            master: self.me,
            segments,
        });
        self.send(to, |out| envelope::append(out, header, &payload));
    }
}
