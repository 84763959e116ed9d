//! What the leader does outside, derived from the replicated state.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::order::{Command as OrderCommand, Order, TabletGrant};
use ramkeep_wire::{ListVersion, LogPosition, Micros, ServerId, TableId};

use super::detector::{Verdict, Watch};
use super::duties::{self, Duty};
use super::waiting::Settled;
use super::{Coordinator, NOTHING_FOLLOWED, Origin, Output};
use crate::command::Command;
use crate::limits::{EXPIRED_AT_ONCE, LEASE_CHECK, PAUSE_SEEN};

const CLOCK_RATE_PARTS: u32 = ramkeep_wire::limits::CLOCK_RATE_PARTS as u32;

impl Coordinator {
    pub(super) fn suspect_after(&self) -> Duration {
        let settings = self.state.constants().map(|c| c.settings.suspect_us);
        Duration::from_micros(settings.unwrap_or(self.config.settings.suspect_us).into())
    }

    /// Brings everything outside in line with the state. Every input ends here.
    pub(super) fn settle(&mut self) {
        self.take_events();
        self.act();
        // What was proposed just now may be decided already.
        self.take_events();
    }

    fn act(&mut self) {
        if self.leads() {
            self.settle_replacing();
            let state = &self.state;
            let changes = state.recoveries().changes();
            let versions = (state.list_version(), state.map_version(), changes);
            if self.followed != versions {
                self.followed = versions;
                self.follow_servers();
                self.follow_duties();
                self.recoveries.follow(self.now, &self.state);
                self.look = true;
            }
            if self.look || self.next_look.is_none_or(|at| at <= self.now) {
                self.look();
            }
        }
    }

    fn look(&mut self) {
        self.look = true;
        while std::mem::take(&mut self.look) {
            self.settle_waiting();
        }
        self.judge();
        self.look_into_claims();
        self.fence();
        self.see_to_recoveries();
        self.expire_leases();
        self.give_orders();
        self.next_look = self.next_look();
    }

    /// When something is due by time alone. A sign of life may put it off meanwhile: then the look
    /// finds nothing to do.
    fn next_look(&self) -> Option<Micros> {
        let suspect = self.suspect_after();
        let awake = (!self.watches.is_empty()).then(|| self.now + PAUSE_SEEN / 2);
        let leases = (!self.leases.is_empty()).then(|| self.leases_checked + LEASE_CHECK);
        let watches = self.watches.values().filter(|watch| !watch.declaring);
        watches
            .map(|watch| watch.due(suspect))
            .chain(self.fences.values().copied())
            .chain(self.duties.due())
            .chain(self.recoveries.due())
            .chain(self.waiting.due())
            .chain(self.claims_due())
            .chain(leases)
            .chain(awake)
            .min()
    }

    /// Living servers are watched, crashed ones are not.
    fn follow_servers(&mut self) {
        let (state, now) = (&self.state, self.now);
        let begins = self.watches.is_empty();
        for (server, watch) in self
            .watches
            .extract_if(.., |server, _| state.living(*server).is_err())
        {
            if let Some(report) = watch.heartbeat {
                self.recoveries.note_report(server, report);
            }
        }
        self.reported
            .retain(|server, _| state.living(*server).is_ok());
        for (server, found) in state.servers().iter() {
            if !found.is_crashed() {
                let watch = self.watches.entry(server).or_insert(Watch::new(now));
                if begins && mutants::active(Mutant::TimersNotAfresh) {
                    *watch = Watch::long_silent();
                }
            }
        }
    }

    fn follow_duties(&mut self) {
        let (watches, now) = (&self.watches, self.now);
        let heartbeat = self
            .state
            .constants()
            .map_or(0, |c| c.settings.heartbeat_us);
        let soon = now + Duration::from_micros(heartbeat.into());
        self.duties.follow(now, &self.state, |server| {
            let watch = watches.get(&server);
            let confirmed = watch.map_or(ListVersion(0), |watch| watch.confirmed);
            // One who has just enlisted got the list with the answer, and soon says so.
            let heard = watch.is_some_and(|watch| watch.heartbeat.is_some());
            (confirmed, if heard { now } else { soon })
        });
    }

    pub(super) fn settle_waiting(&mut self) {
        for settled in self.waiting.settle(self.now, &self.state) {
            match settled {
                Settled::Answer(token, answer) => self.reply(token, answer),
                Settled::Create(token, name, once) => self.create_table(token, name, once),
            }
        }
    }

    /// A server is known to have a list.
    pub(super) fn list_confirmed(&mut self, server: ServerId, version: ListVersion) {
        if let Some(watch) = self.watches.get_mut(&server) {
            if watch.confirmed < version {
                watch.confirmed = version;
                self.look = true;
            }
            if watch.confirmed >= self.state.list_version() {
                self.duties.done(server, Duty::Update);
            }
        }
    }

    /// An owner says of each of these tablets where its log stood when it took it, if it did.
    pub(super) fn tablets_taken(
        &mut self,
        owner: ServerId,
        duty: Duty,
        tablets: impl Iterator<Item = (TabletGrant, Option<LogPosition>)>,
    ) {
        let (mut taken, mut refused) = (BTreeMap::new(), 0);
        for (tablet, position) in tablets {
            let position = match position {
                None if mutants::active(Mutant::RefusedIsTaken) => Some(LogPosition::ZERO),
                position => position,
            };
            match position {
                Some(position) => _ = taken.insert(tablet, position),
                None => refused += 1,
            }
            if position.is_some() && self.state.table(tablet.table).is_none() {
                // A late take of a table that is gone by now: have it undone.
                self.duties.undo(owner, tablet.table);
                self.followed = NOTHING_FOLLOWED;
            }
        }
        if refused > 0 {
            tracing::warn!(%owner, refused, "tablets were given that their owner can't take: its trace says why");
        }
        let pieces = taken.keys().copied().collect();
        let fresh = self.confirmed(owner, duty, &pieces);
        taken.retain(|tablet, _| fresh.contains(tablet));
        if !taken.is_empty() {
            let taken = taken.into_iter().collect();
            let origin = Origin::Confirmed(owner, duty, fresh);
            self.propose(&Command::TabletsTaken { owner, taken }, origin);
        }
    }

