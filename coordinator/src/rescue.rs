//! The last one's way on when most coordinators are lost for good: a new group from what one directory
//! has, and what may be lost with the others. Pure; `shell::rescue` has the files.
//!
//! # Invariants
//! 1. All that a quorum with this one in it has decided is in the new group's state: what this one accepted
//!    counts as decided, whether or not it was. Only what the lost ones decided without it is gone.
//! 2. The new group's generation is above any that the lost ones reached, and its ballots with it: servers
//!    that have obeyed it obey the lost ones no more, who leave when they hear of it.
//! 3. It is the same cluster: servers and clients go on with it.

use std::collections::BTreeMap;

use paxos::limits::Timing;
use paxos::{Ballot, Entry, Group, GroupId, Member, Record, Slot, Snapshot, Stored};
use ramkeep_wire::coordinator::ServerState;
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::{ClusterId, Micros, PeerId, postcards};

use crate::core::{Config, Coordinator, RecoverError, default_settings};
use crate::journal::Owner;

/// More changes of members than lost coordinators can have made without this one.
const GENERATIONS: u32 = 1 << 10;
/// Bits of a ballot's round below the generation.
const ROUND_BITS: u32 = 32;

/// A coordinator of the new group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its number, and its disk.
    pub owner: Owner,
    /// Where it will be.
    pub address: String,
}

/// Why there is nothing to go on from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RescueError {
    /// What the directory has makes no coordinator.
    #[error(transparent)]
    Recover(#[from] RecoverError),
    /// It never was one of a group that had made a cluster.
    #[error("it has nothing of any cluster")]
    Nothing,
    /// The disk was never a member, or another took its place.
    #[error(
        "it is no member of its group: it may lack what the members decided; use one of theirs"
    )]
    NoMember,
    /// The new group can't be one.
    #[error(
        "a group has 1, 3 or 5 coordinators, each with a number of its own and a short address"
    )]
    Group,
}

/// A group that goes on from one directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rescue {
    /// The cluster, which stays the same.
    pub cluster: ClusterId,
    /// Who the members were.
    pub was: Group,
    /// The last slot that is in the state.
    pub slot: u64,
    /// How many of the last ones were accepted, and are not known to be decided.
    pub taken: u64,
    /// Slots below the last that this one has nothing of.
    pub holes: Vec<u64>,
    /// Servers that were not decided crashed.
    pub servers: usize,
    /// The tables, by name.
    pub tables: Vec<String>,
    /// What each coordinator of the new group has on its disk.
    pub snapshot: Snapshot,
    /// And beside it.
    pub records: Vec<Record>,
}

/// What was accepted since the snapshot, as a life of its own would load it.
#[derive(Default)]
struct Accepted {
    by_slot: BTreeMap<Slot, Ballot>,
    decided: Slot,
    /// The highest ballot that was promised, or accepted under.
    highest: Ballot,
}

impl Accepted {
    fn of(stored: &Stored) -> Self {
        let base = stored
            .snapshot
            .as_ref()
            .map_or(Slot(0), |snapshot| snapshot.slot);
        let mut accepted = Self {
            decided: base,
            ..Self::default()
        };
        let mut noted = Slot(0);
        for record in &stored.records {
            match record {
                Record::Group(_) => {}
                Record::Promised(ballot) => accepted.highest = accepted.highest.max(*ballot),
                Record::Accepted { slot, .. } if *slot <= noted => {}
                Record::Accepted { slot, ballot, .. } => {
                    accepted.highest = accepted.highest.max(*ballot);
                    accepted.by_slot.insert(*slot, *ballot);
                }
                Record::Decided(slot) => noted = noted.max(*slot),
            }
        }
        accepted.decided = accepted.decided.max(noted);
        accepted
    }

    fn last(&self) -> Slot {
        let last = self.by_slot.last_key_value().map(|(slot, _)| *slot);
        last.map_or(self.decided, |last| last.max(self.decided))
    }
}

