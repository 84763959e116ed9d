//! What is owed to one server piece by piece: tablets to take, tables to drop. One order carries many.
//!
//! # Invariants
//! 1. A piece is owed until the state says otherwise. While the command that says so is under way the
//!    piece is in no order; when that command is lost, it is in one again.
//! 2. An order begins after the last piece of the one before, so that what is refused holds up nothing.

use std::collections::BTreeSet;
use std::ops::Bound;

use ramkeep_wire::order::TabletGrant;

/// All pieces of one kind that one server is owed. A piece is a tablet, or all hashes of a table.
#[derive(Debug, Default)]
pub(super) struct Lot {
    owed: BTreeSet<TabletGrant>,
    /// Of these: confirmed by the server, and not decided yet.
    confirmed: BTreeSet<TabletGrant>,
    /// The last piece of the last order.
    last: Option<TabletGrant>,
}

impl Lot {
    /// This is owed now. Whether there is anything new among it.
    pub(super) fn follow(&mut self, owed: BTreeSet<TabletGrant>) -> bool {
        let news = !owed.is_subset(&self.owed);
        self.confirmed.retain(|piece| owed.contains(piece));
        self.owed = owed;
        news
    }

    /// Whether nothing is left to be ordered.
    pub(super) fn is_done(&self) -> bool {
        self.owed.len() == self.confirmed.len()
    }

    /// The pieces of the next order, at most so many.
    pub(super) fn next(&mut self, most: usize) -> Vec<TabletGrant> {
        let after = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let rest = self.owed.range((after, Bound::Unbounded));
        let first = self.last.map(|last| self.owed.range(..=last));
        let all = rest.chain(first.into_iter().flatten());
        let left = all.filter(|piece| !self.confirmed.contains(piece));
        let next: Vec<TabletGrant> = left.take(most).copied().collect();
        self.last = next.last().copied().or(self.last);
        next
    }

    /// The server has confirmed these pieces; those of them that are to be decided now.
    pub(super) fn confirm(&mut self, pieces: &BTreeSet<TabletGrant>) -> BTreeSet<TabletGrant> {
        let owed = pieces.intersection(&self.owed).copied();
        owed.filter(|piece| self.confirmed.insert(*piece)).collect()
    }

    /// Nothing about these is under way any more.
    pub(super) fn unconfirm(&mut self, pieces: &BTreeSet<TabletGrant>) {
        self.confirmed.retain(|piece| !pieces.contains(piece));
    }
}

#[cfg(test)]
mod tests {
    use ramkeep_wire::{KeyHash, TableId};

    use super::*;

    fn pieces(tables: impl IntoIterator<Item = u32>) -> BTreeSet<TabletGrant> {
        let piece = |table| TabletGrant {
            table: TableId(table),
            first: KeyHash(0),
            last: KeyHash(u64::MAX),
        };
        tables.into_iter().map(piece).collect()
    }

    fn next(lot: &mut Lot) -> Vec<u32> {
        let pieces = lot.next(2).into_iter();
        pieces.map(|piece| piece.table.0).collect()
    }

    #[test]
    fn orders_take_turns_so_that_what_is_refused_holds_up_nothing() {
        let mut lot = Lot::default();
        assert!(lot.follow(pieces(1..=5)));
        assert_eq!(next(&mut lot), [1, 2]);
        assert_eq!(next(&mut lot), [3, 4]);
        assert_eq!(next(&mut lot), [5, 1]);
        assert_eq!(lot.confirm(&pieces([3, 4, 7])), pieces([3, 4]));
        assert_eq!(next(&mut lot), [2, 5]);
        assert!(!lot.follow(pieces([1, 3])), "nothing is new");
        assert_eq!(next(&mut lot), [1]);
    }

    #[test]
    fn what_is_confirmed_is_owed_again_when_its_command_is_lost() {
        let mut lot = Lot::default();
        lot.follow(pieces(1..=2));
        assert_eq!(lot.confirm(&pieces(1..=2)), pieces(1..=2));
        assert_eq!(lot.confirm(&pieces(1..=2)), pieces([]), "once");
        assert!(lot.is_done() && lot.next(2).is_empty());
        lot.unconfirm(&pieces([2]));
        assert!(!lot.is_done());
        assert_eq!(next(&mut lot), [2]);
    }
}
