//! Peers on a table: messages wait until a test delivers or drops them, disks until it syncs them.

// Each test file uses a part of it.
#![allow(dead_code, clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeMap;

use bytes::Bytes;
use paxos::limits::Sizes;
use paxos::{
    Action, Body, Entry, Envelope, Incarnation, Node, PeerId, Record, Setup, Slot, Snapshot,
    Stored, Time,
};

pub(crate) struct Peer {
    pub(crate) node: Option<Node>,
    pub(crate) disk: Stored,
    pub(crate) incarnation: u8,
    pub(crate) named: Vec<u32>,
    /// Where it is.
    pub(crate) at: String,
    /// Where its configuration has others, or itself, if not at [`address`].
    pub(crate) named_at: BTreeMap<u32, String>,
    /// Writes that are not synced.
    pub(crate) unsynced: Vec<(u64, Option<Snapshot>, Vec<Record>)>,
    /// Whether writes are synced at once.
    pub(crate) syncs: bool,
    pub(crate) applied: Vec<(Slot, Entry)>,
    pub(crate) restored: Option<Snapshot>,
    pub(crate) lost: Vec<(u64, bool)>,
    pub(crate) done: Vec<u64>,
    pub(crate) removed: bool,
}

pub(crate) struct Lab {
    pub(crate) now: u64,
    pub(crate) sizes: Sizes,
    pub(crate) peers: BTreeMap<u32, Peer>,
    pub(crate) mail: Vec<Envelope>,
}

pub(crate) fn address(id: u32) -> String {
    format!("peer-{id}")
}

impl Lab {
    /// Peers 1 to `count`, with their group founded and peer 1 leading.
    pub(crate) fn led_by_1(count: u32) -> Self {
        let mut lab = Self::new(count);
        lab.run(|_| true);
        lab.elect(1);
        lab
    }

    pub(crate) fn new(count: u32) -> Self {
        let mut lab = Self {
            now: 1_000_000,
            sizes: Sizes::default(),
            peers: BTreeMap::new(),
            mail: Vec::new(),
        };
        for id in 1..=count {
            lab.add(id, (1..=count).collect());
        }
        for id in 1..=count {
            lab.input(id, |node, now| node.handle_timeout(now));
        }
        lab
    }

    pub(crate) fn add(&mut self, id: u32, named: Vec<u32>) {
        let peer = Peer {
            node: None,
            disk: Stored::default(),
            incarnation: 1,
            named,
            at: address(id),
            named_at: BTreeMap::new(),
            unsynced: Vec::new(),
            syncs: true,
            applied: Vec::new(),
            restored: None,
            lost: Vec::new(),
            done: Vec::new(),
            removed: false,
        };
        self.peers.insert(id, peer);
        self.start(id);
    }

    pub(crate) fn start(&mut self, id: u32) {
        let (now, sizes) = (Time(self.now), self.sizes);
        let peer = self.peers.get_mut(&id).unwrap();
        let setup = Setup {
            me: PeerId(id),
            incarnation: Incarnation([peer.incarnation; 16]),
            address: peer.at.clone(),
            peers: peer
                .named
                .iter()
                .map(|id| (PeerId(*id), peer.names(*id)))
                .collect(),
            timing: paxos::limits::Timing::default(),
            founds: true,
            seed: [id as u8 + 16 * peer.incarnation; 16],
        };
        let node = Node::with_sizes(now, setup, sizes, peer.disk.clone()).unwrap();
        peer.node = Some(node);
        peer.applied.clear();
        peer.restored = None;
        self.carry_out(id);
    }

    /// The process dies; what was not synced is gone.
    pub(crate) fn kill(&mut self, id: u32) {
        let peer = self.peers.get_mut(&id).unwrap();
        peer.node = None;
        peer.unsynced.clear();
    }

    pub(crate) fn restart(&mut self, id: u32) {
        self.kill(id);
        self.start(id);
    }

    /// The process dies and its disk is lost.
    pub(crate) fn wipe(&mut self, id: u32) {
        self.kill(id);
        let peer = self.peers.get_mut(&id).unwrap();
        peer.disk = Stored::default();
        peer.incarnation += 1;
    }

