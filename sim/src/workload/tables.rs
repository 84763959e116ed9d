//! The books of one who makes and drops tables of its own, one request at a time: whatever it is told
//! must be what it did, once.
//!
//! # Invariants
//! 1. It asks for nothing before it has the answer to what it asked before; the conversation sends that
//!    as often as it takes, and copies sent before may still arrive, whenever they like.
//! 2. Nobody else touches its tables: what the map says of them is known before it is asked.

use std::time::Duration;

use ramkeep_control::{Answered, Asking, Sequencing, is_mutation};
use ramkeep_wire::coordinator::{Answer, Refused, Request};
use ramkeep_wire::{ClientId, MapVersion, Micros, TableId};

use crate::node::Context;

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
    /// Longest time between two requests, microseconds.
    pub think: u64,
    /// Tables that it makes, at most.
    pub rounds: u32,
    /// Leases of clients that do nothing, which it opens before anything else.
    pub leases: u64,
}

/// Who asks: there is one only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admin;

/// The steps of one round, over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    Make,
    LookForIt,
    Drop,
    LookAgain,
    /// With the same nonce as at first.
    OpenLease,
}

/// What the request under way is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Round,
    Script,
}

/// One such process's books.
#[derive(Debug)]
pub struct TableBooks {
    config: AdminConfig,
    nonce: [u8; 16],
    /// Leases of others that it has opened.
    opened: u64,
    client: Option<ClientId>,
    renewed: Micros,
    not_before: Micros,
    round: Round,
    rounds: u32,
    table: Option<TableId>,
    /// The highest table id that it was given.
    highest: TableId,
    /// It was told to ask again, though its request may have been run.
    perhaps: bool,
    asked: Option<Asked>,
    /// A question of a script, and what was answered.
    script: Option<Request>,
    answer: Option<Answer>,
    /// What it was told that can't be.
    pub complaints: Vec<String>,
}

impl TableBooks {
    /// Of one that begins by asking for a client lease.
    #[must_use]
    pub fn new(config: AdminConfig, nonce: [u8; 16]) -> Self {
        Self {
            config,
            nonce,
            opened: 0,
            client: None,
            renewed: Micros(0),
            not_before: Micros(0),
            round: Round::Make,
            rounds: 0,
            table: None,
            highest: TableId(0),
            perhaps: false,
            asked: None,
            script: None,
            answer: None,
            complaints: Vec::new(),
        }
    }

