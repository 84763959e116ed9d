//! How many recovery masters share a crashed master's tablets, which, and how the tablets are cut.
//!
//! # Invariants
//! 1. Every tablet that is given is tiled whole within one command.
//! 2. A command is within its limits, and so are the tables that it leaves.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use ramkeep_wire::coordinator::Tablet;
use ramkeep_wire::limits::MAX_TABLETS_PER_TABLE;
use ramkeep_wire::order::TabletGrant;
use ramkeep_wire::{KeyHash, ServerId, TableId};

use crate::limits::{MAX_PARTITIONS, MAX_PLANNED_TABLETS, PARTITION_OBJECTS};

/// A master that could replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) server: ServerId,
    /// Bytes that it has room for, as far as is known.
    pub(super) free: u64,
    /// Bytes of its log for which other backups have frames.
    pub(super) copied: u64,
    /// Partitions that it replays already.
    pub(super) busy: usize,
}

/// Who replays how much of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) by: ServerId,
    /// Among those of all shares.
    pub(super) weight: u64,
}

/// The partitions of one command.
pub(super) type Parts = Vec<(Vec<TabletGrant>, ServerId)>;

impl Candidate {
    /// Bytes that it can replay and have copied.
    fn holds(&self) -> u64 {
        self.free.min(self.copied)
    }
}

/// The best candidates first.
pub(super) fn rank(candidates: &mut [Candidate]) {
    candidates.sort_by_key(|one| {
        (
            one.copied == 0,
            one.busy,
            Reverse(one.holds()),
            Reverse(one.free),
            one.server,
        )
    });
}

/// The recovery masters for a log of so many bytes and objects: as few as its size asks for, more if
/// they lack memory for it, and all, as their memory is, when that does not help. `candidates` are ranked.
pub(super) fn choose(
    candidates: &[Candidate],
    bytes: u64,
    objects: u64,
    partition_bytes: u64,
) -> Vec<Share> {
    let wanted = bytes
        .div_ceil(partition_bytes)
        .max(objects.div_ceil(PARTITION_OBJECTS));
    let most = candidates.len().min(MAX_PARTITIONS);
    let least = usize::try_from(wanted)
        .unwrap_or(usize::MAX)
        .clamp(1, most.max(1));
    let fits = |count: &usize| {
        let share = bytes.div_ceil(*count as u64);
        let chosen = candidates.iter().filter(|one| one.holds() >= share);
        chosen.count() >= *count
    };
    let Some(count) = (least..=most).find(fits) else {
        return by_room(&candidates[..most], bytes);
    };
    let share = bytes.div_ceil(count as u64);
    let chosen = candidates.iter().filter(|one| one.holds() >= share);
    let even = |one: &Candidate| Share {
        by: one.server,
        weight: 1,
    };
    chosen.map(even).take(count).collect()
}

/// All, as the room of each is; as its memory is if there are not the frames for all in any case.
fn by_room(candidates: &[Candidate], bytes: u64) -> Vec<Share> {
    let sum =
        |room: fn(&Candidate) -> u64| candidates.iter().map(room).fold(0, u64::saturating_add);
    let room = match sum(Candidate::holds) >= bytes {
        true => Candidate::holds,
        false => |one: &Candidate| one.free,
    };
    let none = sum(room) == 0;
    let with_room = candidates.iter().filter(|one| room(one) > 0 || none);
    with_room
        .map(|one| Share {
            by: one.server,
            weight: room(one).max(1),
        })
        .collect()
}

/// Cuts the tablets that are down into a share for each of `masters`, in as many commands as it
/// takes. `sizes` are the tablets that each of the tables has, `room` those that the map has room
/// for.
pub(super) fn plan(
    down: &[Tablet],
    masters: &[Share],
    sizes: &BTreeMap<TableId, usize>,
    room: usize,
) -> Vec<Parts> {
    if masters.is_empty() {
        return Vec::new();
    }
    let mut batches = Batches::default();
    let mut room = room;
    // What of the hashes of whole tablets each was given.
    let mut given = vec![0_u128; masters.len()];
    let tables: BTreeSet<TableId> = down.iter().map(|tablet| tablet.table).collect();
    for table in tables {
        let own: Vec<&Tablet> = down.iter().filter(|tablet| tablet.table == table).collect();
        let more = masters.len() - 1;
        let size = sizes.get(&table).copied().unwrap_or(own.len());
        if size + more <= MAX_TABLETS_PER_TABLE && more <= room {
            room -= more;
            for tablet in &own {
                batches.add(cut(tablet, &own, masters));
            }
        } else {
            for tablet in own {
                let filled = |at: &usize| given[*at] / u128::from(masters[*at].weight);
                let least = (0..masters.len()).min_by_key(filled).unwrap_or(0);
                // A whole table is 2^64 wide: as many as there can be have room.
                given[least] += width(tablet);
                let range = range(tablet, tablet.first, tablet.last);
                batches.add(vec![(range, masters[least].by)]);
            }
        }
    }
    batches.into_parts()
}

