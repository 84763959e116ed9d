//! What must have come of the metadata commands: which tables there are, under which ids, and how
//! many ids were ever given out.
//!
//! # Invariants
//! 1. A name belongs to one task, which issues one command on it at a time.
//! 2. Ids of tables grow by one with each creation that takes effect. So a creation that ran twice
//!    shows, even if its second table was dropped again.

use std::collections::{BTreeMap, BTreeSet};

use ramkeep_client::TableId;
use ramkeep_wire::coordinator::Table;
use serde_json::{Map, Value};

/// Tables of the metadata load are named so.
pub(super) const PREFIX: &str = "metadata ";
/// Findings told one by one on standard error.
const TOLD: u64 = 20;

/// What one task knows, or all together.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    live: BTreeMap<String, TableId>,
    dropped: BTreeMap<String, TableId>,
    /// Of names whose last command may or may not have run.
    unknown: BTreeSet<String>,
    /// Ids of the tables that were made.
    ids: BTreeSet<TableId>,
    /// Creations that may or may not have run.
    uncertain: u64,
    /// Commands that were answered.
    pub(super) commands: u64,
    /// Commands that were not.
    pub(super) failed: u64,
    /// Effects that came twice, or after what had undone them.
    pub(super) twice: u64,
    /// Effects that did not come although they were acknowledged.
    pub(super) lost: u64,
}

impl Ledger {
    /// A table of this name is there, the answer says; this load made it unless it was there.
    pub(super) fn created(&mut self, name: &str, id: TableId) {
        self.commands += 1;
        if let Some(known) = self.live.get(name).copied() {
            if known != id {
                self.find_twice(format_args!("{name} is {known}, and now {id} too"));
            }
            return;
        }
        if !self.ids.insert(id) {
            self.find_lost(format_args!("{name} was made as {id}, which was dropped"));
        }
        self.live.insert(name.to_owned(), id);
    }

    /// The table of this name is gone, the answer says.
    pub(super) fn dropped(&mut self, name: &str) {
        self.commands += 1;
        if let Some(id) = self.live.remove(name) {
            self.dropped.insert(name.to_owned(), id);
        }
    }

    /// A table that is there was not found.
    pub(super) fn missed(&mut self, name: &str) {
        self.commands += 1;
        self.live.remove(name);
        self.find_lost(format_args!("{name} is gone, and nobody dropped it"));
    }

    /// A command was answered that changed nothing.
    pub(super) fn answered(&mut self) {
        self.commands += 1;
    }

    /// What may come once came twice.
    pub(super) fn find_twice(&mut self, what: impl std::fmt::Display) {
        self.twice += 1;
        if self.twice <= TOLD {
            tracing::warn!(finding = "twice", "{what}");
        }
    }

    fn find_lost(&mut self, what: impl std::fmt::Display) {
        self.lost += 1;
        if self.lost <= TOLD {
            tracing::warn!(finding = "lost", "{what}");
        }
    }

    /// No answer came to a command on this name.
    pub(super) fn unanswered(&mut self, name: &str, why: impl std::fmt::Display) {
        self.uncertain += 1;
        self.live.remove(name);
        self.unknown.insert(name.to_owned());
        self.failed(format_args!("{name}: {why}"));
    }

    /// A command failed that leaves no table in doubt.
    pub(super) fn failed(&mut self, what: impl std::fmt::Display) {
        self.failed += 1;
        if self.failed <= TOLD {
            tracing::warn!(finding = "failed", "{what}");
        }
    }

    /// Whether nobody knows what this name stands for.
    pub(super) fn is_unknown(&self, name: &str) -> bool {
        self.unknown.contains(name)
    }

    /// The tables that must be there.
    pub(super) fn live(&self) -> impl Iterator<Item = (&String, &TableId)> {
        self.live.iter()
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        format!(
            "{} metadata commands: {} applied twice, {} lost, {} without an answer",
            self.commands, self.twice, self.lost, self.failed
        )
    }

    /// For programs.
    pub(super) fn json(&self) -> Map<String, Value> {
        let fields = [
            ("metadata_commands", self.commands),
            ("metadata_applied_twice", self.twice),
            ("metadata_lost", self.lost),
            ("metadata_failed", self.failed),
        ];
        let fields = fields.into_iter();
        fields
            .map(|(name, count)| (name.to_owned(), count.into()))
            .collect()
    }

