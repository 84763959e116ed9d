//! Random groups of coordinators, connections and leases: what must hold whatever they do.
//!
//! The group is a model: one leader at a time counts, requests under a lease run once, those who do
//! not lead say whatever they believe, and a leader that was replaced may go on answering questions.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use proptest::prelude::*;
use ramkeep_control::{Answered, Conversation, Sequencing};
use ramkeep_rpc::Identity;
use ramkeep_wire::coordinator::{Answer, Refused, Request, Response, Table};
use ramkeep_wire::{Ballot, ClientId, ListVersion, Micros, PeerId, TableId, postcards};

use crate::bench::CLUSTER;

const STEPS: usize = 600;
const UNDER_WAY: usize = 6;
/// What they are asked at one moment at most, however quickly they answer.
const ASKED_AT_ONCE: usize = 100;

#[derive(Clone, Copy, PartialEq)]
enum Wire {
    None,
    Connecting,
    Up,
}

/// What was sent on a connection.
struct Sent {
    peer: usize,
    /// The connection on which an answer could go back.
    life: u64,
    correlation: u64,
    request: Request,
}

struct World {
    talk: Conversation<u64>,
    now: Micros,
    chance: u64,
    wires: Vec<(Wire, u64)>,
    requests: VecDeque<Sent>,
    responses: VecDeque<(usize, u64, u64, Response)>,
    /// The round in which each one led last, and whom it names otherwise.
    led: Vec<u64>,
    named: Vec<usize>,
    leader: usize,
    round: u64,
    leases: Vec<ClientId>,
    clients: u64,
    results: BTreeMap<(ClientId, u64), Answer>,
    /// How often the table of each ask was made.
    made: BTreeMap<u64, u32>,
    deadlines: BTreeMap<u64, Micros>,
    /// Asks that are over, with whether they may have been applied.
    over: BTreeMap<u64, bool>,
    next: u64,
    taken: Ballot,
}

/// Plays one seed; an error says what did not hold.
pub(crate) fn play(seed: u64) -> Result<(), String> {
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        world.step()?;
    }
    world.end()
}

fn ballot(round: u64) -> Ballot {
    let peer = PeerId(1);
    Ballot { round, peer }
}