fn range(tablet: &Tablet, first: KeyHash, last: KeyHash) -> TabletGrant {
    let table = tablet.table;
    TabletGrant { table, first, last }
}

fn width(tablet: &Tablet) -> u128 {
    u128::from(tablet.last.0 - tablet.first.0) + 1
}

/// The pieces of one tablet when all those of its table, laid end to end, are shared by weight.
fn cut(tablet: &Tablet, own: &[&Tablet], masters: &[Share]) -> Vec<(TabletGrant, ServerId)> {
    let total: u128 = own.iter().map(|tablet| width(tablet)).sum();
    let before = own.iter().take_while(|other| other.first < tablet.first);
    let start: u128 = before.map(|other| width(other)).sum();
    let end = start + width(tablet);
    let weights: u128 = masters.iter().map(|share| u128::from(share.weight)).sum();
    // A whole table is 2^64 wide, and weights are cut to what that leaves.
    let spread = weights.checked_ilog2().unwrap_or(0).saturating_sub(60);
    let bound = |weight: u128| total * (weight >> spread) / (weights >> spread).max(1);
    let mut pieces = Vec::new();
    let mut before = 0;
    for Share { by, weight } in masters {
        let from = bound(before).max(start);
        before += u128::from(*weight);
        let to = bound(before).min(end);
        if from < to {
            let first = tablet.first.0 + (from - start) as u64;
            let last = tablet.first.0 + (to - 1 - start) as u64;
            pieces.push((range(tablet, KeyHash(first), KeyHash(last)), *by));
        }
    }
    pieces
}

/// Commands as they fill.
#[derive(Default)]
struct Batches {
    full: Vec<BTreeMap<ServerId, Vec<TabletGrant>>>,
    last: BTreeMap<ServerId, Vec<TabletGrant>>,
    count: usize,
}

impl Batches {
    fn add(&mut self, pieces: Vec<(TabletGrant, ServerId)>) {
        if self.count + pieces.len() > MAX_PLANNED_TABLETS {
            self.full.push(std::mem::take(&mut self.last));
            self.count = 0;
        }
        self.count += pieces.len();
        for (piece, by) in pieces {
            self.last.entry(by).or_default().push(piece);
        }
    }

    fn into_parts(mut self) -> Vec<Parts> {
        self.full.push(self.last);
        let batches = self.full.into_iter().filter(|batch| !batch.is_empty());
        let parts = |batch: BTreeMap<ServerId, Vec<TabletGrant>>| {
            batch.into_iter().map(|(by, grants)| (grants, by)).collect()
        };
        batches.map(parts).collect()
    }
}

#[cfg(test)]
mod tests {
    use ramkeep_wire::LogPosition;
    use ramkeep_wire::coordinator::TabletState;

    use super::*;
    use crate::limits::PARTITION_BYTES;

    fn tablet(table: u32, first: u64, last: u64) -> Tablet {
        Tablet {
            table: TableId(table),
            first: KeyHash(first),
            last: KeyHash(last),
            owner: ServerId(9),
            takeover: LogPosition::ZERO,
            state: TabletState::Down,
        }
    }

    fn candidates(free: &[u64]) -> Vec<Candidate> {
        let one = |(at, free): (usize, &u64)| Candidate {
            server: ServerId(at as u64 + 1),
            free: *free,
            copied: u64::MAX,
            busy: 0,
        };
        free.iter().enumerate().map(one).collect()
    }

    fn shares(ids: &[u64]) -> Vec<Share> {
        let even = |id: &u64| Share {
            by: ServerId(*id),
            weight: 1,
        };
        ids.iter().map(even).collect()
    }

    #[test]
    fn a_small_log_goes_to_one_master_and_a_large_one_to_as_many_as_it_needs() {
        let plenty = candidates(&[u64::MAX; 5]);
        assert_eq!(choose(&plenty, 1 << 20, 1, PARTITION_BYTES), shares(&[1]));
        assert_eq!(
            choose(&plenty, 3 * PARTITION_BYTES, 1, PARTITION_BYTES).len(),
            3
        );
        assert_eq!(
            choose(&plenty, 1, 4 * PARTITION_OBJECTS, PARTITION_BYTES).len(),
            4
        );
        assert_eq!(
            choose(&plenty, u64::MAX / 2, 1, PARTITION_BYTES).len(),
            5,
            "all there are"
        );
        assert_eq!(choose(&[], 1, 1, PARTITION_BYTES), shares(&[]));
    }