    /// Takes over what another task knows.
    pub(super) fn add(&mut self, other: Self) {
        self.live.extend(other.live);
        self.dropped.extend(other.dropped);
        self.unknown.extend(other.unknown);
        let before = self.ids.len() + other.ids.len();
        self.ids.extend(other.ids);
        if self.ids.len() < before {
            self.find_twice("an id was given to tables of two names");
        }
        self.uncertain += other.uncertain;
        self.commands += other.commands;
        self.failed += other.failed;
        self.twice += other.twice;
        self.lost += other.lost;
    }

    /// Compares with the tables that are there in the end, and with the ids given out between the
    /// table `first`, made before all others, and `last`, made after them.
    pub(super) fn close(&mut self, tables: &[Table], first: TableId, last: TableId) {
        let there: BTreeMap<&str, TableId> = (tables.iter())
            .filter(|table| table.name.starts_with(PREFIX))
            .map(|table| (table.name.as_str(), table.table))
            .collect();
        for (name, id) in self.live.clone() {
            match there.get(name.as_str()) {
                Some(found) if *found == id => {}
                Some(found) => self.find_twice(format_args!("{name} is {found}, made as {id}")),
                None => self.find_lost(format_args!("{name} ({id}) is not there")),
            }
        }
        for (name, id) in there {
            if self.live.contains_key(name) || self.unknown.contains(name) {
                continue;
            }
            if self.dropped.get(name) == Some(&id) {
                self.find_lost(format_args!("{name} ({id}) was dropped and is there"));
            } else {
                self.find_twice(format_args!("{name} ({id}) is there, made by nobody"));
            }
        }
        let given = u64::from(last.0.saturating_sub(first.0).saturating_sub(1));
        let wanted = self.ids.len() as u64;
        for _ in wanted + self.uncertain..given {
            self.find_twice(format_args!("{given} ids for {wanted} tables"));
        }
        for _ in given..wanted {
            self.find_lost(format_args!("only {given} ids for {wanted} tables"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(of: &str) -> String {
        format!("{PREFIX}{of}")
    }

    fn table(of: &str, id: u32) -> Table {
        Table {
            table: TableId(id),
            name: name(of),
            tablets: Vec::new(),
        }
    }

    /// a and b were made, a dropped.
    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        ledger.created(&name("a"), TableId(2));
        ledger.created(&name("b"), TableId(3));
        ledger.created(&name("b"), TableId(3));
        ledger.dropped(&name("a"));
        ledger
    }

    fn closed(tables: &[Table], last: u32) -> (u64, u64) {
        let mut ledger = ledger();
        ledger.close(tables, TableId(1), TableId(last));
        (ledger.twice, ledger.lost)
    }

    #[test]
    fn a_ledger_closes_when_everything_ran_once() {
        assert_eq!(closed(&[table("b", 3)], 4), (0, 0));
    }

    #[test]
    fn a_creation_that_ran_twice_shows_by_its_table_or_its_id() {
        assert_eq!(closed(&[table("b", 3), table("a", 4)], 5), (2, 0));
        assert_eq!(closed(&[table("b", 3)], 5), (1, 0));
        assert_eq!(closed(&[table("b", 4)], 5), (2, 0));
    }

    #[test]
    fn what_was_acknowledged_and_is_not_so_is_lost() {
        assert_eq!(closed(&[], 4), (0, 1));
        assert_eq!(closed(&[table("b", 3), table("a", 2)], 4), (0, 1));
        let mut ledger = ledger();
        ledger.created(&name("a"), TableId(2));
        assert_eq!(
            ledger.lost, 1,
            "a is made anew under the id of the dropped one"
        );
    }

    #[test]
    fn a_command_without_an_answer_may_have_run_or_not() {
        for (tables, last) in [
            (vec![table("b", 3)], 4),
            (vec![table("b", 3), table("c", 4)], 5),
        ] {
            let mut ledger = ledger();
            ledger.unanswered(&name("c"), "no answer");
            ledger.close(&tables, TableId(1), TableId(last));
            assert_eq!((ledger.twice, ledger.lost, ledger.failed), (0, 0, 1));
        }
    }
}
