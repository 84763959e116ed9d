//! Servers that answer by themselves, as masters and backups do.

use std::collections::BTreeMap;

use ramkeep_wire::backup::{BackupRequest, BackupResponse, ReplicaInfo};
use ramkeep_wire::coordinator::{
    Answer, BackupStats, Enlist, Heartbeat, MasterStats, Request, ServerList, ServerState, Tablet,
    TabletState,
};
use ramkeep_wire::order::{Command, LogEnd, LostTablet, Order, OrderReply, Recovery};
use ramkeep_wire::{BootId, ListVersion, LogPosition, Micros, SegmentId, ServerId, TableId};

use super::*;

pub(super) const BOOT: BootId = BootId([3; 16]);
/// What a backup still grants when it hears of a crash.
const GRANT_US: u64 = 100_000;
/// Polls that a replay takes.
const POLLS: u32 = 3;

/// What a server does when it is to replay.
#[derive(Clone, Debug, Default)]
pub enum Behaviour {
    #[default]
    Recovers,
    Cannot(String),
    /// It could not prove this segment, unless that may be missing.
    CannotProve(SegmentId),
    /// The same for the log of this one alone.
    CannotFor(ServerId),
    /// A quarter of all hashes, replayed, takes so many bytes of what is free.
    Takes(u64),
    /// It goes on without end.
    Goes,
    /// The same for the log of this one alone.
    GoesFor(ServerId),
}

/// A server.
#[derive(Default)]
pub struct Fake {
    pub replicas: Vec<(ReplicaInfo, Vec<u8>)>,
    fenced: BTreeMap<ServerId, Micros>,
    list: ListVersion,
    pub behaviour: Behaviour,
    polls: BTreeMap<(ServerId, u32), u32>,
    /// What became of tries that it could not replay.
    failed: BTreeMap<(ServerId, u32), OrderReply>,
    /// All that it was ordered to replay.
    pub recoveries: Vec<Recovery>,
    pub free: u64,
    /// Bytes of its log that count.
    pub live: u64,
    /// Frames that it has.
    pub frames: u32,
    /// Of the free ones those that it keeps for recoveries.
    pub kept: u32,
    /// Its first head is not open yet.
    pub joins: bool,
}

impl Fake {
    /// It serves nobody who crashed once what it granted has run out.
    fn learn(&mut self, list: &ServerList, now: Micros) {
        self.list = list.version;
        let crashed = list.servers.iter();
        for entry in crashed.filter(|entry| entry.state == ServerState::Crashed) {
            let until = Micros(now.0 + GRANT_US);
            self.fenced.entry(entry.server).or_insert(until);
            if entry.recovered {
                self.replicas
                    .retain(|(info, _)| info.master != entry.server);
            }
        }
    }

    fn report(&self, server: ServerId) -> Heartbeat {
        Heartbeat {
            list: self.list,
            ready: !self.joins,
            master: Some(MasterStats {
                memory: self.free,
                room: self.free,
                live: self.live,
                ..MasterStats::default()
            }),
            backup: Some(BackupStats {
                frames: self.frames,
                kept: self.kept,
                used: self.replicas.len() as u32,
                ..BackupStats::default()
            }),
            ..Heartbeat::of(server)
        }
    }
}

/// What the tablets take if a quarter of all hashes takes so much.
fn needs(recovery: &Recovery, quarter: u64) -> u64 {
    let width = |lost: &LostTablet| u128::from(lost.range.last.0 - lost.range.first.0) + 1;
    let width: u128 = recovery.tablets.iter().map(width).sum();
    ((u128::from(quarter) * width) >> 62) as u64
}

impl World {
    /// A log's end is decided once.
    pub(super) fn check_ends(&mut self, peer: u32) {
        let Some(core) = &self.machines[&peer].core else {
            return;
        };
        for (master, record) in core.state().recoveries().iter() {
            let end = *self.ends.entry(master).or_insert(record.end);
            let may_change = self.loses_ends;
            assert!(end == record.end || may_change, "another end of {master:?}");
        }
    }

    /// Everything on its way to servers arrives, and is answered.
    pub(super) fn deliver_mail(&mut self) {
        while let Some(mail) = self.mail.as_mut().and_then(VecDeque::pop_front) {
            match mail {
                Mail::Order(server, order) => self.order(server, &order),
                Mail::Question(server, token, request) => {
                    let answer = self.asked(server, &request);
                    self.input(ALONE, |core, now| {
                        core.handle_backup_answer(now, server, token, answer);
                    });
                }
            }
        }
    }

