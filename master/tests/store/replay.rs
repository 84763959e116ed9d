//! Replay of one store's log into others: against the store that wrote it, and the stories of
//! SAFETY 20 and 21.

use std::collections::BTreeMap;

use proptest::prelude::*;
use ramkeep_master::store::{Finished, NotTaken, Replay, ReplayError, Step, Store, StoreConfig};
use ramkeep_wire::certificate::Claim;
use ramkeep_wire::data::{Op, RejectRules, Status};
use ramkeep_wire::entry::Entry;
use ramkeep_wire::order::{LostTablet, RecoveredTablet, TabletGrant};
use ramkeep_wire::segment::ProvedSegment;
use ramkeep_wire::{
    KeyHash, LogPosition, ReplicationEpoch, SegmentId, ServerId, TableId, Version, key_hash,
};

use crate::support::{
    CLUSTER, Connection, KEY, MASTER, Objects, SMALL_INDEX, TABLE, ask, each_entry, make_durable,
    owned, segments, store, whole,
};

/// Small, but with room for a digest that names 60 segments.
const SEGMENT: u32 = 4_096;
const EPOCH: ReplicationEpoch = ReplicationEpoch(3);

/// A store without tablets.
pub(crate) fn empty(segments: u64) -> Store {
    Store::new(StoreConfig {
        cluster: CLUSTER,
        master: ServerId(8),
        key: Some(KEY),
        memory: SMALL_INDEX + (8 << 10) + segments * u64::from(SEGMENT),
        segment_size: SEGMENT,
        first_segment: SegmentId(1),
    })
    .unwrap()
}

pub(crate) fn lost(range: TabletGrant, takeover: LogPosition) -> LostTablet {
    LostTablet { range, takeover }
}

/// Every segment of a store as its backups would give it.
pub(crate) fn log_of(store: &Store, master: ServerId) -> Vec<ProvedSegment> {
    let ids = segments(store);
    let mut writer = store.writer();
    let log = writer.log_mut();
    let guard = store.pin();
    ids.into_iter()
        .map(|id| {
            let info = log.info(id).unwrap();
            let (claim, certificate) = match info.sealed {
                Some(sealed) => (
                    Claim::closed(CLUSTER, master, id, info.kind, info.length),
                    sealed,
                ),
                None => {
                    let open = Claim {
                        epoch: EPOCH,
                        closed: false,
                        ..Claim::closed(CLUSTER, master, id, info.kind, info.length)
                    };
                    (open, log.certify(id, EPOCH).1)
                }
            };
            let contents = log.bytes(&guard, id, 0..info.length).unwrap().to_vec();
            ProvedSegment::prove(claim, certificate, contents, &KEY).unwrap()
        })
        .collect()
}

pub(crate) fn begin(store: &Store, tablets: &[LostTablet]) -> Replay {
    let mut replay = store.begin_replay(tablets).unwrap();
    while replay.purge(store).unwrap() {}
    replay
}

/// Replays a segment; the log rolls over as it must.
pub(crate) fn replay_segment(
    replay: &mut Replay,
    store: &Store,
    segment: &ProvedSegment,
) -> Result<(), ReplayError> {
    let mut at = 0;
    loop {
        match replay.step(store, &segment.segment(), at)? {
            Step::At(next) => at = next,
            Step::Wait(again) => {
                make_durable(store);
                at = again;
            }
            Step::Done => return Ok(()),
        }
    }
}

pub(crate) fn finish(replay: &mut Replay, store: &Store) -> Finished {
    loop {
        if let Some(finished) = replay.finish(store).unwrap() {
            make_durable(store);
            assert!(store.durability().reached(finished.end).is_some());
            return finished;
        }
        make_durable(store);
    }
}

pub(crate) fn recover(store: &Store, tablets: &[LostTablet], log: &[ProvedSegment]) -> Finished {
    let mut replay = begin(store, tablets);
    for segment in log.iter().rev() {
        replay_segment(&mut replay, store, segment).unwrap();
    }
    finish(&mut replay, store)
}

fn objects_of(store: &Store, keys: &[Vec<u8>]) -> Objects {
    let (guard, tablets) = (store.pin(), store.tablets());
    let mut found = Objects::new();
    for key in keys {
        if let Some(owned) = tablets.owned(TABLE, key)
            && let Some(object) = store.read(&guard, owned).object
        {
            found.insert(key.clone(), (object.version, object.value.to_vec()));
        }
    }
    found
}

