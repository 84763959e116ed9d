//! The connections to the backups.
//!
//! # Invariants
//! 1. Acknowledgements reach the core only from the connection that is registered for their
//!    backup: one that broke is taken out, and the core told, before another is made.
//! 2. Connections are registered and taken out in one step with telling the core, so that it never
//!    takes the end of one for the end of the next.
//! 3. A connection that is taken out is closed. Messages carry its number, by which a backup
//!    refuses what is left of an earlier one.
//! 4. Lock order: changes of connections, then the core's.

use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use ramkeep_rpc::Link;
use ramkeep_wire::backup::BackupRequest;
use ramkeep_wire::envelope::{self, Header, Kind};
use ramkeep_wire::replicate::{Replicate, ReplicateAck};
use ramkeep_wire::{Micros, Party, SegmentId, ServerId, postcards};

use crate::core::{Master, Sink};

/// A connection to a backup.
#[derive(Clone, Debug)]
pub(super) struct BackupLink {
    server: ServerId,
    /// Grows with every connection that this process makes.
    number: u64,
    link: Link,
}

type Links = Vec<BackupLink>;

/// All connections to backups.
#[derive(Debug, Default)]
pub(super) struct BackupLinks {
    links: ArcSwap<Links>,
    /// The number of the newest.
    changes: Mutex<u64>,
}

impl BackupLinks {
    /// Registers a connection, the only one to `server`.
    pub(super) fn add(&self, master: &Master, server: ServerId, link: Link) -> BackupLink {
        let mut newest = self.changes.lock();
        *newest += 1;
        let added = BackupLink {
            server,
            number: *newest,
            link,
        };
        let mut links = Links::clone(&self.links.load());
        links.push(added.clone());
        self.links.store(Arc::new(links));
        master.link_up(server);
        added
    }

    /// Closes a connection and takes it out, if that was not done before.
    pub(super) fn remove(&self, master: &Master, lost: &BackupLink) {
        let _one = self.changes.lock();
        lost.link.close();
        if self.is_current(lost) {
            let mut links = Links::clone(&self.links.load());
            links.retain(|known| known.number != lost.number);
            self.links.store(Arc::new(links));
            master.link_down(lost.server);
        }
    }

    /// Closes connections to servers that are not `wanted` any more.
    pub(super) fn keep(&self, master: &Master, wanted: impl Fn(ServerId) -> bool) {
        let links = self.links.load();
        for unwanted in links.iter().filter(|link| !wanted(link.server)) {
            self.remove(master, unwanted);
        }
    }

    /// Whether there is a connection to `server`.
    pub(super) fn has(&self, server: ServerId) -> bool {
        self.links.load().iter().any(|known| known.server == server)
    }

    fn is_current(&self, link: &BackupLink) -> bool {
        let links = self.links.load();
        links.iter().any(|known| known.number == link.number)
    }

    /// Takes in the acknowledgements that have come; says whether there was one.
    pub(super) fn receive(&self, now: Micros, master: &Master) -> bool {
        let mut any = false;
        for link in self.links.load().iter() {
            any |= self.receive_from(now, master, link);
        }
        any
    }

    /// Takes in the acknowledgements that have come from one backup.
    pub(super) fn receive_from(&self, now: Micros, master: &Master, from: &BackupLink) -> bool {
        let mut any = false;
        let _ = from.link.try_receive(&mut |envelope| {
            if envelope.header.kind != Kind::ReplicateAck {
                return;
            }
            match ReplicateAck::read(envelope.payload) {
                Ok(ack) => {
                    master.handle_ack_if(now, from.server, &ack, || self.is_current(from));
                    any = true;
                }
                Err(error) => {
                    let server = from.server;
                    tracing::warn!(%server, %error, "a backup's acknowledgement can't be read");
                    from.link.close();
                }
            }
        });
        any
    }
}

impl BackupLink {
    /// Waits for something to receive. False once the connection is closed.
    pub(super) async fn ready(&self) -> bool {
        if !self.link.is_closed() {
            self.link.ready().await;
        }
        !self.link.is_closed()
    }
}

