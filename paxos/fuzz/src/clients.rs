//! Clients: each has one command under way, and sends it again under the same number until it
//! knows the result.

use paxos::{Node, PeerId, ProposeError};

use crate::check::Check;
use crate::machine::{Command, KEYS};
use crate::plan::MILLI;
use crate::world::{Event, World};

#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) number: u32,
    /// The last sequence whose result it has.
    pub(crate) known: u64,
    /// Whether the next one is under way.
    pub(crate) waits: bool,
    key: u32,
    target: Option<PeerId>,
    /// When it tries again.
    retry_at: u64,
}

impl Client {
    pub(crate) fn new(number: u32) -> Self {
        Self {
            number,
            known: 0,
            waits: false,
            key: 0,
            target: None,
            retry_at: 0,
        }
    }

    /// Whether it has all its results, and at least one.
    pub(crate) fn rests(&self) -> bool {
        !self.waits && self.known > 0
    }
}

impl World {
    pub(crate) fn client(&mut self, number: u32) {
        let at = number as usize;
        let (now, calm) = (self.now, self.calm);
        let mut client = self.clients[at].clone();
        if !client.waits {
            // In the end each needs one command to be decided, and no more.
            if calm && client.known > 0 {
                return;
            }
            client.waits = true;
            client.key = self.dice.below(KEYS) as u32;
        } else if now < client.retry_at {
            return;
        } else {
            self.counts.retries += 1;
        }
        let up: Vec<PeerId> = self.up().collect();
        let target = client.target.filter(|id| up.contains(id));
        let target = target.or_else(|| self.dice.pick(&up));
        let patience = match target {
            Some(id) => self.propose(&mut client, id),
            None => 50 * MILLI,
        };
        client.retry_at = now + patience;
        self.clients[at] = client;
        self.after(patience, Event::Client(number));
    }

    pub(crate) fn up(&self) -> impl Iterator<Item = PeerId> {
        let up = self.peers.values().filter(|peer| peer.is_up());
        up.map(|peer| peer.id)
    }

    /// How long the client waits before it tries again.
    fn propose(&mut self, client: &mut Client, id: PeerId) -> u64 {
        let now = self.now;
        self.attempts += 1;
        let command = Command {
            client: client.number,
            key: client.key,
            sequence: client.known + 1,
            attempt: self.attempts,
        };
        let padding = self.dice.below(self.plan.padding + 1);
        let bytes = command.encode(padding);
        let token = self.attempts;
        let mut outcome = Err(ProposeError::NotLeader(None));
        if let Some(peer) = self
            .peers
            .get_mut(&id)
            .filter(|peer| peer.paused_until <= now)
        {
            peer.proposals
                .insert(token, (client.number, command.sequence));
            let time = peer.clock(now);
            if let Some(node) = &mut peer.node {
                outcome = node.propose(time, bytes, token);
            }
        }
        self.carry_out(id);
        match outcome {
            Ok(()) => {
                client.target = Some(id);
                self.dice.between(100, 800) * MILLI
            }
            Err(ProposeError::NotLeader(Some(leader))) if leader != id => {
                client.target = Some(leader);
                self.dice.between(1, 30) * MILLI
            }
            Err(_) => {
                client.target = None;
                self.dice.between(5, 60) * MILLI
            }
        }
    }

    /// A peer has the result of a command proposed there.
    pub(crate) fn answer(&mut self, client: u32, sequence: u64, key: u32, version: u64) {
        if self.dice.chance(self.plan.loss) {
            return;
        }
        let delay = self.dice.between(0, 2 * MILLI);
        self.after(delay, Event::Done(client, sequence, key, version));
    }

    pub(crate) fn done(&mut self, number: u32, sequence: u64, key: u32, version: u64) {
        let client = &mut self.clients[number as usize];
        if sequence != client.known + 1 || !client.waits {
            return;
        }
        client.known = sequence;
        client.waits = false;
        self.counts.commands += 1;
        let completed = &mut self.completed[key as usize];
        *completed = version.max(*completed);
        let think = self.dice.between(0, self.plan.think * 2);
        self.after(think, Event::Client(number));
    }

    /// A proposal's fate is open: its client tries elsewhere, soon.
    pub(crate) fn lost(&mut self, number: u32, sequence: u64) {
        let (now, soon) = (self.now, self.dice.between(1, 20) * MILLI);
        let client = &mut self.clients[number as usize];
        if client.waits && sequence == client.known + 1 {
            client.target = None;
            client.retry_at = now + soon;
            self.after(soon, Event::Client(number));
        }
    }

    /// Reads at everybody who may: the state first, then the clock, perhaps much later.
    pub(crate) fn read(&mut self) {
        let every = self.dice.between(2 * MILLI, 20 * MILLI);
        self.after(every, Event::Read);
        let ids: Vec<PeerId> = self.up().collect();
        for id in ids {
            let Some(peer) = self.peers.get(&id) else {
                continue;
            };
            let until = peer.node.as_ref().and_then(Node::lease_until);
            let Some(until) = until else { continue };
            if peer.clock(self.now) >= until {
                self.counts.reads_refused += 1;
                continue;
            }
            self.counts.reads += 1;
            let versions = peer.machine.versions;
            if let Some(key) = (0..KEYS).find(|key| versions[*key] < self.completed[*key]) {
                let detail = format!(
                    "peer {id} reads version {} of register {key}, {} was complete",
                    versions[key], self.completed[key]
                );
                self.fail(Check::StaleRead, detail);
            }
        }
    }
}
