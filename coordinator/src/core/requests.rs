//! Requests and their answers.

use ramkeep_wire::coordinator::{
    Answer, ClusterStatus, CoordinatorReport, GroupCounters, Heartbeat, Once, Refused, Request,
    ServerReport, ServerState, Symptom,
};
use ramkeep_wire::limits::{MAX_PAYLOAD, MAX_REPLICAS, MAX_TABLE_NAME, MAX_TRIES_HELD};
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::{ClientId, Micros, Party, PeerId, ServerId, TableId};

use super::waiting::Wanted;
use super::{Coordinator, Origin, Replacing};
use crate::command::Command;
use crate::limits::CLIENT_LEASE;
use crate::state::{check_enlist, check_loss};

impl Coordinator {
    /// A request came in. Its answer comes as [`super::Output::Reply`] with `token`, now or later.
    pub fn handle_request(&mut self, now: Micros, from: Party, token: u64, request: Request) {
        self.wake(now);
        if request == Request::Counters {
            self.reply_decided(token, Answer::Counters(self.counters()));
        } else if !self.leads() {
            self.redirect(token);
        } else if let Err(why) = speaks_for_itself(from, &request) {
            self.refuse(token, why);
        } else {
            self.request(token, request);
        }
        self.settle();
    }

    fn request(&mut self, token: u64, request: Request) {
        match request {
            Request::Heartbeat(report) => self.heartbeat(token, report),
            Request::Suspect {
                server,
                by,
                symptom,
            } => self.suspect(token, server, by, symptom),
            Request::RenewClientLease { client } => self.renew(token, client),
            Request::CreateTable { name, once } => self.create_table(token, name, once),
            Request::Map { known } => {
                if known == self.state.map_version() {
                    self.reply(token, Answer::Map(None));
                } else {
                    self.reply_map(token);
                }
            }
            Request::Servers { known } => {
                let newer = known != self.state.list_version();
                let list = newer.then(|| self.state.server_list());
                self.reply(token, Answer::Servers(list));
            }
            Request::Status => self.status(token),
            Request::AcceptLoss(accepted) => self.accept_loss(token, accepted),
            // Answered already.
            Request::Counters => {}
            Request::ReplaceCoordinator { lost, by } => {
                self.replace(Replacing { token, lost, by });
            }
            Request::Enlist(enlist) => self.enlist(token, enlist),
            Request::RecordEpoch { .. }
            | Request::OpenClientLease { .. }
            | Request::CloseClientLease { .. }
            | Request::DropTable { .. } => self.propose_request(token, request),
        }
    }

    pub(super) fn propose_request(&mut self, token: u64, request: Request) {
        if let Err(why) = fits(&request) {
            return self.refuse(token, why);
        }
        if !self.consensus.has_room() || self.backlog.is_full() {
            return self.refuse(token, Refused::Limit("commands under way".into()));
        }
        let command = match request {
            Request::Enlist(request) => Command::Enlist {
                request,
                key: ramkeep_wire::CertificateKey(self.entropy.draw()),
            },
            Request::RecordEpoch {
                master,
                segment,
                epoch,
                backups,
            } => Command::RecordEpoch {
                master,
                segment,
                epoch,
                backups,
            },
            Request::OpenClientLease { nonce } => Command::OpenClientLease { nonce },
            Request::CloseClientLease { client } => {
                self.leases.remove(&client);
                Command::ExpireClientLease { client }
            }
            Request::DropTable { name, once } => Command::DropTable { name, once },
            Request::AcceptLoss(accepted) => Command::AcceptLoss(accepted),
            Request::CreateTable { name, once } => {
                let command = Command::CreateTable {
                    name: name.clone(),
                    once,
                };
                return self.propose(&command, Origin::Create(token, name, once));
            }
            _ => return self.refuse(token, Refused::Invalid("this needs no command".into())),
        };
        self.propose(&command, Origin::Request(token));
    }

    pub(super) fn create_table(&mut self, token: u64, name: String, once: Option<Once>) {
        if name.is_empty() || name.len() > MAX_TABLE_NAME {
            return self.refuse(token, Refused::TableName);
        }
        let known = self.state.tables().by_name(&name);
        match known.map(|record| (record.dropping.is_some(), record.table.table)) {
            None => self.propose_request(token, Request::CreateTable { name, once }),
            Some((true, _)) => self.wait(token, Wanted::Room(name, once)),
            Some((false, table)) => self.wait_for_table(token, table),
        }
    }

