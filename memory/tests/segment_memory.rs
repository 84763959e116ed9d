//! What segment memory promises to appenders and readers.

use proptest::prelude::*;
use ramkeep_memory::{Appender, Closed, Full, SegmentMemory, Slot};

fn memory(slots: u32, size: usize) -> SegmentMemory {
    SegmentMemory::new(slots, size).expect("address space")
}

#[test]
fn appended_bytes_are_readable_at_once_and_no_others() {
    let memory = memory(2, 64);
    let mut appender = memory.claim().unwrap();
    appender.append(b"hello").unwrap();
    let guard = memory.pin();
    assert_eq!(
        memory.slice(&guard, appender.slot(), 0..5),
        Some(&b"hello"[..])
    );
    assert_eq!(
        memory.slice(&guard, appender.slot(), 1..3),
        Some(&b"el"[..])
    );
    assert_eq!(memory.slice(&guard, appender.slot(), 0..6), None);
    #[allow(clippy::reversed_empty_ranges)]
    let backwards = 3..1;
    assert_eq!(memory.slice(&guard, appender.slot(), backwards), None);
    assert_eq!(memory.slice(&guard, Slot(1), 0..1), None);
    assert_eq!(memory.slice(&guard, Slot(2), 0..0), None);
    appender.append(b"!").unwrap();
    assert_eq!(
        memory.slice(&guard, appender.slot(), 0..6),
        Some(&b"hello!"[..])
    );
}

#[test]
fn an_append_that_does_not_fit_writes_nothing() {
    let memory = memory(1, 8);
    let mut appender = memory.claim().unwrap();
    appender.append(b"123456").unwrap();
    assert_eq!(appender.append(b"789"), Err(Full { needed: 3, left: 2 }));
    appender.append(b"78").unwrap();
    assert_eq!(appender.append_with(0, |bytes| bytes.len()), Ok(0));
    assert_eq!(
        memory.slice(&memory.pin(), appender.slot(), 0..8),
        Some(&b"12345678"[..])
    );
}

#[test]
fn an_append_that_panics_publishes_nothing() {
    let memory = memory(1, 8);
    let mut appender = memory.claim().unwrap();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        appender.append_with(4, |_| panic!("half way"))
    }));
    assert!(panicked.is_err());
    assert_eq!(memory.written(&memory.pin(), appender.slot()), 0);
}

#[test]
fn a_freed_slot_is_reused_only_after_the_guards_that_saw_it() {
    let memory = memory(1, 8);
    let mut appender = memory.claim().unwrap();
    appender.append(b"old").unwrap();
    let slot = appender.slot();
    let guard = memory.pin();
    memory.free(appender);
    assert_eq!(memory.free_slots(), 1);
    for _ in 0..100 {
        assert!(memory.claim().is_none(), "the guard holds the slot back");
    }
    assert_eq!(memory.slice(&guard, slot, 0..3), Some(&b"old"[..]));
    assert_eq!(
        memory.slice(&memory.pin(), slot, 0..3),
        None,
        "made after the slot was freed"
    );
    drop(guard);
    let mut appender = memory.claim().expect("nothing holds the slot back");
    assert_eq!(memory.written(&memory.pin(), slot), 0);
    appender.append(b"new").unwrap();
    assert_eq!(memory.slice(&memory.pin(), slot, 0..3), Some(&b"new"[..]));
}

#[test]
fn a_guard_made_after_a_free_does_not_see_the_next_owner_change_under_it() {
    let memory = memory(1, 8);
    let appender = memory.claim().unwrap();
    let slot = appender.slot();
    memory.free(appender);
    let mut appender = memory.claim().unwrap();
    appender.append(b"second").unwrap();
    let guard = memory.pin();
    let seen = memory.slice(&guard, slot, 0..6).unwrap();
    memory.free(appender.close());
    assert!(memory.claim().is_none());
    assert_eq!(seen, b"second");
}

#[test]
fn slots_freed_by_a_thread_that_ended_come_back() {
    let memory = memory(4, 8);
    let tokens: Vec<Closed> = (0..4).map(|_| memory.claim().unwrap().close()).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| tokens.into_iter().for_each(|token| memory.free(token)));
    });
    let again: Vec<Appender> = (0..4).map(|_| memory.claim().unwrap()).collect();
    assert_eq!(again.len(), 4);
    assert!(memory.claim().is_none());
}

#[test]
fn more_memories_than_a_thread_caches_work_side_by_side() {
    let memories: Vec<SegmentMemory> = (0..40).map(|_| memory(1, 8)).collect();
    let guards: Vec<_> = memories.iter().map(SegmentMemory::pin).collect();
    for (memory, guard) in memories.iter().zip(&guards) {
        let mut appender = memory.claim().unwrap();
        appender.append(b"x").unwrap();
        assert_eq!(memory.slice(guard, appender.slot(), 0..1), Some(&b"x"[..]));
        memory.free(appender);
        assert!(memory.claim().is_none());
    }
    drop(guards);
    assert!(memories.iter().all(|memory| memory.claim().is_some()));
}

#[test]
#[should_panic(expected = "guard of another memory")]
fn the_guard_of_another_memory_is_refused() {
    let (one, other) = (memory(1, 8), memory(1, 8));
    let _refused = one.slice(&other.pin(), Slot(0), 0..0);
}