    fn order(&mut self, server: ServerId, order: &Order) {
        let now = self.now;
        if self.killed.contains(&server) {
            return self.input(ALONE, |core, now| {
                core.handle_probe_failed(now, server, true);
            });
        }
        let Some(fake) = self.servers.get_mut(&server) else {
            return;
        };
        let reply = match &order.command {
            Command::Recover(recovery) => self.recover(server, recovery),
            Command::UpdateServers(list) => {
                fake.learn(list, now);
                OrderReply::Done
            }
            command => done(command),
        };
        self.reply(ALONE, server, &order.command, reply);
    }

    fn recover(&mut self, server: ServerId, recovery: &Recovery) -> OrderReply {
        let holders = self.servers.iter().filter(|(id, fake)| {
            let mut replicas = fake.replicas.iter();
            !self.killed.contains(id) && replicas.any(|(info, _)| info.master == recovery.master)
        });
        let cannot = matches!(
            self.servers[&server].behaviour,
            Behaviour::Cannot(_) | Behaviour::CannotProve(_) | Behaviour::CannotFor(_)
        );
        let nothing = recovery.end == LogEnd::NOTHING || cannot;
        assert!(
            nothing || holders.count() > 0,
            "its replicas are freed too early"
        );
        assert_eq!(
            recovery.key,
            self.state().servers().by_id(recovery.master).unwrap().key
        );
        let fake = self.server(server);
        fake.recoveries.push(recovery.clone());
        let polls = fake.polls.entry((recovery.master, recovery.attempt));
        let polls = polls.and_modify(|polls| *polls += 1).or_insert(1);
        let goes = match fake.behaviour {
            Behaviour::Goes => true,
            Behaviour::GoesFor(master) => master == recovery.master,
            _ => false,
        };
        let name = (recovery.master, recovery.attempt);
        if let Some(failed) = fake.failed.get(&name) {
            return failed.clone();
        }
        let reply = match &fake.behaviour {
            Behaviour::Cannot(why) => OrderReply::CannotRecover(why.clone()),
            Behaviour::CannotProve(segment)
                if !(recovery.given_up.iter().flatten()).any(|one| one == segment) =>
            {
                OrderReply::CannotProve {
                    segments: vec![*segment],
                    why: format!("no backup has {segment:?} whole"),
                }
            }
            Behaviour::CannotFor(master) if *master == recovery.master => {
                OrderReply::CannotRecover("its log can't be replayed".into())
            }
            Behaviour::Takes(bytes) if needs(recovery, *bytes) > fake.free => OrderReply::NoRoom {
                needs: needs(recovery, *bytes),
                room: fake.free,
            },
            _ if *polls > POLLS && !goes => {
                let position = |at| LogPosition(1_000 + at as u64);
                OrderReply::Recovered((0..recovery.tablets.len()).map(position).collect())
            }
            _ => OrderReply::Recovering {
                segments: *polls,
                of: POLLS,
                bytes: 0,
            },
        };
        if !matches!(
            reply,
            OrderReply::Recovered(_) | OrderReply::Recovering { .. }
        ) {
            fake.failed.insert(name, reply.clone());
        }
        reply
    }

    fn asked(
        &mut self,
        server: ServerId,
        request: &BackupRequest,
    ) -> Option<(BackupResponse, Vec<u8>)> {
        if self.killed.contains(&server) {
            return None;
        }
        let fake = self.servers.get(&server)?;
        let (BackupRequest::Inventory { master, .. } | BackupRequest::Fetch { master, .. }) =
            request
        else {
            panic!("{request:?}");
        };
        let Some(until) = fake.fenced.get(master) else {
            panic!("{server:?} is asked before it is known to refuse {master:?}");
        };
        if self.now < *until {
            let wait_us = until.0 - self.now.0;
            return Some((BackupResponse::NotYet { wait_us }, Vec::new()));
        }
        let own = fake
            .replicas
            .iter()
            .filter(|(info, _)| info.master == *master);
        match request {
            BackupRequest::Inventory { after, .. } => {
                let after = after.unwrap_or(SegmentId(0));
                let mut page: Vec<_> = own.map(|(info, _)| *info).collect();
                page.retain(|info| info.segment > after);
                page.sort_unstable_by_key(|info| info.segment);
                Some((BackupResponse::Inventory(page), Vec::new()))
            }
            BackupRequest::Fetch {
                segment,
                offset,
                length,
                ..
            } => {
                // In small pieces, as if it were large.
                let (info, bytes) = own.into_iter().find(|(info, _)| info.segment == *segment)?;
                let start = *offset as usize;
                let end = (start + (*length as usize).min(100)).min(bytes.len());
                let part = bytes[start..end].to_vec();
                let length = part.len() as u32;
                let replica = *info;
                Some((BackupResponse::Bytes { replica, length }, part))
            }
            BackupRequest::Free { .. } => None,
        }
    }