/// A group of these coordinators, the first of which has what is stored.
///
/// # Errors
/// When there is nothing to go on from, or that can't be a group.
pub fn rescue(places: &[Place], mut stored: Stored) -> Result<Rescue, RescueError> {
    let survivor = places.first().ok_or(RescueError::Group)?;
    let accepted = Accepted::of(&stored);
    let (decided, mut last) = (accepted.decided, accepted.last());
    if mutants::active(Mutant::RescueForgets) {
        last = decided;
    }
    let unknown = (decided.0 + 1..last.0).map(Slot);
    let holes: Vec<Slot> = unknown
        .filter(|slot| !accepted.by_slot.contains_key(slot))
        .collect();
    for slot in &holes {
        stored.records.push(Record::Accepted {
            slot: *slot,
            ballot: accepted.highest,
            entry: Entry::Noop,
        });
    }
    stored.records.push(Record::Decided(last));
    let core = load(survivor, stored)?;
    let (node, state) = (core.node(), core.state());
    let constants = state.constants().ok_or(RescueError::Nothing)?;
    let was = node.group().cloned().ok_or(RescueError::Nothing)?;
    if !node.is_member() {
        return Err(RescueError::NoMember);
    }
    let group = new_group(places, was.id, was.generation, accepted.highest)?;
    // Whoever leads by what the lost ones promise is below this.
    let first = Ballot {
        round: u64::from(group.generation) << ROUND_BITS,
        peer: paxos::PeerId(0),
    };
    let living = state.servers().entries();
    Ok(Rescue {
        cluster: constants.cluster,
        slot: last.0,
        taken: last.0 - decided.0,
        holes: holes.iter().map(|slot| slot.0).collect(),
        servers: living
            .filter(|entry| entry.state != ServerState::Crashed)
            .count(),
        tables: state
            .tables()
            .iter()
            .map(|record| record.table.name.clone())
            .collect(),
        snapshot: Snapshot {
            slot: last,
            group,
            state: postcards::encode(state).into(),
        },
        records: vec![Record::Promised(first), Record::Decided(last)],
        was,
    })
}

/// The coordinator as its disk has it; nothing of what it wants done is done.
fn load(survivor: &Place, stored: Stored) -> Result<Coordinator, RecoverError> {
    let config = Config {
        peer: survivor.owner.peer,
        incarnation: survivor.owner.incarnation,
        address: survivor.address.clone(),
        peers: Vec::new(),
        settings: default_settings(),
        timing: Timing::default(),
        founds: false,
        entropy: [0; 32],
    };
    Coordinator::new(Micros(1), config, stored)
}

fn new_group(
    places: &[Place],
    id: GroupId,
    generation: u32,
    highest: Ballot,
) -> Result<Group, RescueError> {
    let reached = u32::try_from(highest.round >> ROUND_BITS).unwrap_or(u32::MAX);
    let members = places.iter().map(|place| Member {
        id: paxos::PeerId(place.owner.peer.0),
        incarnation: paxos::Incarnation(place.owner.incarnation),
        address: place.address.clone(),
    });
    let mut members: Vec<Member> = members.collect();
    members.sort_by_key(|member| member.id);
    let step = if mutants::active(Mutant::RescueKeepsGeneration) {
        0
    } else {
        GENERATIONS
    };
    let group = Group {
        id,
        generation: generation.max(reached).saturating_add(step),
        members,
    };
    if group.is_valid() {
        Ok(group)
    } else {
        Err(RescueError::Group)
    }
}

/// The members that the old group had beside this one.
#[must_use]
pub fn lost(was: &Group, survivor: PeerId) -> Vec<(PeerId, String)> {
    let members = was
        .members
        .iter()
        .filter(|member| member.id.0 != survivor.0);
    members
        .map(|member| (PeerId(member.id.0), member.address.clone()))
        .collect()
}
