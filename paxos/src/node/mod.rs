//! One peer of a group.
//!
//! # Invariants
//! 1. Between two calls nothing is left to do but what [`Node::poll_action`] yields: every
//!    `handle_*` ends by settling.
//! 2. Records of one call leave as one `Persist`; what depends on them is kept until they are
//!    durable.
//! 3. As leader, `group` is the group of every slot in flight: a slot that changes it is the last
//!    in flight.

mod acceptor;
mod disk;
mod election;
mod formation;
mod leader;
mod leading;
mod learning;
mod membership;
mod moving;
mod restore;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::limits::{Sizes, Timing};
use crate::message::{Body, Envelope};
use crate::record::{Record, Snapshot};
use crate::rng::SplitMix;
use crate::types::{Ballot, Entry, Group, Incarnation, PeerId, Slot, Time};

use acceptor::Acceptor;
use disk::Disk;
use election::Poll;
use formation::Formation;
use leader::Leader;
use learning::Learning;
pub use membership::{LearnerStatus, MemberStatus, ReplaceError};
pub use restore::RestoreError;

/// Names a proposal of this peer's own to whoever made it.
pub type Token = u64;

/// Who this peer is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Setup {
    /// Its number.
    pub me: PeerId,
    /// Of its disk.
    pub incarnation: Incarnation,
    /// Where others reach it.
    pub address: String,
    /// The peers that found a group together, this one among them; or, for one that joins, members
    /// of the group that is there.
    pub peers: Vec<(PeerId, String)>,
    /// The group's times.
    pub timing: Timing,
    /// Whether this peer founds a group if its disk is empty and so are those of all others. Else it waits
    /// until one of them has a group, and joins that.
    pub founds: bool,
    /// Random: the group's id when it is founded, and when this peer asks to lead.
    pub seed: [u8; 16],
}

/// What must happen outside, in this order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Send a message; it may be lost.
    Send(Envelope),
    /// Write records and sync, then call [`Node::handle_persisted`]. In order with `SaveSnapshot`.
    Persist {
        /// Grows.
        seq: u64,
        /// What to write.
        records: Vec<Record>,
    },
    /// Save a snapshot, then begin a new journal with `records`, then call
    /// [`Node::handle_persisted`]. If it ends half-way, the old snapshot and journal still count.
    SaveSnapshot {
        /// Grows.
        seq: u64,
        /// Replaces the last.
        snapshot: Snapshot,
        /// All that still counts of the journal.
        records: Vec<Record>,
    },
    /// Set the state machine to a snapshot.
    Restore(Snapshot),
    /// Apply a decided entry to the state machine.
    Apply {
        /// The slot after the last one applied or restored.
        slot: Slot,
        /// What.
        entry: Entry,
        /// For commands proposed here, in their order; else empty.
        tokens: Vec<Token>,
    },
    /// This peer leads: it may propose, and read while [`Node::lease_until`] lasts.
    Leads(Ballot),
    /// It leads no more.
    Deposed,
    /// It is not known what became of a proposal, and nothing more will be said of it.
    Lost {
        /// Which.
        token: Token,
        /// Whether it may be decided yet; if not, it never will be.
        maybe_decided: bool,
    },
    /// This peer is no member any more: another took its place.
    Removed,
}

/// Why a command is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ProposeError {
    /// Another leads, perhaps.
    #[error("this peer does not lead")]
    NotLeader(Option<PeerId>),
    /// Too much waits already.
    #[error("too many commands wait")]
    Full,
    /// Over the limit.
    #[error("a command has at most {} bytes", crate::limits::MAX_COMMAND)]
    TooLong,
}

/// What was counted since this life began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Stats {
    /// Slots proposed as leader.
    pub slots_proposed: u64,
    /// Commands of its own that were decided.
    pub commands_decided: u64,
    /// Accept messages sent for the first time.
    pub accepts_sent: u64,
    /// Accept messages sent again.
    pub accepts_resent: u64,
    /// Accept messages answered.
    pub accepts_answered: u64,
    /// Writes to the journal, each with one sync.
    pub persists: u64,
    /// Snapshots saved.
    pub snapshots: u64,
    /// Heartbeats sent.
    pub heartbeats: u64,
    /// How often it asked to lead.
    pub elections: u64,
}

/// A lease granted to a leader: until then no other ballot is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Grant {
    /// `None` after a restart: it is not known to whom.
    to: Option<PeerId>,
    until: Time,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Role {
    /// Follows whoever leads.
    Follower,
    /// Asks whether it would be promised a ballot.
    Asking(Poll),
    /// Asks for promises, and leads once it has them.
    Leading(Box<Leader>),
}

