//! Whether everything acknowledged survives, looked into again and again while a run goes on.

use std::collections::BTreeSet;

use ramkeep_coordinator::state::State;
use ramkeep_wire::ServerId;
use ramkeep_wire::backup::ReplicaInfo;
use ramkeep_wire::coordinator::Tablet;

use super::{CrashPoint, Dead, Reached, Run};
use crate::check::log_end::MasterRecord;
use crate::history::Place;
use crate::promise::{self, Lost};
use crate::{faults, inspect};

impl Run {
    /// What is left right after a death is what counts; and what is recorded of a master when it is
    /// decided dead is what its recovery goes by (SAFETY 4).
    pub(super) fn notice_deaths(&mut self) {
        let slot = self.world.group.slot();
        if self.slot != slot
            && let Some(state) = inspect::recorded(&self.world)
        {
            self.slot = slot;
            for (point, server) in self.decisions.follow(&state) {
                let owner = (point == CrashPoint::Committed).then_some(server);
                let machine = owner.and_then(|one| promise::machine_of(&self.world, &state, one));
                self.world.reached.push(Reached { point, machine });
            }
            for (server, found) in state.servers().iter() {
                if found.is_crashed()
                    && found.roles.master
                    && !self.dead.contains_key(&server)
                    && let Some(record) = inspect::master_record(&state, server)
                {
                    let (lost, since) = (self.world.wiped.clone(), self.world.losses.len());
                    let dead = Dead {
                        record,
                        lost,
                        since,
                        width: width(&state, server),
                    };
                    self.dead.insert(server, dead);
                    if !self.quiet {
                        self.faults.crash_decided(&mut self.world, server);
                    }
                }
            }
        }
        if self.deaths != self.world.deaths {
            self.deaths = self.world.deaths;
            if !self.quiet {
                self.check_durability();
            }
        }
    }

    /// Takes every master for dead, one at a time, and recovers its log from what backups hold.
    pub(super) fn check_durability(&mut self) {
        if self.beyond {
            return;
        }
        faults::note_recovered(&mut self.world);
        let Some(coordinator) = inspect::recorded(&self.world) else {
            return;
        };
        let living = inspect::living_masters(&self.world, &coordinator);
        for (_, server) in &living {
            if let Some(record) = inspect::master_record(&coordinator, *server) {
                let lost = promise::lost(&self.world, &coordinator, *server, &self.world.wiped);
                self.check_master(&coordinator, &record, &lost);
            }
        }
        for (server, dead) in self.dead.clone() {
            let lost = self.lost_of_dead(&coordinator, server, &dead);
            self.check_master(&coordinator, &dead.record, &lost);
        }
    }

    pub(super) fn check_master(&mut self, coordinator: &State, record: &MasterRecord, lost: &Lost) {
        let owned = inspect::tablets(coordinator, record.master);
        if owned.is_empty() {
            return;
        }
        let held = inspect::held(&mut self.world, record.master);
        let ownership =
            |place: &Place| inspect::tablet_of(&owned, place).map(|tablet| tablet.takeover);
        // Frames that were lost count against the promise until they are made up for, though their
        // machine may hold new ones by now. A killed process comes back with its frames: it may be
        // taken for lost, or not.
        let without = faults::down(&self.world).into_iter();
        let without = without.filter(|m| self.world.machines[*m].process.is_none());
        let (without, none) = (without.collect(), BTreeSet::new());
        for (down, lost) in [(&without, lost.copies()), (&none, lost.for_good())] {
            let Some(more) = self.replicas.checked_sub(lost + 1) else {
                continue;
            };
            match inspect::check_master(&self.world, &held, record, &ownership, down, more) {
                Ok(checked) => self.report.recoveries += checked,
                Err(why) => {
                    self.show_held(coordinator, record.master, &held);
                    return self.find(&why.to_string());
                }
            }
        }
    }

    /// Nobody makes up for what a dead master's replicas lose.
    fn lost_of_dead(&self, coordinator: &State, master: ServerId, dead: &Dead) -> Lost {
        let since = dead.since..self.world.losses.len();
        let losses = dead.lost.iter().copied().chain(since).collect();
        promise::lost(&self.world, coordinator, master, &losses)
    }

    /// Dead masters whose tablets are down, and whether the promise says that they come back.
    pub(super) fn unserved(&self, coordinator: &State) -> Vec<(ServerId, bool)> {
        let down =
            |(server, _): &(&ServerId, _)| !inspect::tablets(coordinator, **server).is_empty();
        let promised = |(server, dead): (&ServerId, &Dead)| {
            let lost = self.lost_of_dead(coordinator, *server, dead);
            // What is lost beyond the promise is given up.
            let promised = lost.for_good() < self.replicas || self.beyond;
            (*server, promised && self.fits(coordinator, *server))
        };
        self.dead.iter().filter(down).map(promised).collect()
    }

    pub(super) fn show_held(
        &mut self,
        coordinator: &State,
        master: ServerId,
        held: &[inspect::Held],
    ) {
        let server = coordinator.servers().by_id(master);
        let tablets = inspect::tablets(coordinator, master);
        self.world
            .say(format_args!("-- {server:?} with {tablets:?}"));
        let machines: Vec<usize> = self.world.server_machines().collect();
        for machine in machines {
            if self
                .world
                .server(machine)
                .is_some_and(|n| n.server() == master)
            {
                let placement = inspect::placement(&self.world, machine);
                self.world
                    .say(format_args!("-- {master:?} counts on {placement:?}"));
            }
        }
        for held in held {
            let infos: Vec<_> = held.replicas.iter().map(|(i, _)| brief(i)).collect();
            let (machine, text) = (held.machine, infos.join(", "));
            self.world
                .say(format_args!("-- machine {machine} holds {text}"));
        }
    }
}

fn brief(info: &ReplicaInfo) -> String {
    format!(
        "{}: {}{}{} bytes at {}",
        info.segment,
        if info.closed { "closed " } else { "" },
        if info.inherited { "inherited " } else { "" },
        info.length,
        info.epoch
    )
}

/// How many hashes the tablets of a master have.
pub(super) fn width(state: &State, master: ServerId) -> u128 {
    let tablets = inspect::tablets(state, master);
    let width = |tablet: &Tablet| u128::from(tablet.last.0 - tablet.first.0) + 1;
    tablets.iter().map(width).sum()
}
