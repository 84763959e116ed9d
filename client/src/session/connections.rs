//! The connections of a session: one to a target at most, from the wish for it to its end.
//!
//! # Invariants
//! 1. A number is given once. What is reported of a connection that was given up, or that another
//!    has replaced, changes nothing.
//! 2. Each handle that came in comes out to be closed, once, unless it was reported lost before.

use std::collections::{BTreeMap, VecDeque};

use ramkeep_wire::Party;

use crate::core::Target;

/// A wish for a connection. It ends with [`connected`] or [`lost`].
///
/// [`connected`]: crate::session::Session::connected
/// [`lost`]: crate::session::Session::lost
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connect {
    /// To whom.
    pub target: Target,
    /// Names the connection.
    pub number: u64,
    /// Where the target listens; the first that answers will do.
    pub addresses: Vec<String>,
}

impl Connect {
    /// Whom to expect there.
    #[must_use]
    pub fn party(&self) -> Party {
        match self.target {
            Target::Server(server) => Party::server(server),
            Target::Coordinator(_) => Party::NONE,
        }
    }
}

/// A connection that is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection<L> {
    /// Its handle, as it was given.
    pub link: L,
    /// Its number.
    pub number: u64,
}

#[derive(Debug)]
enum Way<L> {
    /// Being made.
    Opening(u64),
    Up(Connection<L>),
}

#[derive(Debug)]
pub(super) struct Connections<L> {
    ways: BTreeMap<Target, Way<L>>,
    last: u64,
    wishes: VecDeque<(Target, u64)>,
    closed: VecDeque<L>,
}

impl<L> Default for Connections<L> {
    fn default() -> Self {
        Self {
            ways: BTreeMap::new(),
            last: 0,
            wishes: VecDeque::new(),
            closed: VecDeque::new(),
        }
    }
}

impl<L: Clone> Connections<L> {
    /// The connection to this target that is up.
    pub(super) fn to(&self, target: Target) -> Option<&Connection<L>> {
        match self.ways.get(&target)? {
            Way::Up(connection) => Some(connection),
            Way::Opening(_) => None,
        }
    }

    /// All that are up, in order of targets, those after `after` only.
    pub(super) fn after(
        &self,
        after: Option<Target>,
    ) -> impl Iterator<Item = (Target, &Connection<L>)> {
        let ways = self.ways.iter();
        ways.filter_map(move |(target, way)| match way {
            Way::Up(up) if after.is_none_or(|after| *target > after) => Some((*target, up)),
            _ => None,
        })
    }

    /// One to this target is wanted.
    pub(super) fn wish(&mut self, target: Target) {
        self.last += 1;
        self.forget(target);
        self.ways.insert(target, Way::Opening(self.last));
        self.wishes.push_back((target, self.last));
    }

    /// The next wish that still stands.
    pub(super) fn pop_wish(&mut self) -> Option<(Target, u64)> {
        while let Some((target, number)) = self.wishes.pop_front() {
            if self.number(target) == Some(number) {
                return Some((target, number));
            }
        }
        None
    }

    /// Whether one is to be made.
    pub(super) fn has_wishes(&self) -> bool {
        !self.wishes.is_empty()
    }

    fn number(&self, target: Target) -> Option<u64> {
        match self.ways.get(&target)? {
            Way::Opening(number) | Way::Up(Connection { number, .. }) => Some(*number),
        }
    }

    /// The connection of this number is up. False: nobody wants it any more; it is to be closed.
    pub(super) fn connected(&mut self, target: Target, number: u64, link: L) -> bool {
        let wanted = self.number(target) == Some(number);
        if wanted {
            let up = Connection { link, number };
            self.ways.insert(target, Way::Up(up));
        } else {
            self.closed.push_back(link);
        }
        wanted
    }

    /// The connection of this number is no more. False: it was given up before.
    pub(super) fn lost(&mut self, target: Target, number: u64) -> bool {
        let known = self.number(target) == Some(number);
        if known {
            self.ways.remove(&target);
        }
        known
    }

    /// Gives the connection to this target up.
    pub(super) fn forget(&mut self, target: Target) {
        if let Some(Way::Up(connection)) = self.ways.remove(&target) {
            self.closed.push_back(connection.link);
        }
    }

    /// One that is to be closed.
    pub(super) fn pop_closed(&mut self) -> Option<L> {
        self.closed.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Target = Target::Coordinator(0);

    #[test]
    fn what_comes_of_a_connection_that_was_given_up_changes_nothing() {
        let mut connections = Connections::default();
        connections.wish(TARGET);
        assert_eq!(connections.pop_wish(), Some((TARGET, 1)));
        connections.forget(TARGET);
        connections.wish(TARGET);
        assert!(!connections.connected(TARGET, 1, 'a') && !connections.lost(TARGET, 1));
        assert_eq!(
            (connections.pop_closed(), connections.pop_closed()),
            (Some('a'), None)
        );
        assert!(connections.connected(TARGET, 2, 'b'));
        assert_eq!(connections.to(TARGET).map(|up| up.link), Some('b'));
        assert!(connections.lost(TARGET, 2) && !connections.lost(TARGET, 2));
    }

    #[test]
    fn a_wish_that_does_not_stand_any_more_is_not_carried_out() {
        let mut connections = Connections::<char>::default();
        connections.wish(TARGET);
        connections.forget(TARGET);
        assert_eq!(connections.pop_wish(), None);
    }
}
