//! All states of a small world: every order of deliveries, syncs, timeouts and crashes.
//!
//! What is left out, and why that is no loss:
//! - *Loss and delay*: a message may always stay undelivered, so every prefix of what follows a
//!   state is also what follows it with messages lost.
//! - *Time*: a peer's clock stands still but for its own timeouts, which come at any moment, in any
//!   number up to the bound, and for one tick before a request to promise. The lease has no length,
//!   so that a grant runs until the granter's clock next moves: leases are for the seeds.
//! - *Founding*: the group is there.
//!
//! # Invariants
//! 1. A state is explored once. States differ also in what ever became durable, so that a choice
//!    is seen that nobody learns of.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::rc::Rc;
use std::time::Duration;

use paxos::limits::Timing;
use paxos::{
    Action, Ballot, Body, Envelope, Group, GroupId, Incarnation, Member, Node, PeerId, Record,
    Setup, Slot, Snapshot, Stored, Time,
};

use crate::machine::digest;

/// How much may happen on one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bounds {
    /// Timeouts of each peer.
    pub timeouts: [u8; 3],
    /// Commands proposed.
    pub commands: u8,
    /// Crashes, each with a restart, and with any prefix of what was not synced.
    pub crashes: u8,
    /// Messages delivered once more.
    pub doubles: u8,
    /// Whether a sync is a step of its own, before which a crash may come; else it is done at once.
    pub slow_disks: bool,
}

