//! Duties: the orders that servers have not confirmed yet. They follow from the replicated state,
//! so that a new leader goes on with what the old one began; only their pace is the leader's own.
//!
//! # Invariants
//! 1. What belongs together is one order: all that a server is to take or to drop, of whatever tables, as
//!    much as fits [`MAX_TABLETS_PER_ORDER`].
//! 2. Nothing owed is dropped: where there is no room for an order the duty waits for room, not for time,
//!    and what a server has confirmed is owed until that is decided.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ramkeep_wire::coordinator::TabletState;
use ramkeep_wire::limits::MAX_TABLETS_PER_ORDER;
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::order::{Command as OrderCommand, RecoveredTablet, TabletGrant};
use ramkeep_wire::{KeyHash, ListVersion, LogPosition, Micros, ServerId, TableId, TryId};

use super::lot::Lot;
use super::recovery::{self, Recoveries};
use crate::limits::{RECOVER_POLL, RECOVER_SOON, RETRY_FIRST, RETRY_MOST, UPDATE_SPACING};
use crate::state::{State, grant};

/// Something a server must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Duty {
    /// Serve tablets that are new.
    Take,
    /// Serve tablets that it has replayed.
    TakeRecovered,
    /// Serve nothing of some tables.
    Drop,
    /// Learn the server list.
    Update,
    /// Replay a partition of this crashed master's log: the try of this number.
    Recover(TryId),
}

impl Duty {
    /// The duty that an order is for; none for a probe.
    pub(super) fn of(command: &OrderCommand) -> Option<Self> {
        match command {
            OrderCommand::Probe => None,
            OrderCommand::TakeTablets(_) => Some(Self::Take),
            OrderCommand::TakeRecovered(_) => Some(Self::TakeRecovered),
            OrderCommand::DropTables(_) => Some(Self::Drop),
            OrderCommand::UpdateServers(_) => Some(Self::Update),
            OrderCommand::Recover(recovery) => Some(Self::Recover(recovery.id())),
        }
    }
}

/// When an order is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    At(Micros),
    /// As soon as there is room for it on its way to the server.
    Room,
}

#[derive(Clone, Copy, Debug)]
struct Pace {
    when: When,
    tries: u32,
    /// When the last order was given, unless it was answered.
    sent: Option<Micros>,
    /// The server list that an update is about.
    list: ListVersion,
}

impl Pace {
    /// There is more to be told: soon, but not at once while an order is about to be answered.
    fn hasten(&mut self, now: Micros, spacing: Duration) {
        let spaced = self.sent.map_or(now, |sent| (sent + spacing).max(now));
        if let When::At(at) = &mut self.when {
            *at = spaced.min(*at);
        }
        self.tries = 0;
    }
}

