//! The tablets that this master owns. Looked up without a lock; changed under the writer's.
//!
//! # Invariants
//! 1. Tablets do not overlap.
//! 2. An [`Owned`] exists only for a table and key hash that lay in a tablet when it was made.
//!    Operations take one instead of table and hash, so that none can skip the lookup.

use std::collections::BTreeSet;

use ramkeep_wire::order::TabletGrant;
use ramkeep_wire::{KeyHash, LogPosition, TableId, key_hash};

/// Proof that a key's tablet is this master's, with the key's place. Made by [`Tablets`] only.
#[derive(Clone, Copy, Debug)]
pub struct Owned<'k> {
    table: TableId,
    hash: KeyHash,
    key: &'k [u8],
}

impl<'k> Owned<'k> {
    /// The table.
    #[must_use]
    #[inline]
    pub fn table(self) -> TableId {
        self.table
    }

    /// The key's hash.
    #[must_use]
    #[inline]
    pub fn hash(self) -> KeyHash {
        self.hash
    }

    /// The key.
    #[must_use]
    #[inline]
    pub fn key(self) -> &'k [u8] {
        self.key
    }
}

/// A tablet of this master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnedTablet {
    /// Which tablet.
    pub range: TabletGrant,
    /// Where the log stood when it was taken over: earlier entries for it don't count (SAFETY 20).
    pub takeover: LogPosition,
}

/// A grant that overlaps a tablet which this master has or recovers, but is not the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the grant of {:?} of {:?} overlaps a tablet that is owned or recovered already", grant.first, grant.table)]
pub struct Overlap {
    /// The grant.
    pub grant: TabletGrant,
}

/// Why tablets can't be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// See there.
    #[error(transparent)]
    Overlaps(#[from] Overlap),
    /// What was to be replayed of it is not here.
    #[error("the replay of {:?} from {:?} on is not known here", .0.table, .0.first)]
    NotReplayed(TabletGrant),
}

/// The tablets at one time, ordered by table and first hash.
#[derive(Clone, Debug, Default)]
pub struct Tablets {
    owned: Vec<OwnedTablet>,
}

impl Tablets {
    /// The proof that `key` is this master's to serve, if it is.
    #[must_use]
    #[inline]
    pub fn owned<'k>(&self, table: TableId, key: &'k [u8]) -> Option<Owned<'k>> {
        self.owned_at(table, key, key_hash(table, key))
    }

    /// The same for a key whose hash is known.
    #[must_use]
    #[inline]
    pub(super) fn owned_at<'k>(
        &self,
        table: TableId,
        key: &'k [u8],
        hash: KeyHash,
    ) -> Option<Owned<'k>> {
        let tablet = self.tablet_of(table, hash)?;
        debug_assert!(tablet.range.table == table);
        Some(Owned { table, hash, key })
    }

    /// Whether all hashes from `first` to `last` are this master's.
    #[must_use]
    pub fn owns_range(&self, table: TableId, first: KeyHash, last: KeyHash) -> bool {
        let mut at = first;
        while let Some(tablet) = self.tablet_of(table, at) {
            if last <= tablet.range.last {
                return true;
            }
            at = KeyHash(tablet.range.last.0 + 1);
        }
        false
    }

    /// All tablets.
    pub fn iter(&self) -> impl Iterator<Item = &OwnedTablet> + '_ {
        self.owned.iter()
    }

    /// Whether anything of the table is owned.
    #[must_use]
    pub fn has_table(&self, table: TableId) -> bool {
        self.owned.iter().any(|tablet| tablet.range.table == table)
    }

    #[inline]
    pub(super) fn tablet_of(&self, table: TableId, hash: KeyHash) -> Option<&OwnedTablet> {
        let after = self
            .owned
            .partition_point(|tablet| (tablet.range.table, tablet.range.first) <= (table, hash));
        let tablet = &self.owned[after.checked_sub(1)?];
        (tablet.range.table == table && hash <= tablet.range.last).then_some(tablet)
    }

    /// Adds a grant that is not there yet, taken over at `position`; returns where it was taken
    /// over. A repeated grant changes nothing.
    pub(super) fn take(
        &mut self,
        grant: TabletGrant,
        position: LogPosition,
    ) -> Result<LogPosition, Overlap> {
        if grant.first > grant.last {
            return Err(Overlap { grant });
        }
        // Tablets are in order and do not overlap: of those with a hash of the grant this is the first.
        let place = |owned: &OwnedTablet| {
            (owned.range.table, owned.range.last) < (grant.table, grant.first)
        };
        let at = self.owned.partition_point(place);
        let other = self
            .owned
            .get(at)
            .map(|other| (other.range, other.takeover));
        match other.filter(|(range, _)| overlap(range, &grant)) {
            Some((range, takeover)) if range == grant => Ok(takeover),
            Some(_) => Err(Overlap { grant }),
            None => {
                let tablet = OwnedTablet {
                    range: grant,
                    takeover: position,
                };
                self.owned.insert(at, tablet);
                Ok(position)
            }
        }
    }

    /// Gives up all tablets of these tables; those of which there were some.
    pub(super) fn drop_tables(&mut self, tables: &[TableId]) -> BTreeSet<TableId> {
        let wanted: BTreeSet<_> = tables.iter().collect();
        let gone = |tablet: &mut OwnedTablet| wanted.contains(&tablet.range.table);
        let dropped = self.owned.extract_if(.., gone);
        dropped.map(|tablet| tablet.range.table).collect()
    }
}