/// Every tombstone of a log names the segment of that log in which its object stands.
fn assert_tombstones_name_their_segments(store: &Store) {
    let mut stands: BTreeMap<(Vec<u8>, Version), Vec<SegmentId>> = BTreeMap::new();
    let mut dead = Vec::new();
    let everything = LogPosition(u64::MAX);
    each_entry(store, everything, |end, entry| match entry {
        Entry::Object(object) => stands
            .entry((object.key.to_vec(), object.version))
            .or_default()
            .push(end.segment()),
        Entry::Tombstone(one) => dead.push((one.key.to_vec(), one.version, one.segment)),
        _ => {}
    });
    for (key, version, segment) in dead {
        let at = stands.get(&(key.clone(), version));
        assert!(
            at.is_some_and(|at| at.contains(&segment)),
            "a tombstone of {key:?} {version:?} names {segment:?}, but it stood in {at:?}"
        );
    }
}

#[derive(Clone, Debug)]
enum Change {
    Write(u8, Vec<u8>),
    Remove(u8),
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let value = || prop::collection::vec(any::<u8>(), 0..120);
    let change = prop_oneof![
        3 => (0..24u8, value()).prop_map(|(key, value)| Change::Write(key, value)),
        2 => (0..24u8).prop_map(Change::Remove),
    ];
    prop::collection::vec(change, 0..160)
}

#[derive(Clone, Debug)]
struct Plan {
    first_stay: Vec<Change>,
    changes: Vec<Change>,
    /// Between two partitions.
    cut: u64,
    /// Orders the segments of each attempt.
    orders: Vec<u64>,
    /// Segments that an attempt replays before it is given up.
    given_up_after: Vec<usize>,
    same_master: bool,
}

fn plan() -> impl Strategy<Value = Plan> {
    (
        changes(),
        changes(),
        any::<u64>(),
        prop::collection::vec(any::<u64>(), 6),
        prop::collection::vec(0..12usize, 0..3),
        any::<bool>(),
    )
        .prop_map(
            |(first_stay, changes, cut, orders, given_up_after, same_master)| Plan {
                first_stay,
                changes,
                cut: cut.max(1),
                orders,
                given_up_after,
                same_master,
            },
        )
}

fn key(number: u8) -> Vec<u8> {
    format!("key-{number}").into_bytes()
}

/// Makes the changes; returns the highest version that each key has had.
fn change(store: &Store, changes: &[Change]) -> BTreeMap<Vec<u8>, Version> {
    let mut highest = BTreeMap::new();
    for change in changes {
        make_durable(store);
        let (guard, tablets) = (store.pin(), store.tablets());
        let mut writer = store.writer();
        let rules = RejectRules::default();
        let (key, answer) = match change {
            Change::Write(number, value) => {
                let key = key(*number);
                let answer = writer.write(&guard, owned(&tablets, &key), value, rules);
                (key, answer)
            }
            Change::Remove(number) => {
                let key = key(*number);
                let answer = writer.remove(&guard, owned(&tablets, &key), rules);
                (key, answer)
            }
        };
        assert_eq!(answer.status, Status::Ok);
        let known: &mut Version = highest.entry(key).or_default();
        *known = answer.version.max(*known);
    }
    make_durable(store);
    highest
}

fn shuffled(log: &[ProvedSegment], seed: u64) -> Vec<&ProvedSegment> {
    let mut order: Vec<_> = log.iter().collect();
    let rank = |segment: &&ProvedSegment| {
        let id = segment.segment().claim().segment.0;
        (id.wrapping_mul(seed | 1)).rotate_left(29) ^ seed
    };
    order.sort_by_key(rank);
    order
}