/// All duties with their pace.
#[derive(Debug, Default)]
pub(super) struct Duties {
    paces: BTreeMap<(ServerId, Duty), Pace>,
    lots: BTreeMap<(ServerId, Duty), Lot>,
    /// Tables that are gone and that a server has taken, late, after it had let go of them.
    late: BTreeSet<(ServerId, TableId)>,
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
        let news = self.follow_lots(state);
        let lots = self.lots.iter().filter(|(_, lot)| !lot.is_done());
        let lots = lots.map(|(key, _)| *key);
        for (server, duty) in lots.chain(others(state, &confirmed)) {
            let first = match duty {
                Duty::Update => confirmed(server).1,
                _ => now,
            };
            let mut pace = old.remove(&(server, duty)).unwrap_or(Pace {
                when: When::At(first),
                tries: 0,
                sent: None,
                list,
            });
            if news.contains(&(server, duty)) {
                pace.hasten(now, RETRY_FIRST);
            }
            if pace.list != list && duty == Duty::Update {
                pace.hasten(now, UPDATE_SPACING);
                pace.list = list;
            }
            self.paces.insert((server, duty), pace);
        }
    }

    /// Those who are owed something new.
    fn follow_lots(&mut self, state: &State) -> BTreeSet<(ServerId, Duty)> {
        let mut owed = owed(state);
        self.late
            .retain(|(server, _)| state.living(*server).is_ok());
        for (server, table) in &self.late {
            let pieces = owed.entry((*server, Duty::Drop)).or_default();
            pieces.insert(whole(*table));
        }
        self.lots.retain(|key, _| owed.contains_key(key));
        let mut news = BTreeSet::new();
        for (key, pieces) in owed {
            if self.lots.entry(key).or_default().follow(pieces) {
                news.insert(key);
            }
        }
        news
    }

    /// A duty is done, or its server is gone.
    pub(super) fn done(&mut self, server: ServerId, duty: Duty) {
        self.paces.remove(&(server, duty));
    }

    /// A server has confirmed these pieces. Those of them that are to be decided now; the rest of what it
    /// is owed is due.
    pub(super) fn confirmed(
        &mut self,
        now: Micros,
        server: ServerId,
        duty: Duty,
        pieces: &BTreeSet<TabletGrant>,
    ) -> BTreeSet<TabletGrant> {
        let key = (server, duty);
        let Some(lot) = self.lots.get_mut(&key) else {
            return BTreeSet::new();
        };
        let mut fresh = lot.confirm(pieces);
        if lot.is_done() {
            self.paces.remove(&key);
        } else if let Some(pace) = self.paces.get_mut(&key) {
            pace.sent = None;
            if !fresh.is_empty() {
                pace.hasten(now, RETRY_FIRST);
            }
        }
        if duty == Duty::Drop {
            // There is nothing to be decided about those that are gone.
            fresh.retain(|piece| !self.late.remove(&(server, piece.table)));
        }
        fresh
    }

    /// Nothing about these pieces is under way any more: what is owed of them still is owed.
    pub(super) fn undecided(
        &mut self,
        now: Micros,
        server: ServerId,
        duty: Duty,
        pieces: &BTreeSet<TabletGrant>,
    ) {
        let key = (server, duty);
        let Some(lot) = self.lots.get_mut(&key) else {
            return;
        };
        lot.unconfirm(pieces);
        if !lot.is_done() {
            self.paces.entry(key).or_insert(Pace {
                when: When::At(now + RETRY_FIRST),
                tries: 0,
                sent: None,
                list: ListVersion(0),
            });
        }
    }

    /// A server has taken tablets of a table that is gone by now: that is undone.
    pub(super) fn undo(&mut self, server: ServerId, table: TableId) {
        self.late.insert((server, table));
    }

    /// Not before this.
    pub(super) fn put_off(&mut self, server: ServerId, duty: Duty, until: Micros) {
        if let Some(Pace {
            when: When::At(at), ..
        }) = self.paces.get_mut(&(server, duty))
        {
            *at = until.max(*at);
        }
    }

    /// There was no room for the order that was given last.
    pub(super) fn no_room(&mut self, server: ServerId, duty: Duty) {
        if let Some(pace) = self.paces.get_mut(&(server, duty)) {
            pace.when = When::Room;
            pace.sent = None;
            pace.tries = pace.tries.saturating_sub(1);
        }
    }

    /// There is room for orders to this server again. Whether any waits for that.
    pub(super) fn room(&mut self, now: Micros, server: ServerId) -> bool {
        let own = self.paces.range_mut((server, Duty::Take)..);
        let own = own.take_while(|((of, _), _)| *of == server);
        let waiting = own.filter(|(_, pace)| pace.when == When::Room);
        waiting.map(|(_, pace)| pace.when = When::At(now)).count() > 0
    }

    /// The duties that are due now; their next repetition is set.
    pub(super) fn take_due(&mut self, now: Micros) -> Vec<(ServerId, Duty)> {
        let is_due = |when| matches!(when, When::At(at) if at <= now);
        let due = self.paces.iter_mut().filter(|(_, pace)| is_due(pace.when));
        due.map(|(key, pace)| {
            let wait = match key.1 {
                Duty::Recover(_) if pace.tries < RECOVER_SOON => RECOVER_POLL / 4,
                Duty::Recover(_) => RECOVER_POLL,
                _ => (RETRY_FIRST * (1 << pace.tries.min(8))).min(RETRY_MOST),
            };
            pace.when = When::At(now + wait);
            pace.tries += 1;
            pace.sent = Some(now);
            *key
        })
        .collect()
    }

    /// When the next is due.
    pub(super) fn due(&self) -> Option<Micros> {
        let due = self.paces.values().filter_map(|pace| match pace.when {
            When::At(at) => Some(at),
            When::Room => None,
        });
        due.min()
    }

    /// The order that a duty comes to; `None` when it is done by now. `recoveries` knows what was told with
    /// earlier ones.
    pub(super) fn order(
        &mut self,
        state: &State,
        recoveries: &Recoveries,
        server: ServerId,
        duty: Duty,
    ) -> Option<OrderCommand> {
        match duty {
            Duty::Recover(id) => return recoveries.order(state, server, id),
            Duty::Update => return Some(OrderCommand::UpdateServers(state.server_list())),
            Duty::Take | Duty::TakeRecovered | Duty::Drop => {}
        }
        let lot = self.lots.get_mut(&(server, duty))?;
        let most = match mutants::active(Mutant::OrdersOneByOne) {
            true => 1,
            false => MAX_TABLETS_PER_ORDER,
        };
        let pieces = lot.next(most);
        if pieces.is_empty() {
            return None;
        }
        let tables = || pieces.iter().map(|piece| piece.table).collect();
        Some(match duty {
            Duty::Drop => OrderCommand::DropTables(tables()),
            Duty::TakeRecovered => {
                let recovered = pieces.iter().filter_map(|piece| recovered(state, piece));
                OrderCommand::TakeRecovered(recovered.collect())
            }
            _ => OrderCommand::TakeTablets(pieces),
        })
    }
}

