//! What must hold, each with its name, and what is remembered to tell.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use paxos::{Ballot, Group, Incarnation, PeerId, Slot};

/// What was found broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Check {
    /// A slot holds one entry, on every life of every peer, and all histories are one.
    Agreement,
    /// Slots are applied in order, without gaps, once in a life.
    Order,
    /// What a client was told is done stays done.
    Durability,
    /// A command takes effect once.
    ExactlyOnce,
    /// No two peers hold a lease at the same instant.
    LeaseExclusive,
    /// A local read sees every command whose end was told before it began.
    StaleRead,
    /// A ballot is of one life of one peer.
    BallotUnique,
    /// Under a ballot a slot is proposed with one entry.
    OneValue,
    /// What a message says is on the disk of its sender.
    PersistFirst,
    /// What is applied by a leader is on the disks of a quorum.
    QuorumOnDisk,
    /// No part is taken in a ballot below the promised one.
    PromiseKept,
    /// A change of the group is made for the group before it, and changes one member.
    OneChange,
    /// A snapshot and what is kept beside it lose nothing of the journal.
    TrimSafe,
    /// What a disk has can be gone on with.
    Restorable,
    /// A proposal said never to be decided never is.
    LostIsLost,
    /// Once faults have stopped a leader is there, commands are decided and all members agree.
    Progress,
    /// The code panicked.
    Panic,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A check that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which.
    pub check: Check,
    /// What was seen.
    pub detail: String,
    /// When, microseconds.
    pub at: u64,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { check, detail, at } = self;
        write!(
            f,
            "{check} at {}.{:06}: {detail}",
            at / 1_000_000,
            at % 1_000_000
        )
    }
}

/// What is true of the whole group, as far as anybody has shown.
#[derive(Clone, Debug, Default)]
pub(crate) struct Truth {
    /// Digest of the entry, and of the history up to it, by slot.
    pub(crate) decided: BTreeMap<Slot, (u64, u64)>,
    /// Who are the members after a slot.
    pub(crate) groups: BTreeMap<Slot, Group>,
    ballots: BTreeMap<Ballot, (PeerId, u32)>,
    proposed: BTreeMap<(Ballot, Slot), u64>,
    /// Whose disks accepted what, of slots not decided yet.
    votes: BTreeMap<(Slot, Ballot, u64), BTreeSet<Incarnation>>,
}

impl Truth {
    pub(crate) fn decide(&mut self, slot: Slot, entry: u64, history: u64) -> bool {
        let known = *self.decided.entry(slot).or_insert((entry, history));
        known == (entry, history)
    }

    pub(crate) fn use_ballot(&mut self, ballot: Ballot, peer: PeerId, life: u32) -> bool {
        *self.ballots.entry(ballot).or_insert((peer, life)) == (peer, life)
    }

    pub(crate) fn propose(&mut self, ballot: Ballot, slot: Slot, entry: u64) -> bool {
        *self.proposed.entry((ballot, slot)).or_insert(entry) == entry
    }

    pub(crate) fn vote(&mut self, of: Incarnation, votes: &[(Slot, Ballot, u64)]) {
        for vote in votes
            .iter()
            .filter(|(slot, ..)| !self.decided.contains_key(slot))
        {
            self.votes.entry(*vote).or_default().insert(of);
        }
    }

    /// The largest number of members whose disks accepted this entry in this slot under one ballot.
    pub(crate) fn votes_for(&mut self, slot: Slot, entry: u64, group: &Group) -> usize {
        let rest = self.votes.split_off(&(slot, Ballot::default(), 0));
        let of_slot = rest.iter().take_while(|((at, ..), _)| *at == slot);
        let of_entry = of_slot.filter(|((_, _, what), _)| *what == entry);
        let count = |disks: &BTreeSet<Incarnation>| {
            let members = group.members.iter();
            members
                .filter(|member| disks.contains(&member.incarnation))
                .count()
        };
        let most = of_entry.map(|(_, disks)| count(disks)).max().unwrap_or(0);
        // Those of lower slots are not asked for again.
        self.votes = rest;
        most
    }

    /// Takes note of a decided change; whether it follows from the group before.
    pub(crate) fn regroup(&mut self, slot: Slot, group: &Group) -> bool {
        let Some(before) = self.group_of(slot) else {
            return false;
        };
        let stay = group.members.iter().filter(|m| before.members.contains(m));
        let same_size = group.members.len() == before.members.len();
        let fits = group.generation == before.generation + 1
            && same_size
            && stay.count() + 1 == group.members.len();
        self.groups.insert(slot, group.clone());
        fits
    }

    /// The group that decides a slot.
    pub(crate) fn group_of(&self, slot: Slot) -> Option<&Group> {
        let before = self.groups.range(..slot).next_back();
        before.map(|(_, group)| group)
    }

    pub(crate) fn last_group(&self) -> Option<&Group> {
        self.groups.last_key_value().map(|(_, group)| group)
    }
}

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// What happened in one run, or in many.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counts {
            /// Adds those of another run.
            pub fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
            }

            /// With their names.
            #[must_use]
            pub fn named(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),*]
            }
        }
    };
}

counts! {
    /// Messages handed to the network.
    messages,
    /// Lost, or cut.
    lost,
    /// Delivered twice.
    doubled,
    /// Delivered late.
    slow,
    /// Peers that asked to lead.
    elections,
    /// Leaders that came to lead.
    leaders,
    /// Crashes.
    crashes,
    /// Writes that a crash lost or cut short.
    torn,
    /// Disks wiped.
    wipes,
    /// Members replaced by another peer or by another disk.
    replacements,
    /// Processes paused.
    pauses,
    /// Cuts of the network.
    cuts,
    /// Disks or networks slow for a while.
    slowdowns,
    /// Snapshots saved.
    snapshots,
    /// Snapshots taken from another peer.
    installs,
    /// Parts of snapshots sent.
    snapshot_pages,
    /// Pages of entries sent.
    pages,
    /// Promises with more than one page.
    promise_pages,
    /// Slots decided.
    slots,
    /// Commands that clients were told are done.
    commands,
    /// Commands sent again.
    retries,
    /// Local reads served.
    reads,
    /// Local reads refused for want of a lease.
    reads_refused,
}
