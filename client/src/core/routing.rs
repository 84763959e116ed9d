//! Which server an operation goes to, and what it waits for when there is none.

use std::collections::BTreeMap;

use ramkeep_wire::coordinator::TabletMap;
use ramkeep_wire::data::Op;
use ramkeep_wire::{Micros, ServerId};

use super::links::ServerLink;
use super::map::{self, Route};
use super::slots::{OpId, Phase};
use super::{Core, NEVER, Target};
use crate::error::Error;
use crate::limits::backoff;

/// As the refresh that an operation waits for: whichever is answered next.
const ANY_MAP: u64 = 0;
/// None: it waits for the time alone.
pub(super) const NO_MAP: u64 = u64::MAX;

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
                let until = now + backoff(slot.attempts);
                self.control.refresh();
                self.wait(op, ANY_MAP, until);
            }
            Route::NoTable => {
                let map = self.control.refresh();
                self.wait(op, map, NEVER);
            }
        }
    }

    pub(super) fn wait(&mut self, op: OpId, map: u64, until: Micros) {
        if let Some(slot) = self.slots.get_mut(op) {
            slot.phase = Phase::Waiting { map, until };
            self.wake_bound = self.wake_bound.min(until);
            self.attention = true;
        }
    }

    pub(super) fn handle_map(&mut self, now: Micros, number: u64, map: Option<TabletMap>) {
        if let Some(mut map) = map {
            let owners: BTreeMap<_, _> = map::owners(&mut map).collect();
            if self.routes.install(map.version, map.tables) {
                self.install_servers(owners);
            }
        }
        for index in 0..self.slots.high_water() {
            let (op, slot) = self.slots.at(index);
            match slot.phase {
                Phase::Queued(server) => {
                    let route = self.routes.route(slot.table, slot.hash);
                    if !matches!(route, Route::Server { server: owner, .. } if owner == server) {
                        self.dispatch(now, op);
                    }
                }
                Phase::Waiting { map, .. } if map <= number => self.dispatch_anew(now, op),
                _ => {}
            }
        }
        self.retire();
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
                self.wait(op, NO_MAP, until);
            }
            Route::NotServed => {
                slot.attempts += 1;
                let until = now + backoff(slot.attempts);
                self.wait(op, ANY_MAP, until);
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

    /// Forgets servers that left the map, once nothing is between us.
    pub(super) fn retire(&mut self) {
        let slots = &self.slots;
        let closing = &mut self.closing;
        self.servers.retain(|server, link| {
            let queued = |op: &OpId| {
                (slots.get(*op)).is_some_and(|slot| slot.phase == Phase::Queued(*server))
            };
            let keep =
                !link.addresses.is_empty() || link.in_flight > 0 || link.queue.iter().any(queued);
            if !keep {
                closing.push_back(Target::Server(*server));
            }
            keep
        });
    }
}