fn table_of(name: &str) -> Answer {
    Answer::Table(Table {
        table: TableId(1),
        name: name.to_owned(),
        tablets: Vec::new(),
    })
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            talk: Conversation::new(Identity::new(None), Vec::new(), Sequencing::AwaitsLease),
            now: Micros(1_000),
            chance: seed,
            wires: Vec::new(),
            requests: VecDeque::new(),
            responses: VecDeque::new(),
            led: Vec::new(),
            named: Vec::new(),
            leader: 0,
            round: 1,
            leases: Vec::new(),
            clients: 0,
            results: BTreeMap::new(),
            made: BTreeMap::new(),
            deadlines: BTreeMap::new(),
            over: BTreeMap::new(),
            next: 0,
            taken: Ballot::default(),
        };
        let count = 1 + world.below(5);
        let known = 1 + world.below(count);
        let addresses = (0..known).map(|peer| format!("c:{peer}")).collect();
        world.talk = Conversation::new(Identity::new(None), addresses, Sequencing::AwaitsLease);
        world.wires = vec![(Wire::None, 0); count];
        world.led = vec![0; count];
        world.named = vec![0; count];
        world.elect();
        world
    }

    /// Splitmix64.
    fn below(&mut self, end: usize) -> usize {
        self.chance = self.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.chance;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % end as u64).unwrap()
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn step(&mut self) -> Result<(), String> {
        match self.below(20) {
            0..=2 => self.ask(),
            3 if self.one_in(4) => self.cancel(),
            4..=8 => self.serve(),
            9..=12 => self.answer(),
            13 => self.connect(),
            14 if self.one_in(3) => self.cut(),
            15 if self.one_in(6) => self.elect(),
            16 if self.one_in(12) => self.forget(),
            17 => self.lease(),
            _ => {
                let most = [1_000, 30_000, 400_000][self.below(3)];
                let time = self.below(most);
                self.pass(Duration::from_micros(time as u64))?;
            }
        }
        self.drain()
    }

    fn ask(&mut self) {
        if self.talk.len() >= UNDER_WAY {
            return;
        }
        self.next += 1;
        let owner = self.next;
        let request = if self.one_in(3) {
            let known = ListVersion(owner);
            Request::Servers { known }
        } else {
            let (name, once) = (owner.to_string(), None);
            Request::CreateTable { name, once }
        };
        let deadline = self.now + Duration::from_millis(1 + self.below(4_000) as u64);
        self.deadlines.insert(owner, deadline);
        let asked = self.talk.ask(self.now, owner, request, Some(deadline));
        asked.expect("there is room for so few");
    }

    fn cancel(&mut self) {
        let Some(owner) = self.deadlines.keys().next().copied() else {
            return;
        };
        self.talk.cancel(&owner);
        self.deadlines.remove(&owner);
    }

    /// Another leader, or the same again. Who does not lead names anybody.
    fn elect(&mut self) {
        self.round += 1;
        self.leader = self.below(self.led.len());
        self.led[self.leader] = self.round;
        for peer in 0..self.named.len() {
            self.named[peer] = self.below(self.led.len());
        }
    }

    fn forget(&mut self) {
        self.leases.clear();
    }

    /// The client is given a lease, if it waits for one.
    fn lease(&mut self) {
        if self.leases.is_empty() && self.one_in(4) {
            self.clients += 1;
            self.leases.push(ClientId(self.clients));
            let client = ClientId(self.clients);
            self.talk.set_sequencing(Sequencing::Under(client));
        }
    }

    fn connect(&mut self) {
        for peer in 0..self.wires.len() {
            if self.wires[peer].0 != Wire::Connecting {
                continue;
            }
            if self.one_in(4) {
                self.wires[peer].0 = Wire::None;
                self.talk.link_down(self.now, peer, "refused");
            } else {
                self.wires[peer].0 = Wire::Up;
                self.talk.link_up(peer, CLUSTER);
            }
        }
    }

    /// A connection breaks: answers on it are lost, what was sent may still arrive.
    fn cut(&mut self) {
        let peer = self.below(self.wires.len());
        if self.wires[peer].0 == Wire::Up {
            self.wires[peer] = (Wire::None, self.wires[peer].1 + 1);
            self.talk.link_down(self.now, peer, "broken");
        }
    }

    /// A coordinator takes what was sent first, or some of it is lost.
    fn serve(&mut self) {
        let Some(sent) = self.requests.pop_front() else {
            return;
        };
        let broken = self.wires[sent.peer].1 != sent.life;
        if broken && self.one_in(2) {
            return;
        }
        if self.one_in(8) {
            return self.requests.push_back(sent);
        }
        let response = self.respond(sent.peer, &sent.request);
        if !broken && !self.one_in(10) {
            let answer = (sent.peer, sent.life, sent.correlation, response);
            self.responses.push_back(answer);
        }
    }

    fn respond(&mut self, peer: usize, request: &Request) -> Response {
        if peer == self.leader {
            let answer = self.run(request);
            // It stopped leading in the middle of it.
            if self.one_in(8) {
                self.elect();
                return self.redirect(peer);
            }
            let ballot = ballot(self.led[peer]);
            return Response::new(ballot, answer);
        }
        let question = matches!(request, Request::Servers { .. });
        if question && self.led[peer] > 0 && self.one_in(2) {
            let ballot = ballot(self.led[peer]);
            let answer = Answer::Servers(None);
            return Response::new(ballot, answer);
        }
        self.redirect(peer)
    }

    fn redirect(&mut self, peer: usize) -> Response {
        let named = self.named[peer];
        let refused = Refused::NotLeader {
            leader: Some(format!("c:{named}")),
            coordinators: (0..self.led.len()).map(|at| format!("c:{at}")).collect(),
            why: None,
        };
        let round = self.below(usize::try_from(self.round).unwrap() + 2);
        Response {
            ballot: ballot(round as u64),
            group: None,
            answer: Answer::Refused(refused),
        }
    }

    /// The leader runs a request, once.
    fn run(&mut self, request: &Request) -> Answer {
        let Request::CreateTable { name, once } = request else {
            return Answer::Servers(None);
        };
        let once = once.expect("it waits for a number");
        if !self.leases.contains(&once.client) {
            return Answer::Refused(Refused::Unknown);
        }
        if let Some(result) = self.results.get(&(once.client, once.sequence)) {
            return result.clone();
        }
        if self.one_in(6) {
            return Answer::Refused(Refused::NoMaster);
        }
        *self.made.entry(name.parse().unwrap()).or_default() += 1;
        let answer = table_of(name);
        self.results
            .insert((once.client, once.sequence), answer.clone());
        answer
    }

    fn answer(&mut self) {
        let Some((peer, life, correlation, response)) = self.responses.pop_front() else {
            return;
        };
        if self.wires[peer].1 == life {
            self.talk
                .handle_response(self.now, peer, correlation, response);
        }
    }

    /// Lets time pass, in the steps that are wanted.
    fn pass(&mut self, time: Duration) -> Result<(), String> {
        let end = self.now + time;
        loop {
            let next = self.talk.next_timeout().map_or(end, |next| next.min(end));
            self.now = self.now.max(next);
            self.talk.handle_tick(self.now);
            self.drain()?;
            if self.now == end {
                return Ok(());
            }
        }
    }

    fn drain(&mut self) -> Result<(), String> {
        while let Some(peer) = self.talk.pop_closing() {
            self.wires[peer] = (Wire::None, self.wires[peer].1 + 1);
            self.talk.link_closed(peer);
        }
        while let Some(answered) = self.talk.pop_answered() {
            self.judge(&answered)?;
        }
        while self.talk.pop_forgotten().is_some() {}
        while let Some(peer) = self.talk.ready(self.now) {
            if self.wires[peer].0 != Wire::Up {
                self.wires[peer].0 = Wire::Connecting;
                self.talk.connecting(peer);
                continue;
            }
            self.send(peer)?;
        }
        self.check()
    }

    fn send(&mut self, peer: usize) -> Result<(), String> {
        let mut payload = Vec::new();
        let filled = self.talk.fill(self.now, peer, &mut payload);
        let correlation = filled.ok_or("who is ready has something to say")?;
        self.requests.push_back(Sent {
            peer,
            life: self.wires[peer].1,
            correlation,
            request: postcards::decode(&payload).unwrap(),
        });
        Ok(())
    }

    fn judge(&mut self, answered: &Answered<u64>) -> Result<(), String> {
        let owner = answered.owner;
        let known = self.deadlines.remove(&owner);
        let deadline = known.ok_or(format!("{owner} is answered, but does not ask"))?;
        let mutates = matches!(answered.request, Request::CreateTable { .. });
        let maybe = match &answered.outcome {
            Ok(response) if response.ballot < self.taken => {
                return Err(format!("{:?} after {:?}", response.ballot, self.taken));
            }
            Ok(response) => {
                self.taken = response.ballot;
                let right = match &answered.request {
                    Request::CreateTable { name, .. } => table_of(name),
                    _ => Answer::Servers(None),
                };
                if response.answer != right {
                    return Err(format!("{owner} is answered {:?}", response.answer));
                }
                if mutates && self.made.get(&owner) != Some(&1) {
                    return Err(format!("{owner} was not applied"));
                }
                true
            }
            Err(unanswered) => {
                let lost = unanswered.reason.as_deref().unwrap_or_default();
                if self.now < deadline && !lost.contains("lease") {
                    return Err(format!("{owner} is given up early: {lost}"));
                }
                unanswered.maybe_applied
            }
        };
        self.over.insert(owner, maybe);
        Ok(())
    }

    fn check(&mut self) -> Result<(), String> {
        if let Some((owner, _)) = self
            .deadlines
            .iter()
            .find(|(_, at)| **at + Duration::from_millis(1) < self.now)
        {
            return Err(format!("{owner} is not over at its deadline"));
        }
        if let Some((owner, times)) = self.made.iter().find(|(_, times)| **times > 1) {
            return Err(format!("{owner} was applied {times} times"));
        }
        let wrong = |owner: &u64| self.over.get(owner) == Some(&false);
        if let Some(owner) = self.made.keys().find(|owner| wrong(owner)) {
            return Err(format!(
                "{owner} was applied, and it was said that it was not"
            ));
        }
        Ok(())
    }

    /// All that is on its way arrives, and what follows from it, while no time passes.
    fn settle(&mut self) -> Result<(), String> {
        for _ in 0..ASKED_AT_ONCE {
            self.connect();
            self.serve();
            self.answer();
            self.drain()?;
            if self.requests.is_empty() && self.responses.is_empty() {
                return Ok(());
            }
        }
        Err("they are asked without a rest".to_owned())
    }

    /// All that is on its way arrives, and all deadlines pass.
    fn end(mut self) -> Result<(), String> {
        for _ in 0..40 {
            self.settle()?;
            self.pass(Duration::from_millis(200))?;
        }
        match self.deadlines.keys().next() {
            Some(owner) => Err(format!("{owner} never ends")),
            None => Ok(()),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 300 } else { 3_000 }))]

    #[test]
    fn every_ask_ends_in_time_and_mutations_are_applied_once(seed in any::<u64>()) {
        prop_assert_eq!(play(seed), Ok(()));
    }
}
