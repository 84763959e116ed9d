//! Recoveries, as the leader sees to them: it looks for the end of each crashed master's log, plans,
//! and has the partitions replayed until none is left.
//!
//! # Invariants
//! 1. All of this is soft: what is decided is in the replicated state, and a new leader finds the rest
//!    again.
//! 2. Backups are asked only once every one that was there when the master crashed is known to have heard
//!    of that, and so refuses the master (SAFETY 5, 12). One that has enlisted since is asked once it is
//!    known to have, and holds up nobody for longer than [`NEWCOMER_WAIT`](crate::limits::NEWCOMER_WAIT).
//! 3. A log whose end is decided is searched again only when a recovery master can't replay it. If
//!    nobody holds that end any more, and another is proved, the plan is given up.
//! 4. Searches and questions under way are bounded.

mod end;
mod plan;
mod planning;
mod replay;
mod report;
mod room;
mod round;
mod search;
mod walk;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ramkeep_wire::backup::BackupResponse;
use ramkeep_wire::coordinator::{DamagedReplica, Heartbeat, TabletState};
use ramkeep_wire::{BootId, ListVersion, Micros, ServerId};

use super::detector::Watch;
use super::{Coordinator, Origin, Output};
use crate::limits::{ASK_SOON, MAX_SEARCHES};
use crate::state::State;
use planning::Budget;
use report::Ended;
use round::{Act, Questions, Round};
use search::Living;
use walk::{Walk, dead};

pub(super) use replay::under_way;

/// All recoveries with what only the leader knows of them.
#[derive(Debug, Default)]
pub(super) struct Recoveries {
    walks: BTreeMap<ServerId, Walk>,
    questions: Questions,
    /// The last reports of crashed masters.
    reports: BTreeMap<ServerId, Heartbeat>,
    /// The last ones that came to their end.
    ended: VecDeque<Ended>,
}

/// What all recoveries look at.
struct View<'a> {
    state: &'a State,
    watches: &'a BTreeMap<ServerId, Watch>,
    now: Micros,
    /// The newest list that all living backups are known to have.
    known: Option<ListVersion>,
    backups: BTreeMap<ServerId, BootId>,
    partition_bytes: u64,
}

impl Recoveries {
    /// As a new leader begins.
    pub(super) fn forget(&mut self) {
        *self = Self {
            questions: self.questions.anew(),
            ..Self::default()
        };
    }

    /// A server crashed: its last report says how much it had.
    pub(super) fn note_report(&mut self, server: ServerId, report: Heartbeat) {
        self.reports.insert(server, report);
    }

    /// Follows the state: recoveries begin and end.
    pub(super) fn follow(&mut self, now: Micros, state: &State) {
        let mut counts: BTreeMap<ServerId, (usize, usize)> = BTreeMap::new();
        for tablet in state.tables().lost() {
            let (down, lost) = counts.entry(tablet.owner).or_default();
            *down += usize::from(tablet.state == TabletState::Down);
            *lost += 1;
        }
        let over = |master: &ServerId, _: &mut Walk| !counts.contains_key(master);
        for (master, walk) in self.walks.extract_if(.., over) {
            report::note_ended(&mut self.ended, now, master, &walk);
        }
        self.reports.retain(|master, _| counts.contains_key(master));
        for (master, (down, lost)) in counts {
            let walk = self.walks.entry(master).or_insert_with(|| Walk::new(now));
            (walk.down, walk.lost) = (down, lost);
            if walk.stuck.is_some() {
                // A backup or a master may have come.
                walk.again = walk.again.min(now);
            }
            walk.follow(now, master, state);
        }
    }

    /// When something is due by time alone.
    pub(super) fn due(&self) -> Option<Micros> {
        self.walks.values().filter_map(Walk::due).min()
    }
}

impl View<'_> {
    /// Whether this master gets nothing more from any living backup.
    fn is_known_crashed(&self, master: ServerId) -> bool {
        let found = self.state.servers().by_id(master);
        found.is_some_and(|dead| dead.crashed_in <= self.known)
    }

    /// How long a master lease is.
    fn lease(&self) -> Duration {
        let lease_us = self.state.constants().map_or(0, |c| c.settings.lease_us);
        Duration::from_micros(lease_us.into())
    }

    /// The living backups, as the search for the end of this master's log sees them.
    fn living_backups(&self, master: ServerId) -> BTreeMap<ServerId, Living> {
        let servers = self.state.servers();
        let crashed_in = servers.by_id(master).and_then(|dead| dead.crashed_in);
        let seen = self.backups.iter().map(|(server, boot)| {
            let confirmed = self.watches.get(server).map(|watch| watch.confirmed);
            let enlisted = servers.by_id(*server).map(|found| found.enlisted_in);
            let living = Living {
                boot: *boot,
                refuses: confirmed >= crashed_in,
                is_new: enlisted > crashed_in,
            };
            (*server, living)
        });
        seen.collect()
    }

    /// Crashed backups whose frames no living server has taken over, and that may hold something of
    /// this master: who crashed before it joined does not.
    fn crashed_backups(&self, master: ServerId) -> Vec<ServerId> {
        let servers = self.state.servers();
        let joined = servers.by_id(master).map(|dead| dead.enlisted_in);
        let may_hold = |server: &ServerId| {
            let crashed = servers.by_id(*server).and_then(|one| one.crashed_in);
            *server != master && joined.is_none_or(|joined| crashed > Some(joined))
        };
        servers.away().into_iter().filter(may_hold).collect()
    }
}