/// All of a table.
pub(super) fn whole(table: TableId) -> TabletGrant {
    TabletGrant {
        table,
        first: KeyHash(0),
        last: KeyHash(u64::MAX),
    }
}

/// The tablet with where its log stood when its replay began.
fn recovered(state: &State, piece: &TabletGrant) -> Option<RecoveredTablet> {
    let tablets = &state.table(piece.table)?.table.tablets;
    let at = tablets.binary_search_by_key(&piece.first, |tablet| tablet.first);
    let takeover = tablets.get(at.ok()?)?.takeover;
    Some(RecoveredTablet {
        range: *piece,
        takeover,
    })
}

/// What living servers are to take and to drop.
fn owed(state: &State) -> BTreeMap<(ServerId, Duty), BTreeSet<TabletGrant>> {
    let mut owed: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    let mut owe = |server: ServerId, duty: Duty, piece: TabletGrant| {
        if state.living(server).is_ok() {
            owed.entry((server, duty)).or_default().insert(piece);
        }
    };
    for record in state.tables().iter() {
        if let Some(waiting) = &record.dropping {
            let piece = whole(record.table.table);
            waiting
                .iter()
                .for_each(|owner| owe(*owner, Duty::Drop, piece));
            continue;
        }
        let tablets = record.table.tablets.iter();
        for tablet in tablets.filter(|tablet| tablet.state == TabletState::Assigning) {
            let duty = match tablet.takeover {
                LogPosition::ZERO => Duty::Take,
                _ => Duty::TakeRecovered,
            };
            owe(tablet.owner, duty, grant(tablet));
        }
    }
    owed
}

/// The duties that are not of pieces.
fn others(
    state: &State,
    confirmed: &impl Fn(ServerId) -> (ListVersion, Micros),
) -> BTreeSet<(ServerId, Duty)> {
    let mut all = BTreeSet::new();
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