/// Replays the log into `store` as the plan says; returns the takeover.
fn follow(
    plan: &Plan,
    store: &Store,
    tablets: &[LostTablet],
    log: &[ProvedSegment],
) -> LogPosition {
    for (attempt, count) in plan.given_up_after.iter().enumerate() {
        let mut replay = begin(store, tablets);
        for segment in shuffled(log, plan.orders[attempt]).into_iter().take(*count) {
            replay_segment(&mut replay, store, segment).unwrap();
        }
        // Every other one is ended by the next attempt.
        if count % 2 == 0 {
            store.end_replay(replay.id());
        }
    }
    let mut replay = begin(store, tablets);
    for segment in shuffled(log, plan.orders[5]) {
        replay_segment(&mut replay, store, segment).unwrap();
    }
    if let Some(again) = log.first() {
        replay_segment(&mut replay, store, again).unwrap();
    }
    finish(&mut replay, store).takeover
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_is_replayed_is_what_the_crashed_master_held(plan in plan()) {
        let source = store(true, SEGMENT, 50);
        change(&source, &plan.first_stay);
        source.drop_table(TABLE);
        let takeover = source.take_tablets(&[whole(TABLE)]).unwrap()[0];
        let highest = change(&source, &plan.changes);
        let keys: Vec<_> = (0..24).map(key).collect();
        let held = objects_of(&source, &keys);
        let log = log_of(&source, MASTER);

        let parts = [(0, plan.cut - 1), (plan.cut, u64::MAX)];
        let one = empty(60);
        let other = empty(60);
        let mut recovered = Objects::new();
        for (number, (first, last)) in parts.into_iter().enumerate() {
            let range = TabletGrant { table: TABLE, first: KeyHash(first), last: KeyHash(last) };
            let target = if number == 0 || plan.same_master { &one } else { &other };
            let began = follow(&plan, target, &[lost(range, takeover)], &log);
            prop_assert!(objects_of(target, &keys).keys().all(|key| key_hash(TABLE, key) < KeyHash(first)),
                "nothing is served before the tablet is taken");
            prop_assert_eq!(target.take_tablets(&[range]).unwrap(), vec![began]);
            prop_assert_eq!(target.take_tablets(&[range]).unwrap(), vec![began]);
            let here = |key: &&Vec<u8>| range.first <= key_hash(TABLE, key) && key_hash(TABLE, key) <= range.last;
            let mine: Vec<_> = keys.iter().filter(here).cloned().collect();
            recovered.extend(objects_of(target, &mine));

            // The recovery master crashes, too.
            let next = empty(60);
            recover(&next, &[lost(range, began)], &log_of(target, ServerId(8)));
            next.take_tablets(&[range]).unwrap();
            prop_assert_eq!(objects_of(&next, &mine), objects_of(target, &mine));
        }
        prop_assert_eq!(&recovered, &held);
        let stores = if plan.same_master { vec![&one] } else { vec![&one, &other] };
        let count: u64 = stores.iter().map(|store| store.stats().objects).sum();
        prop_assert_eq!(count, held.len() as u64, "nothing else is in the index");
        for target in stores {
            assert_tombstones_name_their_segments(target);
            for key in &keys {
                if target.tablets().owned(TABLE, key).is_none() {
                    continue;
                }
                let mut connection = Connection::default();
                make_durable(target);
                let id = connection.send(target, &[ask(Op::Write, key, b"next")])[0];
                make_durable(target);
                connection.release(target);
                let written = connection.replies().remove(&id).unwrap();
                prop_assert_eq!(written.status, Status::Ok);
                let used = highest.get(key).copied().unwrap_or_default();
                prop_assert!(written.version > used, "{:?} of {:?} was used before", written.version, used);
            }
        }
    }
}

fn write(store: &Store, key: &[u8]) -> Version {
    make_durable(store);
    let (guard, tablets) = (store.pin(), store.tablets());
    let answer = store
        .writer()
        .write(&guard, owned(&tablets, key), b"v", RejectRules::default());
    assert_eq!(answer.status, Status::Ok);
    answer.version
}

/// SAFETY 20.
#[test]
fn a_tablet_that_came_back_does_not_bring_what_an_earlier_stay_left() {
    let master = store(true, SEGMENT, 50);
    write(&master, b"k");
    master.drop_table(TABLE);
    let takeover = master.take_tablets(&[whole(TABLE)]).unwrap()[0];
    write(&master, b"other");
    let log = log_of(&master, MASTER);
    let next = empty(50);
    recover(&next, &[lost(whole(TABLE), takeover)], &log);
    next.take_tablets(&[whole(TABLE)]).unwrap();
    let keys = [b"k".to_vec(), b"other".to_vec()];
    let found: Vec<_> = objects_of(&next, &keys).into_keys().collect();
    assert_eq!(found, [b"other".to_vec()]);
    let everything = empty(50);
    recover(&everything, &[lost(whole(TABLE), LogPosition::ZERO)], &log);
    everything.take_tablets(&[whole(TABLE)]).unwrap();
    assert_eq!(
        objects_of(&everything, &keys).len(),
        2,
        "the log does hold it"
    );
}

