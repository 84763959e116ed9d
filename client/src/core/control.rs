//! The conversation with the coordinators: one of them at a time, and the next when it fails, is
//! silent or does not lead.
//!
//! # Invariants
//! 1. An ask has at most one send that counts: answers under an older correlation are ignored.
//! 2. An answer under a lower ballot than one seen before is not taken.
//! 3. A refresh of the map that was sent before it was asked for does not satisfy who asked.

use ramkeep_wire::coordinator::{Answer, Refused, Request, Response, TabletMap};
use ramkeep_wire::{Ballot, ClientId, MapVersion, Micros, postcards};

use crate::core::links::LinkState;
use crate::core::slots::OpId;
use crate::error::Error;
use crate::limits::{COORDINATOR_PATIENCE, MAX_CONTROL, backoff};

/// Who wants the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Caller(OpId),
    Map,
    Lease,
}

#[derive(Debug)]
struct Ask {
    owner: Owner,
    request: Request,
    deadline: Micros,
    /// Under which correlation and when; none: to be sent (again).
    sent: Option<(u64, Micros)>,
    sends: u32,
    not_before: Micros,
    attempts: u32,
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
    /// A caller's request is over.
    Done(OpId, Result<Box<Answer>, Error>),
}

/// The conversation.
#[derive(Debug)]
pub(crate) struct Control {
    peers: Vec<String>,
    current: usize,
    state: LinkState,
    failures: u32,
    trouble: Option<String>,
    asks: Vec<Ask>,
    ballot: Ballot,
    next_correlation: u64,
    next_op: u64,
    /// Number of the refresh under way, or of the last.
    refresh: u64,
    /// Number of the latest refresh that was answered.
    answered: u64,
    /// Another refresh must follow the one under way.
    refresh_again: bool,
}

const NEVER: Micros = Micros(u64::MAX);

impl Control {
    pub(crate) fn new(peers: Vec<String>) -> Self {
        Self {
            peers,
            current: 0,
            state: LinkState::Usable,
            failures: 0,
            trouble: None,
            asks: Vec::new(),
            ballot: Ballot::default(),
            next_correlation: 1,
            next_op: 1,
            refresh: 0,
            answered: 0,
            refresh_again: false,
        }
    }

    /// Why the coordinators can't be reached, if they can't.
    pub(crate) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Where the coordinator of this number listens.
    pub(crate) fn address(&self, peer: usize) -> Option<&String> {
        self.peers.get(peer)
    }

    pub(crate) fn answered_refresh(&self) -> u64 {
        self.answered
    }

    /// Asks on behalf of a caller. `None`: too many are under way.
    pub(crate) fn start(&mut self, request: Request, deadline: Micros) -> Option<OpId> {
        if self.asks.len() >= MAX_CONTROL {
            return None;
        }
        let op = OpId::control(self.next_op);
        self.next_op += 1;
        self.push(Owner::Caller(op), request, deadline);
        Some(op)
    }

    fn push(&mut self, owner: Owner, request: Request, deadline: Micros) {
        self.asks.push(Ask {
            owner,
            request,
            deadline,
            sent: None,
            sends: 0,
            not_before: Micros(0),
            attempts: 0,
        });
    }

    /// Sees to it that the map is asked for from now on. Returns the number of the refresh whose
    /// answer is new enough.
    pub(crate) fn refresh(&mut self) -> u64 {
        match self.asks.iter().find(|ask| ask.owner == Owner::Map) {
            Some(ask) if ask.sent.is_some() => {
                self.refresh_again = true;
                self.refresh + 1
            }
            Some(_) => self.refresh,
            None => {
                self.refresh += 1;
                let known = MapVersion(0);
                self.push(Owner::Map, Request::Map { known }, NEVER);
                self.refresh
            }
        }
    }

    /// Asks about the client lease, unless that is under way.
    pub(crate) fn ask_lease(&mut self, request: Request) {
        if !self.asks.iter().any(|ask| ask.owner == Owner::Lease) {
            self.push(Owner::Lease, request, NEVER);
        }
    }

    /// A caller wants no answer any more.
    pub(crate) fn cancel(&mut self, op: OpId) {
        self.asks.retain(|ask| ask.owner != Owner::Caller(op));
    }

