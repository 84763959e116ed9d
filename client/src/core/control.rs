//! What a client wants of the coordinators: the map, a lease, and what its callers ask.
//!
//! # Invariants
//! 1. A refresh of the map that was sent before it was asked for does not satisfy who asked.
//! 2. There is one request for the map at most, and one about the lease.

use ramkeep_control::{Answered, Conversation, Sequencing, Unanswered};
use ramkeep_rpc::Identity;
use ramkeep_wire::coordinator::{Answer, Refused, Request, Response, TabletMap};
use ramkeep_wire::{ClientId, ClusterId, MapVersion, Micros};

use crate::core::slots::OpId;
use crate::error::Error;
use crate::limits::MAX_CONTROL;

/// Who wants an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Caller(OpId),
    Map,
    Lease,
}

/// What an answer means for the rest of the core.
#[derive(Debug)]
pub(crate) enum Event {
    /// The refresh of this number came back; `None`: the map is the newest.
    Map(u64, Option<TabletMap>),
    /// A client lease and its length, microseconds.
    Lease(ClientId, u64),
    /// The lease lives on.
    Renewed,
    /// The client lease is not known any more.
    LeaseLost,
    /// No client lease is to be had now.
    LeaseRefused,
    /// This client's lease was not known when a request came.
    Forgotten(ClientId),
    /// A caller's request is over.
    Done(OpId, Result<Box<Answer>, Error>),
}

/// When something was asked is of no interest here: only when it was sent.
const ASKED: Micros = Micros(0);

/// The client's conversation.
#[derive(Debug)]
pub(crate) struct Control {
    conversation: Conversation<Owner>,
    next_op: u64,
    /// The map that is installed.
    known: MapVersion,
    /// Number of the refresh under way, or of the last.
    refresh: u64,
    /// Number of the latest refresh that was answered.
    answered: u64,
    /// Another refresh must follow the one under way.
    refresh_again: bool,
}

impl Control {
    pub(crate) fn new(identity: Identity, peers: Vec<String>) -> Self {
        Self {
            conversation: Conversation::new(identity, peers, Sequencing::AwaitsLease),
            next_op: 1,
            known: MapVersion(0),
            refresh: 0,
            answered: 0,
            refresh_again: false,
        }
    }

    /// Why the coordinators can't be reached, if they can't.
    pub(crate) fn trouble(&self) -> Option<&str> {
        self.conversation.trouble()
    }

    /// Where the coordinator of this number listens.
    pub(crate) fn address(&self, peer: usize) -> Option<&String> {
        self.conversation.address(peer)
    }

    pub(crate) fn answered_refresh(&self) -> u64 {
        self.answered
    }

    /// Asks on behalf of a caller. `None`: too many are under way.
    pub(crate) fn start(&mut self, request: Request, deadline: Micros) -> Option<OpId> {
        if self.conversation.len() >= MAX_CONTROL {
            return None;
        }
        let op = OpId::control(self.next_op);
        self.next_op += 1;
        self.ask(Owner::Caller(op), request, Some(deadline));
        Some(op)
    }

    fn ask(&mut self, owner: Owner, request: Request, deadline: Option<Micros>) {
        let asked = self.conversation.ask(ASKED, owner, request, deadline);
        asked.expect("callers leave room for the map and the lease");
    }

    fn is_asked(&self, owner: Owner) -> bool {
        self.conversation.asked(&owner).next().is_some()
    }

    /// Sees to it that the map is asked for from now on. Returns the number of the refresh whose
    /// answer is new enough.
    pub(crate) fn refresh(&mut self) -> u64 {
        if self.conversation.is_sent(&Owner::Map) {
            self.refresh_again = true;
            return self.refresh + 1;
        }
        if !self.is_asked(Owner::Map) {
            self.refresh += 1;
            let known = self.known;
            self.ask(Owner::Map, Request::Map { known }, None);
        }
        self.refresh
    }

    /// The map that came last is seen to: this one is known now.
    pub(crate) fn installed(&mut self, version: MapVersion) {
        self.known = version;
        if std::mem::take(&mut self.refresh_again) {
            self.refresh();
        }
    }

    /// Asks about the client lease, unless that is under way.
    pub(crate) fn ask_lease(&mut self, request: Request) {
        if !self.is_asked(Owner::Lease) {
            self.ask(Owner::Lease, request, None);
        }
    }

    /// A caller wants no answer any more.
    pub(crate) fn cancel(&mut self, op: OpId) {
        self.conversation.cancel(&Owner::Caller(op));
    }

    /// The coordinator to which something is to be sent now. `client` has the lease, if any.
    pub(crate) fn ready(&mut self, now: Micros, client: ClientId) -> Option<usize> {
        self.number_for(client);
        self.conversation.ready(now)
    }

    /// Appends the payload of the next request, if there is one for this coordinator, which goes out
    /// under [`Control::next_correlation`].
    pub(crate) fn fill(
        &mut self,
        now: Micros,
        peer: usize,
        client: ClientId,
        payload: &mut Vec<u8>,
    ) -> bool {
        self.number_for(client);
        self.conversation.fill(now, peer, payload).is_some()
    }

