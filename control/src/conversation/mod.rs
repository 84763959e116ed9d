//! One conversation with the coordinators: requests go to the leader, and to the next that may lead
//! when it fails, is silent or does not lead.
//!
//! Pure: time comes in as an argument. Connections are named by the coordinator's number; whoever
//! drives the conversation opens one to [`Conversation::address`] when [`Conversation::ready`] names
//! a coordinator that has none.
//!
//! # Invariants
//! 1. An ask has at most one send that counts: answers under an older correlation are ignored.
//! 2. An answer under a lower ballot than one taken before is not taken.
//! 3. Every ask ends once: with the leader's answer, or at its deadline.
//! 4. [`Unanswered::maybe_applied`] is false only when no send of the request was, or will be,
//!    carried out.
//! 5. A leader's answer counts from the process's own cluster only, which is that of the first leader
//!    that answered it (SAFETY 30).
//! 6. Under [`Sequencing::Under`] a mutation keeps client and sequence over all its sends: the
//!    coordinators run it once. It gets another sequence only once it is certain that it was not run.

mod answers;
mod ask;
mod outcome;

use std::collections::VecDeque;

use ramkeep_rpc::Identity;
use ramkeep_wire::coordinator::{Once, Request};
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::{Ballot, ClientId, ClusterId, MapVersion, Micros, postcards};

use self::ask::{Ask, Asker, Sent, once_of};
pub use self::ask::{is_mutation, is_slow};
pub use self::outcome::{Answered, Sequencing, Unanswered};
use crate::limits::{MAX_ASKS, backoff};
use crate::peers::{PATIENCE, Peers};
use crate::rpc_ids::RpcIds;

/// The conversation. `O` says who asked.
#[derive(Debug)]
pub struct Conversation<O> {
    peers: Peers,
    asks: Vec<Ask<O>>,
    answered: VecDeque<Answered<O>>,
    sequencing: Sequencing,
    sequences: RpcIds,
    /// Clients whose lease the leader did not know.
    forgotten: VecDeque<ClientId>,
    next_correlation: u64,
    /// When the current coordinator answered last.
    heard: Micros,
    /// Of the last map that an owner was given: the leader need not repeat it to a probe.
    map: MapVersion,
    /// Connections to coordinators that were silent.
    closing: VecDeque<usize>,
}

impl<O: PartialEq> Conversation<O> {
    /// With the coordinators at these addresses; others are learned from them. The process joins the
    /// cluster of the first leader that answers, unless it is of one.
    #[must_use]
    pub fn new(identity: Identity, addresses: Vec<String>, sequencing: Sequencing) -> Self {
        Self {
            peers: Peers::new(identity, addresses),
            asks: Vec::new(),
            answered: VecDeque::new(),
            sequencing,
            sequences: RpcIds::default(),
            forgotten: VecDeque::new(),
            next_correlation: 1,
            heard: Micros(0),
            map: MapVersion(0),
            closing: VecDeque::new(),
        }
    }

    /// Asks the leader, until `deadline` if there is one.
    ///
    /// # Errors
    /// Hands `owner` back when [`MAX_ASKS`] requests are under way.
    pub fn ask(
        &mut self,
        now: Micros,
        owner: O,
        request: Request,
        deadline: Option<Micros>,
    ) -> Result<(), O> {
        if self.asks.len() >= MAX_ASKS {
            return Err(owner);
        }
        self.push(now, Asker::Owner(owner), request, deadline);
        Ok(())
    }

    fn push(&mut self, now: Micros, asker: Asker<O>, request: Request, deadline: Option<Micros>) {
        self.asks.push(Ask::new(now, asker, request, deadline));
    }

    /// The owner wants no answer any more. What was sent may still be carried out.
    pub fn cancel(&mut self, owner: &O) {
        self.remove(|ask| matches!(&ask.asker, Asker::Owner(own) if own == owner));
    }

    /// Removes asks that are over.
    fn remove(&mut self, over: impl Fn(&Ask<O>) -> bool) -> Vec<Ask<O>> {
        let over: Vec<_> = self.asks.extract_if(.., |ask| over(ask)).collect();
        for (_, sequence) in over.iter().filter_map(|ask| ask.once) {
            self.sequences.finish(sequence);
        }
        over
    }

