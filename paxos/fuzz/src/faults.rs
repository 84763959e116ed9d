//! Faults, within the model, and whoever looks after the group.
//!
//! # Invariants
//! 1. Of no group that may still decide does more than a minority lack the disk it is known by,
//!    or stay away for good.

use paxos::{Group, Incarnation, Node, PeerId, ReplaceError};

use crate::peer::Peer;
use crate::plan::{Fault, MILLI};
use crate::world::{Event, World};

/// New peers come in at most so often.
const MAX_PEERS: usize = 12;

impl World {
    pub(crate) fn fault(&mut self) {
        if self.calm {
            return;
        }
        let every = self.plan.fault_every;
        let next = self.dice.between(every / 4, every * 2);
        self.after(next, Event::Fault);
        let faults = self.plan.faults.clone();
        let Some(fault) = self.dice.pick(&faults) else {
            return;
        };
        self.trace(|_| format!("fault: {fault:?}"));
        let ids: Vec<PeerId> = self.up().collect();
        let Some(any) = self.dice.pick(&ids) else {
            return;
        };
        let leader = self.leader().unwrap_or(any);
        match fault {
            Fault::Crash => self.crash(any),
            Fault::CrashLeader => self.crash(leader),
            Fault::CrashMany => {
                for id in ids {
                    if self.dice.chance(800) {
                        self.crash(id);
                    }
                }
            }
            Fault::CrashMidway => {
                let after = self.dice.below(30);
                if let Some(peer) = self.peers.get_mut(&any) {
                    peer.dies_after = Some(after);
                }
            }
            Fault::Pause => self.pause(any),
            Fault::PauseLeader => self.pause(leader),
            Fault::Cut => self.cut(any),
            Fault::CutLeader => self.cut(leader),
            Fault::CutPair => {
                self.counts.cuts += 1;
                self.cuts.extend([(leader, any), (any, leader)]);
            }
            Fault::CrashFollowers => {
                // All who granted the lease begin anew at once, and don't hear the leader.
                self.cut(leader);
                for id in ids.into_iter().filter(|id| *id != leader) {
                    self.crash_for(id, 20 * MILLI);
                }
            }
            Fault::Heal => self.cuts.clear(),
            Fault::Wipe => self.wipe(any),
            Fault::Replace => self.begin_replacing(),
            Fault::SlowDisk => {
                self.counts.slowdowns += 1;
                let until = self.now + self.dice.between(100, 800) * MILLI;
                if let Some(peer) = self.peers.get_mut(&any) {
                    peer.slow_disk_until = until;
                }
            }
            Fault::SlowNetwork => {
                self.counts.slowdowns += 1;
                self.slow_until = self.now + self.dice.between(50, 500) * MILLI;
            }
        }
    }

    pub(crate) fn leader(&self) -> Option<PeerId> {
        let leaders = self.peers.values().filter(|peer| peer.leads());
        leaders.map(|peer| peer.id).next()
    }

    /// A process dies, with what its disk has not synced, and begins anew unless it is gone.
    pub(crate) fn crash(&mut self, id: PeerId) {
        let soon = self.dice.chance(500);
        self.crash_for(id, if soon { 20 * MILLI } else { 1_000 * MILLI });
    }