    #[test]
    fn masters_without_memory_for_a_share_are_not_chosen() {
        let some = candidates(&[10, 600, 100, 700]);
        assert_eq!(choose(&some, 600, 0, PARTITION_BYTES), shares(&[2]));
        assert_eq!(choose(&some, 1_200, 0, PARTITION_BYTES), shares(&[2, 4]));
        // Nobody has enough for an even share: they are as the room is.
        let weights = |bytes| {
            let all = choose(&some, bytes, 0, PARTITION_BYTES);
            all.iter().map(|share| share.weight).collect::<Vec<_>>()
        };
        assert_eq!(weights(1_300), [10, 600, 100, 700]);
    }

    #[test]
    fn shares_are_even_and_tile_every_tablet() {
        let down = [
            tablet(1, 0, (1 << 62) - 1),
            tablet(1, 3 << 62, u64::MAX),
            tablet(2, 0, u64::MAX),
        ];
        let masters = shares(&[1, 2, 3]);
        let sizes = BTreeMap::from([(TableId(1), 4), (TableId(2), 1)]);
        let plans = plan(&down, &masters, &sizes, 1_000);
        let [parts] = plans.as_slice() else {
            panic!("{plans:?}");
        };
        for (grants, by) in parts {
            let sum = |table: u32| -> u128 {
                let own = grants.iter().filter(|grant| grant.table == TableId(table));
                own.map(|g| u128::from(g.last.0 - g.first.0) + 1).sum()
            };
            assert!(sum(1).abs_diff((1 << 63) / 3) <= 2, "{by:?} {}", sum(1));
            assert!(sum(2).abs_diff((1 << 64) / 3) <= 2, "{by:?} {}", sum(2));
        }
        for tablet in &down {
            let mut own: Vec<_> = parts
                .iter()
                .flat_map(|(grants, _)| grants)
                .filter(|g| {
                    g.table == tablet.table && g.first >= tablet.first && g.last <= tablet.last
                })
                .collect();
            own.sort_unstable();
            assert_eq!(own.first().map(|g| g.first), Some(tablet.first));
            assert_eq!(own.last().map(|g| g.last), Some(tablet.last));
            assert!(
                own.windows(2)
                    .all(|two| two[0].last.0 + 1 == two[1].first.0)
            );
        }
    }

    #[test]
    fn shares_are_as_the_weights_are() {
        let (gib, table) = (1_u64 << 30, tablet(1, 0, u64::MAX));
        let weights = [gib, 2 * gib, 5 * gib, u64::MAX / 1_000];
        for count in [3, 4] {
            let weigh = |(by, weight): (u64, &u64)| Share {
                by: ServerId(by),
                weight: *weight,
            };
            let masters: Vec<_> = (0..).zip(&weights[..count]).map(weigh).collect();
            let sum: u128 = masters.iter().map(|share| u128::from(share.weight)).sum();
            let pieces = cut(&table, &[&table], &masters);
            for share in &masters {
                let own = pieces.iter().filter(|(_, by)| *by == share.by);
                let own: u128 = own.map(|(g, _)| u128::from(g.last.0 - g.first.0) + 1).sum();
                let due = (u128::from(share.weight) << 40) / sum;
                assert!((own >> 24).abs_diff(due) <= 1, "{share:?} {own}");
            }
        }
    }

    #[test]
    fn a_table_or_map_that_is_full_is_not_cut_further() {
        let down: Vec<_> = (0..1_024_u64)
            .map(|at| tablet(1, at << 54, ((at + 1) << 54).wrapping_sub(1)))
            .collect();
        let masters = shares(&[1, 2]);
        let sizes = BTreeMap::from([(TableId(1), 1_024)]);
        for room in [0, 1_000] {
            let plans = plan(&down, &masters, &sizes, room);
            let given: Vec<usize> = plans.iter().flatten().map(|(g, _)| g.len()).collect();
            assert_eq!(given, [512, 512]);
        }
    }

    #[test]
    fn very_many_tablets_take_several_commands() {
        let down: Vec<_> = (1..=3_000)
            .map(|table| tablet(table, 0, u64::MAX))
            .collect();
        let sizes = (1..=3_000).map(|table| (TableId(table), 1)).collect();
        let plans = plan(&down, &shares(&[1, 2]), &sizes, 1_000);
        assert!(plans.len() > 3);
        let per: Vec<usize> = plans
            .iter()
            .map(|parts| parts.iter().map(|(grants, _)| grants.len()).sum())
            .collect();
        assert!(
            per.iter().all(|given| *given <= MAX_PLANNED_TABLETS),
            "{per:?}"
        );
        assert_eq!(
            per.iter().sum::<usize>(),
            4_000,
            "as many cuts as there is room for"
        );
    }
}
