//! A client's books: which calls it has under way in which of its sessions, what it was told, and what
//! it asks next.
//!
//! # Invariants
//! 1. Every operation that is begun stands in the history before it can be sent.
//! 2. What was given up, and what a client that ended had under way, stays open there: it took effect
//!    at any later moment, or never.

use std::time::Duration;

use ramkeep_client::session::{CallId, NotStarted, OpId, Session};
use ramkeep_client::{Error, Operation, Outcome as Told, Page, ScanPosition};
use ramkeep_wire::coordinator::{Answer, Request};
use ramkeep_wire::{Micros, TableId};

use super::scan::Scan;
use super::words::{describe, describe_result, operation};
use super::{Plan, Step, Workload};
use crate::history::{Outcome, Place, Ticket};
use crate::node::Context;

/// The name of a table that all clients use, by its number.
fn table_name(number: usize) -> String {
    format!("sim{number}")
}
/// How long the table may take.
const CREATE_DEADLINE: Duration = Duration::from_secs(60);

/// What a client process starts with.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Its number, in histories and values.
    pub number: u32,
    /// Where the coordinators listen.
    pub coordinators: Vec<String>,
    /// Tables, which all clients use: its keys are spread over them.
    pub tables: usize,
    /// Its sessions: connections to each server.
    pub sessions: usize,
    /// How long operations may take.
    pub deadline: Duration,
    /// Calls under way at once.
    pub depth: usize,
    /// Longest time between the begin of a call and the next, microseconds.
    pub think: u64,
}

/// What a call is for.
#[derive(Debug)]
enum Purpose {
    Create,
    Scan(Box<Scan>),
    Keys {
        tickets: Vec<Ticket>,
        /// In a table that somebody may drop.
        doomed: bool,
    },
}

#[derive(Debug)]
struct Call {
    session: usize,
    id: CallId,
    begun: Vec<Result<OpId, Error>>,
    purpose: Purpose,
    cancelled_at: Option<Micros>,
    held_until: Micros,
}

/// A client's books.
#[derive(Debug)]
pub struct ClientBooks {
    config: ClientConfig,
    workload: Workload,
    tables: Vec<TableId>,
    under: Vec<Call>,
    next_call: Micros,
    /// What scans returned more than once.
    pub repeated: Vec<Place>,
    /// Errors that no plan within the promise explains.
    pub complaints: Vec<String>,
    /// Operations that ended, and those that were not refused.
    pub ended: (u64, u64),
    /// Operations that ended in a refusal which is no failure: a rejection, no counter, no memory.
    pub rejected: u64,
}

impl ClientBooks {
    /// Of a client that runs `workload`.
    #[must_use]
    pub fn new(config: ClientConfig, workload: Workload) -> Self {
        Self {
            config,
            workload,
            tables: Vec::new(),
            under: Vec::new(),
            next_call: Micros(0),
            repeated: Vec::new(),
            complaints: Vec::new(),
            ended: (0, 0),
            rejected: 0,
        }
    }

