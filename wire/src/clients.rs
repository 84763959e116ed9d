//! Which client leases have ended, told page by page.
//!
//! Client ids are issued in growing order and never again, so that all that can be said of them is who
//! still holds a lease. That may be very many; one message names a page of them: a range of ids, and
//! those of the range that hold a lease. All others of it have ended. Who is told asks for one page after
//! the other, and for the first again after the last.
//!
//! # Invariants
//! 1. What was once true stays true: a lease that has ended is not taken up again.
//! 2. Every page is bounded, and a round over all pages has at most as many as the clients that held a
//!    lease when it began take, and one: the end of every lease is told within two rounds, however many
//!    clients live and however many come meanwhile (SAFETY 29).
//! 3. Who tells keeps nothing of who is told.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::ids::ClientId;
use crate::limits::MAX_CLIENTS_NAMED;

/// A page: of the clients from `from` on and below `below` the leases of all have ended but of those
/// named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedClients {
    /// The first that something is said of.
    pub from: ClientId,
    /// Nothing is said of this one and those above.
    pub below: ClientId,
    /// Those of the range that hold a lease, in growing order; at most [`MAX_CLIENTS_NAMED`].
    pub except: Vec<ClientId>,
    /// The next id to be issued: there is no page from here on.
    pub next: ClientId,
}

impl EndedClients {
    /// What can be said from `from` on when just `holding` hold leases from there on, in growing order,
    /// and `next` is the next id to be issued.
    #[must_use]
    pub fn page(
        from: ClientId,
        mut holding: impl Iterator<Item = ClientId>,
        next: ClientId,
    ) -> Self {
        let except = holding.by_ref().take(MAX_CLIENTS_NAMED).collect();
        let below = holding.next().unwrap_or(next);
        Self {
            from,
            below,
            except,
            next,
        }
    }

    /// The same from the first client on.
    #[must_use]
    pub fn among(holding: impl Iterator<Item = ClientId>, next: ClientId) -> Self {
        Self::page(ClientId(0), holding, next)
    }

    /// Whether it makes sense by itself.
    fn is_sound(&self) -> bool {
        let inside = |client: &ClientId| (self.from..self.below).contains(client);
        self.from <= self.below
            && self.except.iter().all(inside)
            && self.except.is_sorted_by(|a, b| a < b)
    }
}

/// All that was told so far.
#[derive(Clone, Debug, Default)]
pub struct KnownEnded {
    /// Nothing is known of this one and those above.
    below: ClientId,
    /// Those below that are not known to have ended.
    living: BTreeSet<ClientId>,
}

impl KnownEnded {
    /// Whether the client's lease is known to have ended.
    #[must_use]
    pub fn has(&self, client: ClientId) -> bool {
        client < self.below && !self.living.contains(&client)
    }

    /// Takes in a page; true if it says more than was known. One that leaves a gap, or that makes no
    /// sense, says nothing.
    pub fn learn(&mut self, page: &EndedClients) -> bool {
        if page.from > self.below || !page.is_sound() {
            return false;
        }
        let told = page.from..page.below.min(self.below);
        let known: Vec<ClientId> = self.living.range(told).copied().collect();
        let ended = |client: &&ClientId| page.except.binary_search(client).is_err();
        let mut more = false;
        for client in known.iter().filter(ended) {
            more |= self.living.remove(client);
        }
        if self.below < page.below {
            let at = page.except.partition_point(|client| *client < self.below);
            self.living.extend(&page.except[at..]);
            self.below = page.below;
            more = true;
        }
        more
    }
}

/// How far a round over all pages is. Who is told goes through one after the other.
#[derive(Clone, Copy, Debug, Default)]
pub struct EndedRound {
    told: ClientId,
    /// Ids that were not issued when it began are no part of it. None: the first page is to come.
    until: Option<ClientId>,
}

impl EndedRound {
    /// From where on the next page is wanted.
    #[must_use]
    pub fn wants(&self) -> ClientId {
        if self.is_complete() {
            ClientId(0)
        } else {
            self.told
        }
    }

    /// A page was taken in. The first one begins a round.
    pub fn took(&mut self, page: &EndedClients) {
        if page.from == ClientId(0) {
            self.told = page.below;
            self.until = Some(page.next);
        } else if page.from <= self.told && self.until.is_some() {
            self.told = self.told.max(page.below);
        }
    }

    /// Whether every page was taken in.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.until.is_some_and(|until| self.told >= until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a coordinator says, which knows who holds a lease.
    struct Told {
        holding: BTreeSet<ClientId>,
        next: u64,
    }

