//! What an answer means for the request that it answers, and for who is asked next.

use ramkeep_wire::Micros;
use ramkeep_wire::coordinator::{Answer, Refused, Response};
use ramkeep_wire::mutants::{self, Mutant};

use super::ask::{Asker, Sent};
use super::{Conversation, Sequencing};
use crate::limits::backoff;

impl<O: PartialEq> Conversation<O> {
    /// Takes an answer of this coordinator.
    pub fn handle_response(
        &mut self,
        now: Micros,
        peer: usize,
        correlation: u64,
        response: Response,
    ) {
        let Some(at) = self.find(peer, correlation) else {
            self.peers.hear_facts(peer, &response);
            return self.close_the_gone();
        };
        self.heard = now;
        if !self.peers.is_ours(peer, &response) {
            self.closing.push_back(peer);
            return self.ask_anew();
        }
        if self.peers.judge(now, peer, &response) {
            self.close_the_gone();
            self.take(now, at, response);
        } else {
            self.ask_anew();
        }
    }

    fn close_the_gone(&mut self) {
        while let Some(gone) = self.peers.pop_gone() {
            self.closing.push_back(gone);
        }
    }

    fn find(&self, peer: usize, correlation: u64) -> Option<usize> {
        let is = |sent: Sent| (sent.peer, sent.correlation) == (peer, correlation);
        let found = (self.asks.iter()).position(|ask| ask.sent.is_some_and(is));
        if mutants::active(Mutant::TakeOldCorrelation) {
            return found.or_else(|| self.asks.iter().position(|ask| ask.unsettled > 0));
        }
        found
    }

    /// Takes the leader's answer to the ask at this place.
    fn take(&mut self, now: Micros, at: usize, response: Response) {
        if let Some(reason) = self.asks[at].not_now(&response.answer) {
            return self.later(now, at, &reason);
        }
        let unknown = response.answer == Answer::Refused(Refused::Unknown);
        if unknown && self.asks[at].once.is_some() {
            return self.forget(now, at);
        }
        let ask = self.asks.remove(at);
        if let Some((_, sequence)) = ask.once {
            self.sequences.finish(sequence);
        }
        if let (Asker::Owner(_), Answer::Map(Some(map))) = (&ask.asker, &response.answer) {
            self.map = map.version;
        }
        self.answered.extend(ask.end(Ok(response)));
    }

    /// The leader answers, but the request did nothing and must be made again later.
    fn later(&mut self, now: Micros, at: usize, reason: &str) {
        self.peers.set_trouble(format!("the coordinator: {reason}"));
        let ask = &mut self.asks[at];
        ask.last_did_nothing();
        ask.attempts += 1;
        ask.not_before = now + backoff(ask.attempts);
    }

    /// The leader does not know the client under which a mutation was sent. If no other send of it
    /// may have been run, none was, and it is asked for as another client; else it ends here.
    fn forget(&mut self, now: Micros, at: usize) {
        let ask = &mut self.asks[at];
        let Some((client, sequence)) = ask.once.take() else {
            return;
        };
        self.sequences.finish(sequence);
        self.forgotten.retain(|known| *known != client);
        self.forgotten.push_back(client);
        if self.sequencing == Sequencing::Under(client) {
            self.sequencing = Sequencing::AwaitsLease;
        }
        if ask.unsettled <= 1 {
            return self.later(now, at, "the client lease is not known");
        }
        let ask = self.asks.remove(at);
        let reason = "the client lease ended before it was answered".to_owned();
        let unanswered = ask.unanswered(Some(reason));
        self.answered.extend(ask.end(Err(unanswered)));
    }
}
