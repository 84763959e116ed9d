//! A server's connections to the backups of its master's segments.

use std::collections::BTreeMap;

use ramkeep_master::core::Sink;
use ramkeep_wire::backup::BackupRequest;
use ramkeep_wire::envelope::{self, Header, Kind};
use ramkeep_wire::replicate::{Replicate, ReplicateAck};
use ramkeep_wire::{Party, SegmentId, ServerId, postcards};

use super::{BackupLink, Context, ServerNode};
use crate::network::ConnectionId;

impl ServerNode {
    pub(super) fn backup_lost(&mut self, context: &Context<'_>, server: ServerId) {
        self.backups.remove(&server);
        self.not_before
            .insert(server, context.now + self.config.reconnect);
        if let Some(master) = &self.master {
            master.link_down(server);
        }
    }

    pub(super) fn acknowledged(
        &mut self,
        context: &Context<'_>,
        connection: ConnectionId,
        payload: &[u8],
    ) {
        let from = self
            .backups
            .iter()
            .find(|(_, link)| link.connection == connection)
            .map(|(server, _)| *server);
        let (Some(from), Some(master)) = (from, &self.master) else {
            return;
        };
        if let Ok(ack) = ReplicateAck::read(payload) {
            master.handle_ack(context.now, from, &ack);
        }
    }

    pub(super) fn pump(&mut self, context: &mut Context<'_>) {
        let Some(master) = &self.master else { return };
        let mut sink = LinkSink {
            me: self.server,
            links: &self.backups,
            messages: Vec::new(),
            lost: Vec::new(),
        };
        master.pump(context.now, &mut sink);
        let LinkSink { messages, lost, .. } = sink;
        for (connection, bytes) in messages {
            context.send(connection, &bytes);
        }
        for server in lost {
            self.backup_lost(context, server);
        }
    }

    pub(super) fn connect_backups(&mut self, context: &mut Context<'_>) {
        let Some(master) = &self.master else { return };
        for (server, addresses) in master.backups() {
            let waits = self
                .not_before
                .get(&server)
                .is_some_and(|until| *until > context.now);
            let Some(address) = addresses.first() else {
                continue;
            };
            if self.backups.contains_key(&server) || waits {
                continue;
            }
            let connection = context.connect(address);
            let link = BackupLink {
                connection,
                open: false,
            };
            self.backups.insert(server, link);
        }
    }
}

/// Collects what the master sends, by connection.
struct LinkSink<'a> {
    me: ServerId,
    links: &'a BTreeMap<ServerId, BackupLink>,
    messages: Vec<(ConnectionId, Vec<u8>)>,
    lost: Vec<ServerId>,
}

impl LinkSink<'_> {
    fn send(&mut self, to: ServerId, kind: Kind, build: impl FnOnce(&mut Vec<u8>)) {
        match self.links.get(&to) {
            Some(link) if link.open => {
                let mut bytes = Vec::new();
                let number = link.connection.0;
                let header = Header::new(kind, number, Party::server(to), Party::server(self.me));
                let start = envelope::begin(&mut bytes, header);
                build(&mut bytes);
                envelope::seal(&mut bytes, start);
                self.messages.push((link.connection, bytes));
            }
            _ if self.lost.contains(&to) => {}
            _ => self.lost.push(to),
        }
    }
}

impl Sink for LinkSink<'_> {
    fn replicate(&mut self, to: ServerId, message: &Replicate<'_>) {
        self.send(to, Kind::Replicate, |out| message.write(out));
    }

    fn free(&mut self, to: ServerId, segments: Vec<SegmentId>) {
        let master = self.me;
        let request = BackupRequest::Free { master, segments };
        self.send(to, Kind::BackupRequest, |out| {
            out.extend_from_slice(&postcards::encode(&request));
        });
    }
}
