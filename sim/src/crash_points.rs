//! Moments of a recovery in which somebody may die, as the simulator sees them: from what is decided, and
//! from what processes say.

use std::collections::BTreeMap;

use ramkeep_coordinator::Coordinator;
use ramkeep_coordinator::state::State;
use ramkeep_wire::coordinator::TabletState;
use ramkeep_wire::{ServerId, TableId};

ramkeep_wire::named! {
    /// A moment of a recovery; they come in this order.
    CrashPoint:
    /// A master with tablets was decided crashed.
    CrashDecided = "crash-decided",
    /// A backup shows a coordinator what it holds.
    FenceAnswered = "fence-answered",
    /// The leader knows where a log ends.
    EndChosen = "end-chosen",
    /// The plan is decided.
    PlanDecided = "plan-decided",
    /// A backup is asked for bytes by a recovery master.
    FirstFetch = "first-fetch",
    /// All is in a recovery master's log.
    Replayed = "replayed",
    /// And durable.
    Durable = "durable",
    /// A recovery master says so.
    SaidSo = "said-so",
    /// A tablet has its new owner.
    Committed = "committed",
    /// A backup has freed the dead master's replicas.
    Freed = "freed",
}

/// The crashed masters the end of whose logs a coordinator knows, as it was seen last.
#[derive(Debug, Default)]
pub struct EndsSeen(Vec<ServerId>);

impl EndsSeen {
    /// Whether the end of another log was found since.
    pub fn look(&mut self, core: &Coordinator) -> Option<CrashPoint> {
        let found = core.ends_found();
        let new = found.iter().any(|master| !self.0.contains(master));
        self.0 = found;
        new.then_some(CrashPoint::EndChosen)
    }
}

/// A point that was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// Which.
    pub point: CrashPoint,
    /// On which machine, unless it is decided by all.
    pub machine: Option<usize>,
}

/// What of recoveries is decided.
#[derive(Debug, Default)]
pub struct Decisions {
    /// The crashed masters that wait for their logs, and whether it is planned.
    waiting: BTreeMap<ServerId, bool>,
    /// Owners of tablets that were recovered.
    owners: BTreeMap<(TableId, u64), ServerId>,
    most: Most,
}

/// How much there was at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Most {
    /// Crashed masters that waited for their logs.
    pub masters: usize,
    /// Partitions of one log.
    pub partitions: usize,
}

impl Decisions {
    /// How much of it there was at a time.
    #[must_use]
    pub fn most(&self) -> Most {
        self.most
    }

    /// What a newer state has decided since, and about whom: the new owner, else the crashed master.
    pub fn follow(&mut self, state: &State) -> Vec<(CrashPoint, ServerId)> {
        let mut points = Vec::new();
        let (mut waiting, mut owners) = (BTreeMap::new(), BTreeMap::new());
        for tablet in state
            .tables()
            .iter()
            .flat_map(|record| &record.table.tablets)
        {
            let place = (tablet.table, tablet.first.0);
            owners.insert(place, tablet.owner);
            if matches!(tablet.state, TabletState::Down | TabletState::Recovering) {
                let planned = state.recoveries().by_master(tablet.owner).is_some();
                waiting.insert(tablet.owner, planned);
            } else if (self.owners.get(&place))
                .is_some_and(|before| *before != tablet.owner && self.waiting.contains_key(before))
            {
                points.push((CrashPoint::Committed, tablet.owner));
            }
        }
        for (master, planned) in &waiting {
            match (self.waiting.get(master), planned) {
                (None, _) => points.push((CrashPoint::CrashDecided, *master)),
                (Some(false), true) => points.push((CrashPoint::PlanDecided, *master)),
                _ => {}
            }
        }
        points.dedup();
        let recoveries = state.recoveries().iter();
        let partitions = recoveries.map(|(_, record)| record.partitions.len()).max();
        self.most = Most {
            masters: self.most.masters.max(waiting.len()),
            partitions: self.most.partitions.max(partitions.unwrap_or(0)),
        };
        (self.waiting, self.owners) = (waiting, owners);
        points
    }
}
