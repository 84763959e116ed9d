//! Who may stay connected when not everybody can.
//!
//! # Invariants
//! 1. At most [`MAX_CONNECTIONS`] clients are connected, and [`RESERVED_CONNECTIONS`] others: members of the
//!    cluster, and those that have not said yet who they are.
//! 2. A client that comes when all places of clients are taken gets that of the one that was idle the
//!    longest, if that was idle for [`IDLE`]. Members are never sent away.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ramkeep_wire::limits::{MAX_CONNECTIONS, RESERVED_CONNECTIONS};
use ramkeep_wire::{Micros, Party};

use crate::wake::Wake;

/// A connection on which nothing moved for this long may be closed for another.
const IDLE: Duration = Duration::from_secs(1);

/// Names a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PlaceId(u64);

/// A place that was just taken.
pub(super) struct Taken {
    pub(super) id: PlaceId,
    pub(super) used: Arc<AtomicU64>,
    pub(super) leaves: Arc<AtomicBool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It has not said who it is.
    Unproved,
    Client,
    /// A server or a coordinator.
    Member,
    /// It was told to make room.
    Leaving,
}

struct Entry {
    standing: Standing,
    used: Arc<AtomicU64>,
    leaves: Arc<AtomicBool>,
    wake: Wake,
}

/// The places of one listener.
#[derive(Default)]
pub(super) struct Places {
    taken: BTreeMap<PlaceId, Entry>,
    clients: usize,
    last: u64,
}

impl Places {
    pub(super) fn len(&self) -> usize {
        self.taken.len()
    }

    /// Takes a place for one that says hello next, if there is one.
    pub(super) fn take(&mut self, wake: &Wake) -> Option<Taken> {
        if self.taken.len() >= MAX_CONNECTIONS + RESERVED_CONNECTIONS {
            return None;
        }
        self.last += 1;
        let taken = Taken {
            id: PlaceId(self.last),
            used: Arc::default(),
            leaves: Arc::default(),
        };
        let entry = Entry {
            standing: Standing::Unproved,
            used: taken.used.clone(),
            leaves: taken.leaves.clone(),
            wake: wake.clone(),
        };
        self.taken.insert(taken.id, entry);
        Some(taken)
    }

    /// Whether the one in this place may stay, now that it has said who it is. Another may have to go.
    pub(super) fn prove(&mut self, id: PlaceId, now: Micros, party: Party) -> bool {
        let member = party.as_server().is_some() || party.as_coordinator().is_some();
        if !member && self.clients >= MAX_CONNECTIONS && !self.make_room(now) {
            return false;
        }
        let Some(entry) = self.taken.get_mut(&id) else {
            return false;
        };
        entry.standing = if member {
            Standing::Member
        } else {
            self.clients += 1;
            Standing::Client
        };
        true
    }

    /// Sends away the client that was idle the longest, if one was idle for long enough.
    fn make_room(&mut self, now: Micros) -> bool {
        let clients = self.taken.values_mut();
        let clients = clients.filter(|entry| entry.standing == Standing::Client);
        let since = |entry: &&mut Entry| entry.used.load(Ordering::Relaxed);
        let Some(idle) = clients.min_by_key(since) else {
            return false;
        };
        if now.since(Micros(since(&&mut *idle))) < IDLE {
            return false;
        }
        idle.standing = Standing::Leaving;
        idle.leaves.store(true, Ordering::Relaxed);
        idle.wake.wake();
        self.clients -= 1;
        true
    }

    pub(super) fn give_back(&mut self, id: PlaceId) {
        let entry = self.taken.remove(&id);
        if entry.is_some_and(|entry| entry.standing == Standing::Client) {
            self.clients -= 1;
        }
    }

    /// Wakes all; false: there are none.
    pub(super) fn wake_all(&self) -> bool {
        self.taken.values().for_each(|entry| entry.wake.wake());
        !self.taken.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use ramkeep_wire::ServerId;

    use super::*;

    const NOW: Micros = Micros(10_000_000);

    fn come(places: &mut Places, now: Micros, party: Party) -> Option<(Taken, bool)> {
        let taken = places.take(&Wake::new())?;
        taken.used.store(now.0, Ordering::Relaxed);
        let stays = places.prove(taken.id, now, party);
        if !stays {
            places.give_back(taken.id);
        }
        Some((taken, stays))
    }

    fn full() -> (Places, Vec<Taken>) {
        let mut places = Places::default();
        let client = |_| come(&mut places, NOW, Party::NONE);
        let clients: Vec<_> = (0..MAX_CONNECTIONS).filter_map(client).collect();
        assert!(clients.iter().all(|(_, stays)| *stays));
        (
            places,
            clients.into_iter().map(|(taken, _)| taken).collect(),
        )
    }

    #[test]
    fn members_get_in_when_clients_have_taken_every_place() {
        let (mut places, _) = full();
        let (_, stays) = come(&mut places, NOW, Party::NONE).unwrap();
        assert!(!stays, "all clients have just moved something");
        for id in 0..RESERVED_CONNECTIONS as u64 {
            let (_, stays) = come(&mut places, NOW, Party::server(ServerId(id + 1))).unwrap();
            assert!(stays);
        }
        assert!(come(&mut places, NOW, Party::NONE).is_none());
    }

    #[test]
    fn the_client_that_was_idle_the_longest_makes_room() {
        let (mut places, clients) = full();
        clients[7].used.store(NOW.0 - 5, Ordering::Relaxed);
        let later = NOW + IDLE;
        let (_, stays) = come(&mut places, later, Party::NONE).unwrap();
        assert!(stays);
        let leaving = clients
            .iter()
            .position(|one| one.leaves.load(Ordering::Relaxed));
        assert_eq!(leaving, Some(7));
        places.give_back(clients[7].id);
        assert_eq!(places.len(), MAX_CONNECTIONS);
    }

    #[test]
    fn a_place_that_is_given_back_is_there_for_the_next() {
        let (mut places, clients) = full();
        places.give_back(clients[0].id);
        assert!(come(&mut places, NOW, Party::NONE).unwrap().1);
        assert!(!come(&mut places, NOW, Party::NONE).unwrap().1);
    }
}
