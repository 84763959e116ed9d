//! What must hold of the coordinators: at the end of a run they work again soon, agree on all that
//! was decided, and have done each thing that was asked of them once.

use std::time::Duration;

use ramkeep_wire::coordinator::Roles;
use ramkeep_wire::{Micros, ServerId, postcards};

use super::Run;
use crate::node::Node;

/// Once faults have stopped: how soon there is a leader, a server can join, a table can be made and
/// dropped. Beside what disks take.
const WORKS_AFTER: Duration = Duration::from_secs(2);
/// Syncs, one after another, that a leader's election and a few decisions may need.
const SYNCS_NEEDED: u32 = 12;

impl Run {
    /// Faults have stopped: from now on a server joins, and tables are made.
    pub(super) fn group_must_work(&mut self) {
        for machine in self.world.coordinator_machines().collect::<Vec<_>>() {
            if let Some(process) = self.world.machines[machine].process {
                self.world.with(process, |node, context| {
                    if let Node::Coordinator(node) = node {
                        node.mend_disk(context);
                    }
                });
            }
        }
        let (master, backup) = (false, true);
        let machine = (self.world).add_server(Roles { master, backup }, self.frames, 0);
        self.joined = Some(machine);
        for admin in self.admins.clone() {
            if let Some(process) = self.world.machines[admin].process {
                self.world.with(process, |node, context| {
                    if let Node::Admin(node) = node {
                        node.books.more_rounds(2);
                        node.poke(context);
                    }
                });
            }
        }
    }

    fn works_by(&self) -> Micros {
        let slowest = self.world.config.sync.iter().map(|(_, most)| *most).max();
        let syncs = Duration::from_micros(slowest.unwrap_or_default()) * SYNCS_NEEDED;
        self.quiet_since + WORKS_AFTER + syncs
    }

    /// Whether what must work again does so in time.
    pub(super) fn look_at_group(&mut self, now: Micros) {
        if now < self.works_by() {
            return;
        }
        if self.world.leader().is_none() {
            self.find("no coordinator leads although nothing is broken any more");
        }
        let joined = self.joined.take();
        let joins = joined.and_then(|machine| self.world.server(machine));
        if joins.is_some_and(|node| node.server() == ServerId(0)) {
            self.find("a server can't join although nothing is broken any more");
        }
    }

    /// What is not as it should be in a group without faults.
    pub(super) fn group_lacks(&self) -> Vec<String> {
        let mut lacking = Vec::new();
        for machine in &self.admins {
            if let Some(admin) = self.world.admin(*machine)
                && !admin.is_idle()
            {
                lacking.push(format!(
                    "{} is not done",
                    self.world.machines[*machine].address
                ));
            }
        }
        let newest = self.world.group.slot();
        for machine in self.world.coordinator_machines() {
            let address = &self.world.machines[machine].address;
            match self.world.coordinator(machine) {
                None => lacking.push(format!("{address} does not run")),
                Some(node) if !node.core().node().is_member() => {
                    lacking.push(format!("{address} is no member"));
                }
                Some(node) if node.core().node().decided().0 < newest => {
                    lacking.push(format!("{address} is behind"));
                }
                Some(_) => {}
            }
        }
        lacking
    }

    /// The checks at the end.
    pub(super) fn judge_group(&mut self) {
        for machine in self.admins.clone() {
            let Some(admin) = self.world.admin(machine) else {
                continue;
            };
            for complaint in admin.complaints.clone() {
                self.find(&complaint);
            }
        }
        let mut states = Vec::new();
        for machine in self.world.coordinator_machines() {
            let Some(node) = self.world.coordinator(machine) else {
                continue;
            };
            let slot = node.core().node().decided();
            states.push((slot, postcards::encode(node.core().state())));
        }
        if self.report.findings.is_empty() && states.windows(2).any(|pair| pair[0] != pair[1]) {
            self.find("the coordinators did not end with the same state");
        }
        let refused: u64 = self.world.client_books().map(|books| books.failed()).sum();
        if self.group_only && refused > 0 {
            self.find(&format!(
                "{refused} operations failed although only coordinators were harmed"
            ));
        }
    }
}