    /// Runs until it is so.
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        for _ in 0..20_000 {
            if done(self) {
                return;
            }
            self.run(1);
        }
        panic!("it never came to this: {what}; {:?}", self.reports());
    }

    pub fn until_served(&mut self) {
        self.until("served", Self::all_served);
    }

    pub fn until_recovered(&mut self, masters: &[ServerId]) {
        self.until("recovered", |world| {
            world.all_served() && masters.iter().all(|master| world.is_recovered(*master))
        });
    }

    pub fn server(&mut self, server: ServerId) -> &mut Fake {
        self.servers.get_mut(&server).unwrap()
    }

    /// So do all from now on that are to replay.
    pub fn behave(&mut self, behaviour: &Behaviour) {
        let fakes = self.servers.values_mut();
        fakes.for_each(|fake| fake.behaviour = behaviour.clone());
    }

    /// Those alive.
    pub(super) fn reporting(&self) -> Vec<ServerId> {
        let servers = self.servers.keys().filter(|id| !self.killed.contains(id));
        self.alive.iter().chain(servers).copied().collect()
    }

    /// What a server has to say now.
    pub(super) fn report(&self, server: ServerId) -> Heartbeat {
        match self.servers.get(&server) {
            Some(fake) => fake.report(server),
            None => Heartbeat {
                list: self.state().list_version(),
                ..Heartbeat::of(server)
            },
        }
    }

    pub fn serve(&mut self, nonce: u8, replaces: Option<ServerId>) -> ServerId {
        let server = self.join_and_listen(nonce, replaces);
        self.beat(server);
        server
    }

    /// One whose first head is not open until it no longer `joins`.
    pub fn serve_joining(&mut self, nonce: u8) -> ServerId {
        let server = self.join_and_listen(nonce, None);
        self.server(server).joins = true;
        self.beat(server);
        server
    }

    /// One that has not looked at the list that it joined with.
    pub fn serve_unaware(&mut self, nonce: u8) -> ServerId {
        self.join(nonce, None).0
    }

    fn join_and_listen(&mut self, nonce: u8, replaces: Option<ServerId>) -> ServerId {
        let (server, list) = self.join(nonce, replaces);
        let order = Order {
            ballot: self.core(ALONE).ballot(),
            command: Command::UpdateServers(list),
        };
        self.order(server, &order);
        server
    }

    fn join(&mut self, nonce: u8, replaces: Option<ServerId>) -> (ServerId, ServerList) {
        let request = Request::Enlist(Enlist {
            replaces,
            boot: BOOT,
            memory: 1 << 30,
            ..enlistment(nonce)
        });
        let Answer::Enlisted { server, list, .. } = self.answer(request) else {
            panic!("refused");
        };
        let fake = Fake {
            free: 1 << 30,
            frames: 1_000,
            kept: 0,
            ..Fake::default()
        };
        self.servers.insert(server, fake);
        (server, list)
    }

    /// What is sent there finds no process, and nobody says so.
    pub fn vanish(&mut self, server: ServerId) {
        self.killed.insert(server);
    }

    pub fn kill(&mut self, server: ServerId) {
        self.killed.insert(server);
        self.input(ALONE, |core, now| core.handle_link_down(now, server));
    }

    pub fn make_table(&mut self, name: &str) -> TableId {
        let token = self.ask(create(name, None));
        self.run(2);
        table_of(self.given(token)).table
    }

    pub fn tablets(&self, table: TableId) -> Vec<Tablet> {
        let record = self.state().table(table);
        record.map_or(Vec::new(), |record| record.table.tablets.clone())
    }

    pub fn all_served(&self) -> bool {
        let mut tables = self.state().tables().iter();
        tables.all(|record| {
            let mut tablets = record.table.tablets.iter();
            tablets.all(|t| t.state == TabletState::Normal && !self.killed.contains(&t.owner))
        })
    }

    pub fn is_recovered(&self, server: ServerId) -> bool {
        let found = self.state().servers().by_id(server);
        found.is_some_and(|server| server.recovered)
    }

    pub fn holds(&self, backup: ServerId, master: ServerId) -> usize {
        let replicas = self.servers[&backup].replicas.iter();
        replicas.filter(|(info, _)| info.master == master).count()
    }
}
