//! Calls: what one caller waits for, one operation or many.
//!
//! # Invariants
//! 1. A call is over when none of its operations remains; its waker is then woken, once.
//! 2. A call that waits and may lead is in `followers`.

use std::collections::VecDeque;
use std::task::Waker;

/// A call's place in the table, from its opening until it is closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(u32);

#[derive(Debug, Default)]
struct Call {
    open: bool,
    remaining: usize,
    may_lead: bool,
    waker: Option<Waker>,
    listed: bool,
}

/// The calls under way.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    calls: Vec<Call>,
    free: Vec<CallId>,
    /// Calls that wait for their answers and would receive for all; some are over.
    followers: VecDeque<CallId>,
    waiting: usize,
}

impl Calls {
    /// Opens a call with no operations.
    pub(crate) fn open(&mut self, may_lead: bool) -> CallId {
        let id = self.free.pop().unwrap_or_else(|| {
            self.calls.push(Call::default());
            CallId(self.calls.len() as u32 - 1)
        });
        let call = &mut self.calls[id.0 as usize];
        call.open = true;
        call.remaining = 0;
        call.may_lead = may_lead;
        id
    }

    /// The caller is gone.
    pub(crate) fn close(&mut self, id: CallId) {
        let call = &mut self.calls[id.0 as usize];
        debug_assert!(call.open);
        call.open = false;
        call.waker = None;
        if call.remaining > 0 {
            self.waiting -= 1;
        }
        self.free.push(id);
    }

    /// Calls with operations that are not over.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// One more operation.
    pub(crate) fn add(&mut self, id: CallId) {
        let call = &mut self.calls[id.0 as usize];
        if call.remaining == 0 {
            self.waiting += 1;
        }
        call.remaining += 1;
    }

    /// One operation less.
    pub(crate) fn finish(&mut self, id: CallId, wakes: &mut Vec<Waker>) {
        let call = &mut self.calls[id.0 as usize];
        debug_assert!(call.open && call.remaining > 0);
        call.remaining -= 1;
        if call.remaining == 0 {
            self.waiting -= 1;
            wakes.extend(call.waker.take());
        }
    }

    /// Whether none of its operations remains.
    pub(crate) fn is_over(&self, id: CallId) -> bool {
        self.calls[id.0 as usize].remaining == 0
    }

    /// The call waits; `waker` is woken when it is over, or is to lead.
    pub(crate) fn follow(&mut self, id: CallId, waker: &Waker) {
        let call = &mut self.calls[id.0 as usize];
        if !call.waker.as_ref().is_some_and(|old| old.will_wake(waker)) {
            call.waker = Some(waker.clone());
        }
        if call.may_lead && !call.listed {
            call.listed = true;
            self.followers.push_back(id);
        }
    }

    /// Takes one that waits and may lead from the front, with its waker.
    pub(crate) fn next_leader(&mut self) -> Option<(CallId, Waker)> {
        while let Some(id) = self.followers.pop_front() {
            let call = &mut self.calls[id.0 as usize];
            call.listed = false;
            if call.open
                && call.may_lead
                && call.remaining > 0
                && let Some(waker) = call.waker.take()
            {
                return Some((id, waker));
            }
        }
        None
    }

    /// Wakes all.
    pub(crate) fn wake_all(&mut self, wakes: &mut Vec<Waker>) {
        wakes.extend(self.calls.iter_mut().filter_map(|call| call.waker.take()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_over_with_its_last_operation() {
        let (mut calls, mut wakes) = (Calls::default(), Vec::new());
        let id = calls.open(true);
        calls.add(id);
        calls.add(id);
        calls.follow(id, Waker::noop());
        calls.finish(id, &mut wakes);
        assert!(!calls.is_over(id) && wakes.is_empty());
        calls.finish(id, &mut wakes);
        assert!(calls.is_over(id) && wakes.len() == 1);
        calls.close(id);
        assert_eq!(calls.waiting(), 0);
    }

    #[test]
    fn only_those_that_wait_and_may_lead_are_made_leaders() {
        let (mut calls, mut wakes) = (Calls::default(), Vec::new());
        let [over, control, waiting] = [true, false, true].map(|may_lead| {
            let id = calls.open(may_lead);
            calls.add(id);
            calls.follow(id, Waker::noop());
            id
        });
        calls.finish(over, &mut wakes);
        assert_eq!(calls.next_leader().map(|(id, _)| id), Some(waiting));
        assert!(calls.next_leader().is_none());
        assert!(!calls.is_over(control));
    }
}
