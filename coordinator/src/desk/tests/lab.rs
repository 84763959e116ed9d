//! Desks that are connected to each other, and servers as the test plays them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use paxos::Stored;
use paxos::limits::Timing;
use ramkeep_rpc::wires::{WireEnd, WireId, WireOutput};
use ramkeep_wire::coordinator::{Answer, Enlist, GroupFacts, Heartbeat, Request, Response, Roles};
use ramkeep_wire::envelope::{self, Envelope, Header, Kind};
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::order::{Command, Order, OrderReply};
use ramkeep_wire::{BootId, ClusterId, LogPosition, Micros, Party, PeerId, ServerId, postcards};

use super::super::{Desk, DeskOutput, SessionId};
use crate::core::{Config, Coordinator, default_settings};

/// A step of time.
const STEP: Duration = Duration::from_millis(5);

pub(super) fn request(correlation: u64, from: Party, request: &Request) -> Vec<u8> {
    let header = Header::new(Kind::CoordinatorRequest, correlation, Party::NONE, from);
    let mut bytes = Vec::new();
    envelope::append(&mut bytes, header, &postcards::encode(request));
    bytes
}

pub(super) fn parsed(bytes: &[u8]) -> Envelope<'_> {
    let (envelope, len) = envelope::parse(bytes).unwrap().unwrap();
    assert_eq!(len, bytes.len(), "one envelope");
    envelope
}

pub(super) fn core(peer: u32, members: u32) -> Coordinator {
    core_that(peer, members, true)
}

pub(super) fn core_that(peer: u32, members: u32, founds: bool) -> Coordinator {
    core_from(peer, members, founds, &address(peer), Stored::default())
}

fn address(peer: u32) -> String {
    format!("coordinator-{peer}")
}

/// One that is at this address, with this on its disk.
pub(super) fn core_from(
    peer: u32,
    members: u32,
    founds: bool,
    at: &str,
    stored: Stored,
) -> Coordinator {
    let seed = u8::try_from(peer).unwrap();
    let config = Config {
        peer: PeerId(peer),
        incarnation: [seed; 16],
        address: at.to_owned(),
        peers: (1..=members).map(|id| (PeerId(id), address(id))).collect(),
        settings: default_settings(),
        timing: Timing::default(),
        founds,
        entropy: [seed; 32],
    };
    Coordinator::new(Micros(1_000_000), config, stored).unwrap()
}

/// A server that the test plays.
#[derive(Default)]
pub(super) struct Played {
    /// The wire to it.
    pub(super) wire: Option<WireId>,
    /// What it was sent and has not answered.
    pub(super) unanswered: Vec<Vec<u8>>,
    /// No process is there.
    pub(super) dead: bool,
}

pub(super) struct Lab {
    pub(super) now: Micros,
    /// Coordinators from 1.
    pub(super) desks: Vec<Desk>,
    /// Coordinators that nobody can connect to.
    pub(super) away: BTreeSet<u32>,
    /// Of wires between coordinators, by who made them: the session at the other end.
    lines: BTreeMap<(usize, WireId), (usize, SessionId)>,
    pub(super) servers: BTreeMap<ServerId, Played>,
    /// What sessions were answered.
    pub(super) replies: Vec<(SessionId, u64, Response)>,
    /// All else that came out.
    pub(super) others: Vec<DeskOutput>,
    /// Outputs are looked at so much later than they are made.
    pub(super) late: Duration,
    /// Disks sync nothing.
    pub(super) stuck: bool,
    correlation: u64,
    sessions: u64,
}

impl Lab {
    /// A group with a leader.
    pub(super) fn new(members: u32) -> Self {
        let desks = (1..=members).map(|peer| Desk::new(core(peer, members)));
        let mut lab = Self {
            now: Micros(1_000_000),
            desks: desks.collect(),
            away: BTreeSet::new(),
            lines: BTreeMap::new(),
            servers: BTreeMap::new(),
            replies: Vec::new(),
            others: Vec::new(),
            late: Duration::ZERO,
            stuck: false,
            correlation: 0,
            sessions: 0,
        };
        lab.until(|lab| lab.desks.iter().any(|desk| desk.core().leads()));
        lab
    }

    /// Another coordinator comes, which is not of the group yet.
    pub(super) fn join_group(&mut self) -> PeerId {
        let members = u32::try_from(self.desks.len()).unwrap();
        self.desks.push(Desk::new(core(members + 1, members)));
        PeerId(members + 1)
    }

