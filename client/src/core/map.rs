//! The cached tablet map: from table and key hash to the server that owns the tablet.
//!
//! # Invariants
//! 1. A map is replaced only by one of the same or a higher version.
//! 2. A table's tablets are in order and cover all hashes; a table that came otherwise serves
//!    nothing until the next map.

use ramkeep_wire::coordinator::{Table, Tablet, TabletMap, TabletState};
use ramkeep_wire::{KeyHash, MapVersion, ServerId, TableId};

/// Where an operation goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// To this server, whose tablet ends at `last`.
    Server { server: ServerId, last: KeyHash },
    /// Nobody serves the tablet now.
    NotServed,
    /// The map has no such table.
    NoTable,
}

/// The map as last heard.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    version: MapVersion,
    tables: Vec<Table>,
}

impl Routes {
    pub(crate) fn version(&self) -> MapVersion {
        self.version
    }

    /// Takes a map unless it is older. `tables` must be in order of ids; they are put so.
    pub(crate) fn install(&mut self, version: MapVersion, mut tables: Vec<Table>) -> bool {
        if version < self.version {
            return false;
        }
        tables.sort_by_key(|table| table.table);
        for table in &mut tables {
            if !covers_everything(table) {
                tracing::warn!(table = %table.name, "tablets in the map leave gaps; not routed");
                table.tablets.clear();
            }
        }
        self.version = version;
        self.tables = tables;
        true
    }

    /// Where the operation on a key of this hash goes.
    #[inline]
    pub(crate) fn route(&self, table: TableId, hash: KeyHash) -> Route {
        let Some(table) = self.table(table) else {
            return Route::NoTable;
        };
        match tablet(table, hash) {
            Some(tablet) if tablet.state == TabletState::Normal => Route::Server {
                server: tablet.owner,
                last: tablet.last,
            },
            _ => Route::NotServed,
        }
    }

    /// Why nobody serves the tablet of a key of this hash, for people.
    pub(crate) fn why_not_served(&self, table: TableId, hash: KeyHash) -> String {
        let tablet = self.table(table).and_then(|table| tablet(table, hash));
        let Some(tablet) = tablet else {
            return "no server owns the key's tablet now".to_owned();
        };
        let owner = tablet.owner;
        match tablet.state {
            TabletState::Down => format!("the key's tablet is down: server {owner} crashed"),
            TabletState::Recovering => {
                format!("the key's tablet is being recovered: server {owner} crashed")
            }
            _ => "no server owns the key's tablet now".to_owned(),
        }
    }

    #[inline]
    fn table(&self, table: TableId) -> Option<&Table> {
        let by_id = |table: &Table| table.table;
        let at = self.tables.binary_search_by_key(&table, by_id).ok()?;
        self.tables.get(at)
    }

    /// All tables, by id.
    pub(crate) fn tables(&self) -> &[Table] {
        &self.tables
    }
}

#[inline]
fn tablet(table: &Table, hash: KeyHash) -> Option<&Tablet> {
    let tablets = &table.tablets;
    tablets.get(tablets.partition_point(|tablet| tablet.last < hash))
}

fn covers_everything(table: &Table) -> bool {
    let mut next = Some(0);
    for tablet in &table.tablets {
        if next != Some(tablet.first.0) || tablet.last < tablet.first {
            return false;
        }
        next = tablet.last.0.checked_add(1);
    }
    next.is_none()
}

/// The owners' addresses in a map, those without any left out.
pub(crate) fn owners(map: &mut TabletMap) -> impl Iterator<Item = (ServerId, Vec<String>)> + use<> {
    std::mem::take(&mut map.servers)
        .into_iter()
        .filter(|(_, addresses)| !addresses.is_empty())
}

#[cfg(test)]
mod tests {
    use ramkeep_wire::LogPosition;

    use super::*;

    fn tablet(first: u64, last: u64, owner: u64) -> Tablet {
        Tablet {
            table: TableId(1),
            first: KeyHash(first),
            last: KeyHash(last),
            owner: ServerId(owner),
            takeover: LogPosition::ZERO,
            state: TabletState::Normal,
        }
    }

    fn table(tablets: Vec<Tablet>) -> Table {
        Table {
            table: TableId(1),
            name: "t".into(),
            tablets,
        }
    }

    fn owner(routes: &Routes, hash: u64) -> Option<u64> {
        match routes.route(TableId(1), KeyHash(hash)) {
            Route::Server { server, .. } => Some(server.0),
            _ => None,
        }
    }

    #[test]
    fn every_hash_goes_to_the_owner_of_its_tablet() {
        let mut routes = Routes::default();
        let tablets = vec![
            tablet(0, 99, 1),
            tablet(100, 199, 2),
            tablet(200, u64::MAX, 3),
        ];
        assert!(routes.install(MapVersion(1), vec![table(tablets)]));
        let seen = [0, 99, 100, 199, 200, u64::MAX].map(|hash| owner(&routes, hash));
        assert_eq!(seen, [1, 1, 2, 2, 3, 3].map(Some));
        assert_eq!(routes.route(TableId(2), KeyHash(0)), Route::NoTable);
    }

    #[test]
    fn a_table_with_a_gap_is_not_routed() {
        let mut routes = Routes::default();
        let tablets = vec![tablet(0, 99, 1), tablet(101, u64::MAX, 2)];
        routes.install(MapVersion(1), vec![table(tablets)]);
        assert_eq!(routes.route(TableId(1), KeyHash(5)), Route::NotServed);
    }

    #[test]
    fn an_older_map_is_not_taken() {
        let mut routes = Routes::default();
        routes.install(MapVersion(2), vec![table(vec![tablet(0, u64::MAX, 1)])]);
        assert!(!routes.install(MapVersion(1), vec![]));
        assert_eq!(owner(&routes, 7), Some(1));
    }
}
