//! Looking into a world: what its backups hold, and whether that is enough.

use std::collections::BTreeSet;
use std::sync::Arc;

use ramkeep_backup::{Backup, FrameStore, MemoryStore};
use ramkeep_coordinator::state::State;
use ramkeep_wire::backup::{BackupRequest, BackupResponse, ReplicaInfo};
use ramkeep_wire::coordinator::{ServerState, Tablet};
use ramkeep_wire::{LogPosition, Micros, Party, SegmentId, ServerId, key_hash};

use crate::check::durable::{self, Loss};
use crate::check::log_end::{Choice, Found, MasterRecord, Refusal, log_end};
use crate::history::Place;
use crate::world::{Disk, World};

/// What one machine's frames hold of one master's segments.
#[derive(Clone, Debug)]
pub struct Held {
    /// The machine.
    pub machine: usize,
    /// Whether a process runs there.
    pub running: bool,
    /// The complete replicas with their bytes.
    pub replicas: Vec<(ReplicaInfo, Vec<u8>)>,
}

/// What is wrong with what the backups hold of a master's log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsafe {
    /// The end of the log can't be found.
    #[error("{master:?}'s log can't be recovered without machines {without:?}: {why}")]
    NoLog {
        /// Whose log.
        master: ServerId,
        /// The machines lost beside the master's.
        without: Vec<usize>,
        /// Why not.
        why: Refusal,
    },
    /// The log that recovery would take lacks what clients were told.
    #[error("{master:?}'s log, recovered without machines {without:?}: {loss}")]
    Loses {
        /// Whose log.
        master: ServerId,
        /// The machines lost beside the master's.
        without: Vec<usize>,
        /// What is lost.
        loss: Loss,
    },
}

/// What the coordinators have decided for good.
#[must_use]
pub fn recorded(world: &World) -> Option<Arc<State>> {
    world.group.state()
}

/// What the coordinator has recorded of a master.
#[must_use]
pub fn master_record(state: &State, master: ServerId) -> Option<MasterRecord> {
    let server = state.servers().by_id(master)?;
    Some(MasterRecord {
        cluster: state.constants()?.cluster,
        master,
        key: server.key,
        floor: server.floor,
        epochs: server
            .epochs
            .iter()
            .map(|(segment, recorded)| (*segment, recorded.epoch))
            .collect(),
    })
}

/// How many backups short the recorded sets of a master's heads are: so many of its backups were
/// decided crashed and are not made up for (SAFETY 9).
#[must_use]
pub fn shortfall(state: &State, master: ServerId) -> usize {
    let wanted = state.constants().map_or(0, |c| c.settings.replicas);
    let Some(server) = state.servers().by_id(master) else {
        return 0;
    };
    let low = server.floor.map_or(SegmentId(0), |floor| floor.0);
    let sets = server.epochs.range(low..);
    sets.map(|(_, recorded)| usize::from(wanted).saturating_sub(recorded.backups.len()))
        .max()
        .unwrap_or(0)
}

/// The tablets that a master owns, or owned when it died; those of dropped tables are nobody's.
#[must_use]
pub fn tablets(state: &State, owner: ServerId) -> Vec<Tablet> {
    (state.tables().iter())
        .filter(|record| record.dropping.is_none())
        .flat_map(|record| &record.table.tablets)
        .filter(|tablet| tablet.owner == owner)
        .copied()
        .collect()
}

/// The takeover of the tablet that a key is in; `None` if it is not the master's. Entries before it are
/// of an earlier owner, or of a replay that was given up (SAFETY 20).
pub type Ownership<'a> = dyn Fn(&Place) -> Option<LogPosition> + 'a;

/// The tablet that a key is in.
#[must_use]
pub fn tablet_of<'a>(owned: &'a [Tablet], (table, key): &Place) -> Option<&'a Tablet> {
    let hash = key_hash(*table, key);
    owned
        .iter()
        .find(|one| one.table == *table && (one.first..=one.last).contains(&hash))
}

/// What every machine's frames hold of a master's segments, also where no process runs.
#[must_use]
pub fn held(world: &mut World, master: ServerId) -> Vec<Held> {
    let machines: Vec<usize> = world.server_machines().collect();
    let mut all = Vec::new();
    for machine in machines {
        if let Some(process) = world.machines[machine].process {
            let replicas = world.with(process, |node, _| match node {
                crate::node::Node::Server(node) => node
                    .backup()
                    .map(|mut backup| replicas(&mut backup, master)),
                _ => None,
            });
            if let Some(Some(replicas)) = replicas {
                all.push(Held {
                    machine,
                    running: true,
                    replicas,
                });
            }
        } else if let Disk::Frames(frames) = &world.machines[machine].disk {
            let boot = world.boot(machine);
            if let Ok(mut backup) = Backup::open(frames.clone(), boot, Micros(0)) {
                all.push(Held {
                    machine,
                    running: false,
                    replicas: replicas(&mut backup, master),
                });
            }
        }
    }
    all
}

/// Asked as the master itself, who needs no fence to see its own replicas, and when every lease has
/// run out, in case it is fenced.
fn replicas<S: FrameStore>(
    backup: &mut Backup<S>,
    master: ServerId,
) -> Vec<(ReplicaInfo, Vec<u8>)> {
    let now = Micros(u64::MAX);
    let from = Party::server(master);
    let mut found = Vec::new();
    let mut after = None;
    loop {
        let request = BackupRequest::Inventory { master, after };
        let BackupResponse::Inventory(page) = backup.handle_request(now, from, request).response
        else {
            return found;
        };
        let Some(last) = page.last() else {
            return found;
        };
        after = Some(last.segment);
        for info in page {
            let request = BackupRequest::Fetch {
                master,
                segment: info.segment,
                offset: 0,
                length: info.length,
            };
            let answer = backup.handle_request(now, from, request);
            if let BackupResponse::Bytes { replica, .. } = answer.response {
                found.push((replica, answer.bytes.to_vec()));
            }
        }
    }
}

