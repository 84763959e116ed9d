//! The nouns: peers, ballots, slots, entries, groups.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::limits::{GROUP_SIZES, MAX_ADDRESS};

/// A peer's number in its group. Never 0.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct PeerId(pub u32);

/// A disk's life: random, chosen when it is first used. A wiped disk gets another.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Incarnation(pub [u8; 16]);

/// Which group: random, chosen by its founder.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct GroupId(pub [u8; 16]);

/// An ordered proposal number. Used by one life of one peer only.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Ballot {
    /// Above every round seen; its upper half is the generation of the group.
    pub round: u64,
    /// Whose.
    pub peer: PeerId,
}

/// A position in the sequence of entries. The first is 1; 0 is before all.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Slot(pub u64);

impl Slot {
    /// The slot after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A reading of this peer's own clock, microseconds. Never compared with another peer's, but
/// echoed by it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Time(pub u64);

impl Time {
    /// From `earlier` to this; nothing if that is not earlier.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for Time {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(micros))
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.round, self.peer)
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What one slot holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Entry {
    /// Nothing: a new leader fills gaps and begins with it.
    Noop,
    /// Commands, applied in this order. Their bytes mean nothing here.
    Commands(Vec<Bytes>),
    /// Who the members are from the next slot on.
    Reconfigure(Group),
}

impl Entry {
    /// About how many bytes it takes in a message.
    #[must_use]
    pub fn size(&self) -> usize {
        const OVERHEAD: usize = 32;
        OVERHEAD
            + match self {
                Self::Noop => 0,
                Self::Commands(commands) => commands.iter().map(|c| c.len() + 4).sum(),
                Self::Reconfigure(group) => {
                    group.members.iter().map(|m| m.address.len() + 32).sum()
                }
            }
    }
}

/// A member of a group.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Member {
    /// Its number.
    pub id: PeerId,
    /// Of its disk.
    pub incarnation: Incarnation,
    /// Where it is reached. Means nothing here.
    pub address: String,
}

/// Who decides together.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Group {
    /// Which.
    pub id: GroupId,
    /// How often its members changed since it was founded.
    pub generation: u32,
    /// By id.
    pub members: Vec<Member>,
}

impl Group {
    /// How many members decide: more than half.
    #[must_use]
    pub fn majority(&self) -> usize {
        self.members.len() / 2 + 1
    }

    /// The member of this number.
    #[must_use]
    pub fn member(&self, id: PeerId) -> Option<&Member> {
        self.members.iter().find(|member| member.id == id)
    }

    /// Whether this peer with this very disk is a member.
    #[must_use]
    pub fn contains(&self, id: PeerId, incarnation: Incarnation) -> bool {
        self.member(id)
            .is_some_and(|member| member.incarnation == incarnation)
    }

    /// The group with `by` in the place of `out`.
    pub(crate) fn replace(&self, out: PeerId, by: Member) -> Self {
        let stay = self.members.iter().filter(|member| member.id != out);
        let mut members: Vec<Member> = stay.cloned().collect();
        members.push(by);
        members.sort_by_key(|member| member.id);
        Self {
            id: self.id,
            generation: self.generation + 1,
            members,
        }
    }

    /// Whether it can be one: its size, numbers in order, addresses within their limit.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        GROUP_SIZES.contains(&self.members.len())
            && self.members.windows(2).all(|pair| pair[0].id < pair[1].id)
            && self
                .members
                .iter()
                .all(|member| member.id != PeerId(0) && member.address.len() <= MAX_ADDRESS)
    }
}
