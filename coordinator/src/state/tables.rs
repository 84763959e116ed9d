//! Tables and their tablets.
//!
//! # Invariants
//! 1. A table's tablets, in order, run from the first hash to the last without gap or overlap.
//! 2. A name belongs to one table until that table is gone.
//! 3. A table is gone when each of its owners has confirmed the drop or is fenced: before that,
//!    one of them might still answer reads.
//! 4. A tablet that was given to a master is never given to another without its log: the master
//!    may have taken it and acknowledged writes although it could not say so.
//! 5. A takeover that recovery set stays as long as its owner has the tablet: what was replayed
//!    lies after it.

use std::collections::{BTreeMap, BTreeSet};

use ramkeep_wire::coordinator::{Refused, Table, Tablet, TabletState};
use ramkeep_wire::limits::{MAX_TABLE_NAME, MAX_TABLES, MAX_TABLETS_PER_TABLE};
use ramkeep_wire::order::TabletGrant;
use ramkeep_wire::{KeyHash, LogPosition, ServerId, TableId};
use serde::{Deserialize, Serialize};

use super::State;
use crate::command::{Applied, Outcome};
use crate::limits::{MAX_MAP_BYTES, TABLE_BYTES, TABLET_BYTES};

/// A table, and who must still let go of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRecord {
    /// As clients see it.
    pub table: Table,
    /// While it is being dropped: the owners that have not confirmed.
    pub dropping: Option<BTreeSet<ServerId>>,
}

impl TableRecord {
    /// All tablets are served.
    #[must_use]
    pub fn is_normal(&self) -> bool {
        let mut tablets = self.table.tablets.iter();
        tablets.all(|tablet| tablet.state == TabletState::Normal)
    }

    /// Some tablet's owner crashed.
    #[must_use]
    pub fn is_down(&self) -> bool {
        self.table.tablets.iter().any(is_lost)
    }

    fn map_bytes(&self) -> usize {
        map_bytes(&self.table.name, self.table.tablets.len())
    }
}

/// Whether the tablet waits for a crashed owner's log.
pub(super) fn is_lost(tablet: &Tablet) -> bool {
    matches!(tablet.state, TabletState::Down | TabletState::Recovering)
}

/// The tablet as its owner is given it.
pub(crate) fn grant(tablet: &Tablet) -> TabletGrant {
    TabletGrant {
        table: tablet.table,
        first: tablet.first,
        last: tablet.last,
    }
}

fn map_bytes(name: &str, tablets: usize) -> usize {
    TABLE_BYTES + name.len() + tablets * TABLET_BYTES
}

/// All tables.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tables {
    last: u32,
    by_id: BTreeMap<TableId, TableRecord>,
    names: BTreeMap<String, TableId>,
}

impl Tables {
    /// The table with this id.
    #[must_use]
    pub fn by_id(&self, table: TableId) -> Option<&TableRecord> {
        self.by_id.get(&table)
    }

    /// The table of this name.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<&TableRecord> {
        self.by_id.get(self.names.get(name)?)
    }

    /// Whether a table of this name is being dropped.
    #[must_use]
    pub fn is_dropping(&self, name: &str) -> bool {
        let record = self.by_name(name);
        record.is_some_and(|record| record.dropping.is_some())
    }

    /// All, by id.
    pub fn iter(&self) -> impl Iterator<Item = &TableRecord> + '_ {
        self.by_id.values()
    }

    /// Every server that owns a tablet in whatever state.
    #[must_use]
    pub fn owners(&self) -> BTreeSet<ServerId> {
        self.tablets().map(|tablet| tablet.owner).collect()
    }

    pub(super) fn tablets(&self) -> impl Iterator<Item = &Tablet> + '_ {
        self.iter().flat_map(|record| &record.table.tablets)
    }

    /// The tablets that wait for their crashed owners' logs.
    pub fn lost(&self) -> impl Iterator<Item = &Tablet> + '_ {
        self.tablets().filter(|tablet| is_lost(tablet))
    }

    /// Tablets that may still be added before the map is full.
    #[must_use]
    pub fn room(&self) -> usize {
        let used: usize = self.iter().map(TableRecord::map_bytes).sum();
        MAX_MAP_BYTES.saturating_sub(used) / TABLET_BYTES
    }

    pub(super) fn by_id_mut(&mut self, table: TableId) -> Option<&mut TableRecord> {
        self.by_id.get_mut(&table)
    }

    /// A crashed owner's tablets are down. Whether anything changed.
    pub(super) fn owner_crashed(&mut self, server: ServerId) -> bool {
        let mut changed = false;
        for record in self.by_id.values_mut() {
            for tablet in &mut record.table.tablets {
                let serving = matches!(tablet.state, TabletState::Assigning | TabletState::Normal);
                if tablet.owner == server && serving {
                    tablet.state = TabletState::Down;
                    changed = true;
                }
            }
        }
        changed
    }

    /// What a recovery of this master had given out is down again: these ranges of it.
    pub(super) fn down_again(&mut self, master: ServerId, these: impl Fn(TabletGrant) -> bool) {
        let records = self.by_id.values_mut();
        for tablet in records.flat_map(|record| &mut record.table.tablets) {
            let given_out = tablet.owner == master && tablet.state == TabletState::Recovering;
            if given_out && these(grant(tablet)) {
                tablet.state = TabletState::Down;
            }
        }
    }

    /// A fenced owner needs not confirm drops. Whether a table is gone by it.
    pub(super) fn owner_fenced(&mut self, server: ServerId) -> bool {
        let dropping: Vec<_> = self
            .iter()
            .filter(|record| record.dropping.is_some())
            .map(|record| record.table.table)
            .collect();
        let mut gone = false;
        for table in dropping {
            gone |= self.let_go(table, server);
        }
        gone
    }

    /// An owner let go of a table that is being dropped. Whether the table is gone by it.
    fn let_go(&mut self, table: TableId, owner: ServerId) -> bool {
        let Some(record) = self.by_id.get_mut(&table) else {
            return false;
        };
        let Some(waiting) = &mut record.dropping else {
            return false;
        };
        waiting.remove(&owner);
        if !waiting.is_empty() {
            return false;
        }
        if let Some(gone) = self.by_id.remove(&table) {
            self.names.remove(&gone.table.name);
        }
        true
    }
}

