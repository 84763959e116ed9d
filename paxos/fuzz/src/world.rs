//! The world: peers, a network, clients and faults in virtual time.
//!
//! # Invariants
//! 1. A seed makes one run, always the same.
//! 2. No fault beyond the model: see the crate's documentation.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use paxos::{Envelope, Incarnation, Node, PeerId, Setup};

use crate::check::{Check, Counts, Finding, Truth};
use crate::clients::Client;
use crate::dice::Dice;
use crate::machine::{KEYS, Machine};
use crate::peer::Peer;
use crate::plan::{MILLI, Micros, Plan};

#[derive(Debug)]
pub(crate) enum Event {
    Deliver(Box<Envelope>),
    Tick(PeerId, u32),
    Sync(PeerId, u32),
    /// A sync is reported.
    Synced(PeerId, u32, u64),
    Start(PeerId),
    Resume(PeerId),
    Client(u32),
    /// A result reaches a client: sequence, register, version.
    Done(u32, u64, u32, u64),
    Read,
    Fault,
    /// Somebody looks after the group.
    Operate,
    Calm,
    Judge,
}

struct Queued(Micros, u64, Event);

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for Queued {}
impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

pub(crate) struct World {
    pub(crate) now: Micros,
    pub(crate) dice: Dice,
    pub(crate) plan: Plan,
    pub(crate) peers: BTreeMap<PeerId, Peer>,
    pub(crate) clients: Vec<Client>,
    pub(crate) truth: Truth,
    pub(crate) counts: Counts,
    pub(crate) finding: Option<Finding>,
    /// Messages from one to the other don't arrive.
    pub(crate) cuts: BTreeSet<(PeerId, PeerId)>,
    pub(crate) slow_until: Micros,
    pub(crate) calm: bool,
    /// Of each register: the highest version whose writer knows.
    pub(crate) completed: [u64; KEYS],
    pub(crate) attempts: u64,
    /// Attempts said never to be decided.
    pub(crate) never: BTreeSet<u64>,
    /// Who is to go, and who is to come.
    pub(crate) replacing: Option<(PeerId, PeerId)>,
    /// The first disk of the one who is to come.
    pub(crate) replacing_by: Incarnation,
    /// Checks that are not looked at: what they would find first is left to others.
    pub(crate) ignored: &'static [Check],
    converged: bool,
    trace: bool,
    queue: BinaryHeap<Reverse<Queued>>,
    order: u64,
}

impl World {
    pub(crate) fn new(seed: u64, trace: bool) -> Self {
        let mut dice = Dice::new(seed);
        let plan = Plan::new(&mut dice);
        Self::with_plan(plan, dice, trace)
    }

    pub(crate) fn with_plan(plan: Plan, dice: Dice, trace: bool) -> Self {
        let mut world = Self {
            now: 0,
            dice,
            peers: BTreeMap::new(),
            clients: Vec::new(),
            truth: Truth::default(),
            counts: Counts::default(),
            finding: None,
            cuts: BTreeSet::new(),
            slow_until: 0,
            calm: false,
            completed: [0; KEYS],
            attempts: 0,
            never: BTreeSet::new(),
            replacing: None,
            replacing_by: Incarnation::default(),
            ignored: &[],
            converged: false,
            trace,
            queue: BinaryHeap::new(),
            order: 0,
            plan,
        };
        world.trace(|world| format!("{:?}", world.plan));
        world.begin();
        world
    }

    fn begin(&mut self) {
        let ids = (1..=self.plan.peers).map(PeerId);
        let named: Vec<_> = ids.map(|id| (id, Peer::address(id))).collect();
        for (id, _) in &named {
            let peer = Peer::new(*id, named.clone(), &mut self.dice);
            self.peers.insert(*id, peer);
            let at = self.dice.between(0, 50 * MILLI);
            self.after(at, Event::Start(*id));
        }
        for number in 0..self.plan.clients {
            self.clients.push(Client::new(number));
            let at = self.dice.between(0, 300 * MILLI);
            self.after(at, Event::Client(number));
        }
        self.after(100 * MILLI, Event::Read);
        self.after(200 * MILLI, Event::Fault);
        self.after(300 * MILLI, Event::Operate);
        self.after(self.plan.calm_at, Event::Calm);
    }

