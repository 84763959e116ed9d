//! A conversation stepped through virtual time against coordinators played by the test.
#![allow(dead_code, reason = "not every test needs all of it")]

use std::collections::BTreeMap;
use std::time::Duration;

use ramkeep_control::{Answered, Conversation, Sequencing, Unanswered};
use ramkeep_rpc::Identity;
use ramkeep_wire::coordinator::{
    Answer, GroupFacts, Once, Refused, Request, Response, Table, TabletMap,
};
use ramkeep_wire::{Ballot, ClientId, ClusterId, MapVersion, Micros, PeerId, TableId, postcards};

pub(crate) const CLUSTER: ClusterId = ClusterId([1; 16]);
pub(crate) const CLIENT: ClientId = ClientId(5);
pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// What was sent: to whom, under which correlation, what.
pub(crate) type Asked = (usize, u64, Request);

/// The conversation, its clock, and all that it has put out. Owners are numbers.
pub(crate) struct Bench {
    pub(crate) talk: Conversation<u32>,
    pub(crate) now: Micros,
    pub(crate) asks: Vec<Asked>,
    pub(crate) done: Vec<Answered<u32>>,
    pub(crate) closed: Vec<usize>,
    /// What the leader says of the group with its next answer.
    pub(crate) facts: Option<GroupFacts>,
    /// Coordinators that are not of [`CLUSTER`].
    pub(crate) foreign: BTreeMap<usize, ClusterId>,
    next: u32,
}

impl Bench {
    /// With so many coordinators, `c:0` and so on.
    pub(crate) fn new(coordinators: usize, sequencing: Sequencing) -> Self {
        let addresses = (0..coordinators).map(|i| format!("c:{i}")).collect();
        Self {
            talk: Conversation::new(Identity::new(None), addresses, sequencing),
            now: Micros(1_000),
            asks: Vec::new(),
            done: Vec::new(),
            closed: Vec::new(),
            facts: None,
            foreign: BTreeMap::new(),
            next: 0,
        }
    }

    /// Numbers mutations under the lease of [`CLIENT`].
    pub(crate) fn leased(coordinators: usize) -> Self {
        Self::new(coordinators, Sequencing::Under(CLIENT))
    }

    pub(crate) fn drain(&mut self) {
        while let Some(peer) = self.talk.pop_closing() {
            self.closed.push(peer);
        }
        while let Some(answered) = self.talk.pop_answered() {
            self.done.push(answered);
        }
        while let Some(peer) = self.talk.ready(self.now) {
            let cluster = self.foreign.get(&peer).copied();
            self.talk.link_up(peer, cluster.unwrap_or(CLUSTER));
            let mut payload = Vec::new();
            let filled = self.talk.fill(self.now, peer, &mut payload);
            let correlation = filled.expect("who is ready has something to say");
            let request = postcards::decode(&payload).unwrap();
            self.asks.push((peer, correlation, request));
        }
    }

    pub(crate) fn ask(&mut self, request: Request) -> u32 {
        self.ask_within(request, 5 * SECOND)
    }

    pub(crate) fn ask_within(&mut self, request: Request, time: Duration) -> u32 {
        self.next += 1;
        let deadline = Some(self.now + time);
        self.talk
            .ask(self.now, self.next, request, deadline)
            .unwrap();
        self.drain();
        self.next
    }

    /// What was sent since the last look.
    pub(crate) fn asked(&mut self) -> Vec<Asked> {
        std::mem::take(&mut self.asks)
    }

    pub(crate) fn answer_at(&mut self, peer: usize, correlation: u64, round: u64, answer: Answer) {
        let mut response = led(round, answer);
        response.group = self.facts.take();
        self.talk
            .handle_response(self.now, peer, correlation, response);
        self.drain();
    }

    /// Answers the last request, under the first ballot.
    pub(crate) fn answer(&mut self, answer: Answer) -> Request {
        let (peer, correlation, request) = self.asked().pop().expect("something was asked");
        self.answer_at(peer, correlation, 1, answer);
        request
    }

    pub(crate) fn break_link(&mut self, peer: usize) {
        self.talk.link_down(self.now, peer, "broken");
        self.drain();
    }

    /// Lets time pass, with a tick whenever one is wanted.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let next = self.talk.next_timeout().map_or(end, |next| next.min(end));
            self.now = self.now.max(next);
            self.talk.handle_tick(self.now);
            self.drain();
            if self.now == end {
                return;
            }
            let next = self.talk.next_timeout();
            let stuck = next.is_some_and(|next| next <= self.now);
            assert!(!stuck, "a tick is wanted that changes nothing");
        }
    }

    pub(crate) fn result(&mut self, owner: u32) -> Option<Result<Answer, Unanswered>> {
        let at = self.done.iter().position(|done| done.owner == owner)?;
        let outcome = self.done.remove(at).outcome;
        Some(outcome.map(|response| response.answer))
    }
}

pub(crate) fn led(round: u64, answer: Answer) -> Response {
    let peer = PeerId(1);
    let ballot = Ballot { round, peer };
    Response::new(ballot, answer)
}

pub(crate) fn create() -> Request {
    let (name, once) = ("t".into(), None);
    Request::CreateTable { name, once }
}

pub(crate) fn drop_table() -> Request {
    let (name, once) = ("t".into(), None);
    Request::DropTable { name, once }
}

pub(crate) fn map_after(version: u64) -> Request {
    let known = MapVersion(version);
    Request::Map { known }
}

pub(crate) fn map(version: u64) -> Answer {
    let version = MapVersion(version);
    Answer::Map(Some(TabletMap {
        version,
        ..TabletMap::default()
    }))
}

pub(crate) fn table() -> Answer {
    Answer::Table(Table {
        table: TableId(1),
        name: "t".into(),
        tablets: Vec::new(),
    })
}

pub(crate) fn not_leader(leader: Option<&str>, coordinators: &[&str]) -> Answer {
    Answer::Refused(Refused::NotLeader {
        leader: leader.map(str::to_owned),
        coordinators: coordinators.iter().map(|&one| one.to_owned()).collect(),
        why: None,
    })
}

pub(crate) fn once(request: &Request) -> Once {
    match request {
        Request::CreateTable { once, .. } | Request::DropTable { once, .. } => once.unwrap(),
        other => panic!("{other:?} does not run once"),
    }
}

pub(crate) fn maybe(reason: Option<&str>) -> Option<Result<Answer, Unanswered>> {
    Some(Err(Unanswered {
        maybe_applied: true,
        reason: reason.map(str::to_owned),
    }))
}
