//! loom's models of a reader beside the writer: every interleaving, up to a few preemptions, and
//! every value that weak memory allows a load to see.
//!
//! Buckets have two entries here; the fourth entry splits the first bucket, when `max_buckets` lets.

use loom::thread;
use ramkeep_memory::Slot;

use super::*;

/// Preemptions per execution; races that need more are not known in practice.
const PREEMPTIONS: usize = 6;

/// Entry n; its hash's top bits are those of `n`'s low byte.
fn reference(n: usize) -> Reference {
    Reference::new(Slot(1), n)
}

fn hash(n: usize) -> KeyHash {
    KeyHash((n as u64) << 56 | n as u64)
}

fn hash_of(reference: Reference) -> KeyHash {
    hash(reference.offset())
}

fn model(run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.max_branches = 10_000;
    builder.check(run);
}

/// An index that holds `entries`, growing to `max_buckets` at most.
fn index_of(max_buckets: usize, entries: &[usize]) -> (Arc<Index>, IndexWriter) {
    let (index, mut writer) = Index::new(max_buckets).expect("loom reserves nothing");
    for &n in entries {
        writer
            .insert(hash(n), reference(n), &hash_of)
            .expect("there is room");
    }
    (index, writer)
}

/// Looks `n` up and checks that every reference offered is one that somebody inserted.
fn lookup(index: &Index, n: usize, ever: &[usize]) -> Option<Reference> {
    index.lookup(hash(n), |seen| {
        assert!(ever.contains(&seen.offset()), "{seen:?} was never inserted");
        seen.offset() == n
    })
}

#[test]
fn loom_an_entry_is_found_while_its_bucket_splits_and_overflow_is_reused() {
    model(|| {
        // One bucket and an overflow bucket with the third; the fourth entry splits the bucket.
        let (index, mut writer) = index_of(2, &[1, 2, 0x81]);
        let ever = [1, 2, 3, 0x81, 0x82];
        let reader = thread::spawn(move || {
            assert_eq!(lookup(&index, 0x81, &ever), Some(reference(0x81)));
        });
        writer
            .insert(hash(0x82), reference(0x82), &hash_of)
            .expect("there is room");
        assert_eq!(
            writer.index().bytes(),
            2 * BUCKET_BYTES,
            "split, and overflow freed"
        );
        writer
            .insert(hash(3), reference(3), &hash_of)
            .expect("there is room");
        assert_eq!(writer.index().bytes(), 3 * BUCKET_BYTES, "overflow reused");
        reader.join().expect("the reader found it");
    });
}

#[test]
fn loom_a_bucket_is_seen_whole_while_it_splits() {
    model(|| {
        let (index, mut writer) = index_of(2, &[1, 2, 0x81]);
        let reader = thread::spawn(move || {
            let mut seen = Vec::new();
            let range = index.bucket_at(KeyHash(0), &mut seen);
            assert_eq!(
                seen.iter().filter(|seen| seen.offset() < 0x80).count(),
                2,
                "{seen:?}"
            );
            let whole = range.contains(&hash(0x81));
            assert_eq!(
                seen.contains(&reference(0x81)),
                whole,
                "{seen:?} in {range:?}"
            );
        });
        writer
            .insert(hash(0x82), reference(0x82), &hash_of)
            .expect("there is room");
        reader.join().expect("the reader saw it whole");
    });
}

#[test]
fn loom_an_entry_that_is_replaced_is_found_as_old_or_new() {
    model(|| {
        let (index, mut writer) = index_of(1, &[1, 2, 3]);
        let reader = thread::spawn(move || {
            let any = |seen: Reference| seen.offset() & 0xff == 3;
            let first = index.lookup(hash(3), any).expect("never absent");
            let second = index.lookup(hash(3), any).expect("never absent");
            assert!(first <= second, "went back from {first:?} to {second:?}");
        });
        assert!(writer.replace(hash(3), reference(3), reference(0x103)));
        reader.join().expect("the reader found it");
    });
}

#[test]
fn loom_an_entry_is_found_while_it_fills_a_gap_and_its_bucket_is_reused() {
    model(|| {
        // Two buckets at their last level: three entries and an overflow bucket, two entries.
        let (index, mut writer) = index_of(2, &[1, 2, 0x81, 0x82, 3]);
        let ever = [1, 2, 3, 0x81, 0x82, 0x83];
        let reader = thread::spawn(move || {
            assert_eq!(lookup(&index, 3, &ever), Some(reference(3)));
        });
        assert!(writer.remove(hash(1), reference(1)));
        writer
            .insert(hash(0x83), reference(0x83), &hash_of)
            .expect("the bucket freed before");
        reader.join().expect("the reader found it");
    });
}

#[test]
fn loom_a_bucket_is_seen_whole_while_an_entry_fills_a_gap() {
    model(|| {
        let (index, mut writer) = index_of(2, &[1, 2, 0x81, 0x82, 3]);
        let reader = thread::spawn(move || {
            let mut seen = Vec::new();
            index.bucket_at(hash(1), &mut seen);
            seen.retain(|seen| *seen != reference(1));
            seen.sort_unstable();
            assert_eq!(seen, [reference(2), reference(3)]);
        });
        assert!(writer.remove(hash(1), reference(1)));
        writer
            .insert(hash(0x83), reference(0x83), &hash_of)
            .expect("the bucket freed before");
        reader.join().expect("the reader saw it whole");
    });
}

#[test]
fn loom_a_chain_that_grows_hides_nothing() {
    model(|| {
        let (index, mut writer) = index_of(1, &[1, 2]);
        let reader = thread::spawn(move || {
            assert_eq!(lookup(&index, 2, &[1, 2, 3]), Some(reference(2)));
            if let Some(seen) = lookup(&index, 3, &[1, 2, 3]) {
                assert_eq!(lookup(&index, 3, &[1, 2, 3]), Some(seen), "it stays");
            }
        });
        writer
            .insert(hash(3), reference(3), &hash_of)
            .expect("there is room");
        reader.join().expect("the reader found it");
    });
}
