//! A client process: the client's core under a workload, every operation recorded.

use std::collections::BTreeMap;
use std::time::Duration;

use ramkeep_client::core::{Core, NotStarted, OpId, Output, Target};
use ramkeep_client::{Error, Operation, Outcome as Result_, Page, Reject, ScanPosition};
use ramkeep_wire::coordinator::{Answer, Request, Response};
use ramkeep_wire::envelope::Kind;
use ramkeep_wire::{Micros, Party, TableId, postcards};

use super::{Context, delivered};
use crate::history::{Action, Outcome, Place, Ticket};
use crate::network::{ConnectionId, NetEvent};
use crate::workload::{Step, Workload};

/// The table that all clients use.
pub const TABLE: &str = "sim";

#[derive(Debug)]
enum Under {
    One(Ticket),
    Scan(Box<Scan>),
    Create,
}

#[derive(Debug)]
struct Scan {
    invoked: u64,
    /// Keys that were known when it began.
    known: Vec<Place>,
    found: BTreeMap<Place, Outcome>,
    twice: Vec<Place>,
}

/// What a client process starts with.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Its number, in histories and values.
    pub number: u32,
    /// Where the coordinators listen.
    pub coordinators: Vec<String>,
    /// How long operations may take.
    pub deadline: Duration,
    /// Operations under way at once.
    pub depth: usize,
    /// Longest time between the end of an operation and the next, microseconds.
    pub think: u64,
}

/// A client process.
#[derive(Debug)]
pub struct ClientNode {
    config: ClientConfig,
    core: Core,
    workload: Workload,
    table: Option<TableId>,
    under: BTreeMap<OpId, Under>,
    connections: BTreeMap<ConnectionId, (Target, bool)>,
    by_target: BTreeMap<Target, ConnectionId>,
    /// Envelopes for connections that are being opened.
    waiting: BTreeMap<ConnectionId, Vec<u8>>,
    next_step: Micros,
    /// What scans returned more than once.
    pub repeated: Vec<Place>,
    /// Errors that no plan within the promise explains.
    pub complaints: Vec<String>,
    /// Operations that ended, and those that were not refused.
    pub ended: (u64, u64),
    /// Operations that ended in a refusal which is no failure: a rejection, no counter, no memory.
    pub rejected: u64,
}