    /// A stopped peer's directory goes to another address, which its own configuration has.
    pub(crate) fn move_to(&mut self, id: u32, to: &str) {
        self.name(id, id, to);
        self.peers.get_mut(&id).unwrap().at = to.to_owned();
    }

    /// From its next start on a peer's configuration has another at this address.
    pub(crate) fn name(&mut self, who: u32, other: u32, at: &str) {
        let names = &mut self.peers.get_mut(&who).unwrap().named_at;
        names.insert(other, at.to_owned());
    }

    /// Where the group as a peer knows it has a member.
    pub(crate) fn recorded(&self, by: u32, of: u32) -> &str {
        let member = self.node(by).group().unwrap().member(PeerId(of));
        &member.unwrap().address
    }

    /// Whether a message gets to where its receiver is; to one of whom no address is known it does.
    fn is_found(&self, envelope: &Envelope) -> bool {
        let to = self.peers.get(&envelope.to.0);
        let called = self.node(envelope.from.0).addresses_of(envelope.to);
        called.is_empty() || to.is_some_and(|to| called.contains(&to.at.as_str()))
    }

    pub(crate) fn node(&self, id: u32) -> &Node {
        self.peers[&id].node.as_ref().unwrap()
    }

    pub(crate) fn input<T>(&mut self, id: u32, input: impl FnOnce(&mut Node, Time) -> T) -> T {
        let now = Time(self.now);
        let node = self.peers.get_mut(&id).unwrap().node.as_mut().unwrap();
        let out = input(node, now);
        self.carry_out(id);
        out
    }

    fn carry_out(&mut self, id: u32) {
        let now = Time(self.now);
        while let Some(action) = self.poll_action(id) {
            if let Action::Send(envelope) = action {
                if self.is_found(&envelope) {
                    self.mail.push(envelope);
                }
                continue;
            }
            let peer = self.peers.get_mut(&id).unwrap();
            match action {
                Action::Send(_) => {}
                Action::Persist { seq, records } => peer.unsynced.push((seq, None, records)),
                Action::SaveSnapshot {
                    seq,
                    snapshot,
                    records,
                } => peer.unsynced.push((seq, Some(snapshot), records)),
                Action::Restore(snapshot) => {
                    peer.applied.clear();
                    peer.restored = Some(snapshot);
                }
                Action::Apply {
                    slot,
                    entry,
                    tokens,
                } => {
                    peer.applied.push((slot, entry));
                    peer.done.extend(tokens);
                }
                Action::Lost {
                    token,
                    maybe_decided,
                } => peer.lost.push((token, maybe_decided)),
                Action::Removed => peer.removed = true,
                Action::Leads(_) | Action::Deposed => {}
            }
            if peer.syncs {
                peer.sync(now);
            }
        }
    }

    fn poll_action(&mut self, id: u32) -> Option<Action> {
        let peer = self.peers.get_mut(&id).unwrap();
        peer.node.as_mut().unwrap().poll_action()
    }

    /// Syncs what waits, and from now on at once.
    pub(crate) fn sync(&mut self, id: u32) {
        let now = Time(self.now);
        let peer = self.peers.get_mut(&id).unwrap();
        peer.syncs = true;
        peer.sync(now);
        self.carry_out(id);
    }

    /// Delivers the messages that are wanted, and those that follow; the others are lost.
    pub(crate) fn run(&mut self, wanted: impl Fn(&Envelope) -> bool) {
        for _ in 0..10_000 {
            if self.mail.is_empty() {
                return;
            }
            let envelope = self.mail.remove(0);
            if wanted(&envelope) {
                self.deliver(envelope);
            }
        }
        panic!("peers never fall silent");
    }

    pub(crate) fn deliver(&mut self, envelope: Envelope) {
        let to = envelope.to.0;
        if self.peers.get(&to).is_some_and(|peer| peer.node.is_some()) {
            self.now += 10;
            self.input(to, |node, now| node.handle_message(now, envelope));
        }
    }

    /// Takes messages of a kind from the mail.
    pub(crate) fn take(&mut self, which: impl Fn(&Envelope) -> bool) -> Vec<Envelope> {
        let (taken, left) = std::mem::take(&mut self.mail).into_iter().partition(which);
        self.mail = left;
        taken
    }