    impl Told {
        fn holding(ids: impl IntoIterator<Item = u64>, next: u64) -> Self {
            let holding = ids.into_iter().map(ClientId).collect();
            Self { holding, next }
        }

        fn page(&self, from: ClientId) -> EndedClients {
            let holding = self.holding.range(from..).copied();
            EndedClients::page(from, holding, ClientId(self.next))
        }

        fn open(&mut self) {
            self.holding.insert(ClientId(self.next));
            self.next += 1;
        }
    }

    /// One who is told.
    #[derive(Default)]
    struct Learner {
        known: KnownEnded,
        round: EndedRound,
    }

    impl Learner {
        fn hear(&mut self, told: &Told) {
            let page = told.page(self.round.wants());
            assert!(page.except.len() <= MAX_CLIENTS_NAMED);
            self.known.learn(&page);
            self.round.took(&page);
        }

        fn has(&self, client: u64) -> bool {
            self.known.has(ClientId(client))
        }
    }

    const MANY: u64 = 10 * MAX_CLIENTS_NAMED as u64;
    /// Pages of a round, if that many live.
    const PAGES: usize = MANY as usize / MAX_CLIENTS_NAMED + 1;

    #[test]
    fn who_holds_no_lease_and_was_issued_has_ended() {
        let mut known = KnownEnded::default();
        assert!(known.learn(&Told::holding([2, 5], 8).page(ClientId(0))));
        let has: Vec<_> = (0..10).filter(|id| known.has(ClientId(*id))).collect();
        assert_eq!(has, [0, 1, 3, 4, 6, 7]);
    }

    #[test]
    fn what_was_said_earlier_is_not_taken_for_news() {
        let said = |ids: &[u64], next| Told::holding(ids.iter().copied(), next).page(ClientId(0));
        let mut known = KnownEnded::default();
        assert!(known.learn(&said(&[2, 5], 8)));
        assert!(!known.learn(&said(&[2, 5], 8)) && !known.learn(&said(&[2], 4)));
        assert!(!known.learn(&said(&[1, 2, 5], 8)), "client 1 has ended");
        assert!(known.learn(&said(&[5], 8)), "client 2 has ended");
        assert!(known.has(ClientId(1)) && known.has(ClientId(2)) && !known.has(ClientId(5)));
    }

    #[test]
    fn a_page_after_a_gap_or_that_makes_no_sense_says_nothing() {
        let mut known = KnownEnded::default();
        let told = Told::holding([2, 5], 8);
        assert!(!known.learn(&told.page(ClientId(3))), "what is before 3?");
        let unsorted = EndedClients {
            except: vec![ClientId(5), ClientId(2)],
            ..told.page(ClientId(0))
        };
        let outside = EndedClients {
            except: vec![ClientId(9)],
            ..told.page(ClientId(0))
        };
        assert!(!known.learn(&unsorted) && !known.learn(&outside));
        assert!((0..10).all(|id| !known.has(ClientId(id))));
    }

    #[test]
    fn the_end_of_every_lease_is_told_within_two_rounds_however_many_live() {
        let mut told = Told::holding(1..MANY, MANY);
        let mut learner = Learner::default();
        (0..PAGES / 2).for_each(|_| learner.hear(&told));
        // All of the eldest live on, and before each page as many come as it can name.
        let ended = [MANY - 1, MANY / 2, 700];
        for client in ended {
            told.holding.remove(&ClientId(client));
        }
        for _ in 0..2 * PAGES {
            (0..MAX_CLIENTS_NAMED).for_each(|_| told.open());
            learner.hear(&told);
        }
        for client in 1..told.next {
            let holds = told.holding.contains(&ClientId(client));
            assert!(!holds || !learner.has(client), "client {client} holds one");
        }
        assert!(ended.iter().all(|client| learner.has(*client)));
    }

    #[test]
    fn a_round_that_another_teller_begins_anew_comes_to_its_end() {
        let told = Told::holding(1..MANY, MANY);
        let mut round = EndedRound::default();
        assert!(!round.is_complete());
        round.took(&told.page(round.wants()));
        round.took(&told.page(round.wants()));
        // It knows nothing of what was told.
        let mut teller = EndedRound::default();
        let mut pages = 0;
        while !round.is_complete() {
            let page = told.page(teller.wants());
            round.took(&page);
            teller.took(&page);
            pages += 1;
        }
        assert!(pages <= PAGES, "{pages}");
        assert_eq!(round.wants(), ClientId(0));
    }
}