    fn wait_for_table(&mut self, token: u64, table: TableId) {
        // Settled before this input ends if it is served already.
        self.wait(token, Wanted::Served(table));
    }

    fn heartbeat(&mut self, token: u64, report: Heartbeat) {
        let server = report.server;
        let found = match self.state.living(server) {
            Ok(found) => found,
            Err(why) => return self.refuse(token, why),
        };
        let reported = self.reported.get(&server);
        let ready = report.ready
            && found.state == ServerState::Joining
            && !reported.is_some_and(|reported| reported.ready);
        let known = reported
            .and_then(|reported| reported.floor)
            .max(found.floor);
        let floor = report
            .floor
            .filter(|floor| known.is_none_or(|k| k < *floor));
        // Without backups nobody else could grant it (SAFETY 7). A crash that is decided ends this:
        // `fence` waits out the last grant from then on.
        let lease_us = self.state.constants().map_or(0, |constants| {
            let alone = constants.settings.replicas == 0 && found.roles.master;
            if alone {
                constants.settings.lease_us
            } else {
                0
            }
        });
        let newer = report.list < self.state.list_version();
        let list = newer.then(|| self.state.server_list());
        let ended = report
            .clients
            .map(|from| self.state.clients().ended_from(from));
        let tries = report.tries.iter().take(MAX_TRIES_HELD);
        let over = tries.filter(|held| !self.state.wants_try(server, held));
        let over = over.copied().collect();
        self.list_confirmed(server, report.list);
        let damaged = report.damaged.iter();
        damaged.for_each(|replica| self.damaged.note(*replica));
        if let Some(watch) = self.watches.get_mut(&server) {
            watch.hear(self.now);
            watch.heartbeat = Some(report);
            self.claim_is_refused(server);
        }
        if ready {
            self.reported.entry(server).or_default().ready = true;
            let command = Command::ServerReady { server };
            self.propose(&command, Origin::Report(server));
        }
        if let Some((segment, epoch)) = floor {
            self.reported.entry(server).or_default().floor = floor;
            let command = Command::RaiseFloor {
                master: server,
                segment,
                epoch,
            };
            self.propose(&command, Origin::Report(server));
        }
        let heard = Answer::Heard {
            list,
            lease_us,
            ended: ended.unwrap_or_default(),
            over,
        };
        self.reply(token, heard);
    }

    fn suspect(&mut self, token: u64, server: ServerId, by: ServerId, symptom: Symptom) {
        match self.state.living(by) {
            Ok(_) => {
                if mutants::active(Mutant::BelievePeers) {
                    let crashed = Command::DeclareCrashed { server };
                    self.propose(&crashed, Origin::Crash(server));
                } else if let Some(watch) = self.watches.get_mut(&server)
                    && watch.report(self.now)
                {
                    tracing::debug!(%server, %by, ?symptom, "a server is said to be dead: it is asked");
                    self.look = true;
                }
                self.reply(token, Answer::Noted);
            }
            Err(why) => self.refuse(token, why),
        }
    }

    fn renew(&mut self, token: u64, client: ClientId) {
        match self.leases.get_mut(&client) {
            Some(until) => {
                *until = self.now + CLIENT_LEASE;
                self.reply(token, Answer::Noted);
            }
            None => self.refuse(token, Refused::Unknown),
        }
    }

    pub(super) fn answer_enlisted(&mut self, token: u64, server: ServerId) {
        let (Some(found), Some(constants)) =
            (self.state.servers().by_id(server), self.state.constants())
        else {
            return self.refuse(token, Refused::Crashed);
        };
        let answer = Answer::Enlisted {
            server,
            cluster: constants.cluster,
            key: found.key,
            settings: constants.settings.clone(),
            list: self.state.server_list(),
        };
        self.reply_decided(token, answer);
    }

    pub(super) fn answer_lease(&mut self, token: u64, client: ClientId) {
        self.leases.insert(client, self.now + CLIENT_LEASE);
        self.look = true;
        let lease_us = u64::try_from(CLIENT_LEASE.as_micros()).unwrap_or(u64::MAX);
        self.reply_decided(token, Answer::ClientLease { client, lease_us });
    }