/// SAFETY 21.
#[test]
fn an_object_superseded_in_replay_gets_a_tombstone_of_the_recovery_masters_own_segment() {
    let master = store(true, SEGMENT, 50);
    write(&master, b"k");
    // The rest of a segment, so that the two writes of k are in different ones.
    for number in 0..60 {
        write(&master, format!("filler {number}").as_bytes());
    }
    write(&master, b"k");
    make_durable(&master);
    let (guard, tablets) = (master.pin(), master.tablets());
    let removed = master
        .writer()
        .remove(&guard, owned(&tablets, b"k"), RejectRules::default());
    assert_eq!(removed.version, Version(2));
    let log = log_of(&master, MASTER);
    let target = empty(60);
    // Something before, so that segments are numbered otherwise.
    let mut earlier = begin(&target, &[lost(whole(TABLE), LogPosition::ZERO)]);
    for segment in &log {
        replay_segment(&mut earlier, &target, segment).unwrap();
    }
    let mut replay = begin(&target, &[lost(whole(TABLE), LogPosition::ZERO)]);
    // The oldest first: k appears, is superseded, and is removed.
    for segment in &log {
        replay_segment(&mut replay, &target, segment).unwrap();
    }
    let finished = finish(&mut replay, &target);
    assert_tombstones_name_their_segments(&target);
    let mut killed = Vec::new();
    each_entry(&target, finished.end, |end, entry| match entry {
        Entry::Tombstone(dead) if dead.key == b"k" && end > finished.takeover => {
            killed.push((dead.version, dead.segment));
        }
        _ => {}
    });
    assert_eq!(killed.len(), 2, "one for each object of k: {killed:?}");
    assert!(
        killed
            .iter()
            .all(|(_, segment)| *segment >= finished.takeover.segment())
    );
}

#[test]
fn a_replay_without_memory_gives_up_and_leaves_nothing() {
    let master = store(true, SEGMENT, 50);
    for number in 0..400 {
        write(&master, format!("key {number}").as_bytes());
    }
    let log = log_of(&master, MASTER);
    let target = empty(6);
    let before = target.stats();
    let mut replay = begin(&target, &[lost(whole(TABLE), LogPosition::ZERO)]);
    let failed = log
        .iter()
        .try_for_each(|segment| replay_segment(&mut replay, &target, segment));
    assert_eq!(failed, Err(ReplayError::OutOfMemory));
    assert!(target.stats().objects > 0);
    target.end_replay(replay.id());
    assert_eq!(replay.finish(&target), Err(ReplayError::Ended));
    while target.sweep(64) {}
    let after = target.stats();
    let figures = |stats: &ramkeep_wire::coordinator::MasterStats| {
        (stats.objects, stats.live, stats.reserved, stats.payload)
    };
    assert_eq!(figures(&after), figures(&before));
}

#[test]
fn remembered_tombstones_are_in_the_account() {
    let master = store(true, SEGMENT, 50);
    let changes: Vec<_> = (0..200)
        .flat_map(|n| [Change::Write(n, vec![]), Change::Remove(n)])
        .collect();
    change(&master, &changes);
    let log = log_of(&master, MASTER);
    let target = empty(40);
    let used = target.stats().used;
    let mut replay = begin(&target, &[lost(whole(TABLE), LogPosition::ZERO)]);
    // Only the newest: it holds removals whose objects are older.
    replay_segment(&mut replay, &target, log.last().unwrap()).unwrap();
    assert!(target.stats().used > used);
    target.end_replay(replay.id());
    assert_eq!(
        target.stats().used % u64::from(SEGMENT),
        used % u64::from(SEGMENT)
    );
}

