//! One who makes and drops tables of its own, one request at a time, each sent again under the same
//! name until it is answered: whatever it is told must be what it did, once.
//!
//! # Invariants
//! 1. A request goes out again under the same sequence number after its connection is lost or it
//!    was not answered in time; the copies sent before may still arrive, whenever they like.
//! 2. Nobody else touches its tables: what the map says of them is known before it is asked.

use std::time::Duration;

use ramkeep_wire::coordinator::{Answer, Once, Refused, Request, Response};
use ramkeep_wire::envelope::{Header, Kind};
use ramkeep_wire::{ClientId, MapVersion, Micros, Party, TableId, postcards};

use super::{Context, delivered};
use crate::network::{ConnectionId, NetEvent};

/// Between two signs of life for its lease.
const RENEW: Duration = Duration::from_secs(5);
/// Before it asks again for what could not be done yet.
const AGAIN: Duration = Duration::from_millis(50);

/// What such a process starts with.
#[derive(Clone, Debug)]
pub struct AdminConfig {
    /// Its number, in the names of its tables.
    pub number: u32,
    /// Where the coordinators listen.
    pub coordinators: Vec<String>,
    /// How long it waits for an answer before it sends again.
    pub patience: Duration,
    /// Longest time between two requests, microseconds.
    pub think: u64,
    /// Tables that it makes, at most.
    pub rounds: u32,
}

#[derive(Debug)]
struct Ask {
    request: Request,
    sent: Option<(u64, Micros)>,
    not_before: Micros,
}

/// A process that makes and drops tables.
#[derive(Debug)]
pub struct AdminNode {
    config: AdminConfig,
    nonce: [u8; 16],
    client: Option<ClientId>,
    renewed: Micros,
    sequence: u64,
    ask: Option<Ask>,
    connection: Option<ConnectionId>,
    open: bool,
    which: usize,
    /// Where the leader is said to be.
    hint: Option<String>,
    not_before: Micros,
    correlation: u64,
    step: u32,
    rounds: u32,
    table: Option<TableId>,
    /// The highest table id that it was given.
    highest: TableId,
    /// A question of a script, and what was answered.
    script: Option<Request>,
    answer: Option<Answer>,
    /// What it was told that can't be.
    pub complaints: Vec<String>,
    /// Requests that were answered as wanted.
    pub done: u64,
}

impl AdminNode {
    /// One that begins by asking for a client lease.
    #[must_use]
    pub fn new(config: AdminConfig, nonce: [u8; 16]) -> Self {
        Self {
            nonce,
            client: None,
            renewed: Micros(0),
            sequence: 0,
            ask: None,
            connection: None,
            open: false,
            which: config.number as usize,
            hint: None,
            not_before: Micros(0),
            correlation: 0,
            step: 0,
            rounds: 0,
            table: None,
            highest: TableId(0),
            script: None,
            answer: None,
            complaints: Vec::new(),
            done: 0,
            config,
        }
    }