    /// Runs to the end, or to the first finding.
    pub(crate) fn run(&mut self) {
        while self.finding.is_none() && !self.converged {
            let Some(Reverse(Queued(at, _, event))) = self.queue.pop() else {
                return self.fail(Check::Progress, "nothing is left to happen".to_owned());
            };
            self.now = at;
            self.event(event);
            self.check_leases();
        }
    }

    pub(crate) fn after(&mut self, delay: Micros, event: Event) {
        self.order += 1;
        let queued = Queued(self.now + delay, self.order, event);
        self.queue.push(Reverse(queued));
    }

    pub(crate) fn trace(&self, line: impl FnOnce(&Self) -> String) {
        if self.trace {
            let (seconds, micros) = (self.now / 1_000_000, self.now % 1_000_000);
            println!("{seconds}.{micros:06} {}", line(self));
        }
    }

    pub(crate) fn fail(&mut self, check: Check, detail: String) {
        if self.finding.is_none() && !self.ignored.contains(&check) {
            let at = self.now;
            self.finding = Some(Finding { check, detail, at });
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Deliver(envelope) => self.deliver(*envelope),
            Event::Tick(id, life) => self.tick(id, life),
            Event::Sync(id, life) => self.sync(id, life),
            Event::Synced(id, life, seq) => self.synced(id, life, seq),
            Event::Start(id) => self.start(id),
            Event::Resume(id) => {
                if self
                    .peers
                    .get(&id)
                    .is_some_and(|peer| peer.paused_until <= self.now)
                {
                    self.input(id, |node, now| node.handle_timeout(now));
                }
            }
            Event::Client(client) => self.client(client),
            Event::Done(client, sequence, key, version) => {
                self.done(client, sequence, key, version);
            }
            Event::Read => self.read(),
            Event::Fault => self.fault(),
            Event::Operate => self.operate(),
            Event::Calm => self.calm_down(),
            Event::Judge => self.judge(),
        }
    }

    /// Gives a peer an input and carries out what it wants.
    pub(crate) fn input(&mut self, id: PeerId, input: impl FnOnce(&mut Node, paxos::Time)) {
        let now = self.now;
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let time = peer.clock(now);
        let Some(node) = &mut peer.node else { return };
        let before = node.stats().elections;
        input(node, time);
        self.counts.elections += node.stats().elections - before;
        self.carry_out(id);
    }

    /// The peer, if it can take an input now; else when it can.
    fn ready(&self, id: PeerId, life: Option<u32>) -> Result<(), Option<Micros>> {
        let peer = self.peers.get(&id).ok_or(None)?;
        if !peer.is_up() || life.is_some_and(|life| life != peer.life) {
            return Err(None);
        }
        if peer.paused_until > self.now {
            return Err(Some(peer.paused_until - self.now));
        }
        Ok(())
    }

    fn deliver(&mut self, envelope: Envelope) {
        match self.ready(envelope.to, None) {
            Ok(()) => {
                self.trace(|_| {
                    let Envelope { from, to, body, .. } = &envelope;
                    format!("{from} -> {to} {}", crate::acts::brief(body))
                });
                let id = envelope.to;
                self.input(id, |node, now| node.handle_message(now, envelope));
            }
            Err(Some(later)) => {
                let jitter = self.dice.between(0, 500);
                self.after(later + jitter, Event::Deliver(Box::new(envelope)));
            }
            Err(None) => self.counts.lost += 1,
        }
    }

    fn tick(&mut self, id: PeerId, life: u32) {
        match self.ready(id, Some(life)) {
            Ok(()) => {
                let now = self.now;
                let Some(peer) = self.peers.get_mut(&id) else {
                    return;
                };
                if peer.tick_at != Some(now) {
                    return;
                }
                peer.tick_at = None;
                self.input(id, |node, now| node.handle_timeout(now));
            }
            Err(Some(_)) => {
                // It finds out when it resumes.
                if let Some(peer) = self.peers.get_mut(&id) {
                    peer.tick_at = None;
                }
            }
            Err(None) => {}
        }
    }

