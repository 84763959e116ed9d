//! What the array of atomic words promises.
#![cfg(not(loom))]

use std::sync::atomic::Ordering::Relaxed;

use ramkeep_memory::{AtomicArray, WORDS_PER_LINE};

/// Lines of one system page, the unit in which memory goes back.
const PAGE_LINES: usize = 64;

#[test]
fn words_are_zero_at_first_and_keep_what_is_stored() {
    let array = AtomicArray::new(10_000_000).unwrap();
    assert_eq!(array.get(79_999_999).load(Relaxed), 0);
    array.get(79_999_999).store(7, Relaxed);
    assert_eq!(array.line(9_999_999)[WORDS_PER_LINE - 1].load(Relaxed), 7);
    assert_eq!(std::ptr::from_ref(array.line(3)).addr() % 64, 0);
    array.prefetch(usize::MAX);
}

#[test]
fn released_lines_are_zero_and_their_neighbours_untouched() {
    let lines = 5 * PAGE_LINES;
    for (start, end) in [
        (0, lines),
        (3, 3),
        (3, 7),
        (60, 70),
        (1, 3 * PAGE_LINES + 1),
        (64, 128),
    ] {
        let array = AtomicArray::new(lines).unwrap();
        (0..lines * 8).for_each(|word| array.get(word).store(word as u64 + 1, Relaxed));
        array.release(start..end);
        for word in 0..lines * 8 {
            let kept = if (start * 8..end * 8).contains(&word) {
                0
            } else {
                word as u64 + 1
            };
            assert_eq!(
                array.get(word).load(Relaxed),
                kept,
                "word {word}, {start}..{end}"
            );
        }
    }
}

#[test]
fn populating_keeps_what_is_stored() {
    let array = AtomicArray::new(3 * PAGE_LINES).unwrap();
    array.get(9).store(1, Relaxed);
    array.populate(1..2 * PAGE_LINES);
    array.populate(3 * PAGE_LINES..4 * PAGE_LINES);
    array.populate(7..7);
    assert_eq!(array.get(9).load(Relaxed), 1);
    assert_eq!(array.get(2 * PAGE_LINES * WORDS_PER_LINE).load(Relaxed), 0);
}

#[test]
#[should_panic(expected = "line 4 of an array of 4")]
fn a_line_past_the_end_is_refused() {
    let _ = AtomicArray::new(4).unwrap().line(4);
}

#[test]
#[should_panic(expected = "release past the end")]
fn a_release_past_the_end_is_refused() {
    AtomicArray::new(4).unwrap().release(2..5);
}

#[test]
fn an_impossible_size_is_an_error() {
    assert!(AtomicArray::new(usize::MAX / 8).is_err());
}