/// How far an exploration came.
#[derive(Clone, Debug)]
pub struct Explored {
    /// Different states.
    pub states: usize,
    /// Steps tried.
    pub steps: u64,
    /// Longest way.
    pub depth: usize,
    /// Whether these are all states.
    pub complete: bool,
    /// States in which a slot is decided.
    pub deciding: u64,
    /// What was found broken, and the way there.
    pub broken: Option<(String, Vec<String>)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Write {
    Records(Vec<Record>),
    Snapshot(Snapshot, Vec<Record>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Process {
    node: Node,
    now: Time,
    durable: Vec<Record>,
    queue: VecDeque<(u64, Write)>,
    /// Digests of what this life has applied.
    applied: Vec<u64>,
}

#[derive(Clone)]
struct State {
    /// Shared between states, each with its hash.
    peers: Vec<(u64, Rc<Process>)>,
    /// Under way, by hash.
    messages: BTreeMap<u64, Rc<Envelope>>,
    left: Bounds,
    /// Slot, ballot, digest, peer: what ever became durable.
    votes: Rc<BTreeSet<(Slot, Ballot, u64, PeerId)>>,
    decided: Vec<u64>,
}

#[derive(Clone, Debug)]
enum Step {
    Deliver(u64, bool),
    Sync(usize),
    /// So many writes survive.
    Crash(usize, usize),
    Timeout(usize),
    Propose(usize),
}

fn hash(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

fn timing() -> Timing {
    Timing {
        lease: Duration::ZERO,
        ..Timing::default()
    }
}

fn setup(id: PeerId) -> Setup {
    let peers = (1..=3).map(|id| (PeerId(id), String::new())).collect();
    Setup {
        me: id,
        incarnation: Incarnation([id.0 as u8; 16]),
        address: String::new(),
        peers,
        timing: timing(),
        founds: true,
        seed: [id.0 as u8; 16],
    }
}

fn group() -> Group {
    let member = |id: u32| Member {
        id: PeerId(id),
        incarnation: Incarnation([id as u8; 16]),
        address: String::new(),
    };
    Group {
        id: GroupId([7; 16]),
        generation: 0,
        members: (1..=3).map(member).collect(),
    }
}

/// Explores all states within the bounds, up to a number of them.
#[must_use]
pub fn explore(bounds: Bounds, most: usize) -> Explored {
    let mut explored = Explored {
        states: 0,
        steps: 0,
        depth: 0,
        complete: true,
        deciding: 0,
        broken: None,
    };
    let first = match State::first(bounds) {
        Ok(first) => first,
        Err(what) => {
            explored.broken = Some((what, Vec::new()));
            return explored;
        }
    };
    let mut seen = HashSet::from([first.hash()]);
    let mut path = vec![Frame::new(first, "begin".to_owned())];
    while let Some(frame) = path.last_mut() {
        let Some(step) = frame.steps.pop() else {
            path.pop();
            continue;
        };
        if seen.len() >= most {
            explored.complete = false;
            break;
        }
        explored.steps += 1;
        let name = format!("{step:?}");
        let next = frame.state.step(&step);
        match next {
            Ok(None) => {}
            Ok(Some(next)) => {
                if seen.insert(next.hash()) {
                    explored.deciding += u64::from(!next.decided.is_empty());
                    path.push(Frame::new(next, name));
                    explored.depth = explored.depth.max(path.len());
                }
            }
            Err(what) => {
                let mut way: Vec<String> = path.into_iter().map(|frame| frame.name).collect();
                way.push(name);
                explored.broken = Some((what, way));
                break;
            }
        }
    }
    explored.states = seen.len();
    explored
}

struct Frame {
    state: State,
    steps: Vec<Step>,
    name: String,
}

impl Frame {
    fn new(state: State, name: String) -> Self {
        let steps = state.steps();
        Self { state, steps, name }
    }
}

impl State {
    fn first(left: Bounds) -> Result<Self, String> {
        let mut state = Self {
            peers: Vec::new(),
            messages: BTreeMap::new(),
            left,
            votes: Rc::default(),
            decided: Vec::new(),
        };
        for id in 1..=3 {
            let durable = vec![Record::Group(group())];
            let (node, now) = (start(PeerId(id), Time(0), &durable)?, Time(0));
            let process = Process {
                node,
                now,
                durable,
                queue: VecDeque::new(),
                applied: Vec::new(),
            };
            state.peers.push((0, Rc::new(process)));
            state.carry_out(id as usize - 1)?;
        }
        Ok(state)
    }

    fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for (peer, _) in &self.peers {
            peer.hash(&mut hasher);
        }
        for message in self.messages.keys() {
            message.hash(&mut hasher);
        }
        (self.left, &self.votes, &self.decided).hash(&mut hasher);
        hasher.finish()
    }

    fn peer(&mut self, at: usize) -> &mut Process {
        Rc::make_mut(&mut self.peers[at].1)
    }

    fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        for (at, (_, peer)) in self.peers.iter().enumerate() {
            if self.left.timeouts[at] > 0 {
                steps.push(Step::Timeout(at));
            }
            if self.left.crashes > 0 {
                steps.extend((0..=peer.queue.len()).map(|kept| Step::Crash(at, kept)));
            }
            if self.left.commands > 0 && peer.node.leads().is_some() {
                steps.push(Step::Propose(at));
            }
            if !peer.queue.is_empty() {
                steps.push(Step::Sync(at));
            }
        }
        for message in self.messages.keys() {
            if self.left.doubles > 0 {
                steps.push(Step::Deliver(*message, true));
            }
            steps.push(Step::Deliver(*message, false));
        }
        steps
    }

    /// The state after a step; none when it changes nothing that counts.
    fn step(&self, step: &Step) -> Result<Option<Self>, String> {
        let mut next = self.clone();
        match *step {
            Step::Deliver(message, again) => {
                let Some(envelope) = self.messages.get(&message).cloned() else {
                    return Ok(None);
                };
                if again {
                    next.left.doubles -= 1;
                } else {
                    next.messages.remove(&message);
                }
                let at = envelope.to.0 as usize - 1;
                let peer = next.peer(at);
                if matches!(envelope.body, Body::Prepare { .. } | Body::PreVote { .. }) {
                    peer.now.0 += 2;
                }
                let now = peer.now;
                peer.node.handle_message(now, Envelope::clone(&envelope));
                next.carry_out(at)?;
                if next.peers[at].0 == self.peers[at].0
                    && next.messages.len() <= self.messages.len()
                {
                    // As if it had never arrived.
                    return Ok(None);
                }
            }
            Step::Sync(at) => {
                let seq = next.sync(at);
                let peer = next.peer(at);
                let now = peer.now;
                peer.node.handle_persisted(now, seq);
                next.carry_out(at)?;
            }
            Step::Crash(at, kept) => {
                next.left.crashes -= 1;
                for _ in 0..kept {
                    next.sync(at);
                }
                let peer = next.peer(at);
                peer.queue.clear();
                peer.applied.clear();
                let before = promised(&peer.durable);
                peer.node = start(PeerId(at as u32 + 1), peer.now, &peer.durable)?;
                if peer.node.promised() < before {
                    return Err(format!("peer {} forgot its promise {before}", at + 1));
                }
                next.carry_out(at)?;
            }
            Step::Timeout(at) => {
                next.left.timeouts[at] -= 1;
                let peer = next.peer(at);
                let due = peer.node.next_timeout().unwrap_or(peer.now);
                peer.now = peer.now.max(due);
                let now = peer.now;
                peer.node.handle_timeout(now);
                next.carry_out(at)?;
            }
            Step::Propose(at) => {
                next.left.commands -= 1;
                let command = vec![next.left.commands; 24].into();
                let peer = next.peer(at);
                // The peer may be deposed by now.
                let _ = peer.node.propose(peer.now, command, 0);
                next.carry_out(at)?;
            }
        }
        Ok(Some(next))
    }

    /// The oldest write becomes durable; which.
    fn sync(&mut self, at: usize) -> u64 {
        let id = PeerId(at as u32 + 1);
        let Some((seq, write)) = self.peer(at).queue.pop_front() else {
            return 0;
        };
        let (Write::Records(records) | Write::Snapshot(_, records)) = write;
        for record in &records {
            if let Record::Accepted {
                slot,
                ballot,
                entry,
            } = record
            {
                Rc::make_mut(&mut self.votes).insert((*slot, *ballot, digest(entry), id));
            }
        }
        self.peer(at).durable.extend(records);
        seq
    }

    fn carry_out(&mut self, at: usize) -> Result<(), String> {
        while let Some(action) = self.peer(at).node.poll_action() {
            match action {
                Action::Send(envelope) => {
                    self.check_message(at, &envelope)?;
                    self.messages.insert(hash(&envelope), Rc::new(envelope));
                }
                Action::Persist { seq, records } => {
                    let write = Write::Records(records);
                    self.peer(at).queue.push_back((seq, write));
                    if !self.left.slow_disks {
                        let seq = self.sync(at);
                        let peer = self.peer(at);
                        peer.node.handle_persisted(peer.now, seq);
                    }
                }
                Action::SaveSnapshot {
                    seq,
                    snapshot,
                    records,
                } => {
                    let write = Write::Snapshot(snapshot, records);
                    self.peer(at).queue.push_back((seq, write));
                }
                Action::Apply { slot, entry, .. } => self.apply(at, slot, digest(&entry))?,
                _ => {}
            }
        }
        self.peers[at].0 = hash(&self.peers[at].1);
        self.check_chosen()
    }

    fn apply(&mut self, at: usize, slot: Slot, entry: u64) -> Result<(), String> {
        let peer = self.peer(at);
        peer.applied.push(entry);
        let count = peer.applied.len();
        if slot.0 != count as u64 {
            return Err(format!("peer {} applies {slot} as its {count}th", at + 1));
        }
        match self.decided.get(count - 1) {
            None => self.decided.push(entry),
            Some(known) if *known != entry => {
                return Err(format!("peer {} applies another entry in {slot}", at + 1));
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// Of each slot at most one entry has the durable votes of a quorum under one ballot, and it is
    /// what was decided.
    fn check_chosen(&self) -> Result<(), String> {
        let mut chosen = BTreeMap::new();
        let mut counts = BTreeMap::<(Slot, Ballot, u64), usize>::new();
        let mut proposed = BTreeMap::new();
        for (slot, ballot, entry, _) in self.votes.iter() {
            if *proposed.entry((*slot, *ballot)).or_insert(*entry) != *entry {
                return Err(format!("two entries under {ballot} in slot {slot}"));
            }
            let count = counts.entry((*slot, *ballot, *entry)).or_default();
            *count += 1;
            if *count >= 2 && *chosen.entry(*slot).or_insert(*entry) != *entry {
                return Err(format!("two entries are chosen in slot {slot}"));
            }
        }
        for (at, entry) in self.decided.iter().enumerate() {
            let slot = Slot(at as u64 + 1);
            if chosen.get(&slot) != Some(entry) {
                return Err(format!("what is applied in slot {slot} is not chosen"));
            }
        }
        Ok(())
    }

    /// What a message promises is durable.
    fn check_message(&self, at: usize, envelope: &Envelope) -> Result<(), String> {
        let durable = &self.peers[at].1.durable;
        let holds = match &envelope.body {
            Body::Prepare { ballot, .. }
            | Body::Promise { ballot, .. }
            | Body::Accept { ballot, .. }
            | Body::Heartbeat { ballot, .. }
            | Body::HeartbeatAck { ballot, .. } => promised(durable) >= *ballot,
            Body::Accepted {
                ballot,
                first,
                last,
                ..
            } => {
                let decided = self.peers[at].1.node.decided();
                (first.0..=last.0).all(|slot| {
                    slot <= decided.0 || accepted(durable, Slot(slot)).is_some_and(|b| b >= *ballot)
                })
            }
            _ => true,
        };
        if holds {
            return Ok(());
        }
        Err(format!("peer {} says {:?}", at + 1, envelope.body))
    }
}

fn start(id: PeerId, now: Time, durable: &[Record]) -> Result<Node, String> {
    let stored = Stored {
        snapshot: None,
        records: durable.to_vec(),
    };
    let mut node = Node::new(now, setup(id), stored).map_err(|error| error.to_string())?;
    // It finds that it is in a group; elections come later.
    node.handle_timeout(now);
    Ok(node)
}

fn promised(records: &[Record]) -> Ballot {
    let promised = records.iter().filter_map(|record| match record {
        Record::Promised(ballot) => Some(*ballot),
        _ => None,
    });
    promised.max().unwrap_or_default()
}

fn accepted(records: &[Record], slot: Slot) -> Option<Ballot> {
    records.iter().rev().find_map(|record| match record {
        Record::Accepted {
            slot: at, ballot, ..
        } if *at == slot => Some(*ballot),
        _ => None,
    })
}
