//! The operator: where more is lost than the promise covers, what is left must be served once that is
//! given up, and everything else works all along.

use std::time::Duration;

use ramkeep_wire::Micros;
use ramkeep_wire::coordinator::{AcceptedLoss, RecoveryReport, Request};

use super::Run;
use crate::node::Node;

/// How long after the faults the operator looks what has not come back.
const LOOKS_AFTER: Duration = Duration::from_secs(10);

impl Run {
    /// What the leader says of dead masters' logs.
    pub(super) fn recoveries(&self) -> Vec<RecoveryReport> {
        let leader = self.world.leader();
        let leader = leader.and_then(|machine| self.world.coordinator(machine));
        leader.map_or_else(Vec::new, |leader| leader.core().recovery_reports())
    }

    /// Gives up what a log can't be recovered without, if there is such a one.
    pub(super) fn give_up_losses(&mut self, now: Micros) {
        if !self.beyond || now < self.quiet_since + LOOKS_AFTER {
            return;
        }
        let lost = self.recoveries().into_iter().find_map(|report| {
            let master = report.master;
            let loss = report.missing.filter(|_| report.stuck)?;
            Some(AcceptedLoss { master, loss })
        });
        let process = self.admins.first();
        let process = process.and_then(|admin| self.world.machines[*admin].process);
        let (Some(accepted), Some(process)) = (lost, process) else {
            return;
        };
        if !self.gave_up {
            self.judge_history();
            self.gave_up = true;
        }
        self.world.with(process, |node, context| {
            if let Node::Admin(admin) = node
                && admin.books.is_idle()
            {
                admin.books.ask_for(Request::AcceptLoss(accepted));
                admin.poke(context);
            }
        });
    }
}