    /// Whether it has done all it was to do.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.asked.is_none() && self.rounds >= self.config.rounds
    }

    /// It makes so many tables more from now on.
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

    /// It does nothing new before then, by its clock.
    pub fn hold(&mut self, until: Micros) {
        self.not_before = until;
    }

    /// Its table, while it has one.
    #[must_use]
    pub fn table(&self) -> Option<TableId> {
        self.table
    }

    fn name(&self) -> String {
        format!("admin{}", self.config.number)
    }

    /// When it acts by itself next.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Micros> {
        let rests = self.rounds >= self.config.rounds && self.client.is_some();
        match self.asked {
            Some(_) => None,
            None if rests && self.script.is_none() => {
                Some(self.not_before.max(self.renewed + RENEW))
            }
            None => Some(self.not_before),
        }
    }

    /// Takes what was answered, and asks what is next.
    pub fn act(&mut self, context: &mut Context<'_>, asking: &mut Asking<Admin>) {
        while let Some(answered) = asking.poll_answered() {
            self.answered(context, asking, answered);
        }
        while let Some(client) = asking.pop_forgotten() {
            self.complain(format_args!("its lease {client:?} was forgotten"));
        }
        if self.asked.is_some() || context.now < self.not_before {
            return;
        }
        if let Some((asked, request)) = self.next_request(context.now) {
            self.asked = Some(asked);
            let taken = asking.ask(context.now, Admin, request, None);
            taken.expect("it asks one thing at a time");
        }
    }

    /// What it wants next: make a table, look, drop it, look; now and then renew the lease, or ask
    /// for it again.
    fn next_request(&self, now: Micros) -> Option<(Asked, Request)> {
        match &self.script {
            Some(request) if self.client.is_some() || !is_mutation(request) => {
                Some((Asked::Script, request.clone()))
            }
            _ => Some((Asked::Round, self.next_of_round(now)?)),
        }
    }

    fn next_of_round(&self, now: Micros) -> Option<Request> {
        let nonce = match self.opened < self.config.leases {
            true => (u128::from_le_bytes(self.nonce) ^ u128::from(self.opened + 1)).to_le_bytes(),
            false => self.nonce,
        };
        let Some(client) = self.client else {
            return Some(Request::OpenClientLease { nonce });
        };
        if now.since(self.renewed) >= RENEW {
            return Some(Request::RenewClientLease { client });
        }
        let (name, once) = (self.name(), None);
        let known = MapVersion(0);
        Some(match self.round {
            Round::Make if self.rounds >= self.config.rounds => return None,
            Round::Make => Request::CreateTable { name, once },
            Round::Drop => Request::DropTable { name, once },
            Round::OpenLease => Request::OpenClientLease { nonce },
            Round::LookForIt | Round::LookAgain => Request::Map { known },
        })
    }

    fn answered(
        &mut self,
        context: &mut Context<'_>,
        asking: &mut Asking<Admin>,
        answered: Answered<Admin>,
    ) {
        let asked = self.asked.take();
        let request = answered.request;
        let answer = match answered.outcome {
            Ok(response) => response.answer,
            Err(unanswered) => {
                return self.complain(format_args!("{request:?}: {unanswered}"));
            }
        };
        context.say(format_args!("{request:?} is answered {}", brief(&answer)));
        if asked == Some(Asked::Script) {
            self.script = None;
            self.answer = Some(answer);
            return;
        }
        if let Answer::Refused(Refused::Limit(_)) = answer {
            self.perhaps = true;
            self.not_before = context.now + AGAIN;
            return;
        }
        match self.judge(context.now, &request, answer) {
            Ok(()) => {
                self.perhaps = false;
                let busy = self.opened < self.config.leases;
                let think = if busy { 0 } else { self.config.think };
                self.not_before = context.now + context.rng.micros(0..think + 1);
            }
            Err(why) => self.complain(format_args!("{request:?}: {why}")),
        }
        if let Some(client) = self.client {
            asking.set_sequencing(context.now, Sequencing::Under(client));
        }
    }

    fn complain(&mut self, what: std::fmt::Arguments<'_>) {
        let number = self.config.number;
        self.complaints.push(format!("admin {number}: {what}"));
    }

    /// Whether an answer is what must come of what it did.
    fn judge(&mut self, now: Micros, request: &Request, answer: Answer) -> Result<(), String> {
        match (request, answer) {
            (Request::OpenClientLease { nonce }, Answer::ClientLease { .. })
                if *nonce != self.nonce =>
            {
                self.opened += 1;
            }
            (Request::OpenClientLease { .. }, Answer::ClientLease { client, .. }) => {
                match self.client.replace(client) {
                    Some(known) if known != client => {
                        return Err(format!("a retry was given another lease, {client:?}"));
                    }
                    Some(_) => {
                        self.round = Round::Make;
                        self.rounds += 1;
                    }
                    None => {}
                }
                self.renewed = now;
            }
            (Request::RenewClientLease { .. }, Answer::Noted) => self.renewed = now,
            (Request::CreateTable { .. }, Answer::Table(table)) => {
                if table.table <= self.highest {
                    return Err(format!("{:?} is no new table", table.table));
                }
                self.highest = table.table;
                self.table = Some(table.table);
                self.round = Round::LookForIt;
            }
            (Request::DropTable { .. }, answer) if self.is_gone(&answer) => {
                self.table = None;
                self.round = Round::LookAgain;
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
                self.round = match self.round {
                    Round::LookForIt => Round::Drop,
                    _ => Round::OpenLease,
                };
            }
            (_, answer) => return Err(brief(&answer)),
        }
        Ok(())
    }

    fn is_gone(&self, answer: &Answer) -> bool {
        let none = Answer::Refused(Refused::NoSuchTable);
        *answer == Answer::Dropped || (self.perhaps && *answer == none)
    }
}

fn brief(answer: &Answer) -> String {
    match answer {
        Answer::Map(map) => format!("map {:?}", map.as_ref().map(|map| map.version)),
        other => format!("{other:?}"),
    }
}
