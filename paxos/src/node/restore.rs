//! How a life begins: from what is on the disk.
//!
//! # Invariants
//! 1. A life that begins with something on its disk may have granted a lease just before: it
//!    promises nobody anything before that has run out.
//! 2. A disk that has a hole where something was decided is refused.

use std::collections::{BTreeMap, VecDeque};

use super::acceptor::{Accepted, Acceptor};
use super::disk::Disk;
use super::formation::Formation;
use super::learning::Learning;
use super::{Action, Grant, Node, Role, Setup, Stats};
use crate::limits::Sizes;
use crate::mutants::{self, Mutant};
use crate::record::{Record, Stored};
use crate::rng::SplitMix;
use crate::types::{Ballot, Slot, Time};

/// Why what is on the disk can't be gone on with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// A decided slot is missing.
    #[error("the journal says that slot {decided} is decided, but slot {missing} is not in it")]
    Hole {
        /// The first that is missing.
        missing: Slot,
        /// The last decided.
        decided: Slot,
    },
    /// Records without a group that they could be of.
    #[error("the journal has entries but no group")]
    NoGroup,
}

impl Node {
    /// A peer with what its disk has. Call once, then carry out the actions: they set the state
    /// machine to what is known to be decided.
    ///
    /// # Errors
    /// If it makes no sense.
    pub fn new(now: Time, setup: Setup, stored: Stored) -> Result<Self, RestoreError> {
        Self::with_sizes(now, setup, Sizes::default(), stored)
    }

    /// As [`Node::new`], with other sizes.
    ///
    /// # Errors
    /// If what is on the disk makes no sense.
    pub fn with_sizes(
        now: Time,
        setup: Setup,
        sizes: Sizes,
        stored: Stored,
    ) -> Result<Self, RestoreError> {
        let seed = setup
            .seed
            .chunks_exact(8)
            .fold(u64::from(setup.me.0), |seed, chunk| {
                chunk
                    .iter()
                    .fold(seed, |seed, byte| seed.rotate_left(8) ^ u64::from(*byte))
            });
        let mut node = Self {
            rng: SplitMix(seed),
            setup,
            sizes,
            now,
            group: None,
            groups: BTreeMap::new(),
            disk: Disk::default(),
            acceptor: Acceptor::default(),
            learning: Learning::default(),
            formation: Formation::default(),
            role: Role::Follower,
            highest: Ballot::default(),
            grant: None,
            leader: None,
            election_due: None,
            overslept: false,
            learners: BTreeMap::new(),
            callers: BTreeMap::new(),
            newer: None,
            moved: BTreeMap::new(),
            removed: false,
            actions: VecDeque::new(),
            stats: Stats::default(),
        };
        let begun = stored.snapshot.is_some() || !stored.records.is_empty();
        node.load(stored)?;
        node.formation.due = Some(now);
        if begun && !node.is_whole_group() && !mutants::active(Mutant::ForgetGrant) {
            node.grant = Some(Grant {
                to: None,
                until: now + node.setup.timing.grant(),
            });
        }
        if node.is_whole_group() {
            node.election_due = Some(now);
        } else if node.group.is_some() {
            node.rest_before_election();
        }
        node.settle();
        Ok(node)
    }

    /// A group of one has nobody else who could hold a lease.
    fn is_whole_group(&self) -> bool {
        self.is_member() && self.others().is_empty()
    }

    fn load(&mut self, stored: Stored) -> Result<(), RestoreError> {
        let mut decided = Slot(0);
        if let Some(snapshot) = stored.snapshot {
            decided = snapshot.slot;
            self.learning.decided = decided;
            self.groups.insert(decided, snapshot.group.clone());
            self.group = Some(snapshot.group.clone());
            self.actions.push_back(Action::Restore(snapshot.clone()));
            self.learning.keep(snapshot);
        }
        let mut noted = Slot(0);
        for record in stored.records {
            self.load_record(record, &mut noted);
        }
        decided = decided.max(noted);
        let first = self.acceptor.log.keys().next().copied();
        let kept = self
            .acceptor
            .kept_from(self.learning.decided, self.sizes.kept_bytes);
        self.acceptor.trimmed = Slot(kept.0 - 1);
        if self.group.is_none() && first.is_some() {
            return Err(RestoreError::NoGroup);
        }
        self.acceptor.log = self.acceptor.log.split_off(&kept);
        while self.learning.decided < decided {
            let slot = self.learning.decided.next();
            if !self.acceptor.log.contains_key(&slot) {
                let missing = slot;
                return Err(RestoreError::Hole { missing, decided });
            }
            self.apply(slot, Vec::new());
        }
        self.nothing_to_write();
        self.learning.known = decided;
        self.highest = self.highest.max(self.acceptor.promised);
        Ok(())
    }

    /// `noted`: what the records before say is decided.
    fn load_record(&mut self, record: Record, noted: &mut Slot) {
        match record {
            Record::Group(group) => {
                if group.generation == 0 && self.groups.is_empty() {
                    self.groups.insert(Slot(0), group.clone());
                }
                let known = self.group.as_ref().map(|group| group.generation);
                if known.is_none_or(|known| known < group.generation) {
                    self.group = Some(group);
                }
            }
            Record::Promised(ballot) => self.load_promise(ballot),
            // Accepted while a snapshot that has this slot was being saved: perhaps never decided,
            // and below the snapshot all is taken for decided.
            Record::Accepted { slot, .. } if slot <= *noted => {}
            Record::Accepted {
                slot,
                ballot,
                entry,
            } => {
                // An own vote's promise is recorded before it; what was learned promises nothing.
                self.acceptor.log.insert(slot, Accepted { ballot, entry });
            }
            Record::Decided(slot) => *noted = (*noted).max(slot),
        }
    }

    fn load_promise(&mut self, ballot: Ballot) {
        if !mutants::active(Mutant::ForgetPromise) {
            self.acceptor.promised = self.acceptor.promised.max(ballot);
        }
    }
}