impl ClientNode {
    /// A client that runs `workload`.
    #[must_use]
    pub fn new(config: ClientConfig, workload: Workload, nonce: [u8; 16]) -> Self {
        Self {
            core: Core::new(config.coordinators.clone(), nonce),
            config,
            workload,
            table: None,
            under: BTreeMap::new(),
            connections: BTreeMap::new(),
            by_target: BTreeMap::new(),
            waiting: BTreeMap::new(),
            next_step: Micros(0),
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

    /// Operations under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.under.len()
    }

    /// Its workload.
    pub fn workload_mut(&mut self) -> &mut Workload {
        &mut self.workload
    }

    /// The table it works on, once it knows.
    #[must_use]
    pub fn table(&self) -> Option<TableId> {
        self.table
    }

    pub(super) fn start(&mut self, context: &mut Context<'_>) {
        self.create_table(context);
        self.act(context);
    }

    fn create_table(&mut self, context: &Context<'_>) {
        let request = Request::CreateTable {
            name: TABLE.into(),
            once: None,
        };
        let deadline = context.now + Duration::from_secs(60);
        if let Ok(op) = self.core.start_request(request, deadline) {
            self.under.insert(op, Under::Create);
        }
    }

    pub(super) fn next_timeout(&self) -> Option<Micros> {
        let step = (self.table.is_some()
            && !self.workload.is_over()
            && self.under.len() < self.config.depth)
            .then_some(self.next_step);
        self.core.next_timeout().into_iter().chain(step).min()
    }

    pub(super) fn timer(&mut self, context: &mut Context<'_>) {
        self.core.handle_tick(context.now);
        self.act(context);
    }

    /// More work was given to it.
    pub fn poke(&mut self, context: &mut Context<'_>) {
        self.next_step = context.now;
        self.act(context);
    }

    pub(super) fn net(&mut self, context: &mut Context<'_>, event: &NetEvent) {
        match event {
            NetEvent::Opened { connection, .. } => {
                if let Some((target, _)) = self.connections.get(connection) {
                    let to = match target {
                        Target::Server(server) => Party::server(*server),
                        Target::Coordinator(_) => Party::NONE,
                    };
                    context.hello(*connection, Party::NONE, to);
                }
            }
            NetEvent::Failed { connection, .. } => {
                self.lost(context, *connection, "cannot connect");
            }
            NetEvent::Broken { connection, .. } => {
                self.lost(context, *connection, "connection broke");
            }
            NetEvent::Deliver {
                connection, bytes, ..
            } => self.deliver(context, *connection, bytes),
            NetEvent::Accepted { connection, .. } => context.close(*connection),
        }
        self.act(context);
    }

    fn lost(&mut self, context: &Context<'_>, connection: ConnectionId, why: &str) {
        if let Some((target, _)) = self.connections.remove(&connection) {
            self.waiting.remove(&connection);
            self.by_target.remove(&target);
            self.core.handle_link_down(context.now, target, why);
        }
    }

    fn deliver(&mut self, context: &mut Context<'_>, connection: ConnectionId, bytes: &[u8]) {
        let envelope = delivered(bytes);
        let target = self.connections.get(&connection).map(|(target, _)| *target);
        match (target, envelope.header.kind) {
            (Some(target), Kind::Welcome) => {
                context.prove(connection, &envelope);
                self.connections.insert(connection, (target, true));
                self.core.handle_link_up(target);
                if let Some(bytes) = self.waiting.remove(&connection) {
                    context.send(connection, &bytes);
                }
            }
            (Some(_), Kind::Refusal) => {
                context.close(connection);
                self.lost(context, connection, "refused");
            }
            (Some(Target::Server(server)), Kind::DataResponse) => {
                self.core
                    .handle_response(context.now, server, envelope.payload);
            }
            (Some(Target::Coordinator(peer)), Kind::CoordinatorResponse) => {
                if let Ok(response) = postcards::decode::<Response>(envelope.payload) {
                    let correlation = envelope.header.correlation;
                    self.core
                        .handle_coordinator_response(context.now, peer, correlation, response);
                }
            }
            _ => {}
        }
    }

    fn act(&mut self, context: &mut Context<'_>) {
        loop {
            self.outputs(context);
            let may = self.table.is_some()
                && self.under.len() < self.config.depth
                && context.now >= self.next_step;
            if !may || !self.begin(context) {
                break;
            }
        }
    }

    fn outputs(&mut self, context: &mut Context<'_>) {
        let mut payload = Vec::new();
        while let Some(output) = self.core.poll_output(context.now, &mut payload) {
            match output {
                Output::Send { to, header } => {
                    let mut bytes = Vec::new();
                    ramkeep_wire::envelope::append(&mut bytes, header, &payload);
                    payload.clear();
                    self.send(context, to, &bytes);
                }
                Output::Done { op, result } => self.done(context, op, result),
                Output::Close(target) => {
                    if let Some(connection) = self.by_target.remove(&target) {
                        self.connections.remove(&connection);
                        self.waiting.remove(&connection);
                        context.close(connection);
                    }
                }
            }
        }
    }

    fn send(&mut self, context: &mut Context<'_>, to: Target, bytes: &[u8]) {
        if let Some(connection) = self.by_target.get(&to).copied() {
            match self.connections.get(&connection) {
                Some((_, true)) => context.send(connection, bytes),
                _ => self.waiting.entry(connection).or_default().extend(bytes),
            }
            return;
        }
        let address = self.core.addresses(to).first().cloned();
        let connection = context.connect(address.as_deref().unwrap_or("nowhere"));
        self.core.handle_connecting(to);
        self.connections.insert(connection, (to, false));
        self.by_target.insert(to, connection);
        self.waiting.insert(connection, bytes.to_vec());
    }

    /// Begins the next step of the workload; false if there is none now.
    fn begin(&mut self, context: &mut Context<'_>) -> bool {
        let Some(table) = self.table else {
            return false;
        };
        let Some(step) = self.workload.next_step() else {
            return false;
        };
        self.next_step = context.now + context.rng.micros(0..self.config.think + 1);
        match step {
            Step::Scan => self.begin_scan(context, table),
            Step::Key(key, action) => self.begin_key(context, table, key, &action),
        }
        true
    }

    fn begin_key(
        &mut self,
        context: &mut Context<'_>,
        table: TableId,
        key: Vec<u8>,
        action: &Action,
    ) {
        let operation = match action {
            Action::Read => Operation::Read { table, key: &key },
            Action::Write { value, rules } => Operation::Write {
                table,
                key: &key,
                value,
                reject: reject(rules),
            },
            Action::Remove { rules } => Operation::Remove {
                table,
                key: &key,
                reject: reject(rules),
            },
            Action::Increment { by } => Operation::Increment {
                table,
                key: &key,
                delta: *by,
            },
        };
        let deadline = context.now + self.config.deadline;
        let started = self.core.start(context.now, operation, deadline);
        let place = (table, key);
        let ticket = context
            .history
            .invoke(self.config.number, &place, action.clone());
        if context.trace.wants_lines() {
            let shown = describe(action);
            context.say(format_args!(
                "asks {} {shown}",
                String::from_utf8_lossy(&place.1)
            ));
        }
        match started {
            Ok(op) => {
                self.under.insert(op, Under::One(ticket));
            }
            Err(error) => {
                context.history.complete(ticket, Outcome::Failed);
                if !matches!(error, NotStarted::Full) {
                    self.complaints.push(format!("not started: {error}"));
                }
            }
        }
    }

    fn begin_scan(&mut self, context: &mut Context<'_>, table: TableId) {
        let scan = Scan {
            invoked: context.history.tick(),
            known: context
                .history
                .keys()
                .map(|(place, _)| place.clone())
                .collect(),
            found: BTreeMap::new(),
            twice: Vec::new(),
        };
        self.page(context, table, &ScanPosition::default(), Box::new(scan));
    }

    fn page(
        &mut self,
        context: &Context<'_>,
        table: TableId,
        from: &ScanPosition,
        scan: Box<Scan>,
    ) {
        let operation = Operation::Scan { table, from };
        let deadline = context.now + self.config.deadline;
        if let Ok(op) = self.core.start(context.now, operation, deadline) {
            self.under.insert(op, Under::Scan(scan));
        }
    }

    fn done(&mut self, context: &mut Context<'_>, op: OpId, result: Result<Result_, Error>) {
        let Some(under) = self.under.remove(&op) else {
            return;
        };
        self.ended.0 += 1;
        self.ended.1 += u64::from(result.is_ok());
        let rejected = matches!(
            result,
            Err(Error::Rejected { .. } | Error::NotACounter | Error::OutOfMemory)
        );
        let made = matches!(under, Under::Create) && result.is_err();
        self.rejected += u64::from(rejected || made);
        if context.trace.wants_lines() {
            context.say(format_args!("is answered {}", describe_result(&result)));
        }
        match under {
            Under::Create => match result {
                Ok(Result_::Answer(answer)) => {
                    if let Answer::Table(table) = *answer {
                        self.table = Some(table.table);
                        self.next_step = context.now;
                    }
                }
                _ => self.create_table(context),
            },
            Under::One(ticket) => {
                let outcome = self.outcome(result);
                context.history.complete(ticket, outcome);
            }
            Under::Scan(scan) => match result {
                Ok(Result_::Page(page)) => self.paged(context, *page, scan),
                Ok(_) => self.complaints.push("a scan got another answer".into()),
                Err(error) => self.judge(&error),
            },
        }
    }

    fn paged(&mut self, context: &mut Context<'_>, page: Page, mut scan: Box<Scan>) {
        let Some(table) = self.table else { return };
        for (key, object) in page.objects {
            let place = (table, key.to_vec());
            let found = Outcome::Found {
                version: object.version,
                value: object.value.to_vec(),
            };
            if scan.found.insert(place.clone(), found).is_some() {
                scan.twice.push(place);
            }
        }
        if let Some(next) = page.next {
            return self.page(context, table, &next, scan);
        }
        self.repeated.append(&mut scan.twice);
        for place in &scan.known {
            scan.found.entry(place.clone()).or_insert(Outcome::Absent);
        }
        for (place, outcome) in scan.found {
            let ticket =
                context
                    .history
                    .invoke_at(scan.invoked, self.config.number, &place, Action::Read);
            context.history.complete(ticket, outcome);
        }
    }

    fn outcome(&mut self, result: Result<Result_, Error>) -> Outcome {
        match result {
            Ok(Result_::Read(Some(object))) => Outcome::Found {
                version: object.version,
                value: object.value.to_vec(),
            },
            Ok(Result_::Read(None)) => Outcome::Absent,
            Ok(Result_::Written(version)) => Outcome::Written { version },
            Ok(Result_::Removed(version)) => Outcome::Removed { version },
            Ok(Result_::Incremented { value, version }) => Outcome::Found {
                version,
                value: value.to_le_bytes().to_vec(),
            },
            Ok(Result_::Page(_) | Result_::Answer(_)) => Outcome::Unknown,
            Err(Error::Rejected { version }) => Outcome::Rejected { version },
            Err(Error::NotACounter) => Outcome::NotACounter,
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

fn reject(rules: &ramkeep_wire::data::RejectRules) -> Reject {
    match rules {
        rules if rules.exists => Reject::exists(),
        rules if rules.absent => Reject::absent(),
        rules => rules
            .unless_version
            .map_or_else(Reject::never, Reject::unless_version),
    }
}

fn describe(action: &Action) -> String {
    match action {
        Action::Write { value, rules } => {
            let shown = String::from_utf8_lossy(&value[..value.len().min(16)]).into_owned();
            format!("write {shown} ({} bytes) {rules:?}", value.len())
        }
        other => format!("{other:?}"),
    }
}

fn describe_result(result: &Result<Result_, Error>) -> String {
    match result {
        Ok(Result_::Read(Some(object))) => {
            let value = &object.value[..object.value.len().min(16)];
            format!("{} {}", object.version, String::from_utf8_lossy(value))
        }
        Ok(Result_::Page(page)) => format!("a page of {} objects", page.objects.len()),
        Ok(Result_::Answer(_)) => "by the coordinator".into(),
        Ok(other) => format!("{other:?}"),
        Err(error) => format!("error: {error}"),
    }
}