    /// An owner serves nothing of these tables any more.
    pub(super) fn tables_dropped(&mut self, owner: ServerId, tables: &[TableId]) {
        let pieces = tables.iter().map(|table| duties::whole(*table)).collect();
        let fresh = self.confirmed(owner, Duty::Drop, &pieces);
        if !fresh.is_empty() {
            let tables = fresh.iter().map(|piece| piece.table).collect();
            let origin = Origin::Confirmed(owner, Duty::Drop, fresh);
            self.propose(&Command::TablesDropped { owner, tables }, origin);
        }
    }

    fn confirmed(
        &mut self,
        owner: ServerId,
        duty: Duty,
        pieces: &BTreeSet<TabletGrant>,
    ) -> BTreeSet<TabletGrant> {
        self.look = true;
        self.duties.confirmed(self.now, owner, duty, pieces)
    }

    fn judge(&mut self) {
        let (now, after) = (self.now, self.suspect_after());
        let mut asked = Vec::new();
        let mut dead = Vec::new();
        for (server, watch) in &mut self.watches {
            if watch.declaring {
                continue;
            }
            match watch.judge(now, after) {
                Verdict::Fine | Verdict::Wait => {}
                Verdict::Probe => {
                    watch.probed(now);
                    asked.push(*server);
                }
                Verdict::Dead => {
                    watch.declaring = true;
                    dead.push(*server);
                }
            }
        }
        for server in asked {
            self.order(server, OrderCommand::Probe);
        }
        for server in dead {
            self.propose(&Command::DeclareCrashed { server }, Origin::Crash(server));
        }
    }

    /// A crashed master can't serve any more once all living backups know that it crashed, and
    /// refuse it, and what they had granted it before has run out; or what a coordinator granted it,
    /// if it has no backups: grants to it end with the decision, so that a whole lease from here on
    /// is enough, also for a leader that doesn't know when the last was granted. That holds while fewer than all
    /// backups of a head of it are zombies themselves; recovery, when it fences by inventory,
    /// needs no such clause.
    fn fence(&mut self) {
        let lease = self.state.constants().map_or(0, |c| c.settings.lease_us);
        let lease = Duration::from_micros(lease.into());
        let wait = lease + lease / CLOCK_RATE_PARTS + Duration::from_micros(1);
        let known = self.known_to_backups();
        let crashed = self
            .state
            .servers()
            .iter()
            .filter(|(_, s)| s.is_crashed() && !s.fenced);
        let ripe: Vec<ServerId> = crashed
            .filter(|(_, server)| server.crashed_in <= known)
            .map(|(id, _)| id)
            .collect();
        for server in ripe {
            let at = *self.fences.entry(server).or_insert(self.now + wait);
            if at <= self.now && at != Micros(u64::MAX) {
                // Proposed once: the command's decision takes the entry out.
                self.fences.insert(server, Micros(u64::MAX));
                self.propose(&Command::Fenced { server }, Origin::Fence(server));
            }
        }
    }

    /// The newest list whose dead can get nothing more from any living backup. Of those who died before
    /// it enlisted a backup need not have heard: they learn that it is there only from a list that says of
    /// them that they are dead, and end by it, as they would by any refusal. What a process before it
    /// granted them with the same directory came before it started, so that a lease from now on is
    /// longer. So nobody who enlists and is not heard of again holds up what the others know.
    pub(super) fn known_to_backups(&self) -> Option<ListVersion> {
        let heard = self.watches.iter().filter_map(|(server, watch)| {
            let found = self.state.servers().by_id(*server)?;
            let since = match mutants::active(Mutant::NewcomersHaveHeardNothing) {
                true => ListVersion(0),
                false => found.enlisted_in,
            };
            found.roles.backup.then_some(watch.confirmed.max(since))
        });
        Some(heard.min().unwrap_or(self.state.list_version()))
    }

    fn expire_leases(&mut self) {
        if self.now < self.leases_checked + LEASE_CHECK {
            return;
        }
        self.leases_checked = self.now;
        let now = self.now;
        let over = self.leases.iter().filter(|(_, until)| **until <= now);
        let over = over.take(EXPIRED_AT_ONCE);
        for client in over.map(|(client, _)| *client).collect::<Vec<_>>() {
            // From here on a renewal is refused: the lease's end is as good as decided.
            self.leases.remove(&client);
            let over = Command::ExpireClientLease { client };
            self.propose(&over, Origin::Expire(client));
        }
    }

    fn give_orders(&mut self) {
        for (server, duty) in self.duties.take_due(self.now) {
            let order = self
                .duties
                .order(&self.state, &self.recoveries, server, duty);
            match order {
                Some(command) => self.order(server, command),
                None => self.duties.done(server, duty),
            }
        }
    }

    fn order(&mut self, server: ServerId, command: OrderCommand) {
        let Ok(found) = self.state.living(server) else {
            return;
        };
        let order = Output::Order {
            server,
            addresses: found.addresses.clone(),
            order: Order {
                ballot: self.ballot(),
                command,
            },
        };
        self.outputs.push_back(order);
    }
}
