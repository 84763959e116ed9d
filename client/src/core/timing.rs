//! Deadlines, waiting times and renewals.

use ramkeep_wire::Micros;

use super::links::ServerLink;
use super::map::Route;
use super::slots::{Phase, Slot};
use super::{Core, NEVER};
use crate::error::Error;

impl Core {
    /// Lets time pass: deadlines, waiting times, renewals.
    pub(crate) fn handle_tick(&mut self, now: Micros) {
        if now >= self.wake_bound {
            self.sweep(now);
        }
        let up: Vec<_> = (self.servers.iter_mut())
            .filter_map(|(server, link)| link.tick(now).then_some(*server))
            .collect();
        for server in up {
            self.list(server);
        }
        if self.servers.values_mut().any(|link| link.is_silent(now)) {
            self.control.refresh();
        }
        self.control.tick(now);
        self.heed_control(now);
        if let Some(request) = self.lease.due(now) {
            self.control.ask_lease(request);
        }
    }

    /// Ends what is over its deadline and goes on with what has waited enough.
    pub(super) fn sweep(&mut self, now: Micros) {
        self.wake_bound = NEVER;
        for index in 0..self.slots.high_water() {
            let (op, slot) = self.slots.at(index);
            if matches!(slot.phase, Phase::Free | Phase::Done | Phase::Abandoned) {
                continue;
            }
            if slot.deadline <= now {
                let error = self.expiry(slot);
                self.complete(op, Err(error));
                continue;
            }
            match slot.phase {
                Phase::Waiting { until, .. } if until <= now => self.dispatch(now, op),
                _ => {}
            }
            let (_, slot) = self.slots.at(index);
            self.wake_bound = self.wake_bound.min(slot.deadline);
            if let Phase::Waiting { until, .. } = slot.phase {
                self.wake_bound = self.wake_bound.min(until);
            }
        }
    }

    /// Why an operation could not be finished in time.
    pub(super) fn expiry(&self, slot: &Slot) -> Error {
        if slot.op.mutates() && (slot.uncertain || slot.phase == Phase::Sent) {
            return Error::Timeout {
                maybe_applied: true,
            };
        }
        let trouble = match slot.phase {
            Phase::Sent => None,
            Phase::Queued(server) => (self.servers.get(&server))
                .and_then(|link| link.trouble.as_ref())
                .map(|reason| format!("server {server}: {reason}")),
            _ => match self.routes.route(slot.table, slot.hash) {
                Route::NotServed => Some(self.routes.why_not_served(slot.table, slot.hash)),
                _ => self.control.trouble().map(str::to_owned),
            },
        };
        match trouble {
            Some(reason) => Error::Unavailable { reason },
            None => Error::Timeout {
                maybe_applied: false,
            },
        }
    }

    /// When [`Core::handle_tick`] is to be called at the latest.
    #[must_use]
    pub(crate) fn next_timeout(&self) -> Option<Micros> {
        let links = self.servers.values().filter_map(ServerLink::next_timeout);
        let slots = (self.wake_bound != NEVER).then_some(self.wake_bound);
        links
            .chain(slots)
            .chain(self.control.next_timeout())
            .chain(self.lease.next_timeout())
            .min()
    }
}
