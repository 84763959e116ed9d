//! Duties: the orders that servers have not confirmed yet. They follow from the replicated state,
//! so that a new leader goes on with what the old one began; only their pace is the leader's own.

use std::collections::{BTreeMap, BTreeSet};

use ramkeep_wire::coordinator::TabletState;
use ramkeep_wire::order::{Command as OrderCommand, RecoveredTablet, TabletGrant};
use ramkeep_wire::{ListVersion, Micros, ServerId, TableId, TryId};

use super::recovery::{self, Recoveries};
use crate::limits::{RECOVER_POLL, RECOVER_SOON, RETRY_FIRST, RETRY_MOST, UPDATE_SPACING};
use crate::state::State;

/// Something a server must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Duty {
    /// Serve its tablets of a table.
    Take(TableId),
    /// Serve nothing of a table.
    Drop(TableId),
    /// Learn the server list.
    Update,
    /// Replay a partition of this crashed master's log: the try of this number.
    Recover(TryId),
}

#[derive(Clone, Copy, Debug)]
struct Pace {
    due: Micros,
    tries: u32,
    sent: Option<Micros>,
    /// The server list that an update is about.
    list: ListVersion,
}

/// All duties with their pace.
#[derive(Debug, Default)]
pub(super) struct Duties {
    paces: BTreeMap<(ServerId, Duty), Pace>,
}

impl Duties {
    /// Follows the state: new duties are due at once, those that are done go. `confirmed` is the
    /// newest list that a server is known to have, and when to tell it for the first time.
    pub(super) fn follow(
        &mut self,
        now: Micros,
        state: &State,
        confirmed: impl Fn(ServerId) -> (ListVersion, Micros),
    ) {
        let mut old = std::mem::take(&mut self.paces);
        let list = state.list_version();
        for (server, duty) in duties(state, &confirmed) {
            let first = if duty == Duty::Update {
                confirmed(server).1
            } else {
                now
            };
            let mut pace = old.remove(&(server, duty)).unwrap_or(Pace {
                due: first,
                tries: 0,
                sent: None,
                list,
            });
            if pace.list != list && duty == Duty::Update {
                let spaced = pace.sent.map_or(now, |sent| sent + UPDATE_SPACING);
                pace.due = pace.due.min(spaced);
                pace.list = list;
                pace.tries = 0;
            }
            self.paces.insert((server, duty), pace);
        }
    }

    /// A duty is done, or its server is gone.
    pub(super) fn done(&mut self, server: ServerId, duty: Duty) {
        self.paces.remove(&(server, duty));
    }

    /// Not before this.
    pub(super) fn put_off(&mut self, server: ServerId, duty: Duty, until: Micros) {
        if let Some(pace) = self.paces.get_mut(&(server, duty)) {
            pace.due = pace.due.max(until);
        }
    }

    /// The duties that are due now; their next repetition is set.
    pub(super) fn take_due(&mut self, now: Micros) -> Vec<(ServerId, Duty)> {
        let due = self.paces.iter_mut().filter(|(_, pace)| pace.due <= now);
        due.map(|(key, pace)| {
            let wait = match key.1 {
                Duty::Recover(_) if pace.tries < RECOVER_SOON => RECOVER_POLL / 4,
                Duty::Recover(_) => RECOVER_POLL,
                _ => (RETRY_FIRST * (1 << pace.tries.min(8))).min(RETRY_MOST),
            };
            pace.due = now + wait;
            pace.tries += 1;
            pace.sent = Some(now);
            *key
        })
        .collect()
    }

    /// When the next is due.
    pub(super) fn due(&self) -> Option<Micros> {
        self.paces.values().map(|pace| pace.due).min()
    }
}

fn duties(
    state: &State,
    confirmed: &impl Fn(ServerId) -> (ListVersion, Micros),
) -> BTreeSet<(ServerId, Duty)> {
    let mut all = BTreeSet::new();
    let lives = |server: ServerId| state.living(server).is_ok();
    for record in state.tables().iter() {
        let table = record.table.table;
        if let Some(waiting) = &record.dropping {
            let living = waiting.iter().filter(|owner| lives(**owner));
            all.extend(living.map(|owner| (*owner, Duty::Drop(table))));
            continue;
        }
        let tablets = record.table.tablets.iter();
        let given = tablets.filter(|tablet| tablet.state == TabletState::Assigning);
        all.extend(given.map(|tablet| (tablet.owner, Duty::Take(table))));
    }
    for (server, id) in recovery::under_way(state) {
        all.insert((server, Duty::Recover(id)));
    }
    for (server, found) in state.servers().iter() {
        if !found.is_crashed() && confirmed(server).0 < state.list_version() {
            all.insert((server, Duty::Update));
        }
    }
    all
}

/// The order that a duty comes to; `None` when it is done by now. `recoveries` knows what was told with
/// earlier ones.
pub(super) fn order(
    state: &State,
    recoveries: &Recoveries,
    server: ServerId,
    duty: Duty,
) -> Option<OrderCommand> {
    match duty {
        Duty::Take(table) => {
            let record = state.table(table)?;
            let recovered: Vec<RecoveredTablet> = record.recovered(server).collect();
            if !recovered.is_empty() {
                return Some(OrderCommand::TakeRecovered(recovered));
            }
            let grants: Vec<TabletGrant> = record.assigning(server).collect();
            (!grants.is_empty()).then_some(OrderCommand::TakeTablets(grants))
        }
        Duty::Drop(table) => Some(OrderCommand::DropTable(table)),
        Duty::Recover(id) => recoveries.order(state, server, id),
        Duty::Update => Some(OrderCommand::UpdateServers(state.server_list())),
    }
}