    /// Lets time pass for some peers, in steps, with the messages that are wanted.
    pub(crate) fn pass(&mut self, millis: u64, ids: &[u32], wanted: impl Fn(&Envelope) -> bool) {
        for _ in 0..millis.div_ceil(5) {
            self.now += 5_000;
            for id in ids {
                let due = self.node(*id).next_timeout();
                if due.is_some_and(|due| due.0 <= self.now) {
                    self.input(*id, |node, now| node.handle_timeout(now));
                }
            }
            self.run(&wanted);
        }
    }

    /// Lets time pass for one peer until it leads.
    pub(crate) fn elect(&mut self, id: u32) {
        self.elect_among(id, |_| true);
    }

    pub(crate) fn elect_among(&mut self, id: u32, wanted: impl Fn(&Envelope) -> bool) {
        for _ in 0..400 {
            if self.node(id).leads().is_some() {
                return;
            }
            self.pass(5, &[id], &wanted);
        }
        panic!("peer {id} does not come to lead");
    }

    pub(crate) fn propose(&mut self, id: u32, text: &str, token: u64) {
        let command = Bytes::copy_from_slice(text.as_bytes());
        self.input(id, |node, now| node.propose(now, command, token))
            .unwrap();
    }

    /// The commands that a peer has applied, in order.
    pub(crate) fn commands(&self, id: u32) -> Vec<String> {
        let entries = self.peers[&id].applied.iter().map(|(_, entry)| entry);
        let commands = entries.filter_map(|entry| match entry {
            Entry::Commands(commands) => Some(commands),
            _ => None,
        });
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        commands.flatten().map(text).collect()
    }

    pub(crate) fn holds_lease(&self, id: u32) -> bool {
        let until = self.node(id).lease_until();
        until.is_some_and(|until| Time(self.now) < until)
    }

    pub(crate) fn member_ids(&self, id: u32) -> Vec<u32> {
        let group = self.node(id).group().unwrap();
        group.members.iter().map(|member| member.id.0).collect()
    }
}

impl Peer {
    fn names(&self, id: u32) -> String {
        let named = self.named_at.get(&id).cloned();
        named.unwrap_or_else(|| address(id))
    }

    fn sync(&mut self, now: Time) {
        for (seq, snapshot, records) in std::mem::take(&mut self.unsynced) {
            if let Some(snapshot) = snapshot {
                self.disk.snapshot = Some(snapshot);
                self.disk.records.clear();
            }
            self.disk.records.extend(records);
            self.node.as_mut().unwrap().handle_persisted(now, seq);
        }
    }
}

/// Messages between these peers.
pub(crate) fn among(ids: &'static [u32]) -> impl Fn(&Envelope) -> bool {
    move |envelope| ids.contains(&envelope.from.0) && ids.contains(&envelope.to.0)
}

/// A slot is decided by the new group while its change is known to the old one only as a proposal.
/// What the leaders before and after have applied then.
pub(crate) fn decided_in_the_new_group_before_another_leads() -> (Vec<String>, Vec<String>) {
    let mut lab = Lab::led_by_1(3);
    lab.add(4, vec![1, 2, 3]);
    lab.pass(500, &[1, 2, 3, 4], |_| true);
    lab.input(1, |node, now| node.replace(now, PeerId(3), PeerId(4)))
        .unwrap();
    lab.run(among(&[1, 3, 4]));
    lab.propose(1, "x", 1);
    lab.run(among(&[1, 4]));
    let before = lab.commands(1);
    lab.kill(1);
    // Peer 2 has the old group's promises. The new member hears what it proposes, not what it asks.
    let proposals = |body: &Body| matches!(body, Body::Accept { .. } | Body::Accepted { .. });
    lab.pass(2_000, &[2], |envelope| {
        among(&[2, 3])(envelope) || (among(&[2, 4])(envelope) && proposals(&envelope.body))
    });
    lab.pass(3_000, &[2, 4], among(&[2, 3, 4]));
    lab.elect_among(2, among(&[2, 3, 4]));
    (before, lab.commands(2))
}