impl Coordinator {
    fn view(&self) -> View<'_> {
        View {
            state: &self.state,
            watches: &self.watches,
            now: self.now,
            known: self.known_to_backups(),
            backups: self.living_backups(),
            partition_bytes: self.partition_bytes,
        }
    }

    /// Takes every recovery as far as it goes now.
    pub(super) fn see_to_recoveries(&mut self) {
        if self.recoveries.walks.is_empty() {
            return;
        }
        let mut recoveries = std::mem::take(&mut self.recoveries);
        let view = self.view();
        let acts = recoveries.go_on(&view);
        self.recoveries = recoveries;
        self.carry_out(acts);
    }

    /// Has logs of so many bytes go to one recovery master, if there are enough of those: for tests with
    /// small ones.
    #[must_use]
    pub fn with_partitions_of(mut self, bytes: u64) -> Self {
        self.partition_bytes = bytes;
        self
    }

    /// The crashed masters the end of whose logs is known here.
    #[must_use]
    pub fn ends_found(&self) -> Vec<ServerId> {
        let walks = self.recoveries.walks.iter();
        let found = walks.filter(|(_, walk)| walk.found.is_some());
        found.map(|(master, _)| *master).collect()
    }

    fn living_backups(&self) -> BTreeMap<ServerId, BootId> {
        let servers = self.state.servers().iter();
        let living = servers.filter(|(_, s)| s.roles.backup && !s.is_crashed());
        living.map(|(id, server)| (id, server.boot)).collect()
    }

    fn carry_out(&mut self, acts: Vec<Act>) {
        for act in acts {
            match act {
                Act::Ask {
                    server,
                    token,
                    request,
                } => {
                    let addresses = self.state.living(server).map(|s| s.addresses.clone());
                    self.outputs.push_back(Output::Ask {
                        server,
                        addresses: addresses.unwrap_or_default(),
                        token,
                        request,
                    });
                }
                Act::Propose(master, command) => {
                    self.propose(&command, Origin::Recovery(master));
                }
            }
        }
    }

    /// A server answered what [`Output::Ask`] asked, with the bytes that a fetch brings; or the
    /// question or its answer was lost.
    pub fn handle_backup_answer(
        &mut self,
        now: Micros,
        server: ServerId,
        token: u64,
        answer: Option<(BackupResponse, Vec<u8>)>,
    ) {
        self.wake(now);
        if answer.is_some()
            && let Some(watch) = self.watches.get_mut(&server)
        {
            watch.hear(now);
        }
        if let Some(master) = self.recoveries.questions.answered(token)
            && let Some(walk) = self.recoveries.walks.get_mut(&master)
            && let Some(dead) = dead(&self.state, master)
            && let Some(search) = &mut walk.search
        {
            let finder = &mut walk.finder;
            search.answered(self.now, &dead, finder, server, token, answer);
            for (backup, segment) in finder.aside() {
                self.damaged.note(DamagedReplica {
                    backup,
                    master,
                    segment,
                });
            }
            self.look = true;
        }
        self.settle();
    }

    /// A command for a recovery is decided, or lost.
    pub(super) fn recovery_decided(&mut self, master: ServerId, refused: bool) {
        let now = self.now;
        if let Some(walk) = self.recoveries.walks.get_mut(&master) {
            walk.proposed = walk.proposed.saturating_sub(1);
            if refused {
                walk.again = now + ASK_SOON;
            }
            if walk.proposed == 0 {
                let replays = walk.replays.values_mut();
                replays.for_each(|replay| replay.proposed = false);
            }
            self.look = true;
        }
    }
}

impl Recoveries {
    fn go_on(&mut self, view: &View<'_>) -> Vec<Act> {
        let searches = self.walks.values().filter(|walk| walk.search.is_some());
        let room = MAX_SEARCHES.saturating_sub(searches.count());
        let mut budget = Budget::default();
        for (master, walk) in &self.walks {
            let planned = view.state.recoveries().by_master(*master).is_some();
            if planned || walk.proposed > 0 {
                budget.add(*master, walk.takes(*master, view));
            }
        }
        self.questions.forget_the_dead(view);
        let mut round = Round {
            view,
            questions: &mut self.questions,
            room,
            budget,
            acts: Vec::new(),
        };
        for (master, walk) in &mut self.walks {
            walk.go_on(*master, self.reports.get(master), &mut round);
        }
        round.acts
    }
}