    pub(crate) fn schedule_tick(&mut self, id: PeerId) {
        let now = self.now;
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let due = peer.node.as_ref().and_then(Node::next_timeout);
        let Some(due) = due else { return };
        let at = peer.when(due).max(now + 1);
        if peer.tick_at.is_none_or(|known| at < known) {
            peer.tick_at = Some(at);
            let life = peer.life;
            self.after(at - now, Event::Tick(id, life));
        }
    }

    /// A life begins.
    fn start(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        if peer.is_up() || peer.gone {
            return;
        }
        peer.life += 1;
        peer.new_clock(&mut self.dice);
        peer.machine = Machine::default();
        peer.snapshot_at = 0;
        (peer.tick_at, peer.disk_busy, peer.dies_after) = (None, false, None);
        peer.paused_until = 0;
        peer.proposals.clear();
        peer.written = peer.disk.view.promised;
        let setup = Setup {
            me: id,
            incarnation: peer.incarnation,
            address: Peer::address(id),
            peers: peer.named.clone(),
            timing: self.plan.timing,
            founds: true,
            seed: self.dice.bytes(),
        };
        let (promised, known) = (peer.disk.view.promised, peer.disk.view.known());
        let stored = peer.disk.stored();
        let node = Node::with_sizes(peer.clock(self.now), setup, self.plan.sizes, stored);
        self.trace(|_| format!("{id} starts"));
        match node {
            Ok(node) => {
                let kept = node.promised() >= promised;
                let decided = node.decided() >= known;
                if let Some(peer) = self.peers.get_mut(&id) {
                    peer.node = Some(node);
                }
                if !kept {
                    let detail = format!("peer {id} restarts without its promise {promised}");
                    self.fail(Check::PromiseKept, detail);
                }
                if !decided {
                    let detail = format!("peer {id} restarts without decided slot {known}");
                    self.fail(Check::Restorable, detail);
                }
                self.carry_out(id);
            }
            Err(error) => self.fail(Check::Restorable, format!("peer {id}: {error}")),
        }
    }

    fn check_leases(&mut self) {
        let mut holders = self
            .peers
            .values()
            .filter(|peer| peer.holds_lease(self.now));
        if let (Some(one), Some(other)) = (holders.next(), holders.next()) {
            let detail = format!("peers {} and {} hold a lease", one.id, other.id);
            self.fail(Check::LeaseExclusive, detail);
        }
    }

    /// Whether everything has come to rest as it should.
    fn judge(&mut self) {
        let unrest = self.unrest();
        if let Some(leader) = self.leader().filter(|_| unrest.is_none()) {
            self.check_durability(leader);
        }
        match unrest {
            None => self.converged = true,
            Some(why) if self.now > self.plan.calm_at + self.plan.patience => {
                self.fail(Check::Progress, why);
            }
            Some(_) => self.after(100 * MILLI, Event::Judge),
        }
    }

    /// What is not as it should be once faults have stopped.
    fn unrest(&self) -> Option<String> {
        let leaders = self
            .peers
            .values()
            .filter(|peer| peer.holds_lease(self.now));
        let Some(leader) = leaders.last() else {
            return Some("nobody leads".to_owned());
        };
        if let Some(client) = self.clients.iter().find(|client| !client.rests()) {
            return Some(format!("client {} waits", client.number));
        }
        if self.replacing.is_some() {
            return Some("a member is not replaced".to_owned());
        }
        let group = leader.node.as_ref().and_then(Node::group)?;
        for member in &group.members {
            let peer = self.peers.get(&member.id)?;
            if peer.incarnation != member.incarnation {
                return Some(format!("member {} has another disk", member.id));
            }
            if !peer.is_up() {
                return Some(format!("member {} does not run", member.id));
            }
            if !peer.node.as_ref().is_some_and(Node::is_member) {
                return Some(format!("member {} does not know that it is", member.id));
            }
            if peer.machine.history != leader.machine.history {
                return Some(format!(
                    "member {} is at slot {}, the leader at {}",
                    member.id, peer.machine.slot, leader.machine.slot
                ));
            }
        }
        None
    }
}
