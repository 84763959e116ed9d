//! A scan, page by page: a read of every key that was known when it began.

use std::collections::BTreeMap;

use bytes::Bytes;
use ramkeep_client::Object;
use ramkeep_wire::TableId;

use crate::history::{Action, History, Outcome, Place};

/// A scan under way.
#[derive(Debug)]
pub(super) struct Scan {
    table: TableId,
    invoked: u64,
    /// Keys that were known when it began.
    known: Vec<Place>,
    found: BTreeMap<Place, Outcome>,
    twice: Vec<Place>,
}

impl Scan {
    /// It begins now.
    pub(super) fn begin(history: &mut History, table: TableId) -> Self {
        let known = history.keys().map(|(place, _)| place);
        Self {
            table,
            known: known.filter(|place| place.0 == table).cloned().collect(),
            invoked: history.tick(),
            found: BTreeMap::new(),
            twice: Vec::new(),
        }
    }

    /// Of which table.
    pub(super) fn table(&self) -> TableId {
        self.table
    }

    /// A page of it came.
    pub(super) fn found(&mut self, objects: Vec<(Bytes, Object)>) {
        for (key, object) in objects {
            let place = (self.table, key.to_vec());
            let found = Outcome::Found {
                version: object.version,
                value: object.value.to_vec(),
            };
            if self.found.insert(place.clone(), found).is_some() {
                self.twice.push(place);
            }
        }
    }

    /// The last page was taken: what was seen goes into the history. Returns what came twice.
    pub(super) fn end(mut self, history: &mut History, client: u32) -> Vec<Place> {
        for place in self.known {
            self.found.entry(place).or_insert(Outcome::Absent);
        }
        for (place, outcome) in self.found {
            let ticket = history.invoke_at(self.invoked, client, &place, Action::Read);
            history.complete(ticket, outcome);
        }
        self.twice
    }
}
