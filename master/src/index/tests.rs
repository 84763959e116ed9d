//! The index against a model, against its budget of memory, and with readers beside the writer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use proptest::prelude::*;
use ramkeep_memory::Slot;

use super::*;

/// Scrambles a number into a hash, reversibly, so that a reference can stand for its key.
fn scramble(number: u64) -> KeyHash {
    let mut x = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^= x >> 32;
    x = x.wrapping_mul(0xd6e8_feb8_6659_fd93);
    KeyHash(x ^ x >> 32)
}

fn reference(number: u64) -> Reference {
    Reference::new(
        Slot((number >> 20) as u32),
        (number & 0xf_ffff) as usize + 1,
    )
}

fn number(reference: Reference) -> u64 {
    u64::from(reference.slot().0) << 20 | (reference.offset() as u64 - 1)
}

fn hash_of_number(reference: Reference) -> KeyHash {
    scramble(number(reference))
}

fn empty(max_buckets: usize) -> (Arc<Index>, IndexWriter) {
    Index::new(max_buckets).expect("address space")
}

fn scan(index: &Index) -> Vec<Reference> {
    let (mut all, mut bucket, mut cursor) = (Vec::new(), Vec::new(), KeyHash(0));
    loop {
        let range = index.bucket_at(cursor, &mut bucket);
        assert_eq!(*range.start(), cursor, "ranges follow on each other");
        all.extend_from_slice(&bucket);
        match range.end().0.checked_add(1) {
            Some(next) => cursor = KeyHash(next),
            None => return all,
        }
    }
}

/// Every chain has gaps only in its last bucket, and no empty overflow bucket.
fn check_chains(index: &Index) {
    let mut cursor = KeyHash(0);
    let mut overflow_seen = 0;
    loop {
        let chain = index.chain(cursor);
        let (mut line, mut next) = (chain.first, Overflow::linked(chain.meta));
        loop {
            let full = line[..ENTRIES]
                .iter()
                .filter(|word| word.load(Ordering::Relaxed) != 0);
            let full = full.count();
            assert!(
                next.is_none() || full == ENTRIES,
                "a gap before the end of a chain"
            );
            let Some(overflow) = next else { break };
            overflow_seen += 1;
            line = index.overflow.line(overflow);
            next = Overflow::linked(line[META].load(Ordering::Relaxed));
            assert!(
                line[0].load(Ordering::Relaxed) != 0,
                "an empty overflow bucket"
            );
        }
        let (_, last) = chain.place.hashes();
        let Some(after) = last.0.checked_add(1) else {
            break;
        };
        cursor = KeyHash(after);
    }
    assert_eq!(
        overflow_seen,
        index.overflow_in_use.load(Ordering::Relaxed),
        "leaked buckets"
    );
}

#[derive(Clone, Debug)]
enum Step {
    Insert(KeyHash),
    Replace(usize),
    Remove(usize),
    RemoveAbsent(KeyHash),
}