/// Cuts all hashes evenly, a piece for each owner.
fn cut(table: TableId, owners: &[ServerId]) -> Vec<Tablet> {
    let pieces = owners.len() as u128;
    let bound = |piece: u128| (piece << 64) / pieces;
    let tablet = |(piece, owner): (u128, &ServerId)| Tablet {
        table,
        first: KeyHash(bound(piece) as u64),
        last: KeyHash((bound(piece + 1) - 1) as u64),
        owner: *owner,
        takeover: LogPosition::ZERO,
        state: TabletState::Assigning,
    };
    (0..pieces).zip(owners).map(tablet).collect()
}

impl State {
    pub(super) fn create_table(&mut self, name: &str) -> Outcome {
        if let Some(record) = self.tables.by_name(name) {
            if record.dropping.is_some() {
                return Err(Refused::Invalid(format!("table {name} is being dropped")));
            }
            return Ok(Applied::Table(record.table.table));
        }
        if name.is_empty() || name.len() > MAX_TABLE_NAME {
            return Err(Refused::TableName);
        }
        let owners = self.least_loaded_masters();
        if owners.is_empty() {
            return Err(Refused::NoMaster);
        }
        let used: usize = self.tables.iter().map(TableRecord::map_bytes).sum();
        if used + map_bytes(name, owners.len()) > MAX_MAP_BYTES {
            return Err(Refused::Limit(format!(
                "a tablet map of {MAX_MAP_BYTES} bytes"
            )));
        }
        if self.tables.by_id.len() >= MAX_TABLES || self.tables.last == u32::MAX {
            return Err(Refused::Limit(format!("{MAX_TABLES} tables")));
        }
        self.tables.last += 1;
        let table = TableId(self.tables.last);
        let record = TableRecord {
            table: Table {
                table,
                name: name.into(),
                tablets: cut(table, &owners),
            },
            dropping: None,
        };
        self.tables.by_id.insert(table, record);
        self.tables.names.insert(name.into(), table);
        self.map_changed();
        Ok(Applied::Table(table))
    }

    /// The masters that are ready, those with the fewest tablets first.
    fn least_loaded_masters(&self) -> Vec<ServerId> {
        let mut load: BTreeMap<ServerId, usize> = self
            .servers
            .iter()
            .filter(|(_, server)| server.is_ready_master())
            .map(|(id, _)| (id, 0))
            .collect();
        for tablet in self.tables.tablets() {
            if let Some(count) = load.get_mut(&tablet.owner) {
                *count += 1;
            }
        }
        let mut order: Vec<_> = load.into_iter().map(|(id, count)| (count, id)).collect();
        order.sort_unstable();
        order.truncate(MAX_TABLETS_PER_TABLE);
        order.into_iter().map(|(_, id)| id).collect()
    }

    pub(super) fn tablets_taken(
        &mut self,
        owner: ServerId,
        taken: &[(TabletGrant, LogPosition)],
    ) -> Outcome {
        self.servers.living(owner)?;
        let mut changed = false;
        for (taken, position) in taken {
            let Some(record) = self.tables.by_id.get_mut(&taken.table) else {
                continue;
            };
            let tablets = record.table.tablets.iter_mut();
            let mut waiting = tablets.filter(|tablet| {
                tablet.owner == owner
                    && tablet.state == TabletState::Assigning
                    && grant(tablet) == *taken
            });
            if let Some(tablet) = waiting.next() {
                tablet.state = TabletState::Normal;
                if tablet.takeover == LogPosition::ZERO {
                    tablet.takeover = *position;
                }
                changed = true;
            }
        }
        if changed {
            self.map_changed();
        }
        Ok(Applied::Done)
    }

    pub(super) fn drop_table(&mut self, name: &str) -> Outcome {
        let found = self.tables.names.get(name).copied();
        let table = found.ok_or(Refused::NoSuchTable)?;
        let Some(record) = self.tables.by_id.get_mut(&table) else {
            return Err(Refused::NoSuchTable);
        };
        if record.dropping.is_some() {
            return Ok(Applied::Table(table));
        }
        let mut waiting = BTreeSet::new();
        for tablet in &mut record.table.tablets {
            tablet.state = TabletState::Dropping;
            waiting.insert(tablet.owner);
        }
        record.dropping = Some(waiting.clone());
        for owner in waiting {
            if self.servers.by_id(owner).is_none_or(|server| server.fenced) {
                self.tables.let_go(table, owner);
            }
            self.settle_recovery(owner);
        }
        self.map_changed();
        Ok(Applied::Table(table))
    }

    pub(super) fn tables_dropped(&mut self, owner: ServerId, tables: &[TableId]) -> Outcome {
        self.servers.living(owner)?;
        let mut gone = false;
        for table in tables {
            gone |= self.tables.let_go(*table, owner);
        }
        if gone {
            self.map_changed();
        }
        Ok(Applied::Done)
    }
}
