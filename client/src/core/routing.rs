//! Which server an operation goes to, and what it waits for when there is none.

use std::collections::BTreeMap;

use ramkeep_wire::coordinator::TabletMap;
use ramkeep_wire::data::Op;
use ramkeep_wire::{Micros, ServerId};

use super::links::ServerLink;
use super::map::{self, Route};
use super::slots::{Awaited, OpId, Phase};
use super::{Core, NEVER, Target};
use crate::error::Error;
use crate::limits::{NOT_SERVED_LAST, backoff};

impl Core {
    /// Sends an operation on its way by the map, or lets it wait.
    pub(super) fn dispatch(&mut self, now: Micros, op: OpId) {
        let Some(slot) = self.slots.get_mut(op) else {
            return;
        };
        match self.routes.route(slot.table, slot.hash) {
            Route::Server { server, last } if self.servers.contains_key(&server) => {
                if slot.op == Op::Scan {
                    slot.end_scan_at(last);
                }
                slot.phase = Phase::Queued(server);
                self.enqueue(server, op);
            }
            Route::Server { .. } | Route::NotServed => {
                slot.attempts += 1;
                let until = now + backoff(slot.attempts).min(NOT_SERVED_LAST);
                self.control.refresh();
                self.wait(op, Awaited::AnyMap, until);
            }
            Route::NoTable => {
                let map = self.control.refresh();
                self.wait(op, Awaited::Map(map), NEVER);
            }
        }
    }

    pub(super) fn wait(&mut self, op: OpId, awaited: Awaited, until: Micros) {
        if let Some(slot) = self.slots.get_mut(op) {
            slot.phase = Phase::Waiting { awaited, until };
            self.wake_bound = self.wake_bound.min(until);
            self.attention = true;
        }
    }

    pub(super) fn handle_map(&mut self, now: Micros, number: u64, map: Option<TabletMap>) {
        if let Some(mut map) = map {
            let owners: BTreeMap<_, _> = map::owners(&mut map).collect();
            if self.routes.install(map.version, map.tables) {
                self.install_servers(owners);
                self.retire(now);
            }
        }
        self.control.installed(self.routes.version());
        for index in 0..self.slots.high_water() {
            let (op, slot) = self.slots.at(index);
            match slot.phase {
                Phase::Queued(server) => {
                    let route = self.routes.route(slot.table, slot.hash);
                    let stays =
                        matches!(route, Route::Server { server: owner, .. } if owner == server);
                    if !stays || !self.servers.contains_key(&server) {
                        self.dispatch(now, op);
                    }
                }
                Phase::Waiting { awaited, .. } if awaited.has_map(number) => {
                    self.dispatch_anew(now, op);
                }
                _ => {}
            }
        }
    }

    /// An operation has the map that it waited for.
    pub(super) fn dispatch_anew(&mut self, now: Micros, op: OpId) {
        let Some(slot) = self.slots.get_mut(op) else {
            return;
        };
        match self.routes.route(slot.table, slot.hash) {
            Route::NoTable => self.complete(op, Err(Error::TableNotFound)),
            // It still is the owner by the map, and may be about to learn it.
            Route::Server { server, .. } if slot.refused_by == Some(server) => {
                slot.refused_by = None;
                let until = now + backoff(slot.attempts);
                self.wait(op, Awaited::Time, until);
            }
            Route::NotServed => {
                slot.attempts += 1;
                let until = now + backoff(slot.attempts).min(NOT_SERVED_LAST);
                self.wait(op, Awaited::AnyMap, until);
            }
            Route::Server { .. } => self.dispatch(now, op),
        }
    }

    pub(super) fn install_servers(&mut self, mut owners: BTreeMap<ServerId, Vec<String>>) {
        for (server, link) in &mut self.servers {
            link.addresses = owners.remove(server).unwrap_or_default();
        }
        for (server, addresses) in owners {
            self.servers.insert(server, ServerLink::new(addresses));
        }
    }

    /// Breaks off with servers that left the map. They own nothing any more: what they still owe is
    /// as good as lost, and reads go elsewhere.
    fn retire(&mut self, now: Micros) {
        let gone: Vec<_> = (self.servers.iter())
            .filter(|(_, link)| link.addresses.is_empty())
            .map(|(server, _)| *server)
            .collect();
        for server in gone {
            let target = Target::Server(server);
            self.handle_link_down(now, target, "it left the cluster");
            self.servers.remove(&server);
            self.closing.push_back(target);
        }
    }
}