fn step() -> impl Strategy<Value = Step> {
    // Some hashes crowd into a few buckets, down to the same hash, so that chains grow long.
    let hash = prop_oneof![
        any::<u64>(),
        (0..4u64).prop_map(|crowd| crowd << 62 | 5),
        (0..200u64).prop_map(|low| 0x8000_0000_0000_0000 | low),
    ]
    .prop_map(KeyHash);
    prop_oneof![
        8 => hash.clone().prop_map(Step::Insert),
        2 => any::<usize>().prop_map(Step::Replace),
        5 => any::<usize>().prop_map(Step::Remove),
        1 => hash.prop_map(Step::RemoveAbsent),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_index_holds_what_a_sorted_map_holds(steps in prop::collection::vec(step(), 1..600)) {
        let (index, mut writer) = empty(64);
        let mut model: BTreeMap<Reference, KeyHash> = BTreeMap::new();
        let mut fresh = 0;
        for step in steps {
            let pick = |at: usize| model.iter().nth(at % model.len().max(1)).map(|(r, h)| (*r, *h));
            match step {
                Step::Insert(hash) => {
                    let new = reference(fresh);
                    fresh += 1;
                    let mut known = model.clone();
                    known.insert(new, hash);
                    prop_assert_eq!(writer.insert(hash, new, &|r: Reference| known[&r]), Ok(()));
                    model = known;
                }
                Step::Replace(at) => if let Some((old, hash)) = pick(at) {
                    let new = reference(fresh);
                    fresh += 1;
                    prop_assert!(writer.replace(hash, old, new));
                    prop_assert!(!writer.replace(hash, old, new));
                    model.remove(&old);
                    model.insert(new, hash);
                },
                Step::Remove(at) => if let Some((old, hash)) = pick(at) {
                    prop_assert!(writer.remove(hash, old));
                    prop_assert!(!writer.remove(hash, old));
                    model.remove(&old);
                },
                Step::RemoveAbsent(hash) => {
                    prop_assert!(!writer.remove(hash, reference(1 << 40)));
                    prop_assert_eq!(index.lookup(hash, |_| false), None);
                }
            }
            prop_assert_eq!(index.len(), model.len() as u64);
        }
        for (&present, &hash) in &model {
            prop_assert_eq!(index.lookup(hash, |seen| seen == present), Some(present));
        }
        let mut scanned = scan(&index);
        scanned.sort_unstable();
        prop_assert_eq!(scanned, model.keys().copied().collect::<Vec<_>>());
        check_chains(&index);
        for (present, hash) in model {
            prop_assert!(writer.remove(hash, present));
        }
        prop_assert!(index.is_empty());
        check_chains(&index);
    }
}

#[test]
fn growing_to_two_million_entries_takes_at_most_16_bytes_per_entry_at_any_stage() {
    let (index, mut writer) = empty(1 << 24);
    let (mut worst, mut at_worst) = (0.0, 0);
    for n in 0..2_000_000u64 {
        writer
            .insert(scramble(n), reference(n), &hash_of_number)
            .unwrap();
        if n >= 100_000 {
            let per_entry = index.bytes() as f64 / (n + 1) as f64;
            if per_entry > worst {
                (worst, at_worst) = (per_entry, n + 1);
            }
        }
    }
    println!("at worst {worst:.2} bytes per entry, with {at_worst} entries");
    assert!(
        worst <= 16.0,
        "{worst} bytes per entry with {at_worst} entries"
    );
    assert!(worst > 64.0 / 7.0, "no index of full buckets takes {worst}");
    for n in (0..2_000_000).step_by(37) {
        let found = index.lookup(scramble(n), |seen| number(seen) == n);
        assert_eq!(found, Some(reference(n)));
    }
    for n in 2_000_000..2_010_000 {
        assert_eq!(index.lookup(scramble(n), |seen| number(seen) == n), None);
    }
}

#[test]
fn few_other_keys_are_looked_at_on_the_way_to_one() {
    let (index, mut writer) = empty(1 << 20);
    for n in 0..200_000 {
        writer
            .insert(scramble(n), reference(n), &hash_of_number)
            .unwrap();
    }
    let mut looked_at = 0;
    for n in 0..200_000 {
        let matches = |seen| {
            looked_at += 1;
            number(seen) == n
        };
        assert!(index.lookup(scramble(n), matches).is_some());
    }
    assert!(
        looked_at < 200_400,
        "{} keys were read in vain",
        looked_at - 200_000
    );
}

#[test]
fn churn_at_a_steady_size_does_not_pile_up_overflow_buckets() {
    let (index, mut writer) = empty(1 << 20);
    for n in 0..20_000 {
        writer
            .insert(scramble(n), reference(n), &hash_of_number)
            .unwrap();
    }
    for n in 20_000..400_000 {
        assert!(writer.remove(scramble(n - 20_000), reference(n - 20_000)));
        writer
            .insert(scramble(n), reference(n), &hash_of_number)
            .unwrap();
    }
    check_chains(&index);
    let per_entry = index.bytes() as f64 / index.len() as f64;
    assert!(per_entry < 17.0, "{per_entry} bytes per entry after churn");
}

#[test]
fn a_full_index_refuses_and_goes_on_with_what_it_has() {
    let (index, mut writer) = empty(4);
    let mut inserted = 0;
    while writer
        .insert(scramble(inserted), reference(inserted), &hash_of_number)
        .is_ok()
    {
        inserted += 1;
    }
    assert!(
        inserted >= 4 * 7,
        "{inserted} entries in 4 buckets and 4 overflow buckets"
    );
    assert_eq!(index.len(), inserted);
    for n in 0..inserted {
        assert!(
            index
                .lookup(scramble(n), |seen| number(seen) == n)
                .is_some()
        );
    }
    assert!(writer.remove(scramble(0), reference(0)));
    check_chains(&index);
}

#[test]
fn hashes_that_are_all_the_same_make_a_long_chain_and_nothing_worse() {
    let (index, mut writer) = empty(1 << 10);
    let same = |_: Reference| KeyHash(u64::MAX);
    for n in 0..500 {
        writer
            .insert(KeyHash(u64::MAX), reference(n), &same)
            .unwrap();
    }
    for n in 0..500 {
        assert!(
            index
                .lookup(KeyHash(u64::MAX), |seen| number(seen) == n)
                .is_some()
        );
    }
    check_chains(&index);
}

#[test]
fn populating_ahead_changes_nothing_a_reader_sees() {
    let (index, mut writer) = empty(1 << 12);
    index.populate_ahead();
    for n in 0..16_000 {
        writer
            .insert(scramble(n), reference(n), &hash_of_number)
            .unwrap();
        let bytes = index.bytes();
        if n % 7 == 0 {
            index.populate_ahead();
        }
        assert_eq!(index.bytes(), bytes);
    }
    assert_eq!(scan(&index).len(), 16_000);
    check_chains(&index);
}

/// A stable set that readers must always find, while the writer grows, shrinks and moves the rest.
#[test]
fn readers_find_what_stays_while_the_writer_works() {
    const STABLE: u64 = 500;
    let (index, mut writer) = empty(1 << 16);
    for n in 0..STABLE {
        writer
            .insert(scramble(n), reference(n), &hash_of_number)
            .unwrap();
    }
    let (done, scans) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for n in 0..STABLE {
                    let found = index.lookup(scramble(n), |seen| number(seen) == n);
                    assert_eq!(found, Some(reference(n)), "{n} was there all the time");
                }
            }
        });
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) || scans.load(Ordering::Relaxed) == 0 {
                let seen = scan(&index);
                let stable: Vec<_> = seen.iter().filter(|&&seen| number(seen) < STABLE).collect();
                let distinct: BTreeSet<_> = stable.iter().copied().collect();
                assert_eq!(distinct.len() as u64, STABLE, "a scan missed an entry");
                assert_eq!(stable.len(), distinct.len(), "a scan repeated an entry");
                scans.fetch_add(1, Ordering::Relaxed);
            }
        });
        let mut oldest = STABLE;
        for n in STABLE..150_000 {
            writer
                .insert(scramble(n), reference(n), &hash_of_number)
                .unwrap();
            if n % 5 > 0 && n > 5_000 {
                assert!(writer.remove(scramble(oldest), reference(oldest)));
                oldest += 1;
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    check_chains(&index);
}
