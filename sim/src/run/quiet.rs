//! The end of a run: faults have stopped, everything must become whole, then everything is read.

use std::collections::BTreeSet;
use std::time::Duration;

use ramkeep_coordinator::state::State;
use ramkeep_wire::coordinator::{Tablet, TabletState};
use ramkeep_wire::data::RejectRules;
use ramkeep_wire::{Micros, SegmentId, ServerId};

use super::{CONVERGENCE, LOOK, Run, STEP_LOOK};
use crate::history::{Action, Operation, Outcome, Place};
use crate::node::Node;
use crate::workload::Step;
use crate::{faults, inspect};

/// How long what is being decided when it is given up may take.
const SETTLES: Duration = Duration::from_secs(1);
/// Bytes of each value written at the end.
const LAST_VALUE: usize = 1_000;

impl Run {
    /// Looks whether the cluster is whole again; true when the run is over.
    pub(super) fn look(&mut self, now: Micros) -> bool {
        // Whatever was about to be killed or restarted when faults stopped.
        faults::end(&mut self.world);
        faults::note_recovered(&mut self.world);
        self.look_at_group(now);
        self.give_up_losses(now);
        let lacking = self.lacking();
        if lacking.is_empty() {
            if self.read_since.is_some() {
                self.judge_last_calls();
                return true;
            }
            self.read_since = Some(self.world.history.tick());
            self.read_everything();
        } else if now > self.patience && self.read_since.is_none() {
            self.stop_workloads();
        }
        // What is being decided just now is not waited for longer.
        let settles = now < self.gives_up + SETTLES && !self.group_lacks().is_empty();
        if !lacking.is_empty() && now > self.gives_up && !settles {
            if self.frames_are_short() {
                self.report.short_of_frames = true;
                return true;
            }
            let (lacking, free) = (lacking.join("; "), self.free_frames());
            self.find(&format!(
                "not whole again after {CONVERGENCE:?}: {lacking}; free frames: {free:?}"
            ));
            return true;
        }
        self.world
            .events
            .at(now + LOOK, crate::world::Event::Step(STEP_LOOK));
        false
    }

    /// With a tablet down for good, every operation on it takes its whole deadline.
    pub(super) fn stop_workloads(&mut self) {
        for machine in self.clients.clone() {
            let process = self.world.machines[machine].process;
            let _ = process.and_then(|process| {
                self.world.with(process, |node, _| {
                    if let Node::Client(client) = node {
                        client.books.workload_mut().stop();
                    }
                })
            });
        }
    }

    fn why_down(&self, server: ServerId) -> String {
        let reports = self.recoveries().into_iter();
        let mut reports = reports.filter(|report| report.master == server);
        let report = reports.next();
        report.map_or_else(|| "nobody leads".into(), |report| report.phase)
    }

    /// What is not as it should be in a cluster without faults.
    pub(super) fn lacking(&mut self) -> Vec<String> {
        let mut lacking = Vec::new();
        for machine in &self.clients {
            if let Some(client) = self.world.client(*machine)
                && !client.is_idle()
            {
                lacking.push(format!(
                    "{} has {} calls under way",
                    self.world.machines[*machine].address,
                    client.under_way()
                ));
            }
        }
        lacking.extend(self.group_lacks());
        let Some(coordinator) = inspect::recorded(&self.world) else {
            return vec!["the coordinators have decided nothing".into()];
        };
        let unserved = self.unserved(&coordinator);
        for (server, _) in unserved.iter().filter(|(_, promised)| *promised) {
            lacking.push(format!(
                "the tablets of {server:?} are down: {}",
                self.why_down(*server)
            ));
        }
        lacking.extend(self.not_served(&coordinator, &unserved));
        let masters = inspect::living_masters(&self.world, &coordinator);
        for (machine, server) in &masters {
            let stats = self
                .world
                .server(*machine)
                .and_then(|node| node.master())
                .map(|master| master.stats())
                .unwrap_or_default();
            if stats.under_replicated > 0 {
                lacking.push(format!(
                    "{server:?} has {} segments that lack a replica of {:?}",
                    stats.under_replicated,
                    inspect::placement(&self.world, *machine)
                ));
            }
        }
        if lacking.is_empty() {
            lacking.extend(self.leaks(&masters, unserved.is_empty()));
        }
        lacking
    }

    /// Tablets that are not served by their owner, but for those for which there is no memory.
    fn not_served(&self, state: &State, unserved: &[(ServerId, bool)]) -> Vec<String> {
        let mut lacking = Vec::new();
        let excused =
            |owner: ServerId| (unserved.iter()).any(|(dead, promised)| *dead == owner && !promised);
        let is_there = |tablet: &Tablet| {
            let mut servers = self.world.server_machines();
            let owner = servers.find_map(|machine| {
                let node = self.world.server(machine)?;
                (node.server() == tablet.owner).then_some(node)
            });
            let master = owner.and_then(|node| node.master());
            master.is_some_and(|master| {
                let tablets = master.store().tablets();
                tablets.iter().any(|owned| {
                    let range = &owned.range;
                    (range.table, range.first, range.last)
                        == (tablet.table, tablet.first, tablet.last)
                })
            })
        };
        let kept = state
            .tables()
            .iter()
            .filter(|record| record.dropping.is_none());
        for tablet in kept.flat_map(|record| &record.table.tablets) {
            let served = tablet.state == TabletState::Normal && is_there(tablet);
            if !served && !excused(tablet.owner) {
                lacking.push(format!("nobody serves {tablet:?}"));
            }
        }
        lacking
    }