/// One peer of a group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    setup: Setup,
    sizes: Sizes,
    rng: SplitMix,
    now: Time,
    /// After the decided slots; what it was founded with or found before that.
    group: Option<Group>,
    /// The groups after slots since the last snapshot.
    groups: BTreeMap<Slot, Group>,
    disk: Disk,
    acceptor: Acceptor,
    learning: Learning,
    formation: Formation,
    role: Role,
    /// Highest ballot seen anywhere.
    highest: Ballot,
    grant: Option<Grant>,
    /// Who leads, as far as known.
    leader: Option<PeerId>,
    /// When this peer asks to lead.
    election_due: Option<Time>,
    /// It had time to read what came while it did not run, or needs none: see [`Node::oversleeps`].
    overslept: bool,
    learners: BTreeMap<PeerId, membership::Learner>,
    /// Where those are who asked and are no members.
    callers: BTreeMap<PeerId, (Incarnation, String)>,
    /// A later group that this member stays in, and has to learn of yet.
    newer: Option<Group>,
    /// Where members say that they are, if the group has them elsewhere.
    moved: BTreeMap<PeerId, String>,
    removed: bool,
    actions: VecDeque<Action>,
    stats: Stats,
}

impl Node {
    /// A message came in.
    pub fn handle_message(&mut self, now: Time, envelope: Envelope) {
        self.now = self.now.max(now);
        if envelope.to == self.setup.me && envelope.from != self.setup.me {
            self.message(envelope);
        }
        self.settle();
    }

    /// All records and snapshots up to `seq` are on the disk for good.
    pub fn handle_persisted(&mut self, now: Time, seq: u64) {
        self.now = self.now.max(now);
        self.disk.durable = self.disk.durable.max(seq);
        self.settle();
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Time) {
        self.now = self.now.max(now);
        self.formation_timeout();
        self.election_timeout();
        self.leading_timeout();
        self.learning_timeout();
        self.settle();
    }

    /// No process listens where `peer` was: if it led, there is no need to wait longer than its
    /// lease.
    pub fn handle_peer_gone(&mut self, now: Time, peer: PeerId) {
        self.now = self.now.max(now);
        if self.leader == Some(peer) && matches!(self.role, Role::Follower) {
            self.hasten_election();
        }
        self.settle();
    }