/// Whether two ranges have a hash in common.
pub(super) fn overlap(one: &TabletGrant, other: &TabletGrant) -> bool {
    one.table == other.table && one.first <= other.last && other.first <= one.last
}

#[cfg(test)]
mod tests {
    use ramkeep_wire::SegmentId;

    use super::*;

    fn grant(table: u32, first: u64, last: u64) -> TabletGrant {
        TabletGrant {
            table: TableId(table),
            first: KeyHash(first),
            last: KeyHash(last),
        }
    }

    fn at(offset: u32) -> LogPosition {
        LogPosition::new(SegmentId(1), offset)
    }

    #[test]
    fn a_key_is_owned_if_and_only_if_its_hash_is_in_a_tablet() {
        let mut tablets = Tablets::default();
        tablets.take(grant(2, 10, 20), at(1)).unwrap();
        tablets.take(grant(2, 30, 40), at(2)).unwrap();
        tablets.take(grant(4, 0, u64::MAX), at(3)).unwrap();
        let owned = |table, hash| {
            tablets
                .owned_at(TableId(table), b"k", KeyHash(hash))
                .is_some()
        };
        for (hash, expected) in [
            (9, false),
            (10, true),
            (20, true),
            (21, false),
            (30, true),
            (40, true),
            (41, false),
        ] {
            assert_eq!(owned(2, hash), expected, "hash {hash}");
        }
        assert!(owned(4, 0) && owned(4, u64::MAX));
        assert!(!owned(1, 15) && !owned(3, 15) && !owned(5, 15));
    }

    #[test]
    fn a_range_is_owned_only_without_holes() {
        let mut tablets = Tablets::default();
        tablets.take(grant(1, 10, 20), at(1)).unwrap();
        tablets.take(grant(1, 21, 30), at(1)).unwrap();
        tablets.take(grant(1, 32, u64::MAX), at(1)).unwrap();
        let owns = |first, last| tablets.owns_range(TableId(1), KeyHash(first), KeyHash(last));
        assert!(owns(10, 30) && owns(15, 25) && owns(40, u64::MAX));
        assert!(!owns(9, 12) && !owns(25, 35) && !owns(31, 31));
    }

    #[test]
    fn a_repeated_grant_changes_nothing_and_an_overlapping_one_is_refused() {
        let mut tablets = Tablets::default();
        assert_eq!(tablets.take(grant(1, 10, 20), at(5)), Ok(at(5)));
        assert_eq!(tablets.take(grant(1, 10, 20), at(9)), Ok(at(5)));
        assert_eq!(tablets.iter().count(), 1);
        tablets
            .take(grant(1, 20, 30), at(9))
            .expect_err("20 is in both");
        tablets
            .take(grant(1, 5, 1), at(9))
            .expect_err("an empty range is not a tablet");
        let tables = [TableId(1), TableId(2)];
        assert_eq!(tablets.drop_tables(&tables), BTreeSet::from([TableId(1)]));
        assert_eq!(tablets.drop_tables(&tables), BTreeSet::new());
        assert_eq!(tablets.take(grant(1, 20, 30), at(9)), Ok(at(9)));
    }
}
