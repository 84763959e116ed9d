//! Carrying out what a peer wants, and looking at each step whether it may want it.

use paxos::{Action, Body, Entry, Envelope, Node, PeerId, Record, Slot, Snapshot};

use crate::check::Check;
use crate::disk::Write;
use crate::machine::{Machine, Outcome, digest};
use crate::plan::MILLI;
use crate::world::{Event, World};

/// A message in a line of a trace.
pub(crate) fn brief(body: &Body) -> String {
    let mut text = format!("{body:?}");
    if let Some((at, _)) = text.char_indices().nth(300) {
        text.truncate(at);
    }
    text
}

impl World {
    pub(crate) fn carry_out(&mut self, id: PeerId) {
        loop {
            if self.finding.is_some() {
                return;
            }
            let Some(peer) = self.peers.get_mut(&id) else {
                return;
            };
            let Some(node) = &mut peer.node else { return };
            let Some(action) = node.poll_action() else {
                break;
            };
            if let Some(left) = &mut peer.dies_after {
                if *left == 0 {
                    return self.crash(id);
                }
                *left -= 1;
            }
            self.act(id, action);
            self.save_when_due(id);
        }
        self.schedule_tick(id);
    }

    fn act(&mut self, id: PeerId, action: Action) {
        match action {
            Action::Send(envelope) => self.send(id, envelope),
            Action::Persist { seq, records } => self.persist(id, seq, records),
            Action::SaveSnapshot {
                seq,
                snapshot,
                records,
            } => self.save_snapshot(id, seq, snapshot, records),
            Action::Restore(snapshot) => self.restore(id, &snapshot),
            Action::Apply {
                slot,
                entry,
                tokens,
            } => self.apply(id, slot, &entry, &tokens),
            Action::Leads(ballot) => {
                self.counts.leaders += 1;
                self.trace(|_| format!("{id} leads {ballot}"));
            }
            Action::Deposed => self.trace(|_| format!("{id} is deposed")),
            Action::Removed => self.trace(|_| format!("{id} is removed")),
            Action::Lost {
                token,
                maybe_decided,
            } => self.proposal_lost(id, token, maybe_decided),
        }
    }

    fn proposal_lost(&mut self, id: PeerId, token: u64, maybe_decided: bool) {
        if !maybe_decided {
            self.never.insert(token);
        }
        let peer = self.peers.get_mut(&id);
        let waits = peer.and_then(|peer| peer.proposals.remove(&token));
        if let Some((client, sequence)) = waits {
            self.lost(client, sequence);
        }
    }