    /// The number of requests under way.
    #[must_use]
    pub fn len(&self) -> usize {
        self.asks.len()
    }

    /// Whether nothing is under way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.asks.is_empty()
    }

    /// The requests that this owner has under way.
    pub fn asked<'a>(&'a self, owner: &'a O) -> impl Iterator<Item = &'a Request> {
        let of_owner = move |ask: &&Ask<O>| matches!(&ask.asker, Asker::Owner(own) if own == owner);
        self.asks.iter().filter(of_owner).map(|ask| &ask.request)
    }

    /// Whether this owner's request was sent, and nothing has come that ends the wait for its answer.
    #[must_use]
    pub fn is_sent(&self, owner: &O) -> bool {
        let is = |ask: &Ask<O>| matches!(&ask.asker, Asker::Owner(own) if own == owner);
        self.asks.iter().any(|ask| is(ask) && ask.sent.is_some())
    }

    /// How mutations are numbered from now on. Those sent before keep what they were sent with.
    pub fn set_sequencing(&mut self, sequencing: Sequencing) {
        self.sequencing = sequencing;
    }

    /// A client whose lease the leader does not know, though a mutation was sent under it. Mutations
    /// wait for another lease meanwhile.
    pub fn pop_forgotten(&mut self) -> Option<ClientId> {
        self.forgotten.pop_front()
    }

    /// A request that is over.
    pub fn pop_answered(&mut self) -> Option<Answered<O>> {
        self.answered.pop_front()
    }

    /// The coordinator that is asked.
    #[must_use]
    pub fn current(&self) -> usize {
        self.peers.current()
    }

    /// Where the coordinator of this number listens.
    #[must_use]
    pub fn address(&self, peer: usize) -> Option<&String> {
        self.peers.address(peer)
    }

    /// The highest ballot under which an answer was taken.
    #[must_use]
    pub fn ballot(&self) -> Ballot {
        self.peers.ballot()
    }

    /// Why the coordinators can't be reached, or don't do as they are asked, if so.
    #[must_use]
    pub fn trouble(&self) -> Option<&str> {
        self.peers.trouble()
    }

    /// The leader answers, but not as wished.
    pub fn set_trouble(&mut self, trouble: String) {
        self.peers.set_trouble(trouble);
    }

    /// The coordinator to which something is to be sent now.
    pub fn ready(&mut self, now: Micros) -> Option<usize> {
        self.due(now).and_then(|_| self.peers.ready(now))
    }

    /// Where in the list the next request is that is to be sent.
    fn due(&self, now: Micros) -> Option<usize> {
        let (sequencing, has_room) = (self.sequencing, self.sequences.has_room());
        (self.asks.iter()).position(|ask| ask.is_due(now, sequencing, has_room))
    }

    /// The correlation of the next request.
    #[must_use]
    pub fn next_correlation(&self) -> u64 {
        self.next_correlation
    }

    /// Appends the next request's payload, if there is one for this coordinator, and returns the
    /// correlation that its answer must have.
    pub fn fill(&mut self, now: Micros, peer: usize, payload: &mut Vec<u8>) -> Option<u64> {
        if !self.peers.is_usable() || peer != self.peers.current() {
            return None;
        }
        let at = self.due(now)?;
        self.number(at);
        let correlation = self.next_correlation;
        self.next_correlation += 1;
        let ask = &mut self.asks[at];
        ask.sent = Some(Sent {
            peer,
            correlation,
            at: now,
        });
        ask.latest = now;
        ask.unsettled += 1;
        payload.extend_from_slice(&postcards::encode(&ask.request));
        Some(correlation)
    }

    /// Says in a mutation as what it runs once.
    fn number(&mut self, at: usize) {
        let ask = &mut self.asks[at];
        if mutants::active(Mutant::ResendAsAnother) {
            ask.once = None;
        }
        let Some(once) = once_of(&mut ask.request) else {
            return;
        };
        if let (None, Sequencing::Under(client)) = (ask.once, self.sequencing) {
            ask.once = Some((client, self.sequences.give()));
        }
        if let Some((client, sequence)) = ask.once {
            *once = Some(Once {
                client,
                sequence: sequence.0,
                acked: self.sequences.ack().0 + 1,
            });
        }
    }

    /// Whether this coordinator owes an answer.
    #[must_use]
    pub fn expects(&self, peer: usize) -> bool {
        let owes = |ask: &Ask<O>| ask.sent.is_some_and(|sent| sent.peer == peer);
        self.asks.iter().any(owes)
    }

    /// A connection to this coordinator is being opened: nothing is given out for it until it is up
    /// or down.
    pub fn connecting(&mut self, peer: usize) {
        self.peers.connecting(peer);
    }

    /// The connection that was being opened is up; the coordinator is of this cluster, or none yet.
    pub fn link_up(&mut self, peer: usize, cluster: ClusterId) {
        self.peers.link_up(peer, cluster);
    }

    /// The connection takes no more for now.
    pub fn rest(&mut self, now: Micros) {
        self.peers.rest(now + backoff(1));
    }

    /// The connection broke or could not be made: what was on it is sent again.
    pub fn link_down(&mut self, now: Micros, peer: usize, reason: &str) {
        if self.peers.link_down(now, peer, reason) {
            self.ask_anew();
        }
    }

    /// A process of this cluster was met where a coordinator is, and one side refused the other.
    pub fn met(&mut self, cluster: ClusterId) {
        self.peers.met(cluster);
    }

    /// The cluster that is met where the coordinators of this process's own were, as long as none of those
    /// answers as the leader.
    #[must_use]
    pub fn foreign(&self) -> Option<ClusterId> {
        self.peers.foreign()
    }

    /// This side has closed the connection, or the attempt to open it.
    pub fn link_closed(&mut self, peer: usize) {
        self.peers.link_closed(peer);
    }

    /// A connection that is to be closed, or not to be opened any more: the coordinator was silent.
    pub fn pop_closing(&mut self) -> Option<usize> {
        self.closing.pop_front()
    }

    /// All that is unanswered will be sent again.
    pub(crate) fn ask_anew(&mut self) {
        self.asks.retain(|ask| ask.asker != Asker::Probe);
        for ask in &mut self.asks {
            ask.sent = None;
            if mutants::active(Mutant::ForgetEarlierSend) {
                ask.unsettled = 0;
            }
        }
    }

    /// Lets time pass.
    pub fn handle_tick(&mut self, now: Micros) {
        let asked = self.peers.current();
        if self.peers.tick(now) {
            self.closing.push_back(asked);
            self.ask_anew();
        }
        let passed = |at: Option<Micros>| at.is_some_and(|at| at <= now);
        if self.asks.iter().any(|ask| passed(ask.silent_at())) {
            let silent = self.peers.current();
            self.closing.push_back(silent);
            self.peers.give_up(now, silent, "no answer");
            self.ask_anew();
        }
        for ask in &mut self.asks {
            if passed(ask.again_at()) {
                ask.sent = None;
            }
            if ask.not_before <= now {
                ask.not_before = Micros(0);
            }
        }
        if passed(self.probe_at()) {
            let known = self.map;
            self.push(now, Asker::Probe, Request::Map { known }, None);
        }
        let trouble = self.peers.trouble().map(str::to_owned);
        for ask in self.remove(|ask| passed(ask.deadline)) {
            let unanswered = ask.unanswered(trouble.clone());
            self.answered.extend(ask.end(Err(unanswered)));
        }
    }

    /// When to ask whether the coordinator lives that takes long for something.
    fn probe_at(&self) -> Option<Micros> {
        if self.asks.iter().any(|ask| !ask.is_slow()) {
            return None;
        }
        let sent = self.asks.iter().filter_map(|ask| ask.sent);
        let first = sent.map(|sent| sent.at).min()?;
        Some(first.max(self.heard) + PATIENCE)
    }

    /// When [`Conversation::handle_tick`] has something to do, or something is due.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Micros> {
        let peers = (self.peers.next_timeout()).filter(|_| !self.asks.is_empty());
        let asks = self.asks.iter().flat_map(|ask| {
            let waits = ask.sent.is_none() && ask.not_before > Micros(0);
            [
                ask.silent_at(),
                ask.again_at(),
                waits.then_some(ask.not_before),
                ask.deadline,
            ]
        });
        asks.chain([peers, self.probe_at()]).flatten().min()
    }
}
