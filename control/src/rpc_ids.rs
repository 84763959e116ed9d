//! Numbers for calls, and the ack id: below it everything is received.
//!
//! # Invariants
//! 1. An rpc id is given once, in growing order, from 1.
//! 2. `ack()` is lower than every rpc id that is given and not finished, by [`MAX_RPC_WINDOW`] at most.

use std::collections::VecDeque;

use ramkeep_wire::RpcId;
use ramkeep_wire::limits::MAX_RPC_WINDOW;

/// Gives rpc ids and knows which are outstanding. Takes no memory per call once warm.
#[derive(Debug)]
pub struct RpcIds {
    /// Lowest outstanding, or the next to be given.
    base: u64,
    /// Whether `base + i` is outstanding.
    outstanding: VecDeque<bool>,
}

impl Default for RpcIds {
    fn default() -> Self {
        Self {
            base: 1,
            outstanding: VecDeque::new(),
        }
    }
}

impl RpcIds {
    /// Whether another may be given: masters remember results of so many calls at most.
    #[inline]
    #[must_use]
    pub fn has_room(&self) -> bool {
        (self.outstanding.len() as u64) < MAX_RPC_WINDOW
    }

    /// The next rpc id, if there is room for it; outstanding until [`RpcIds::finish`].
    #[inline]
    pub fn give(&mut self) -> RpcId {
        self.outstanding.push_back(true);
        RpcId(self.base + self.outstanding.len() as u64 - 1)
    }

    /// The call's result is received, or given up for good.
    #[inline]
    pub fn finish(&mut self, id: RpcId) {
        if let Some(flag) = (id.0.checked_sub(self.base))
            .and_then(|at| self.outstanding.get_mut(usize::try_from(at).ok()?))
        {
            *flag = false;
        }
        while self.outstanding.front() == Some(&false) {
            self.outstanding.pop_front();
            self.base += 1;
        }
    }

    /// All rpc ids up to this one are finished.
    #[inline]
    #[must_use]
    pub fn ack(&self) -> RpcId {
        RpcId(self.base - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ack_id_stays_below_the_oldest_outstanding_call() {
        let mut ids = RpcIds::default();
        let [first, second, third] = [ids.give(), ids.give(), ids.give()];
        assert_eq!((first, second, third), (RpcId(1), RpcId(2), RpcId(3)));
        ids.finish(second);
        assert_eq!(ids.ack(), RpcId(0));
        ids.finish(first);
        assert_eq!(ids.ack(), RpcId(2));
        ids.finish(first);
        assert_eq!(ids.ack(), RpcId(2), "finishing twice changes nothing");
        ids.finish(third);
        assert_eq!((ids.ack(), ids.give()), (RpcId(3), RpcId(4)));
    }
}
