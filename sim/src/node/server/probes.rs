//! A server's probes of others: each over a connection of its own, which is kept.

use std::collections::btree_map::{BTreeMap, Entry};

use ramkeep_server::core::{ProbeStep, Prober};
use ramkeep_wire::coordinator::Symptom;
use ramkeep_wire::envelope::{Header, Kind};
use ramkeep_wire::{Party, ServerId};

use super::{Context, ServerNode};
use crate::network::ConnectionId;

#[derive(Debug)]
struct ProbeLink {
    connection: ConnectionId,
    open: bool,
    /// No process listens there.
    nobody: bool,
    /// The last probe.
    number: u64,
}

/// Whom a server probes, and how.
#[derive(Debug, Default)]
pub(super) struct Probes {
    /// Once it is enlisted.
    pub(super) prober: Option<Prober>,
    links: BTreeMap<ServerId, ProbeLink>,
}

impl Probes {
    /// Whom a connection leads to, if it is one of these.
    pub(super) fn to(&self, connection: ConnectionId) -> Option<ServerId> {
        let mut links = self.links.iter();
        let found = links.find(|(_, link)| link.connection == connection);
        found.map(|(server, _)| *server)
    }
}

impl ServerNode {
    /// Lets time pass for the prober, and does what it wants.
    pub(super) fn probe(&mut self, context: &mut Context<'_>) {
        let Some(prober) = &mut self.probes.prober else {
            return;
        };
        prober.take_list(&self.list);
        prober.handle_tick(context.now);
        self.take_steps(context);
    }

    fn take_steps(&mut self, context: &mut Context<'_>) {
        while let Some(step) = self.probes.prober.as_mut().and_then(Prober::poll_step) {
            match step {
                ProbeStep::Probe {
                    number,
                    server,
                    addresses,
                } => self.send_probe(context, number, server, &addresses),
                ProbeStep::Tell(request) => {
                    context.say(format_args!("tells: {request:?}"));
                    self.ask(context, request);
                }
            }
        }
    }

    fn send_probe(
        &mut self,
        context: &mut Context<'_>,
        number: u64,
        server: ServerId,
        addresses: &[String],
    ) {
        let Some(address) = addresses.first() else {
            return;
        };
        let link = match self.probes.links.entry(server) {
            Entry::Occupied(link) => link.into_mut(),
            Entry::Vacant(none) => none.insert(ProbeLink {
                connection: context.connect(address),
                open: false,
                nobody: !context.listeners.contains_key(address),
                number,
            }),
        };
        link.number = number;
        if link.open {
            let (connection, from) = (link.connection, self.me());
            let header = Header::new(Kind::Probe, number, Party::server(server), from);
            context.send_payload(connection, header, &[]);
        }
    }

    /// A connection for probes is of use: the probe that waits for it goes out.
    pub(super) fn probe_welcomed(&mut self, context: &mut Context<'_>, server: ServerId) {
        let from = self.me();
        if let Some(link) = self.probes.links.get_mut(&server) {
            link.open = true;
            let header = Header::new(Kind::Probe, link.number, Party::server(server), from);
            context.send_payload(link.connection, header, &[]);
        }
    }

    /// A connection for probes is gone, or another process is there: `refused`.
    pub(super) fn probe_lost(&mut self, server: ServerId, refused: bool) {
        let Some(link) = self.probes.links.remove(&server) else {
            return;
        };
        let symptom = match link.nobody || refused {
            true => Symptom::Refused,
            false => Symptom::Closed,
        };
        if let Some(prober) = &mut self.probes.prober {
            prober.handle_failed(link.number, symptom);
        }
    }
}
