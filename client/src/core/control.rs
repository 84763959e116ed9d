//! The conversation with the coordinators: requests go to the leader, and to the next that may lead
//! when it fails, is silent or does not lead.
//!
//! # Invariants
//! 1. An ask has at most one send that counts: answers under an older correlation are ignored.
//! 2. An answer under a lower ballot than one seen before is not taken.
//! 3. A refresh of the map that was sent before it was asked for does not satisfy who asked.
//! 4. A mutation waits for the client lease, and keeps client and sequence over all its sends: the
//!    coordinators run it once. Another sequence only once it is certain that it was not run.

use ramkeep_control::peers::{PATIENCE, Peers};
use ramkeep_wire::coordinator::{Answer, Once, Refused, Request, Response, TabletMap};
use ramkeep_wire::{ClientId, MapVersion, Micros, postcards};

use crate::core::asks::{Ask, Owner, fits, once_of, refusal};
use crate::core::slots::OpId;
use crate::error::Error;
use crate::limits::{MAX_CONTROL, backoff};
use ramkeep_control::RpcIds;

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
    /// A caller's request is over.
    Done(OpId, Result<Box<Answer>, Error>),
    /// This client's lease was not known when the request came. An error: the request, which may
    /// have been carried out before, is over.
    Forgotten(ClientId, Option<(OpId, Error)>),
}

/// The conversation.
#[derive(Debug)]
pub(crate) struct Control {
    peers: Peers,
    asks: Vec<Ask>,
    next_correlation: u64,
    next_op: u64,
    /// Number of the refresh under way, or of the last.
    refresh: u64,
    /// Number of the latest refresh that was answered.
    answered: u64,
    /// Another refresh must follow the one under way.
    refresh_again: bool,
    /// Sequences of the mutations.
    sequences: RpcIds,
    /// When the current coordinator answered last.
    heard: Micros,
    /// Connections to coordinators that were silent.
    closing: Vec<usize>,
}

const NEVER: Micros = Micros(u64::MAX);

impl Control {
    pub(crate) fn new(peers: Vec<String>) -> Self {
        Self {
            peers: Peers::new(peers),
            asks: Vec::new(),
            next_correlation: 1,
            next_op: 1,
            refresh: 0,
            answered: 0,
            refresh_again: false,
            sequences: RpcIds::default(),
            heard: Micros(0),
            closing: Vec::new(),
        }
    }

    /// Why the coordinators can't be reached, if they can't.
    pub(crate) fn trouble(&self) -> Option<&str> {
        self.peers.trouble()
    }

    /// Where the coordinator of this number listens.
    pub(crate) fn address(&self, peer: usize) -> Option<&String> {
        self.peers.address(peer)
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
            once: None,
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
        self.remove(|ask| ask.owner == Owner::Caller(op));
    }

    /// Removes asks that are over.
    fn remove(&mut self, over: impl Fn(&Ask) -> bool) -> Vec<Ask> {
        let over: Vec<_> = self.asks.extract_if(.., |ask| over(ask)).collect();
        for (_, sequence) in over.iter().filter_map(|ask| ask.once) {
            self.sequences.finish(sequence);
        }
        over
    }

    /// The coordinator to which something is to be sent now. `client` has the lease, if any.
    pub(crate) fn ready(&mut self, now: Micros, client: ClientId) -> Option<usize> {
        let due = self.asks.iter().any(|ask| ask.is_due(now, client));
        if due { self.peers.ready(now) } else { None }
    }

    /// The correlation of the next request.
    pub(crate) fn next_correlation(&self) -> u64 {
        self.next_correlation
    }

    /// The coordinator that is asked.
    pub(crate) fn current(&self) -> usize {
        self.peers.current()
    }

    /// Appends the next request's payload, if there is one for this coordinator.
    pub(crate) fn fill(
        &mut self,
        now: Micros,
        peer: usize,
        known: MapVersion,
        client: ClientId,
        payload: &mut Vec<u8>,
    ) -> bool {
        if !self.peers.is_usable() || peer != self.peers.current() {
            return false;
        }
        let Some(ask) = (self.asks.iter_mut()).find(|ask| ask.is_due(now, client)) else {
            return false;
        };
        if ask.owner == Owner::Map {
            ask.request = Request::Map { known };
        }
        if let Some(once) = once_of(&mut ask.request) {
            let (client, sequence) =
                *(ask.once).get_or_insert_with(|| (client, self.sequences.give()));
            *once = Some(Once {
                client,
                sequence: sequence.0,
                acked: self.sequences.ack().0 + 1,
            });
        }
        ask.sent = Some((self.next_correlation, now));
        ask.sends += 1;
        self.next_correlation += 1;
        payload.extend_from_slice(&postcards::encode(&ask.request));
        true
    }

    /// Whether this coordinator owes an answer.
    pub(crate) fn expects(&self, peer: usize) -> bool {
        peer == self.peers.current() && self.asks.iter().any(|ask| ask.sent.is_some())
    }

    pub(crate) fn connecting(&mut self, peer: usize) {
        self.peers.connecting(peer);
    }

    pub(crate) fn link_up(&mut self, peer: usize) {
        self.peers.link_up(peer);
    }

    /// The socket takes no more.
    pub(crate) fn rest(&mut self, now: Micros) {
        self.peers.rest(now + backoff(1));
    }