    fn counters(&self) -> GroupCounters {
        let stats = self.consensus.node().stats();
        GroupCounters {
            slots: stats.slots_proposed,
            commands: stats.commands_decided,
            accepts_sent: stats.accepts_sent,
            accepts_resent: stats.accepts_resent,
            accepts_taken: stats.accepts_answered,
            writes: stats.persists,
            syncs: self.syncs,
            heartbeats: stats.heartbeats,
            elections: stats.elections,
        }
    }

    /// The members of the group, then those who only learn.
    fn coordinators(&self) -> Vec<CoordinatorReport> {
        let node = self.consensus.node();
        let micros = |silent: std::time::Duration| u64::try_from(silent.as_micros()).ok();
        let members = node.members().into_iter().map(|member| CoordinatorReport {
            peer: PeerId(member.member.id.0),
            address: self.address_of(member.member.id).unwrap_or_default(),
            member: true,
            decided: member.decided.map(|slot| slot.0),
            silent_us: member.silent.and_then(micros),
        });
        let learners = node
            .learners()
            .into_iter()
            .map(|learner| CoordinatorReport {
                peer: PeerId(learner.id.0),
                address: learner.address,
                member: false,
                decided: Some(learner.decided.0),
                silent_us: micros(learner.silent),
            });
        members.chain(learners).collect()
    }

    fn status(&mut self, token: u64) {
        let Some(constants) = self.state.constants() else {
            return self.redirect(token);
        };
        let entries = self.state.servers().entries();
        let servers = entries.map(|entry| {
            let watch = self.watches.get(&entry.server);
            ServerReport {
                heartbeat: watch.and_then(|watch| watch.heartbeat.clone()),
                suspected: self.suspected(entry.server),
                entry,
            }
        });
        let mut status = ClusterStatus {
            cluster: constants.cluster,
            settings: constants.settings.clone(),
            leader: self.config.peer,
            decided: self.consensus.node().decided().0,
            coordinators: self.coordinators(),
            servers: servers.collect(),
            tables: self
                .state
                .tables()
                .iter()
                .map(|t| t.table.clone())
                .collect(),
            recoveries: self.recovery_reports(),
            losses: self.state.losses().iter().collect(),
            recovered: self.recoveries.finished(self.now),
            damaged: self.damaged.report(),
            shortages: self.shortages(),
        };
        // List and map fit by their limits; in a cluster that uses them up, reports are left out.
        if ramkeep_wire::postcards::encode(&status).len() + 1_024 > MAX_PAYLOAD {
            status.servers.iter_mut().for_each(|s| s.heartbeat = None);
            status.recoveries.iter_mut().for_each(|r| r.missing = None);
            status.losses.clear();
        }
        self.reply(token, Answer::Status(Box::new(status)));
    }
}

/// What would be refused for its size whatever the state is, is not put into the journal first.
fn fits(request: &Request) -> Result<(), Refused> {
    match request {
        Request::Enlist(enlist) => check_enlist(enlist),
        Request::CreateTable { name, .. } | Request::DropTable { name, .. }
            if name.len() > MAX_TABLE_NAME =>
        {
            Err(Refused::TableName)
        }
        Request::AcceptLoss(accepted) => check_loss(&accepted.loss),
        Request::RecordEpoch { backups, .. } if backups.len() > MAX_REPLICAS => Err(
            Refused::Invalid(format!("{} backups for a segment", backups.len())),
        ),
        _ => Ok(()),
    }
}

/// A server speaks for itself only. One that does not say who it is, is taken at its word: it is
/// about to be told whether that word still counts.
fn speaks_for_itself(from: Party, request: &Request) -> Result<(), Refused> {
    let speaker = match request {
        Request::Heartbeat(report) => report.server,
        Request::RecordEpoch { master, .. } => *master,
        Request::Suspect { by, .. } => *by,
        _ => return Ok(()),
    };
    if from == Party::NONE || from == Party::server(speaker) {
        return Ok(());
    }
    Err(Refused::Invalid(format!("{from:?} speaks for {speaker:?}")))
}