    /// Nothing is broken any more: every key that is served can be read, and written where there is memory.
    fn judge_last_calls(&mut self) {
        let Some(since) = self.read_since else {
            return;
        };
        let Some(state) = inspect::recorded(&self.world) else {
            return;
        };
        let full: Vec<Tablet> = (self.full_masters(&state).into_iter())
            .flat_map(|owner| inspect::tablets(&state, owner))
            .collect();
        let failed = |place: &Place, operation: &&Operation| {
            let ended = matches!(operation.outcome, Outcome::Failed | Outcome::Unknown);
            let may_fail = operation.action.mutates() && inspect::tablet_of(&full, place).is_some();
            operation.invoked > since && ended && !may_fail
        };
        let lost: Vec<String> = (self.world.history.keys())
            .filter_map(|(place, operations)| {
                let last = operations.iter().find(|one| failed(place, one))?;
                let key = String::from_utf8_lossy(&place.1);
                let what = match last.action.mutates() {
                    true => "write",
                    false => "read",
                };
                Some(format!(
                    "the last {what} of {key} failed: {:?}",
                    last.outcome
                ))
            })
            .collect();
        if let Some(first) = lost.first() {
            self.find(first);
        }
    }

    /// Frames in use that no living master's log accounts for, or too few.
    pub(super) fn leaks(&mut self, masters: &[(usize, ServerId)], all_served: bool) -> Vec<String> {
        let mut wanted = BTreeSet::new();
        for (machine, server) in masters {
            let Some(master) = self.world.server(*machine).and_then(|node| node.master()) else {
                continue;
            };
            for segment in inspect::segments(&self.world, *machine) {
                for backup in master.backups_of(segment) {
                    wanted.insert((backup, *server, segment));
                }
            }
        }
        let mut found = BTreeSet::new();
        for (_, server) in masters {
            for held in inspect::held(&mut self.world, *server) {
                let backup = self.world.server(held.machine).map(|node| node.server());
                for (info, _) in held.replicas {
                    found.insert((backup.unwrap_or_default(), *server, info.segment));
                }
            }
        }
        let mut leaks: Vec<String> = wanted
            .difference(&found)
            .map(|(backup, master, segment)| format!("{backup:?} lacks {master:?} {segment:?}"))
            .collect();
        // What a change of an open head's backups left behind is kept until that head is closed.
        let heads: Vec<(ServerId, SegmentId)> = masters
            .iter()
            .filter_map(|(machine, server)| Some((*server, inspect::head(&self.world, *machine)?)))
            .collect();
        let (kept, extra): (Vec<_>, Vec<_>) = found
            .difference(&wanted)
            .partition(|(_, master, segment)| heads.contains(&(*master, *segment)));
        leaks.extend(extra.into_iter().map(|(backup, master, segment)| {
            format!("{backup:?} still has {master:?} {segment:?}")
        }));
        // Frames of masters decided dead are kept until they are recovered.
        if leaks.is_empty() && kept.is_empty() && all_served {
            leaks.extend(self.lost_frames(&wanted));
        }
        leaks
    }

    /// Frames that are in use without holding a complete replica.
    pub(super) fn lost_frames(
        &self,
        wanted: &BTreeSet<(ServerId, ServerId, SegmentId)>,
    ) -> Vec<String> {
        let mut lost = Vec::new();
        for machine in self.world.server_machines() {
            let Some(node) = self.world.server(machine) else {
                continue;
            };
            let Some(backup) = node.backup() else {
                continue;
            };
            let count = wanted
                .iter()
                .filter(|(b, _, _)| *b == node.server())
                .count();
            let used = backup.stats().used as usize;
            if used != count {
                let server = node.server();
                lost.push(format!(
                    "{server:?} has {used} frames in use for {count} replicas"
                ));
            }
        }
        lost
    }

    pub(super) fn read_everything(&mut self) {
        // Nobody serves the tablets of a master that is dead.
        let Some(coordinator) = inspect::recorded(&self.world) else {
            return;
        };
        let dead: Vec<_> = (self.dead.keys())
            .flat_map(|dead| inspect::tablets(&coordinator, *dead))
            .collect();
        let Some(first) = self.clients.first().copied() else {
            return;
        };
        let tables = self.world.client(first);
        let tables = tables.map_or_else(Vec::new, |client| client.tables().to_vec());
        let is_served = |place: &Place| inspect::tablet_of(&dead, place).is_none();
        let keys: Vec<Vec<u8>> = (self.world.history.keys())
            .filter(|(place, _)| tables.contains(&place.0) && is_served(place))
            .map(|(place, _)| place.1.clone())
            .collect();
        let whole = self.unserved(&coordinator).is_empty();
        let Some(process) = self.world.machines[first].process else {
            return;
        };
        // Enough writes that every head rolls over, then a look at everything.
        let segment = self.world.config.settings.segment_size as usize;
        let masters = (self.world.server_machines())
            .filter(|m| faults::is_master(&self.world, *m))
            .count();
        let writes = masters * 2 * segment / LAST_VALUE;
        self.world.with(process, |node, context| {
            if let Node::Client(client) = node {
                for number in 0..writes {
                    let key = format!("last{number}").into_bytes();
                    if !client
                        .books
                        .place(&key)
                        .is_some_and(|place| is_served(&place))
                    {
                        continue;
                    }
                    let mut value = format!("last{number}-").into_bytes();
                    value.resize(LAST_VALUE, b'.');
                    let rules = RejectRules::default();
                    let write = Action::Write { value, rules };
                    client.books.workload_mut().add(Step::Key(key, write));
                }
                if whole {
                    client.books.workload_mut().add(Step::Scan);
                }
                for key in keys {
                    client
                        .books
                        .workload_mut()
                        .add(Step::Key(key, Action::Read));
                }
                client.poke(context);
            }
        });
    }
}