    pub(crate) fn link_down(&mut self, now: Micros, peer: usize, reason: &str) {
        if self.peers.link_down(now, peer, reason) {
            self.ask_anew();
        }
    }

    /// A connection of no more use.
    pub(crate) fn pop_closing(&mut self) -> Option<usize> {
        self.closing.pop()
    }

    /// All that is unanswered will be asked of another coordinator.
    fn ask_anew(&mut self) {
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
        self.heard = now;
        if !self.peers.judge(now, self.peers.current(), &response) {
            self.ask_anew();
            return None;
        }
        self.take(now, at, response.answer)
    }

    /// Takes the leader's answer to the ask at this place.
    fn take(&mut self, now: Micros, at: usize, answer: Answer) -> Option<Event> {
        let ask = &self.asks[at];
        match answer {
            Answer::Refused(refused @ Refused::NoMaster) => {
                self.later(now, at, &refused.to_string());
                None
            }
            Answer::Refused(Refused::Unknown) if ask.once.is_some() => self.forgotten(now, at),
            answer if ask.owner == Owner::Map && !matches!(answer, Answer::Map(_)) => {
                self.later(now, at, "no map in its answer");
                None
            }
            answer => {
                let ask = self.asks.remove(at);
                if let Some((_, sequence)) = ask.once {
                    self.sequences.finish(sequence);
                }
                self.conclude(&ask, answer)
            }
        }
    }

    /// The leader answers, but the ask must be made again later.
    fn later(&mut self, now: Micros, at: usize, reason: &str) {
        self.peers.set_trouble(format!("the coordinator: {reason}"));
        let ask = &mut self.asks[at];
        ask.attempts += 1;
        ask.sent = None;
        ask.not_before = now + backoff(ask.attempts);
    }

    /// The leader does not know the client under which a mutation was asked for. If it was sent
    /// once, it was not run, and is asked for as another client; else it may have been.
    fn forgotten(&mut self, now: Micros, at: usize) -> Option<Event> {
        let (client, sequence) = self.asks[at].once?;
        self.sequences.finish(sequence);
        let ask = &mut self.asks[at];
        ask.once = None;
        if ask.sends == 1 {
            ask.sends = 0;
            self.later(now, at, "the client lease is not known");
            return Some(Event::Forgotten(client, None));
        }
        let Owner::Caller(op) = self.asks.remove(at).owner else {
            return Some(Event::Forgotten(client, None));
        };
        let maybe = Error::Timeout {
            maybe_applied: true,
        };
        Some(Event::Forgotten(client, Some((op, maybe))))
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
            (Owner::Lease, Answer::Refused(Refused::Unknown)) => Some(Event::LeaseLost),
            (Owner::Lease, answer) => {
                let why = match answer {
                    Answer::Refused(refused) => refused.to_string(),
                    _ => "no lease in its answer".to_owned(),
                };
                self.peers.set_trouble(format!("no client lease: {why}"));
                Some(Event::LeaseRefused)
            }
            (Owner::Caller(op), Answer::Refused(refused)) => {
                Some(Event::Done(op, Err(refusal(refused))))
            }
            (Owner::Caller(op), answer) => Some(Event::Done(op, fits(&ask.request, answer))),
        }
    }

    /// Lets go of what was waited for; returns the callers whose deadline has passed.
    pub(crate) fn tick(&mut self, now: Micros) -> Vec<(OpId, Error)> {
        if self.peers.tick(now) {
            self.ask_anew();
        }
        let passed = |at: Option<Micros>| at.is_some_and(|at| at <= now);
        if self.asks.iter().any(|ask| passed(ask.silent_at())) {
            let silent = self.peers.current();
            self.closing.push(silent);
            self.peers.give_up(now, silent, "no answer");
            self.ask_anew();
        }
        for ask in &mut self.asks {
            if passed(ask.again_at()) {
                ask.sent = None;
            }
        }
        if passed(self.probe_at()) {
            self.refresh();
        }
        let trouble = self.peers.trouble().map(str::to_owned);
        let expired = self.remove(|ask| ask.deadline <= now);
        let callers = expired.iter().filter_map(|ask| match ask.owner {
            Owner::Caller(op) => Some((op, ask.expiry(trouble.as_deref()))),
            Owner::Map | Owner::Lease => None,
        });
        callers.collect()
    }

    /// When to ask for the map, to see whether the coordinator that takes long for something lives.
    fn probe_at(&self) -> Option<Micros> {
        if self.asks.iter().any(|ask| ask.owner == Owner::Map) {
            return None;
        }
        let slow = self.asks.iter().filter(|ask| ask.is_slow());
        let sent = slow.filter_map(|ask| ask.sent).map(|(_, at)| at).min()?;
        Some(sent.max(self.heard) + PATIENCE)
    }

    /// When [`Control::tick`] has something to do.
    pub(crate) fn next_timeout(&self) -> Option<Micros> {
        let peers = (self.peers.next_timeout()).filter(|_| !self.asks.is_empty());
        let asks = self.asks.iter().flat_map(|ask| {
            let waits = ask.sent.is_none() && ask.not_before > Micros(0);
            [
                ask.silent_at(),
                ask.again_at(),
                waits.then_some(ask.not_before),
                Some(ask.deadline),
            ]
        });
        let all = asks.chain([peers, self.probe_at()]).flatten();
        all.min().filter(|next| *next != NEVER)
    }
}