    /// The coordinator to which something is to be sent now.
    pub(crate) fn ready(&self, now: Micros) -> Option<usize> {
        (self.state == LinkState::Usable && self.asks.iter().any(|ask| ask.is_due(now)))
            .then_some(self.current)
    }

    /// The correlation of the next request.
    pub(crate) fn next_correlation(&self) -> u64 {
        self.next_correlation
    }

    /// Appends the next request's payload, if there is one for this coordinator.
    pub(crate) fn fill(
        &mut self,
        now: Micros,
        peer: usize,
        known: MapVersion,
        payload: &mut Vec<u8>,
    ) -> bool {
        if self.state != LinkState::Usable || peer != self.current {
            return false;
        }
        let Some(ask) = self.asks.iter_mut().find(|ask| ask.is_due(now)) else {
            return false;
        };
        if ask.owner == Owner::Map {
            ask.request = Request::Map { known };
        }
        ask.sent = Some((self.next_correlation, now));
        ask.sends += 1;
        self.next_correlation += 1;
        payload.extend_from_slice(&postcards::encode(&ask.request));
        true
    }

    /// Whether this coordinator owes an answer.
    pub(crate) fn expects(&self, peer: usize) -> bool {
        peer == self.current && self.asks.iter().any(|ask| ask.sent.is_some())
    }

    pub(crate) fn connecting(&mut self, peer: usize) {
        if peer == self.current {
            self.state = LinkState::Connecting;
        }
    }

    pub(crate) fn link_up(&mut self, peer: usize) {
        if peer == self.current {
            self.state = LinkState::Usable;
        }
    }

    /// The socket takes no more.
    pub(crate) fn rest(&mut self, now: Micros) {
        self.state = LinkState::Resting(now + backoff(1));
    }

    pub(crate) fn link_down(&mut self, now: Micros, peer: usize, reason: &str) {
        if peer == self.current {
            self.rotate(now, reason);
        }
    }

    /// On to the next coordinator; all that is unanswered will be asked again there. After a full
    /// round without success it waits, longer each time.
    fn rotate(&mut self, now: Micros, reason: &str) {
        let address = self.peers.get(self.current).map_or("?", String::as_str);
        self.trouble = Some(format!("coordinator {address}: {reason}"));
        self.failures += 1;
        self.current = (self.current + 1) % self.peers.len().max(1);
        let rounds = self.failures / self.peers.len().max(1) as u32;
        self.state = if self.current == 0 {
            LinkState::Resting(now + backoff(rounds.max(1)))
        } else {
            LinkState::Usable
        };
        for ask in &mut self.asks {
            ask.sent = None;
        }
    }

    /// Takes an answer.
    pub(crate) fn handle(
        &mut self,
        now: Micros,
        correlation: u64,
        response: Response,
    ) -> Option<Event> {
        let at = (self.asks.iter())
            .position(|ask| ask.sent.is_some_and(|(sent, _)| sent == correlation))?;
        if response.ballot < self.ballot {
            self.rotate(now, "it follows a leader that was replaced");
            return None;
        }
        self.ballot = response.ballot;
        match response.answer {
            Answer::Refused(Refused::NotLeader { .. }) => {
                self.rotate(now, "it does not lead");
                None
            }
            Answer::Refused(refused @ Refused::NoMaster) => {
                self.later(now, at, &refused.to_string());
                None
            }
            answer if self.asks[at].owner == Owner::Map && !matches!(answer, Answer::Map(_)) => {
                self.later(now, at, "no map in its answer");
                None
            }
            answer => {
                self.recover();
                let ask = self.asks.remove(at);
                self.conclude(&ask, answer)
            }
        }
    }

    /// The coordinator answers, but the ask must be made again later.
    fn later(&mut self, now: Micros, at: usize, reason: &str) {
        self.recover();
        self.trouble = Some(format!("the coordinator: {reason}"));
        let ask = &mut self.asks[at];
        ask.attempts += 1;
        ask.sent = None;
        ask.not_before = now + backoff(ask.attempts);
    }

    fn recover(&mut self) {
        self.failures = 0;
        self.trouble = None;
    }