/// Sends what the core derives over the connections.
pub(super) struct LinkSink<'a> {
    me: ServerId,
    links: &'a BackupLinks,
    /// The connections, as they were when the core began to send: from then on it will hear of the
    /// end of any of them, and what goes to one that ended is sent again.
    current: Option<arc_swap::Guard<Arc<Links>>>,
    /// Connections that could not be sent on.
    pub(super) lost: Vec<BackupLink>,
}

impl<'a> LinkSink<'a> {
    pub(super) fn new(me: ServerId, links: &'a BackupLinks) -> Self {
        Self {
            me,
            links,
            current: None,
            lost: Vec::new(),
        }
    }

    fn send(&mut self, kind: Kind, to: ServerId, build: impl FnOnce(&mut Vec<u8>, Header)) {
        let links = self.current.get_or_insert_with(|| self.links.links.load());
        // The core is about to hear of the end of one that is not there.
        let Some(found) = links.iter().find(|known| known.server == to) else {
            return;
        };
        let header = Header::new(
            kind,
            found.number,
            Party::server(to),
            Party::server(self.me),
        );
        let sent = found.link.send(|out| build(out, header));
        if sent.is_err() && !self.lost.iter().any(|lost| lost.number == found.number) {
            self.lost.push(found.clone());
        }
    }
}

impl Sink for LinkSink<'_> {
    fn replicate(&mut self, to: ServerId, message: &Replicate<'_>) {
        self.send(Kind::Replicate, to, |out, header| {
            let start = envelope::begin(out, header);
            message.write(out);
            envelope::seal(out, start);
        });
    }

    fn free(&mut self, to: ServerId, segments: Vec<SegmentId>) {
        let payload = postcards::encode(&BackupRequest::Free {
            master: self.me,
            segments,
        });
        self.send(Kind::BackupRequest, to, |out, header| {
            envelope::append(out, header, &payload);
        });
    }
}

#[cfg(test)]
mod tests {
    use ramkeep_rpc::{Identity, PollMode, Router, WorkerPool};
    use ramkeep_wire::certificate::CertificateKey;
    use ramkeep_wire::coordinator::Settings;
    use ramkeep_wire::{ClusterId, Micros};

    use super::*;
    use crate::core::MasterConfig;

    const BACKUP: ServerId = ServerId(2);

    fn master() -> Master {
        let settings = Settings {
            replicas: 2,
            lease_us: 200_000,
            backup_wait_us: 2_000_000,
            heartbeat_us: 100_000,
            suspect_us: 500_000,
            segment_size: 1 << 20,
        };
        let config = MasterConfig {
            me: ServerId(1),
            cluster: ClusterId([1; 16]),
            key: CertificateKey([1; 32]),
            settings,
            memory: 64 << 20,
            seed: 1,
        };
        Master::new(config).unwrap()
    }

    #[test]
    fn the_end_of_a_connection_is_not_taken_for_the_end_of_the_next() {
        let server = Identity::new(None).with_party(Party::server(BACKUP));
        let pool = WorkerPool::start(1, PollMode::Never).unwrap();
        let address = "127.0.0.1:0".parse().unwrap();
        let serving = pool.serve(&address, &server, Router::new()).unwrap();
        let client = Identity::new(None).with_party(Party::server(ServerId(1)));
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().build().unwrap();
        runtime.block_on(async {
            let connect = async || {
                let to = Party::server(BACKUP);
                let link = Link::connect(serving.address(), &client, to, PollMode::Never);
                link.await.unwrap()
            };
            let (master, links) = (master(), BackupLinks::default());
            let first = links.add(&master, BACKUP, connect().await);
            links.remove(&master, &first);
            assert!(first.link.is_closed() && !links.has(BACKUP));
            let second = links.add(&master, BACKUP, connect().await);
            assert!(second.number > first.number);
            // Found broken a second time, by one who was about to send on it.
            links.remove(&master, &first);
            assert!(links.has(BACKUP) && !second.link.is_closed());
            assert!(links.is_current(&second) && !links.is_current(&first));
            links.keep(&master, |server| server != BACKUP);
            assert!(second.link.is_closed() && !links.has(BACKUP));
            assert!(!links.receive(Micros(1), &master));
        });
    }
}