    /// Whether all its work is done and answered.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.workload.is_over() && self.under.is_empty()
    }

    /// Calls under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.under.len()
    }

    /// Its workload, which goes on at once.
    pub fn workload_mut(&mut self) -> &mut Workload {
        self.next_call = Micros(0);
        &mut self.workload
    }

    /// The tables it works on, as far as it knows.
    #[must_use]
    pub fn tables(&self) -> &[TableId] {
        &self.tables
    }

    fn has_tables(&self) -> bool {
        self.tables.len() == self.config.tables
    }

    /// Where a key is, for all clients.
    #[must_use]
    pub fn place(&self, key: &[u8]) -> Option<Place> {
        let sum: usize = key.iter().map(|byte| usize::from(*byte)).sum();
        let table = self.tables.get(sum % self.config.tables)?;
        Some((*table, key.to_vec()))
    }

    /// Operations that failed.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.ended.0 - self.ended.1 - self.rejected
    }

    fn is_free(&self) -> bool {
        match self.has_tables() {
            true => !self.workload.is_over() && self.under.len() < self.config.depth,
            false => self.under.is_empty(),
        }
    }

    /// When it acts by itself next.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Micros> {
        let calls = self.under.iter().flat_map(|call| {
            let held = (call.held_until > Micros(0)).then_some(call.held_until);
            held.into_iter().chain(call.cancelled_at)
        });
        calls.chain(self.is_free().then_some(self.next_call)).min()
    }

    /// Takes what is over, gives up what is to be given up, and begins what is next. Returns whether
    /// anything was begun.
    pub fn act<L: Clone>(
        &mut self,
        context: &mut Context<'_>,
        sessions: &mut [Session<L>],
    ) -> bool {
        let mut begun = self.end_calls(context, sessions);
        while self.is_free() && context.now >= self.next_call {
            begun = true;
            match self.has_tables() {
                true => self.begin(context, sessions),
                false => self.create_table(context, sessions),
            }
        }
        begun
    }

    fn create_table<L: Clone>(&mut self, context: &Context<'_>, sessions: &mut [Session<L>]) {
        let id = sessions[0].open(false);
        let name = table_name(self.tables.len());
        let request = Request::CreateTable { name, once: None };
        let asked = sessions[0].ask(id, request, context.now + CREATE_DEADLINE);
        let begun = vec![Ok(asked.expect("there is room for one request"))];
        self.keep(0, id, begun, Purpose::Create);
    }

    fn keep(
        &mut self,
        session: usize,
        id: CallId,
        begun: Vec<Result<OpId, Error>>,
        purpose: Purpose,
    ) -> &mut Call {
        self.under.push(Call {
            session,
            id,
            begun,
            purpose,
            cancelled_at: None,
            held_until: Micros(0),
        });
        self.under.last_mut().expect("just added")
    }

    fn begin<L: Clone>(&mut self, context: &mut Context<'_>, sessions: &mut [Session<L>]) {
        let Some(plan) = self.workload.next_call() else {
            return;
        };
        self.next_call = context.now + context.rng.micros(0..self.config.think + 1);
        let session = context.rng.index(sessions.len());
        let call = match plan.steps[0] {
            Step::Scan => {
                let table = *context.rng.choose(&self.tables);
                let scan = Box::new(Scan::begin(context.history, table));
                let from = ScanPosition::default();
                self.begin_page(context, &mut sessions[session], session, &from, scan)
            }
            Step::Key(..) | Step::Doomed(..) => {
                self.begin_keys(context, &mut sessions[session], session, &plan)
            }
        };
        call.cancelled_at = plan.cancelled_after.map(|after| context.now + after);
        if !plan.held_for.is_zero() {
            call.held_until = context.now + plan.held_for;
        }
    }

    fn begin_keys<L: Clone>(
        &mut self,
        context: &mut Context<'_>,
        session: &mut Session<L>,
        number: usize,
        plan: &Plan,
    ) -> &mut Call {
        let mut doomed = false;
        let mut places = Vec::new();
        for step in &plan.steps {
            match step {
                Step::Key(key, action) => {
                    let place = self.place(key).expect("all tables are known");
                    places.push((place, action));
                }
                Step::Doomed(place, action) => {
                    doomed = true;
                    places.push((place.clone(), action));
                }
                Step::Scan => {}
            }
        }
        let mut tickets = Vec::new();
        for (place, action) in &places {
            let client = self.config.number;
            tickets.push((context.history).invoke(client, place, (*action).clone()));
            if context.trace.wants_lines() {
                let key = String::from_utf8_lossy(&place.1);
                context.say(format_args!("asks {key} {}", describe(action)));
            }
        }
        let (id, mut begun) = (session.open(true), Vec::new());
        let deadline = context.now + self.config.deadline;
        let operations = places.iter();
        let operations = operations.map(|((table, key), action)| operation(*table, key, action));
        session.begin_many(context.now, id, operations, deadline, &mut begun);
        for ticket in tickets.split_off(begun.len()) {
            context.history.complete(ticket, Outcome::Failed);
        }
        self.keep(number, id, begun, Purpose::Keys { tickets, doomed })
    }

    fn begin_page<L: Clone>(
        &mut self,
        context: &Context<'_>,
        session: &mut Session<L>,
        number: usize,
        from: &ScanPosition,
        scan: Box<Scan>,
    ) -> &mut Call {
        let (id, deadline) = (session.open(true), context.now + self.config.deadline);
        let table = scan.table();
        let page = Operation::Scan { table, from };
        let begun = session.begin(context.now, id, page, deadline);
        let begun = begun.map_err(|error| match error {
            NotStarted::Full => Error::Timeout {
                maybe_applied: false,
            },
            NotStarted::Refused(error) => error,
        });
        self.keep(number, id, vec![begun], Purpose::Scan(scan))
    }

    fn end_calls<L: Clone>(
        &mut self,
        context: &mut Context<'_>,
        sessions: &mut [Session<L>],
    ) -> bool {
        let now = context.now;
        let mut more = false;
        for call in std::mem::take(&mut self.under) {
            let session = &mut sessions[call.session];
            if call.cancelled_at.is_some_and(|at| at <= now) {
                context.say(format_args!("gives up {:?}", call.id));
                let ops = call.begun.into_iter().flatten();
                ops.for_each(|op| session.cancel(op));
                session.close(call.id);
            } else if session.is_over(call.id) && call.held_until <= now {
                let results: Vec<_> = (call.begun.into_iter())
                    .map(|begun| begun.and_then(|op| session.take(op)))
                    .collect();
                session.close(call.id);
                let number = call.session;
                more |= self.ended(context, session, number, call.purpose, results);
            } else {
                // The time it is held for counts until then only, lest its end is waited for again.
                let held_until = match call.held_until <= now {
                    true => Micros(0),
                    false => call.held_until,
                };
                self.under.push(Call { held_until, ..call });
            }
        }
        more
    }

    /// A call is over. Returns whether another was begun for it.
    fn ended<L: Clone>(
        &mut self,
        context: &mut Context<'_>,
        session: &mut Session<L>,
        number: usize,
        purpose: Purpose,
        mut results: Vec<Result<Told, Error>>,
    ) -> bool {
        for result in &results {
            let doomed = matches!(purpose, Purpose::Keys { doomed: true, .. });
            let gone = doomed && *result == Err(Error::TableNotFound);
            let creates = matches!(purpose, Purpose::Create);
            self.count(context, result, gone || (creates && result.is_err()));
        }
        match purpose {
            Purpose::Keys { tickets, doomed } => {
                for (ticket, result) in tickets.into_iter().zip(results) {
                    let outcome = match result {
                        Err(Error::TableNotFound) if doomed => Outcome::Failed,
                        result => self.outcome(result),
                    };
                    context.history.complete(ticket, outcome);
                }
            }
            Purpose::Create => {
                if let Some(Ok(Told::Answer(answer))) = results.pop()
                    && let Answer::Table(table) = *answer
                {
                    self.tables.push(table.table);
                    self.next_call = context.now;
                }
            }
            Purpose::Scan(scan) => match results.pop() {
                Some(Ok(Told::Page(page))) => {
                    return self.paged(context, session, number, *page, scan);
                }
                Some(Err(error)) => self.judge(&error),
                _ => self.complaints.push("a scan got another answer".into()),
            },
        }
        false
    }

    fn count(&mut self, context: &mut Context<'_>, result: &Result<Told, Error>, excused: bool) {
        self.ended.0 += 1;
        self.ended.1 += u64::from(result.is_ok());
        let rejected = matches!(
            result,
            Err(Error::Rejected { .. } | Error::NotACounter | Error::Overflow | Error::OutOfMemory)
        );
        self.rejected += u64::from(rejected || excused);
        if context.trace.wants_lines() {
            context.say(format_args!("is answered {}", describe_result(result)));
        }
    }

    fn paged<L: Clone>(
        &mut self,
        context: &mut Context<'_>,
        session: &mut Session<L>,
        number: usize,
        page: Page,
        mut scan: Box<Scan>,
    ) -> bool {
        scan.found(page.objects);
        if let Some(next) = page.next {
            self.begin_page(context, session, number, &next, scan);
            return true;
        }
        let twice = scan.end(context.history, self.config.number);
        self.repeated.extend(twice);
        false
    }

    fn outcome(&mut self, result: Result<Told, Error>) -> Outcome {
        match result {
            Ok(Told::Read(Some(object))) => Outcome::Found {
                version: object.version,
                value: object.value.to_vec(),
            },
            Ok(Told::Read(None)) => Outcome::Absent,
            Ok(Told::Written(version)) => Outcome::Written { version },
            Ok(Told::Removed(version)) => Outcome::Removed { version },
            Ok(Told::Incremented { value, version }) => Outcome::Found {
                version,
                value: value.to_le_bytes().to_vec(),
            },
            Ok(Told::Page(_) | Told::Answer(_)) => Outcome::Unknown,
            Err(Error::Rejected { version }) => Outcome::Rejected { version },
            Err(Error::NotACounter) => Outcome::NotACounter,
            Err(Error::Overflow) => Outcome::Overflow,
            Err(Error::Timeout {
                maybe_applied: true,
            }) => Outcome::Unknown,
            Err(error) => {
                self.judge(&error);
                Outcome::Failed
            }
        }
    }

    /// Errors that a cluster within its promise may give are none of ours.
    fn judge(&mut self, error: &Error) {
        let expected = matches!(
            error,
            Error::Timeout { .. }
                | Error::Unavailable { .. }
                | Error::NotEnoughBackups
                | Error::OutOfMemory
        );
        if !expected {
            self.complaints.push(error.to_string());
        }
    }
}