    fn crash_for(&mut self, id: PeerId, longest: u64) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        if !peer.is_up() {
            return;
        }
        self.counts.crashes += 1;
        self.counts.torn += u64::from(peer.disk.waiting() > 0);
        peer.node = None;
        peer.disk.crash(&mut self.dice);
        self.truth
            .vote(peer.incarnation, &std::mem::take(&mut peer.disk.votes));
        let gone = peer.gone;
        self.trace(|_| format!("{id} crashes"));
        if !gone {
            let away = self.dice.between(MILLI, longest);
            self.after(away, Event::Start(id));
        }
    }

    fn pause(&mut self, id: PeerId) {
        self.counts.pauses += 1;
        let pause = self.dice.between(10, 900) * MILLI;
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.paused_until = self.now + pause;
        }
        self.after(pause, Event::Resume(id));
    }

    fn cut(&mut self, id: PeerId) {
        self.counts.cuts += 1;
        let others: Vec<PeerId> = self.peers.keys().copied().filter(|o| *o != id).collect();
        let kind = self.dice.below(4);
        for other in others {
            if kind == 3 && self.dice.chance(500) {
                continue;
            }
            if kind != 1 {
                self.cuts.insert((id, other));
            }
            if kind != 0 {
                self.cuts.insert((other, id));
            }
        }
    }

    /// Groups that may still decide: the last, and those that a member has not got beyond.
    fn groups_that_count(&self) -> Vec<&Group> {
        let Some(last) = self.truth.last_group() else {
            return Vec::new();
        };
        let reached = |id: &PeerId| {
            let peer = self.peers.get(id)?;
            let known = peer.disk.view.known();
            self.truth.group_of(known.next())
        };
        let members = last.members.iter().map(|member| &member.id);
        let oldest = members
            .map(|id| reached(id).map_or(0, |group| group.generation))
            .min()
            .unwrap_or(0);
        let groups = self.truth.groups.values();
        groups.filter(|group| group.generation >= oldest).collect()
    }

    fn lacks(&self, group: &Group, lost: PeerId) -> usize {
        let lacking = group.members.iter().filter(|member| {
            let peer = self.peers.get(&member.id);
            let there =
                peer.is_some_and(|peer| !peer.gone && peer.incarnation == member.incarnation);
            !there || member.id == lost
        });
        lacking.count()
    }

    /// Whether the group can bear the loss of this disk.
    fn can_lose(&self, id: PeerId) -> bool {
        if self.truth.groups.is_empty() {
            // Whatever is being founded, this many are the minority of it.
            return self.counts.wipes < u64::from(self.plan.peers.saturating_sub(1) / 2);
        }
        let bears = |group: &Group| self.lacks(group, id) <= (group.members.len() - 1) / 2;
        self.groups_that_count().into_iter().all(bears)
            && self.group_to_come().is_none_or(|g| bears(&g))
    }

    /// The group after the replacement under way.
    fn group_to_come(&self) -> Option<Group> {
        let (out, by) = self.replacing?;
        let mut group = self.truth.last_group()?.clone();
        let member = group.members.iter_mut().find(|member| member.id == out)?;
        (member.id, member.incarnation) = (by, self.replacing_by);
        Some(group)
    }

    fn wipe(&mut self, id: PeerId) {
        if !self.can_lose(id) {
            return;
        }
        self.crash(id);
        self.counts.wipes += 1;
        let incarnation = Incarnation(self.dice.bytes());
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.disk.wipe();
            peer.incarnation = incarnation;
        }
        self.trace(|_| format!("{id} is wiped"));
    }

    fn begin_replacing(&mut self) {
        let group = self.truth.last_group().cloned();
        let Some(group) = group.filter(|group| group.members.len() > 1) else {
            return;
        };
        if self.replacing.is_some() || self.peers.len() >= MAX_PEERS {
            return;
        }
        let members: Vec<PeerId> = group.members.iter().map(|member| member.id).collect();
        let Some(out) = self.dice.pick(&members) else {
            return;
        };
        if self.dice.chance(500) && self.can_lose(out) {
            self.trace(|_| format!("{out} is gone for good"));
            if let Some(peer) = self.peers.get_mut(&out) {
                peer.gone = true;
            }
            self.crash(out);
        }
        let by = PeerId(self.peers.keys().last().map_or(1, |id| id.0 + 1));
        let named = members.iter().map(|id| (*id, Peer::address(*id))).collect();
        let mut peer = Peer::new(by, named, &mut self.dice);
        peer.replaces = Some(out);
        self.replacing_by = peer.incarnation;
        self.peers.insert(by, peer);
        self.replacing = Some((out, by));
        self.after(0, Event::Start(by));
    }

    /// Has members replaced, and takes away those that were.
    pub(crate) fn operate(&mut self) {
        self.after(50 * MILLI, Event::Operate);
        let Some((out, by)) = self.replacing else {
            return;
        };
        let Some(leader) = self.leader() else { return };
        let paused = self
            .peers
            .get(&leader)
            .is_none_or(|p| p.paused_until > self.now);
        if paused {
            return;
        }
        let mut outcome = None;
        self.input(leader, |node, now| {
            outcome = Some(node.replace(now, out, by))
        });
        self.trace(|_| format!("{leader} replaces {out} by {by}: {outcome:?}"));
        if matches!(outcome, Some(Err(ReplaceError::Leads(_)))) && self.dice.chance(100) {
            self.crash(leader);
        }
        if outcome == Some(Ok(())) && self.is_replaced(leader, out, by) {
            self.replacing = None;
            // Some are never told to stop.
            if self.dice.chance(500) {
                if let Some(peer) = self.peers.get_mut(&out) {
                    peer.gone = true;
                }
                self.crash(out);
            }
        }
    }

    fn is_replaced(&self, leader: PeerId, out: PeerId, by: PeerId) -> bool {
        let node = self.peers.get(&leader).and_then(|peer| peer.node.as_ref());
        let group = node.and_then(Node::group);
        node.is_some_and(Node::is_settled)
            && group.is_some_and(|group| group.member(out).is_none() && group.member(by).is_some())
    }

    /// Faults stop; what was away comes back.
    pub(crate) fn calm_down(&mut self) {
        self.trace(|_| "calm".to_owned());
        self.calm = true;
        self.cuts.clear();
        self.plan.sync_slow = 0;
        self.plan.loss = 0;
        for peer in self.peers.values_mut() {
            peer.dies_after = None;
            peer.slow_disk_until = 0;
        }
        for number in 0..self.plan.clients {
            self.after(0, Event::Client(number));
        }
        self.after(300 * MILLI, Event::Judge);
    }
}