    /// Whether it has done all it was to do.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.ask.is_none() && self.rounds >= self.config.rounds
    }

    /// The number of tables that it has made and dropped again.
    #[must_use]
    pub fn rounds(&self) -> u32 {
        self.rounds
    }

    /// It makes so many tables at most from now on.
    pub fn more_rounds(&mut self, rounds: u32) {
        self.config.rounds = self.rounds + rounds;
    }

    /// It asks for this next, for a script.
    pub fn ask_for(&mut self, request: Request) {
        self.script = Some(request);
        self.not_before = Micros(0);
    }

    /// What the script's question was answered.
    #[must_use]
    pub fn answer(&self) -> Option<&Answer> {
        self.answer.as_ref()
    }

    /// More work was given to it.
    pub fn poke(&mut self, context: &mut Context<'_>) {
        self.act(context);
    }

    /// It does nothing new before then, by its clock.
    pub fn hold(&mut self, until: Micros) {
        self.not_before = until;
    }

    /// Whether it has asked for its table to be dropped, and waits for the answer.
    #[must_use]
    pub fn drops(&self) -> bool {
        let ask = self.ask.as_ref().filter(|ask| ask.sent.is_some());
        ask.is_some_and(|ask| matches!(ask.request, Request::DropTable { .. }))
    }

    /// Its table, while it has one.
    #[must_use]
    pub fn table(&self) -> Option<TableId> {
        self.table
    }

    fn name(&self) -> String {
        format!("admin{}", self.config.number)
    }

    fn once(&mut self) -> Option<Once> {
        let client = self.client?;
        let acked = self.sequence + 1;
        self.sequence += 1;
        Some(Once {
            client,
            sequence: self.sequence,
            acked,
        })
    }

    /// What it wants next: make a table, look, drop it, look; now and then renew the lease, or ask
    /// for it again.
    fn next_request(&mut self, now: Micros) -> Option<Request> {
        if let Some(request) = &self.script {
            return Some(request.clone());
        }
        let nonce = self.nonce;
        let Some(client) = self.client else {
            return Some(Request::OpenClientLease { nonce });
        };
        if now.since(self.renewed) >= RENEW {
            return Some(Request::RenewClientLease { client });
        }
        let name = self.name();
        let known = MapVersion(0);
        Some(match self.step % 5 {
            0 if self.rounds >= self.config.rounds => return None,
            0 => {
                let once = self.once();
                Request::CreateTable { name, once }
            }
            2 => {
                let once = self.once();
                Request::DropTable { name, once }
            }
            4 => Request::OpenClientLease { nonce },
            _ => Request::Map { known },
        })
    }

    pub(super) fn start(&mut self, context: &mut Context<'_>) {
        self.act(context);
    }

    pub(super) fn next_timeout(&self) -> Option<Micros> {
        let lost = self.connection.is_none().then_some(self.not_before);
        match &self.ask {
            Some(ask) => match ask.sent {
                Some((_, at)) => Some(at + self.config.patience),
                None if self.connection.is_none() || self.open => {
                    Some(lost.map_or(ask.not_before, |lost| lost.max(ask.not_before)))
                }
                None => None,
            },
            None if self.is_idle() => Some(self.renewed + RENEW),
            None => Some(self.not_before),
        }
    }

    pub(super) fn timer(&mut self, context: &mut Context<'_>) {
        let sent = self.ask.as_ref().and_then(|ask| ask.sent);
        if sent.is_some_and(|(_, at)| context.now.since(at) >= self.config.patience) {
            self.leave(context, None);
        }
        self.act(context);
    }

    /// Gives up the connection, for the one to who is said to lead or to the next coordinator.
    fn leave(&mut self, context: &mut Context<'_>, hint: Option<String>) {
        if let Some(connection) = self.connection {
            context.close(connection);
        }
        self.lost(context);
        self.hint = hint;
    }

    fn lost(&mut self, context: &Context<'_>) {
        self.connection = None;
        self.open = false;
        self.hint = None;
        self.which += 1;
        self.not_before = context.now + Duration::from_millis(5);
        if let Some(ask) = &mut self.ask {
            ask.sent = None;
        }
    }

    pub(super) fn net(&mut self, context: &mut Context<'_>, event: &NetEvent) {
        match event {
            NetEvent::Opened { connection, .. } if self.connection == Some(*connection) => {
                context.hello(*connection, Party::NONE, Party::NONE);
            }
            NetEvent::Failed { connection, .. } | NetEvent::Broken { connection, .. }
                if self.connection == Some(*connection) =>
            {
                self.lost(context);
            }
            NetEvent::Deliver {
                connection, bytes, ..
            } if self.connection == Some(*connection) => self.deliver(context, bytes),
            NetEvent::Accepted { connection, .. } => context.close(*connection),
            _ => {}
        }
        self.act(context);
    }

    fn deliver(&mut self, context: &mut Context<'_>, bytes: &[u8]) {
        let envelope = delivered(bytes);
        match envelope.header.kind {
            Kind::Welcome => {
                if let Some(connection) = self.connection {
                    context.prove(connection, &envelope);
                }
                self.open = true;
            }
            Kind::CoordinatorResponse => {
                let Ok(response) = postcards::decode::<Response>(envelope.payload) else {
                    return self.leave(context, None);
                };
                let correlation = envelope.header.correlation;
                let asked = |ask: &mut Ask| ask.sent.is_some_and(|(sent, _)| sent == correlation);
                if let Some(ask) = self.ask.take_if(asked) {
                    self.answered(context, ask, response.answer);
                }
            }
            _ => self.leave(context, None),
        }
    }

    fn answered(&mut self, context: &mut Context<'_>, mut ask: Ask, answer: Answer) {
        context.say(format_args!(
            "{:?} is answered {}",
            ask.request,
            brief(&answer)
        ));
        match answer {
            answer if self.script.as_ref() == Some(&ask.request) && is_final(&answer) => {
                self.script = None;
                self.answer = Some(answer);
            }
            Answer::Refused(Refused::NotLeader { leader, .. }) => {
                self.ask = Some(ask);
                self.leave(context, leader);
            }
            Answer::Refused(Refused::Limit(_)) => {
                ask.sent = None;
                ask.not_before = context.now + AGAIN;
                self.ask = Some(ask);
            }
            // Its result is kept: to try again is another request.
            Answer::Refused(Refused::NoMaster) => self.not_before = context.now + AGAIN,
            answer => match self.judge(context.now, &ask.request, answer) {
                Ok(()) => {
                    self.done += 1;
                    let think = context.rng.micros(0..self.config.think + 1);
                    self.not_before = context.now + think;
                }
                Err(why) => {
                    let (number, request) = (self.config.number, ask.request);
                    self.complaints
                        .push(format!("admin {number}: {request:?}: {why}"));
                }
            },
        }
    }

    /// Whether an answer is what must come of what it did.
    fn judge(&mut self, now: Micros, request: &Request, answer: Answer) -> Result<(), String> {
        match (request, answer) {
            (Request::OpenClientLease { .. }, Answer::ClientLease { client, .. }) => {
                if self.client.is_some_and(|known| known != client) {
                    return Err(format!("a retry was given another lease, {client:?}"));
                }
                self.step += u32::from(self.client.is_some());
                self.rounds += u32::from(self.client.is_some());
                self.client = Some(client);
                self.renewed = now;
            }
            (Request::RenewClientLease { .. }, Answer::Noted) => self.renewed = now,
            (Request::CreateTable { .. }, Answer::Table(table)) => {
                if table.table <= self.highest {
                    return Err(format!("{:?} is no new table", table.table));
                }
                self.highest = table.table;
                self.table = Some(table.table);
                self.step += 1;
            }
            (Request::DropTable { .. }, Answer::Dropped) => {
                self.table = None;
                self.step += 1;
            }
            (Request::Map { .. }, Answer::Map(Some(map))) => {
                let name = self.name();
                let mut tables = map.tables.iter();
                let found = tables.find(|table| table.name == name).map(|t| t.table);
                if found != self.table {
                    return Err(format!(
                        "its table is {:?}, the map has {found:?}",
                        self.table
                    ));
                }
                self.step += 1;
            }
            (_, answer) => return Err(brief(&answer)),
        }
        Ok(())
    }

    fn act(&mut self, context: &mut Context<'_>) {
        if self.ask.is_none() && context.now >= self.not_before {
            self.ask = self.next_request(context.now).map(|request| Ask {
                request,
                sent: None,
                not_before: context.now,
            });
        }
        let Some(ask) = &mut self.ask else { return };
        if ask.sent.is_some() || context.now < ask.not_before {
            return;
        }
        match self.connection {
            None if context.now >= self.not_before => {
                let all = &self.config.coordinators;
                let next = &all[self.which % all.len()];
                let address = self.hint.take().unwrap_or_else(|| next.clone());
                self.connection = Some(context.connect(&address));
            }
            Some(connection) if self.open => {
                self.correlation += 1;
                ask.sent = Some((self.correlation, context.now));
                let (kind, nobody) = (Kind::CoordinatorRequest, Party::NONE);
                let header = Header::new(kind, self.correlation, nobody, nobody);
                context.send_payload(connection, header, &postcards::encode(&ask.request));
            }
            _ => {}
        }
    }
}

fn is_final(answer: &Answer) -> bool {
    !matches!(answer, Answer::Refused(Refused::NotLeader { .. }))
}

fn brief(answer: &Answer) -> String {
    match answer {
        Answer::Map(map) => format!("map {:?}", map.as_ref().map(|map| map.version)),
        other => format!("{other:?}"),
    }
}
