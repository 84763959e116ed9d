//! Virtual time: what will happen, in a stable order.
//!
//! # Invariants
//! 1. Events come out by time, and at one time in the order in which they were put in.
//! 2. Time never goes back: an event put in for the past happens now.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use ramkeep_wire::Micros;

/// The queue of what will happen.
#[derive(Debug)]
pub struct Events<E> {
    heap: BinaryHeap<Reverse<Scheduled<E>>>,
    now: Micros,
    sequence: u64,
}

#[derive(Debug)]
struct Scheduled<E> {
    at: Micros,
    sequence: u64,
    event: E,
}

impl<E> PartialEq for Scheduled<E> {
    fn eq(&self, other: &Self) -> bool {
        self.sequence == other.sequence
    }
}

impl<E> Eq for Scheduled<E> {}

impl<E> PartialOrd for Scheduled<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Scheduled<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

impl<E> Default for Events<E> {
    fn default() -> Self {
        Self {
            heap: BinaryHeap::new(),
            now: Micros(0),
            sequence: 0,
        }
    }
}

impl<E> Events<E> {
    /// The time of the event that came out last.
    #[must_use]
    pub fn now(&self) -> Micros {
        self.now
    }

    /// Lets `event` happen at `at`, or now if that is past.
    pub fn at(&mut self, at: Micros, event: E) {
        self.heap.push(Reverse(Scheduled {
            at: at.max(self.now),
            sequence: self.sequence,
            event,
        }));
        self.sequence += 1;
    }

    /// When the next event happens.
    #[must_use]
    pub fn next_at(&self) -> Option<Micros> {
        self.heap.peek().map(|Reverse(next)| next.at)
    }

    /// The next event; time goes on to it.
    pub fn pop(&mut self) -> Option<E> {
        let Reverse(next) = self.heap.pop()?;
        self.now = next.at;
        Some(next.event)
    }

    /// Events waiting.
    #[must_use]
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether nothing will happen any more.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_out_by_time_then_in_the_order_put_in() {
        let mut events = Events::default();
        for (at, name) in [(5, "c"), (1, "a"), (5, "d"), (3, "b")] {
            events.at(Micros(at), name);
        }
        let order: Vec<_> = std::iter::from_fn(|| events.pop()).collect();
        assert_eq!(order, ["a", "b", "c", "d"]);
        assert_eq!(events.now(), Micros(5));
    }

    #[test]
    fn an_event_for_the_past_happens_now() {
        let mut events = Events::default();
        events.at(Micros(10), 1);
        events.pop();
        events.at(Micros(2), 2);
        assert_eq!(events.next_at(), Some(Micros(10)));
    }
}
