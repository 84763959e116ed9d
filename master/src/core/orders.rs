//! Orders of the coordinator, and what its server lists say.

use std::sync::atomic::Ordering;

use ramkeep_wire::LogPosition;
use ramkeep_wire::coordinator::{ServerEntry, ServerList, ServerState};
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::order::{Command, Order, OrderReply, Recovery};

use super::{Control, Master, listed};
use crate::store::{Gate, NotTaken};

impl Master {
    /// Carries out an order of the coordinator.
    pub fn handle_order(&self, order: Order) -> OrderReply {
        let mut control = self.control.lock();
        if order.ballot < control.ballot && !mutants::active(Mutant::ObeyOldBallots) {
            return OrderReply::StaleBallot(control.ballot);
        }
        control.ballot = control.ballot.max(order.ballot);
        match order.command {
            Command::Probe => OrderReply::Done,
            Command::UpdateServers(list) => {
                self.take_list(&mut control, list);
                OrderReply::Done
            }
            Command::TakeTablets(grants) => {
                self.take_tablets(&control, &grants, |grants| self.store.take_tablets(grants))
            }
            Command::TakeRecovered(recovered) => {
                self.take_tablets(&control, &recovered, |some| self.store.take_recovered(some))
            }
            Command::Recover(order) => self.recover(&control, order),
            Command::DropTables(tables) => {
                // Nothing was served of them if the order came before.
                let _ = self.store.drop_tables(&tables);
                OrderReply::Done
            }
        }
    }

    fn recover(&self, control: &Control, order: Recovery) -> OrderReply {
        if self.is_fenced() || !control.replication.ready() {
            return OrderReply::NotReady;
        }
        // Before anything is replayed, let alone served: what these did may be forgotten.
        self.store.clients_ended(&order.ended);
        self.recoveries()
            .handle_order(&self.store, order, &control.list)
    }

    /// Takes all together. Where one can't be taken each is on its own, so that it holds up no other.
    fn take_tablets<T>(
        &self,
        control: &Control,
        given: &[T],
        take: impl Fn(&[T]) -> Result<Vec<LogPosition>, NotTaken>,
    ) -> OrderReply {
        if self.is_fenced() || !control.replication.ready() {
            return OrderReply::NotReady;
        }
        if let Ok(positions) = take(given) {
            return OrderReply::Taken(positions.into_iter().map(Some).collect());
        }
        let alone = given
            .iter()
            .map(|one| match take(std::slice::from_ref(one)) {
                Ok(positions) => positions.first().copied(),
                Err(why) => {
                    tracing::error!(%why, "a tablet was given that can't be taken");
                    None
                }
            });
        OrderReply::Taken(alone.collect())
    }

    /// Takes in a server list, unless one as new was.
    pub(super) fn take_list(&self, control: &mut Control, list: ServerList) {
        if list.version <= control.list.version {
            return;
        }
        let before = std::mem::replace(&mut control.list, list);
        let Control {
            replication, list, ..
        } = control;
        // One that is not listed any more was crashed when it was forgotten.
        let gone = before.servers.iter().map(|entry| entry.server);
        for server in gone.filter(|server| listed(list, *server).is_none()) {
            replication.crashed(server);
        }
        for entry in &list.servers {
            let known = listed(&before, entry.server);
            let is_crashed = entry.state == ServerState::Crashed;
            if entry.server == self.config.me {
                if is_crashed {
                    self.fence();
                }
                continue;
            }
            if let (None, Some(old)) = (known, entry.replaces) {
                replication.inherited(entry.server, old);
            }
            if is_crashed && known.is_none_or(|known| known.state != ServerState::Crashed) {
                replication.crashed(entry.server);
            }
        }
        replication.recovering(list.servers.iter().any(waits_for_recovery));
        self.recoveries().take_list(list);
        self.list_version.store(list.version.0, Ordering::Release);
    }

    /// This master was decided crashed: it grants, changes and records nothing any more.
    pub fn fence(&self) {
        self.lease.fence();
        self.store.set_write_gate(Gate::NotReady);
    }
}

fn waits_for_recovery(entry: &ServerEntry) -> bool {
    entry.roles.master && entry.state == ServerState::Crashed && !entry.recovered
}