#[test]
fn a_served_range_is_not_replayed_into_and_one_under_replay_is_not_taken() {
    let target = empty(20);
    let half = |first: u64, last| TabletGrant {
        table: TABLE,
        first: KeyHash(first),
        last: KeyHash(last),
    };
    target.take_tablets(&[half(0, 99)]).unwrap();
    let served = target.begin_replay(&[lost(half(50, 200), LogPosition::ZERO)]);
    assert_eq!(served.err(), Some(ReplayError::Served(half(50, 200))));
    let mut replay = begin(&target, &[lost(half(100, 200), LogPosition::ZERO)]);
    target
        .take_tablets(&[half(100, 200)])
        .expect_err("it is not finished");
    let began = finish(&mut replay, &target).takeover;
    write_elsewhere(&target);
    target
        .take_tablets(&[half(100, 150)])
        .expect_err("only a part of it");
    assert_eq!(target.take_tablets(&[half(100, 200)]), Ok(vec![began]));
    target.end_replay(replay.id());
    assert!(target.tablets().owns_range(TABLE, KeyHash(0), KeyHash(200)));
}

/// Moves the log on.
fn write_elsewhere(store: &Store) {
    let table = TableId(7);
    store.take_tablets(&[whole(table)]).unwrap();
    let (guard, tablets) = (store.pin(), store.tablets());
    let owned = tablets.owned(table, b"k").unwrap();
    let answer = store
        .writer()
        .write(&guard, owned, b"v", RejectRules::default());
    assert_eq!(answer.status, Status::Ok);
}

#[test]
fn a_table_dropped_under_replay_ends_it() {
    let master = store(true, SEGMENT, 50);
    write(&master, b"k");
    let log = log_of(&master, MASTER);
    let target = empty(20);
    let mut replay = begin(&target, &[lost(whole(TABLE), LogPosition::ZERO)]);
    replay_segment(&mut replay, &target, &log[0]).unwrap();
    assert_eq!(target.stats().objects, 1);
    target.drop_table(TABLE);
    assert_eq!(replay.finish(&target), Err(ReplayError::Ended));
    while target.sweep(64) {}
    assert_eq!(target.stats().objects, 0);
}

/// Found by the simulator: the tablet of the other table was swept with the dropped one, and then
/// taken over empty.
#[test]
fn a_table_dropped_after_its_replay_finished_leaves_what_was_replayed_of_others() {
    const OTHER: TableId = TableId(77);
    let master = store(true, SEGMENT, 50);
    write(&master, b"k");
    let log = log_of(&master, MASTER);
    let target = empty(20);
    let tablets = [TABLE, OTHER].map(|table| lost(whole(table), LogPosition::ZERO));
    let mut replay = begin(&target, &tablets);
    replay_segment(&mut replay, &target, &log[0]).unwrap();
    let Finished { takeover, .. } = replay.finish(&target).unwrap().unwrap();
    target.drop_table(OTHER);
    while target.sweep(64) {}
    let recovered = |table, takeover| RecoveredTablet {
        range: whole(table),
        takeover,
    };
    assert_eq!(
        target.take_recovered(&[recovered(OTHER, takeover)]),
        Err(NotTaken::NotReplayed(whole(OTHER)))
    );
    assert_eq!(
        target.take_recovered(&[recovered(TABLE, LogPosition(takeover.0 + 1))]),
        Err(NotTaken::NotReplayed(whole(TABLE))),
        "it began elsewhere"
    );
    assert_eq!(
        target.take_recovered(&[recovered(TABLE, takeover)]),
        Ok(vec![takeover])
    );
    assert_eq!(target.stats().objects, 1);
}

/// With each of these faults planted one of the stories above goes wrong.
#[cfg(feature = "mutants")]
#[test]
fn planted_faults_of_replay_are_caught() {
    use ramkeep_wire::mutants::{self, Mutant};

    let faults: [(Mutant, fn()); 3] = [
        (
            Mutant::ReplayLeavesNoTombstone,
            an_object_superseded_in_replay_gets_a_tombstone_of_the_recovery_masters_own_segment,
        ),
        (
            Mutant::DropEndsFinishedReplay,
            a_table_dropped_after_its_replay_finished_leaves_what_was_replayed_of_others,
        ),
        (
            Mutant::ReplayIgnoresTakeover,
            a_tablet_that_came_back_does_not_bring_what_an_earlier_stay_left,
        ),
    ];
    for (mutant, story) in faults {
        assert!(mutants::fails(mutant, story), "{mutant:?}");
        story();
    }
}