/// Whether every acknowledged operation on keys of `master` survives the loss of it and of any
/// `more` machines beside those in `down`.
pub fn check_master(
    world: &World,
    held: &[Held],
    record: &MasterRecord,
    owned: &Ownership<'_>,
    down: &BTreeSet<usize>,
    more: usize,
) -> Result<usize, Unsafe> {
    let candidates: Vec<usize> = held
        .iter()
        .filter(|held| !held.replicas.is_empty() && !down.contains(&held.machine))
        .map(|held| held.machine)
        .collect();
    let mut checked = 0;
    for others in subsets(&candidates, more) {
        let without: Vec<usize> = down.iter().copied().chain(others).collect();
        check_without(world, held, record, owned, &without)?;
        checked += 1;
    }
    Ok(checked)
}

fn check_without(
    world: &World,
    held: &[Held],
    record: &MasterRecord,
    owned: &Ownership<'_>,
    without: &[usize],
) -> Result<(), Unsafe> {
    let found: Vec<Found<'_>> = held
        .iter()
        .filter(|held| !without.contains(&held.machine))
        .flat_map(|held| {
            let boot = world.boot(held.machine);
            held.replicas.iter().map(move |(info, contents)| Found {
                backup: ServerId(held.machine as u64),
                info: *info,
                before_reboot: info.boot != boot,
                contents,
            })
        })
        .collect();
    // A replica whose newest certificate is torn shows what the one before says.
    let older = !world.damaged.is_empty() || !world.rolled_back.is_empty();
    let may_be_old = older || world.spoiled.contains(&record.master);
    let choice = match may_be_old {
        true => Choice::Longest,
        false => Choice::Shortest,
    };
    let log = log_end(record, &found, choice).map_err(|why| Unsafe::NoLog {
        master: record.master,
        without: without.to_vec(),
        why,
    })?;
    let counts = |place: &Place, at| owned(place).is_some_and(|takeover| at >= takeover);
    let replayed = durable::replay(&log.segments, &counts);
    let loses = |loss| Unsafe::Loses {
        master: record.master,
        without: without.to_vec(),
        loss,
    };
    if let Some((place, state)) = replayed.reused.first() {
        return Err(loses(Loss::VersionReused {
            place: place.clone(),
            state: *state,
        }));
    }
    for (place, operations) in world.history.keys() {
        if owned(place).is_some() {
            durable::check_key(place, operations, &replayed).map_err(loses)?;
        }
    }
    Ok(())
}

/// All subsets of `items` with just `size` members; of fewer if there are not so many.
fn subsets(items: &[usize], size: usize) -> Vec<Vec<usize>> {
    if size == 0 || items.is_empty() {
        return vec![Vec::new()];
    }
    if size >= items.len() {
        return vec![items.to_vec()];
    }
    let mut with: Vec<Vec<usize>> = subsets(&items[1..], size - 1);
    for subset in &mut with {
        subset.push(items[0]);
    }
    with.extend(subsets(&items[1..], size));
    with
}

/// Masters that the coordinator has not decided crashed, with their machines.
#[must_use]
pub fn living_masters(world: &World, state: &State) -> Vec<(usize, ServerId)> {
    world
        .server_machines()
        .filter_map(|machine| {
            let node = world.server(machine)?;
            let master = node.master()?;
            let found = state.servers().by_id(master.me())?;
            (found.state != ServerState::Crashed && !node.stopped())
                .then_some((machine, master.me()))
        })
        .collect()
}

/// The segments of a running master's log.
#[must_use]
pub fn segments(world: &World, machine: usize) -> Vec<SegmentId> {
    world
        .server(machine)
        .and_then(|node| node.master())
        .map(|master| master.store().writer().log().segments().collect())
        .unwrap_or_default()
}

/// The backups of each segment of a running master's log, as it knows them.
#[must_use]
pub fn placement(world: &World, machine: usize) -> Vec<(SegmentId, Vec<ServerId>)> {
    let Some(master) = world.server(machine).and_then(|node| node.master()) else {
        return Vec::new();
    };
    let segments = segments(world, machine).into_iter();
    segments
        .map(|segment| (segment, master.backups_of(segment)))
        .collect()
}

/// The head of a running master's log.
#[must_use]
pub fn head(world: &World, machine: usize) -> Option<SegmentId> {
    let master = world.server(machine)?.master()?;
    Some(master.store().writer().log().head())
}

/// The frames of the machine's disk, if no process runs there.
#[must_use]
pub fn frames(world: &World, machine: usize) -> Option<&MemoryStore> {
    match &world.machines[machine].disk {
        Disk::Frames(frames) => Some(frames),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::subsets;

    #[test]
    fn subsets_have_just_the_size_asked_for() {
        assert_eq!(subsets(&[1, 2, 3], 0), [Vec::<usize>::new()]);
        let two = subsets(&[1, 2, 3], 2);
        assert_eq!(two.len(), 3);
        assert!(two.iter().all(|subset| subset.len() == 2));
        assert_eq!(subsets(&[1], 2), [vec![1]]);
    }
}