    fn persist(&mut self, id: PeerId, seq: u64, records: Vec<Record>) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let decided = &self.truth.decided;
        let kept = peer.write_keeps_promise(&records, |slot| decided.contains_key(&slot));
        peer.disk.write(seq, Write::Records(records));
        if !kept {
            self.fail(
                Check::PromiseKept,
                format!("peer {id} accepts less than it promised"),
            );
        }
        self.start_sync(id);
    }

    fn save_snapshot(&mut self, id: PeerId, seq: u64, snapshot: Snapshot, records: Vec<Record>) {
        self.counts.snapshots += 1;
        self.trace(|_| format!("{id} saves a snapshot up to {}", snapshot.slot));
        let machine = Machine::load(&snapshot);
        let truth = self.truth.decided.get(&snapshot.slot);
        let fits = machine.is_some_and(|machine| truth.is_some_and(|t| t.1 == machine.history));
        if !fits {
            let detail = format!("the snapshot of peer {id} is not slot {}'s", snapshot.slot);
            self.fail(Check::Agreement, detail);
        }
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.disk.write(seq, Write::Snapshot(snapshot, records));
        }
        self.start_sync(id);
    }

    fn start_sync(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        if peer.disk_busy || peer.disk.waiting() == 0 {
            return;
        }
        peer.disk_busy = true;
        let life = peer.life;
        let slow = self.dice.chance(self.plan.sync_slow) || peer.slow_disk_until > self.now;
        let longest = if slow { 150 * MILLI } else { self.plan.sync };
        let delay = self.dice.between(0, longest);
        self.after(delay, Event::Sync(id, life));
    }

    pub(crate) fn sync(&mut self, id: PeerId, life: u32) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        if !peer.is_up() || peer.life != life {
            return;
        }
        peer.disk_busy = false;
        let count = 1 + self.dice.below(peer.disk.waiting());
        let before = (peer.disk.view.promised, peer.disk.view.known());
        let synced = peer.disk.sync(count);
        let after = (peer.disk.view.promised, peer.disk.view.known());
        self.truth
            .vote(peer.incarnation, &std::mem::take(&mut peer.disk.votes));
        if after.0 < before.0 || after.1 < before.1 {
            let detail = format!("the disk of peer {id} went from {before:?} back to {after:?}");
            self.fail(Check::TrimSafe, detail);
        }
        if let Some(seq) = synced {
            let delay = if self.dice.chance(100) { MILLI } else { 0 };
            self.after(delay, Event::Synced(id, life, seq));
        }
        self.start_sync(id);
    }

    pub(crate) fn synced(&mut self, id: PeerId, life: u32, seq: u64) {
        let Some(peer) = self.peers.get(&id) else {
            return;
        };
        if peer.life != life {
            return;
        }
        if peer.paused_until > self.now {
            let later = peer.paused_until - self.now;
            return self.after(later, Event::Synced(id, life, seq));
        }
        self.input(id, |node, now| node.handle_persisted(now, seq));
    }

    fn restore(&mut self, id: PeerId, snapshot: &Snapshot) {
        let slot = snapshot.slot;
        let Some(machine) = Machine::load(snapshot) else {
            return self.fail(Check::Agreement, format!("snapshot {slot} is damaged"));
        };
        let truth = self.truth.decided.get(&slot);
        let (fits, holds) = (
            truth.is_some_and(|truth| truth.1 == machine.history),
            machine.slot == slot.0,
        );
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let forward = slot.0 > peer.machine.slot;
        if peer.machine.slot > 0 {
            self.counts.installs += 1;
        }
        (peer.machine, peer.snapshot_at) = (machine, slot.0);
        self.trace(|_| format!("{id} is set to slot {slot}"));
        if !fits || !holds {
            self.fail(
                Check::Agreement,
                format!("peer {id} is set to another slot {slot}"),
            );
        }
        if !forward {
            self.fail(
                Check::Order,
                format!("peer {id} is set back to slot {slot}"),
            );
        }
    }

    fn apply(&mut self, id: PeerId, slot: Slot, entry: &Entry, tokens: &[u64]) {
        self.trace(|_| format!("{id} applies {slot} {}", brief_entry(entry)));
        let digest = digest(entry);
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        if slot.0 != peer.machine.slot + 1 {
            let detail = format!("peer {id} applies {slot} after {}", peer.machine.slot);
            return self.fail(Check::Order, detail);
        }
        let outcomes = peer.machine.apply(slot.0, entry, digest);
        let history = peer.machine.history;
        if !self.truth.decided.contains_key(&slot) {
            if self.truth.groups.is_empty() {
                // Of all that were founded, the one that decides is the group.
                let group = peer.node.as_ref().and_then(Node::group).cloned();
                self.truth
                    .groups
                    .extend(group.map(|group| (Slot(0), group)));
            }
            self.counts.slots += 1;
            self.check_quorum(id, slot, digest);
        }
        if let Entry::Reconfigure(group) = entry {
            if !self.truth.groups.contains_key(&slot) {
                self.counts.replacements += 1;
                if !self.truth.regroup(slot, group) {
                    let detail = format!("slot {slot} makes {} {group:?}", group.generation);
                    self.fail(Check::OneChange, detail);
                }
            }
        }
        if !self.truth.decide(slot, digest, history) {
            let detail = format!("peer {id} applies {entry:?} in slot {slot}, others another");
            return self.fail(Check::Agreement, detail);
        }
        for (at, (command, outcome)) in outcomes.into_iter().enumerate() {
            if self.never.contains(&command.attempt) {
                let detail = format!("{command:?} in slot {slot} was said never to be decided");
                self.fail(Check::LostIsLost, detail);
            }
            self.settle_command(id, tokens.get(at), command, outcome);
        }
    }

    fn settle_command(
        &mut self,
        id: PeerId,
        token: Option<&u64>,
        command: crate::machine::Command,
        outcome: Outcome,
    ) {
        let known = self.clients[command.client as usize].known;
        match outcome {
            Outcome::Again => {
                let detail = format!("{command:?} out of turn at peer {id}");
                self.fail(Check::ExactlyOnce, detail);
            }
            Outcome::Version(version) => {
                let peer = self.peers.get_mut(&id);
                let waits = token.and_then(|token| peer?.proposals.remove(token));
                if let Some((client, sequence)) = waits {
                    self.answer(client, sequence, command.key, version);
                }
            }
            Outcome::Stale if command.sequence > known => {
                let detail = format!("{command:?} is stale, its client knows of {known}");
                self.fail(Check::ExactlyOnce, detail);
            }
            Outcome::Stale => {}
        }
    }

    /// What is applied for the first time is on the disks of a quorum.
    fn check_quorum(&mut self, id: PeerId, slot: Slot, digest: u64) {
        let Some(group) = self.truth.group_of(slot).cloned() else {
            return self.fail(Check::Agreement, format!("no group decides slot {slot}"));
        };
        let count = self.truth.votes_for(slot, digest, &group);
        if count < group.majority() {
            let detail = format!("peer {id} applies {slot}, which {count} disks have");
            self.fail(Check::QuorumOnDisk, detail);
        }
    }

    fn save_when_due(&mut self, id: PeerId) {
        let padding = self.dice_padding();
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        if peer.machine.slot < peer.snapshot_at + self.plan.snapshot_every {
            return;
        }
        // The state must be of that very slot: nothing may wait between.
        let slot = Slot(peer.machine.slot);
        peer.snapshot_at = slot.0;
        let state = peer.machine.save(padding);
        if let Some(node) = &mut peer.node {
            node.save_snapshot(slot, state);
        }
    }

    fn dice_padding(&self) -> usize {
        self.plan.snapshot_padding
    }

    fn send(&mut self, id: PeerId, envelope: Envelope) {
        self.check_message(id, &envelope);
        self.counts.messages += 1;
        match &envelope.body {
            Body::SnapshotPage { .. } => self.counts.snapshot_pages += 1,
            Body::Page { .. } => self.counts.pages += 1,
            Body::Promise { next: Some(_), .. } => self.counts.promise_pages += 1,
            _ => {}
        }
        let cut = self.cuts.contains(&(envelope.from, envelope.to));
        if cut || (!self.calm && self.dice.chance(self.plan.loss)) {
            self.counts.lost += 1;
            return;
        }
        if !self.calm && self.dice.chance(self.plan.twice) {
            self.counts.doubled += 1;
            let delay = self.delay();
            self.after(delay, Event::Deliver(Box::new(envelope.clone())));
        }
        let delay = self.delay();
        self.after(delay, Event::Deliver(Box::new(envelope)));
    }

    fn delay(&mut self) -> u64 {
        let late = self.slow_until > self.now || self.dice.chance(self.plan.slow);
        if late && !self.calm {
            self.counts.slow += 1;
            return self.dice.between(MILLI, self.plan.slow_for);
        }
        self.dice.between(50, 700)
    }

    /// What a message says must be on the disk of who says it.
    fn check_message(&mut self, id: PeerId, envelope: &Envelope) {
        let Some(peer) = self.peers.get(&id) else {
            return;
        };
        let (view, life) = (&peer.disk.view, peer.life);
        let decided = peer.node.as_ref().map_or(Slot(0), Node::decided);
        let covered = match &envelope.body {
            Body::Prepare { ballot, .. }
            | Body::Heartbeat { ballot, .. }
            | Body::HeartbeatAck { ballot, .. } => view.promised >= *ballot,
            Body::Promise {
                ballot, accepted, ..
            } => {
                view.promised >= *ballot
                    && accepted
                        .iter()
                        .all(|report| view.covers(report.slot, report.ballot))
            }
            Body::Accept { ballot, .. } => view.promised >= *ballot,
            Body::Accepted {
                ballot,
                first,
                last,
                ..
            } => {
                view.promised >= *ballot
                    && (first.0..=last.0)
                        .all(|slot| slot <= decided.0 || view.covers(Slot(slot), *ballot))
            }
            _ => true,
        };
        if !covered {
            let detail = format!("peer {id} says {}", brief(&envelope.body));
            self.fail(Check::PersistFirst, detail);
        }
        let (Body::Prepare { ballot, .. }
        | Body::Heartbeat { ballot, .. }
        | Body::Accept { ballot, .. }) = &envelope.body
        else {
            return;
        };
        if !self.truth.use_ballot(*ballot, id, life) {
            self.fail(Check::BallotUnique, format!("{ballot} of peer {id}"));
        }
        if let Body::Accept { first, entries, .. } = &envelope.body {
            for (at, entry) in entries.iter().enumerate() {
                let slot = Slot(first.0 + at as u64);
                if !self.truth.propose(*ballot, slot, digest(entry)) {
                    let detail = format!("peer {id} proposes two entries in slot {slot}");
                    self.fail(Check::OneValue, detail);
                }
            }
        }
    }
}

fn brief_entry(entry: &Entry) -> String {
    match entry {
        Entry::Noop => "nothing".to_owned(),
        Entry::Commands(commands) => format!("{} commands", commands.len()),
        Entry::Reconfigure(group) => {
            let ids: Vec<u32> = group.members.iter().map(|member| member.id.0).collect();
            format!("group {} of {ids:?}", group.generation)
        }
    }
}