    fn number_for(&mut self, client: ClientId) {
        self.conversation.set_sequencing(match client {
            ClientId(0) => Sequencing::AwaitsLease,
            client => Sequencing::Under(client),
        });
    }

    /// The correlation of the next request.
    pub(crate) fn next_correlation(&self) -> u64 {
        self.conversation.next_correlation()
    }

    /// The coordinator that is asked.
    pub(crate) fn current(&self) -> usize {
        self.conversation.current()
    }

    /// Whether this coordinator owes an answer.
    pub(crate) fn expects(&self, peer: usize) -> bool {
        self.conversation.expects(peer)
    }

    pub(crate) fn connecting(&mut self, peer: usize) {
        self.conversation.connecting(peer);
    }

    pub(crate) fn link_up(&mut self, peer: usize, cluster: ClusterId) {
        self.conversation.link_up(peer, cluster);
    }

    /// The socket takes no more.
    pub(crate) fn rest(&mut self, now: Micros) {
        self.conversation.rest(now);
    }

    pub(crate) fn link_down(&mut self, now: Micros, peer: usize, reason: &str) {
        self.conversation.link_down(now, peer, reason);
    }

    pub(crate) fn link_closed(&mut self, peer: usize) {
        self.conversation.link_closed(peer);
    }

    /// A connection of no more use.
    pub(crate) fn pop_closing(&mut self) -> Option<usize> {
        self.conversation.pop_closing()
    }

    pub(crate) fn tick(&mut self, now: Micros) {
        self.conversation.handle_tick(now);
    }

    /// When [`Control::tick`] has something to do.
    pub(crate) fn next_timeout(&self) -> Option<Micros> {
        self.conversation.next_timeout()
    }

    /// Takes an answer.
    pub(crate) fn handle(
        &mut self,
        now: Micros,
        peer: usize,
        correlation: u64,
        response: Response,
    ) {
        self.conversation
            .handle_response(now, peer, correlation, response);
    }

    /// What came of time and answers.
    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        if let Some(client) = self.conversation.pop_forgotten() {
            return Some(Event::Forgotten(client));
        }
        let answered = self.conversation.pop_answered()?;
        Some(self.conclude(answered))
    }

    fn conclude(&mut self, answered: Answered<Owner>) -> Event {
        let (request, outcome) = (answered.request, answered.outcome);
        match answered.owner {
            Owner::Caller(op) => Event::Done(op, result(&request, outcome)),
            Owner::Map => {
                self.answered = self.refresh;
                match outcome.map(|response| response.answer) {
                    Ok(Answer::Map(map)) => Event::Map(self.refresh, map),
                    other => unreachable!("a map is asked for until there is one, not {other:?}"),
                }
            }
            Owner::Lease => match outcome.map(|response| response.answer) {
                Ok(Answer::ClientLease { client, lease_us }) => Event::Lease(client, lease_us),
                Ok(Answer::Noted) => Event::Renewed,
                Ok(Answer::Refused(Refused::Unknown)) => Event::LeaseLost,
                other => {
                    let why = match other {
                        Ok(Answer::Refused(refused)) => refused.to_string(),
                        _ => "no lease in its answer".to_owned(),
                    };
                    let trouble = format!("no client lease: {why}");
                    self.conversation.set_trouble(trouble);
                    Event::LeaseRefused
                }
            },
        }
    }
}

/// What came of a caller's request, to the caller.
fn result(request: &Request, outcome: Result<Response, Unanswered>) -> Result<Box<Answer>, Error> {
    match outcome {
        Ok(response) => match response.answer {
            Answer::Refused(refused) => Err(refusal(refused)),
            answer => fits(request, answer),
        },
        Err(Unanswered {
            maybe_applied: false,
            reason: Some(reason),
        }) => Err(Error::Unavailable { reason }),
        Err(Unanswered { maybe_applied, .. }) => Err(Error::Timeout { maybe_applied }),
    }
}

/// What a refusal is to the caller.
fn refusal(refused: Refused) -> Error {
    match refused {
        Refused::NoSuchTable => Error::TableNotFound,
        Refused::TableName => Error::InvalidTableName,
        Refused::Limit(limit) => Error::LimitReached(limit),
        other => Error::Protocol(format!("the coordinator refused: {other}")),
    }
}

/// The answer, if it is one to this request.
fn fits(request: &Request, answer: Answer) -> Result<Box<Answer>, Error> {
    let fits = matches!(
        (request, &answer),
        (Request::CreateTable { .. }, Answer::Table(_))
            | (Request::DropTable { .. }, Answer::Dropped)
            | (Request::Servers { .. }, Answer::Servers(_))
            | (Request::Status, Answer::Status(_))
            | (Request::ReplaceCoordinator { .. }, Answer::Noted)
    );
    if fits {
        Ok(Box::new(answer))
    } else {
        Err(Error::Protocol(
            "the coordinator answered another question".to_owned(),
        ))
    }
}