    /// Which desk leads.
    pub(super) fn leader(&self) -> usize {
        let leads = |desk: &Desk| desk.core().leads();
        self.desks.iter().position(leads).expect("a leader")
    }

    pub(super) fn leads_ref(&self) -> &Desk {
        &self.desks[self.leader()]
    }

    pub(super) fn leads(&mut self) -> &mut Desk {
        let leader = self.leader();
        &mut self.desks[leader]
    }

    /// Lets a little time pass.
    pub(super) fn step(&mut self) {
        self.now = self.now + STEP;
        for desk in &mut self.desks {
            if desk.next_timeout().is_some_and(|due| due <= self.now) {
                desk.handle_tick(self.now);
            }
        }
        self.settle();
    }

    pub(super) fn until(&mut self, fits: impl Fn(&Self) -> bool) {
        for _ in 0..2_000 {
            if fits(self) {
                return;
            }
            self.step();
        }
        panic!("it never comes");
    }

    pub(super) fn settle(&mut self) {
        let mut quiet = false;
        while !std::mem::replace(&mut quiet, true) {
            for at in 0..self.desks.len() {
                while let Some(output) = self.desks[at].poll_output(|| self.now + self.late) {
                    quiet = false;
                    self.perform(at, output);
                }
            }
        }
    }

    fn perform(&mut self, at: usize, output: DeskOutput) {
        match output {
            DeskOutput::Persist(job) => {
                if !self.stuck {
                    self.desks[at].handle_persisted(self.now, job.seq);
                }
            }
            DeskOutput::Wire(WireOutput::Connect { wire, to, .. }) => self.connect(at, wire, to),
            DeskOutput::Wire(WireOutput::Send { wire, bytes }) => self.carry(at, wire, &bytes),
            DeskOutput::Wire(WireOutput::Close { wire }) => {
                if let Some((to, session)) = self.lines.remove(&(at, wire)) {
                    self.desks[to].close_session(self.now, session);
                }
            }
            DeskOutput::Reply { session, bytes } => {
                let envelope = parsed(&bytes);
                let response = postcards::decode(envelope.payload).unwrap();
                let correlation = envelope.header.correlation;
                self.replies.push((session, correlation, response));
            }
            other => self.others.push(other),
        }
    }

    fn connect(&mut self, at: usize, wire: WireId, to: Party) {
        let me = Party::coordinator(PeerId(u32::try_from(at).unwrap() + 1));
        let mut up = true;
        if let Some(server) = to.as_server() {
            let server = self.servers.entry(server).or_default();
            server.wire = Some(wire);
            server.unanswered.clear();
            up = !server.dead;
        } else {
            let mut reached = (1..).zip(0..self.desks.len());
            let there = |id: u32| Party::coordinator(PeerId(id)) == to && !self.away.contains(&id);
            match reached.find(|(id, _)| there(*id)) {
                Some((_, other)) => {
                    let session = self.next_session();
                    let cluster = self.desks[at].cluster;
                    self.desks[other].open_session(session, me, cluster);
                    self.lines.insert((at, wire), (other, session));
                }
                None => up = false,
            }
        }
        if up {
            self.desks[at].handle_wire_up(wire, me, to);
        } else {
            self.desks[at].handle_wire_down(self.now, wire, &WireEnd::Nobody);
        }
    }

    fn carry(&mut self, at: usize, wire: WireId, bytes: &[u8]) {
        if let Some((to, session)) = self.lines.get(&(at, wire)).copied() {
            let envelope = parsed(bytes);
            let heard = self.desks[to].handle_envelope(self.now, session, &envelope);
            return heard.unwrap();
        }
        let mut servers = self.servers.values_mut();
        if let Some(server) = servers.find(|server| server.wire == Some(wire)) {
            server.unanswered.push(bytes.to_vec());
        }
    }

    /// Ends the wires between two coordinators, as their sockets do.
    pub(super) fn part(&mut self, one: usize, two: usize) {
        let ours = |(at, to): (usize, usize)| (at, to) == (one, two) || (at, to) == (two, one);
        let over = self
            .lines
            .extract_if(.., |(at, _), (to, _)| ours((*at, *to)));
        let over: Vec<_> = over.collect();
        let end = WireEnd::Closed("reset".into());
        for ((at, wire), (to, session)) in over {
            self.desks[at].handle_wire_down(self.now, wire, &end);
            self.desks[to].close_session(self.now, session);
        }
        self.settle();
    }