    fn conclude(&mut self, ask: &Ask, answer: Answer) -> Option<Event> {
        match (ask.owner, answer) {
            (Owner::Map, Answer::Map(map)) => {
                let number = self.refresh;
                self.answered = number;
                if std::mem::take(&mut self.refresh_again) {
                    self.refresh();
                }
                Some(Event::Map(number, map))
            }
            (Owner::Map, _) => None,
            (Owner::Lease, Answer::ClientLease { client, lease_us }) => {
                Some(Event::Lease(client, lease_us))
            }
            (Owner::Lease, Answer::Noted) => Some(Event::Renewed),
            (Owner::Lease, _) => Some(Event::LeaseLost),
            (Owner::Caller(op), Answer::Refused(refused)) => {
                Some(Event::Done(op, refusal(ask, refused)))
            }
            (Owner::Caller(op), answer) => Some(Event::Done(op, fits(&ask.request, answer))),
        }
    }

    /// Lets go of what was waited for; returns the callers whose deadline has passed.
    pub(crate) fn tick(&mut self, now: Micros) -> Vec<(OpId, Error)> {
        if matches!(self.state, LinkState::Resting(until) if until <= now) {
            self.state = LinkState::Usable;
        }
        let silent =
            |ask: &Ask| (ask.sent).is_some_and(|(_, sent)| now.since(sent) >= COORDINATOR_PATIENCE);
        if self.asks.iter().any(silent) {
            self.rotate(now, "no answer");
        }
        let mut expired = Vec::new();
        let trouble = self.trouble.clone();
        self.asks.retain(|ask| match ask.owner {
            Owner::Caller(op) if ask.deadline <= now => {
                expired.push((op, ask.expiry(trouble.as_deref())));
                false
            }
            _ => true,
        });
        expired
    }

    /// When [`Control::tick`] has something to do.
    pub(crate) fn next_timeout(&self) -> Option<Micros> {
        let link = match self.state {
            LinkState::Resting(until) if !self.asks.is_empty() => Some(until),
            _ => None,
        };
        let asks = self.asks.iter().map(|ask| {
            let next = match ask.sent {
                Some((_, at)) => at + COORDINATOR_PATIENCE,
                None if ask.not_before > Micros(0) => ask.not_before,
                None => NEVER,
            };
            next.min(ask.deadline)
        });
        asks.chain(link).min().filter(|next| *next != NEVER)
    }
}

impl Ask {
    fn is_due(&self, now: Micros) -> bool {
        self.sent.is_none() && self.not_before <= now
    }

    fn expiry(&self, trouble: Option<&str>) -> Error {
        let mutates = matches!(
            self.request,
            Request::CreateTable { .. } | Request::DropTable { .. }
        );
        match trouble {
            _ if self.sends > 0 && mutates => Error::Timeout {
                maybe_applied: true,
            },
            Some(reason) => Error::Unavailable {
                reason: reason.to_owned(),
            },
            None => Error::Timeout {
                maybe_applied: false,
            },
        }
    }
}

/// What a refusal is to the caller. A drop that was sent before may have succeeded then.
fn refusal(ask: &Ask, refused: Refused) -> Result<Box<Answer>, Error> {
    Err(match refused {
        Refused::NoSuchTable if ask.sends > 1 => return Ok(Box::new(Answer::Dropped)),
        Refused::NoSuchTable => Error::TableNotFound,
        Refused::TableName => Error::InvalidTableName,
        Refused::Limit(limit) => Error::LimitReached(limit),
        other => Error::Protocol(format!("the coordinator refused: {other}")),
    })
}

/// The answer, if it is one to this request.
fn fits(request: &Request, answer: Answer) -> Result<Box<Answer>, Error> {
    let fits = matches!(
        (request, &answer),
        (Request::CreateTable { .. }, Answer::Table(_))
            | (Request::DropTable { .. }, Answer::Dropped)
            | (Request::Servers { .. }, Answer::Servers(_))
            | (Request::Status, Answer::Status(_))
    );
    if fits {
        Ok(Box::new(answer))
    } else {
        Err(Error::Protocol(
            "the coordinator answered another question".to_owned(),
        ))
    }
}