#[test]
#[should_panic(expected = "slot freed in another memory")]
fn a_slot_of_another_memory_is_refused() {
    let (one, other) = (memory(1, 8), memory(1, 8));
    one.free(other.claim().unwrap());
}

#[test]
fn impossible_sizes_are_errors() {
    assert!(SegmentMemory::new(1, 0).is_err());
    assert!(SegmentMemory::new(1, 1 << 33).is_err());
}

#[test]
fn trimmed_slots_are_as_good_as_before() {
    let memory = memory(2, 4096);
    let mut appender = memory.claim().unwrap();
    appender.append(&[7; 4096]).unwrap();
    memory.free(appender);
    let mut kept = memory.claim().unwrap();
    kept.append(&[8; 4096]).unwrap();
    memory.trim();
    assert_eq!(
        memory.slice(&memory.pin(), kept.slot(), 0..4096),
        Some(&[8u8; 4096][..])
    );
    let mut again = memory.claim().unwrap();
    again.append(b"fresh").unwrap();
    assert_eq!(
        memory.slice(&memory.pin(), again.slot(), 0..5),
        Some(&b"fresh"[..])
    );
}

#[test]
fn populating_changes_nothing_but_residence() {
    let memory = memory(2, 8192);
    assert!(memory.populate_next());
    let mut appender = memory.claim().unwrap();
    appender.append(b"kept").unwrap();
    assert!(memory.populate_next());
    assert_eq!(
        memory.slice(&memory.pin(), appender.slot(), 0..4),
        Some(&b"kept"[..])
    );
    let _second = memory.claim().unwrap();
    assert!(!memory.populate_next());
    assert_eq!(memory.touched_slots(), 2);
}

#[test]
fn readers_never_see_a_byte_change_while_slots_are_reused() {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    const SIZE: usize = 256;
    let memory = memory(3, SIZE);
    let (newest, done) = (AtomicU32::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let guard = memory.pin();
                    let slot = Slot(newest.load(Ordering::Acquire));
                    let written = memory.written(&guard, slot);
                    // The slot may be reused between the two calls, but never under the slice.
                    let Some(bytes) = memory.slice(&guard, slot, 0..written) else {
                        continue;
                    };
                    let first = bytes.first().copied();
                    assert!(
                        bytes.iter().all(|&byte| Some(byte) == first),
                        "mixed {bytes:?}"
                    );
                }
            });
        }
        let mut previous: Option<Appender> = None;
        for round in 0..20_000u32 {
            let Some(mut appender) = memory.claim() else {
                std::thread::yield_now();
                continue;
            };
            for _ in 0..4 {
                appender.append(&[round as u8; SIZE / 4]).unwrap();
            }
            newest.store(appender.slot().0, Ordering::Release);
            if let Some(previous) = previous.replace(appender) {
                memory.free(previous);
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[derive(Clone, Debug)]
enum Step {
    Claim,
    Append(usize, Vec<u8>),
    Free(usize),
    Pin,
    Unpin,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => Just(Step::Claim),
        6 => (0..4usize, prop::collection::vec(any::<u8>(), 0..24)).prop_map(|(i, b)| Step::Append(i, b)),
        2 => (0..4usize).prop_map(Step::Free),
        1 => Just(Step::Pin),
        1 => Just(Step::Unpin),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn slots_hold_what_was_appended_until_they_are_reused(
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let memory = memory(4, 64);
        let mut live: Vec<(Appender, Vec<u8>)> = Vec::new();
        // What was freed while the guard was there stays readable to it.
        let mut guard = None;
        let mut freed: Vec<(Slot, Vec<u8>)> = Vec::new();
        for step in steps {
            match step {
                Step::Claim => match memory.claim() {
                    Some(appender) => {
                        prop_assert!(live.iter().all(|(other, _)| other.slot() != appender.slot()));
                        prop_assert!(freed.iter().all(|(slot, _)| *slot != appender.slot()));
                        live.push((appender, Vec::new()));
                    }
                    // A guard may also hold back what was freed shortly before it was made.
                    None => prop_assert!(guard.is_some() || live.len() == 4),
                },
                Step::Append(index, bytes) => if let Some((appender, model)) = live.get_mut(index) {
                    if appender.append(&bytes).is_ok() {
                        model.extend_from_slice(&bytes);
                    } else {
                        prop_assert!(model.len() + bytes.len() > 64);
                    }
                },
                Step::Free(index) => if index < live.len() {
                    let (appender, model) = live.swap_remove(index);
                    if guard.is_some() {
                        freed.push((appender.slot(), model));
                    }
                    memory.free(appender);
                },
                Step::Pin => if guard.is_none() {
                    guard = Some(memory.pin());
                },
                Step::Unpin => {
                    freed.clear();
                    guard = None;
                }
            }
            let fresh = memory.pin();
            for (appender, model) in &live {
                prop_assert_eq!(memory.written(&fresh, appender.slot()), model.len());
                prop_assert_eq!(
                    memory.slice(&fresh, appender.slot(), 0..model.len()), Some(&model[..])
                );
            }
            if let Some(guard) = &guard {
                for (slot, model) in &freed {
                    prop_assert_eq!(memory.slice(guard, *slot, 0..model.len()), Some(&model[..]));
                    prop_assert_eq!(memory.slice(&fresh, *slot, 0..model.len()), None);
                }
            }
        }
    }
}