    /// Opens a session of somebody with the leader.
    pub(super) fn session(&mut self, party: Party) -> SessionId {
        let session = self.next_session();
        self.leads()
            .open_session(session, party, ClusterId::default());
        session
    }

    fn next_session(&mut self) -> SessionId {
        self.sessions += 1;
        SessionId(self.sessions)
    }

    /// Asks the leader; the correlation. What it says to it is in `replies`, now or later.
    pub(super) fn ask(&mut self, session: SessionId, wanted: &Request) -> u64 {
        self.correlation += 1;
        let bytes = request(self.correlation, Party::NONE, wanted);
        let now = self.now;
        let taken = self.leads().handle_envelope(now, session, &parsed(&bytes));
        taken.unwrap();
        self.settle();
        self.correlation
    }

    /// The answer to a request, if there is one.
    pub(super) fn answer(&self, correlation: u64) -> Option<(SessionId, Answer)> {
        let mut found = self.replies.iter();
        let (session, _, response) = found.find(|(_, of, _)| *of == correlation)?;
        Some((*session, response.answer.clone()))
    }

    /// What an answer said of the group.
    pub(super) fn told(&self, correlation: u64) -> Option<GroupFacts> {
        let mut found = self.replies.iter();
        let (_, _, response) = found.find(|(_, of, _)| *of == correlation)?;
        response.group.clone()
    }

    /// A server enlists and is ready.
    pub(super) fn join(&mut self, nonce: u8) -> ServerId {
        let session = self.session(Party::NONE);
        let asked = self.ask(session, &enlist(nonce, vec![format!("server-{nonce}")]));
        let Some((_, Answer::Enlisted { server, list, .. })) = self.answer(asked) else {
            panic!("not enlisted");
        };
        let report = Heartbeat {
            list: list.version,
            ..Heartbeat::of(server)
        };
        self.ask(session, &Request::Heartbeat(report));
        server
    }

    /// A server answers the orders that it was given; the rest stays unanswered.
    pub(super) fn obey(&mut self, server: ServerId) {
        let played = self.servers.get_mut(&server).unwrap();
        let wire = played.wire.unwrap();
        let is_order = |bytes: &mut Vec<u8>| parsed(bytes).header.kind == Kind::Order;
        let orders: Vec<Vec<u8>> = played.unanswered.extract_if(.., is_order).collect();
        for bytes in orders {
            self.reply_to(wire, &bytes);
        }
        self.settle();
    }

    /// Answers an order on a wire.
    pub(super) fn reply_to(&mut self, wire: WireId, order: &[u8]) {
        let order = parsed(order);
        let given: Order = postcards::decode(order.payload).unwrap();
        let reply = match given.command {
            Command::TakeTablets(grants) => {
                OrderReply::Taken(grants.iter().map(|_| Some(LogPosition(9))).collect())
            }
            _ => OrderReply::Done,
        };
        let mut bytes = Vec::new();
        let header = order.header.reply(Kind::OrderReply);
        envelope::append(&mut bytes, header, &postcards::encode(&reply));
        let now = self.now;
        self.leads().handle_received(now, wire, &parsed(&bytes));
    }

    /// The wire to a server ends.
    pub(super) fn end_wire(&mut self, server: ServerId, end: &WireEnd) {
        let wire = self.servers[&server].wire.unwrap();
        let now = self.now;
        self.leads().handle_wire_down(now, wire, end);
        self.settle();
    }

    /// A coordinator's session brings a message of a coordinator.
    pub(super) fn say(
        &mut self,
        session: SessionId,
        message: &paxos::Envelope,
    ) -> Result<(), Refusal> {
        let mut bytes = Vec::new();
        let header = Header::new(Kind::Group, 0, Party::NONE, Party::NONE);
        envelope::append(&mut bytes, header, &postcards::encode(message));
        let now = self.now;
        self.leads().handle_envelope(now, session, &parsed(&bytes))
    }
}

pub(super) fn enlist(nonce: u8, addresses: Vec<String>) -> Request {
    Request::Enlist(Enlist {
        nonce: [nonce; 16],
        roles: Roles {
            master: true,
            backup: true,
        },
        addresses,
        replaces: None,
        boot: BootId([0; 16]),
        frames: 1,
        memory: 1,
    })
}