    /// When [`Node::handle_timeout`] is due.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Time> {
        let due = [
            self.formation.due,
            self.election_due,
            self.leading_due(),
            self.learning.due(),
        ];
        due.into_iter().flatten().min()
    }

    /// The next thing that must happen outside.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Proposes a command. What becomes of it comes as `Apply` or `Lost` with `token`.
    ///
    /// # Errors
    /// When it is not taken; then nothing will be said of it.
    pub fn propose(&mut self, now: Time, command: Bytes, token: Token) -> Result<(), ProposeError> {
        self.now = self.now.max(now);
        let known = self.leader;
        let outcome = match &mut self.role {
            Role::Leading(leader) if leader.leads => leader.enqueue(command, token),
            _ => Err(ProposeError::NotLeader(
                known.filter(|id| *id != self.setup.me),
            )),
        };
        self.settle();
        outcome
    }

    /// The state after `slot`, the last slot applied, to be saved: entries up to it may be trimmed.
    pub fn save_snapshot(&mut self, slot: Slot, state: Bytes) {
        let group = self.groups.range(..=slot).next_back();
        let Some((_, group)) = group else { return };
        if slot > self.learning.decided || slot <= self.learning.saved_slot() {
            return;
        }
        let snapshot = Snapshot {
            slot,
            group: group.clone(),
            state,
        };
        self.save(snapshot, false);
        self.settle();
    }

    /// Until when this leader may answer reads from its own state: `None` when it does not lead.
    /// To be compared with a clock read after the state was.
    #[must_use]
    pub fn lease_until(&self) -> Option<Time> {
        let Role::Leading(leader) = &self.role else {
            return None;
        };
        let group = self.group.as_ref()?;
        let lease = self.setup.timing.lease;
        let until = leader.lease_until(group, self.setup.me, lease);
        leader.leads.then_some(until)
    }

    /// Who this peer is.
    #[must_use]
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// Who leads, as far as known.
    #[must_use]
    pub fn leader(&self) -> Option<PeerId> {
        self.leader
    }

    /// This leader's ballot, while it may propose.
    #[must_use]
    pub fn leads(&self) -> Option<Ballot> {
        match &self.role {
            Role::Leading(leader) if leader.leads => Some(leader.ballot),
            _ => None,
        }
    }

    /// The members, as far as known here.
    #[must_use]
    pub fn group(&self) -> Option<&Group> {
        self.group.as_ref()
    }

    /// Whether this peer with its disk is a member.
    #[must_use]
    pub fn is_member(&self) -> bool {
        let setup = &self.setup;
        let group = self.group.as_ref();
        group.is_some_and(|group| group.contains(setup.me, setup.incarnation))
    }

    /// The last decided slot known here.
    #[must_use]
    pub fn decided(&self) -> Slot {
        self.learning.decided
    }

    /// The ballot promised.
    #[must_use]
    pub fn promised(&self) -> Ballot {
        self.acceptor.promised
    }

    /// What was counted since this life began.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Where a peer may be reached, the likeliest first: where it says it is while it learns; where the
    /// group has it, as all others know; where this peer was told that it is. Last, where one is who asks as
    /// it: who only asks does not say where others are.
    #[must_use]
    pub fn addresses_of<'a>(&'a self, peer: PeerId) -> Vec<&'a str> {
        let learner = self.learners.get(&peer).map(|l| l.address.as_str());
        let named = self.setup.peers.iter().find(|(id, _)| *id == peer);
        let has = |group: &'a Option<Group>| Some(group.as_ref()?.member(peer)?.address.as_str());
        let caller = self.callers.get(&peer).map(|(_, address)| address.as_str());
        let known = [
            learner,
            has(&self.newer),
            has(&self.group),
            named.map(|(_, address)| address.as_str()),
            caller,
        ];
        let mut addresses: Vec<&str> = Vec::new();
        for address in known.into_iter().flatten() {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        addresses
    }

    /// Whether this number asked for a group, or to join this one, since the members changed: the disk that it
    /// had as a member, if it was one, is not there.
    #[must_use]
    pub fn has_called(&self, peer: PeerId) -> bool {
        let other = |incarnation: Incarnation| {
            let group = self.group.as_ref();
            group.is_some_and(|group| !group.contains(peer, incarnation))
        };
        self.callers.get(&peer).is_some_and(|(of, _)| other(*of))
    }

    fn send(&mut self, to: PeerId, body: Body) {
        let envelope = self.envelope(to, body);
        self.actions.push_back(Action::Send(envelope));
    }

    fn envelope(&self, to: PeerId, body: Body) -> Envelope {
        Envelope {
            group: self.group.as_ref().map(|group| group.id),
            from: self.setup.me,
            incarnation: self.setup.incarnation,
            to,
            body,
        }
    }

    /// The members other than this peer.
    fn others(&self) -> Vec<PeerId> {
        let members = self.group.iter().flat_map(|group| &group.members);
        let ids = members.map(|member| member.id);
        ids.filter(|id| *id != self.setup.me).collect()
    }

    fn is_member_of_group(&self, peer: PeerId, incarnation: Incarnation) -> bool {
        let Some(group) = &self.group else {
            return false;
        };
        if crate::mutants::active(crate::mutants::Mutant::CountWipedMember) {
            return group.member(peer).is_some();
        }
        group.contains(peer, incarnation)
    }

    fn message(&mut self, envelope: Envelope) {
        let (from, incarnation) = (envelope.from, envelope.incarnation);
        let body = match envelope.body {
            Body::Ask { .. } | Body::Fresh { .. } | Body::Grouped { .. } => {
                return self.formation_message(from, incarnation, envelope.body);
            }
            body => body,
        };
        let same_group = self.group.as_ref().map(|group| group.id) == envelope.group;
        if self.group.is_none() && envelope.group.is_some() {
            // There is a group that knows this peer, though its configuration names others.
            return self.ask_for_group(from);
        }
        if !same_group || envelope.group.is_none() {
            return;
        }
        match body {
            Body::Join { address, decided } => self.joins(from, incarnation, address, decided),
            Body::Moved { address } => self.hear_move(from, incarnation, address),
            Body::Called { member, address } => {
                self.hear_called((from, incarnation), member, address);
            }
            Body::Learn {
                from: slot,
                snapshot,
            } => self.learn(from, slot, snapshot),
            Body::Page { .. } | Body::SnapshotPage { .. } => self.page(from, body),
            Body::PreVote { .. } | Body::Prepare { .. }
                if !self.is_member_of_group(from, incarnation) =>
            {
                self.tell_group(from);
            }
            Body::PreVote { ballot } => self.pre_vote(from, ballot),
            Body::Prepare { ballot, from: slot } => self.prepare(from, ballot, slot),
            Body::Accept {
                ballot,
                first,
                entries,
                commit,
                stamp,
            } => self.accept(from, ballot, (first, entries), commit, stamp),
            Body::Heartbeat {
                ballot,
                commit,
                stamp,
            } => self.heartbeat(from, ballot, commit, stamp),
            answer if self.is_member_of_group(from, incarnation) => self.answer(from, answer),
            _ => {}
        }
    }

    /// An answer of a member.
    fn answer(&mut self, from: PeerId, body: Body) {
        match body {
            Body::PreVoted {
                ballot,
                yes,
                decided,
            } => self.pre_voted(from, ballot, yes, decided),
            Body::Promise {
                ballot,
                from: first,
                accepted,
                next,
                trimmed,
            } => self.promise(from, ballot, first, accepted, (next, trimmed)),
            Body::Nack { ballot, promised } => self.nack(ballot, promised),
            Body::Accepted {
                ballot,
                first,
                last,
                stamp,
                decided,
            } => {
                self.granted(from, ballot, stamp, decided);
                self.accepted(from, ballot, first, last);
            }
            Body::HeartbeatAck {
                ballot,
                stamp,
                decided,
            } => self.granted(from, ballot, stamp, decided),
            _ => {}
        }
    }

    /// Goes on with whatever the input made possible, until nothing is left.
    fn settle(&mut self) {
        loop {
            self.flush_proposals();
            self.flush_records();
            if !self.release() {
                return;
            }
        }
    }
}
