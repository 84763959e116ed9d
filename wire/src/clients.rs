//! Which client leases have ended, in few bytes.

use serde::{Deserialize, Serialize};

use crate::ids::ClientId;
use crate::limits::MAX_CLIENTS_NAMED;

/// Client ids are issued in growing order and never again: the lease of every client below `below`
/// has ended, but of those named. What was once true stays true.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedClients {
    /// Nothing is said of this one and those above.
    pub below: ClientId,
    /// Those below that hold a lease, in growing order; at most [`MAX_CLIENTS_NAMED`].
    pub except: Vec<ClientId>,
}

impl EndedClients {
    /// What can be said when just `holding` hold leases, in growing order, and `next` is the next id
    /// to be issued.
    #[must_use]
    pub fn among(mut holding: impl Iterator<Item = ClientId>, next: ClientId) -> Self {
        let except = holding.by_ref().take(MAX_CLIENTS_NAMED).collect();
        let below = holding.next().unwrap_or(next);
        Self { below, except }
    }

    /// Whether the client's lease is known to have ended.
    #[must_use]
    #[inline]
    pub fn has(&self, client: ClientId) -> bool {
        client < self.below && self.except.binary_search(&client).is_err()
    }

    /// Takes in what was said at another time; true if that says more.
    pub fn learn(&mut self, other: &Self) -> bool {
        let more = other.below > self.below
            || (other.below == self.below && other.except.len() < self.except.len());
        if more {
            self.below = other.below;
            self.except.clone_from(&other.except);
        }
        more
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn among(holding: &[u64], next: u64) -> EndedClients {
        EndedClients::among(holding.iter().copied().map(ClientId), ClientId(next))
    }

    #[test]
    fn who_holds_no_lease_and_was_issued_has_ended() {
        let ended = among(&[2, 5], 8);
        let has: Vec<_> = (0..10).filter(|id| ended.has(ClientId(*id))).collect();
        assert_eq!(has, [0, 1, 3, 4, 6, 7]);
    }

    #[test]
    fn more_leases_than_are_named_only_delay_what_is_said() {
        let holding: Vec<u64> = (1..=MAX_CLIENTS_NAMED as u64 + 10).map(|n| 2 * n).collect();
        let ended = among(&holding, 10_000);
        for id in 0..10_000 {
            let wrong = ended.has(ClientId(id)) && holding.contains(&id);
            assert!(!wrong, "client {id} holds a lease");
        }
        assert!(ended.has(ClientId(2 * MAX_CLIENTS_NAMED as u64 + 1)));
        assert!(!ended.has(ClientId(9_999)));
    }

    #[test]
    fn what_was_said_earlier_is_not_taken_for_news() {
        let mut ended = EndedClients::default();
        assert!(ended.learn(&among(&[2, 5], 8)));
        assert!(!ended.learn(&among(&[2, 5], 8)) && !ended.learn(&among(&[2], 4)));
        assert!(ended.learn(&among(&[5], 8)), "client 2 has ended");
        assert!(ended.has(ClientId(2)) && !ended.has(ClientId(5)));
    }
}
