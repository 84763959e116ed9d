//! What the group decides, and what this peer makes of it: leading begins and ends, commands are
//! applied and answered, snapshots are taken.

use paxos::PeerId as GroupPeer;
use ramkeep_wire::coordinator::{AcceptedLoss, Answer, Refused};
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::{Ballot, ClusterId, postcards};

use super::damaged::Damaged;
use super::duties::Duties;
use super::waiting::Wanted;
use super::{Coordinator, NOTHING_FOLLOWED, Origin, Output, Replacing};
use crate::command::{Applied, Command, Outcome};
use crate::consensus::{Decided, Event, Unreadable, peer, time};
use crate::limits::{CLIENT_LEASE, MAX_REPLACING};
use crate::state::State;

impl Coordinator {
    /// Takes in all that has happened in the group.
    pub(super) fn take_events(&mut self) {
        while !self.stopped {
            match self.consensus.poll() {
                Ok(None) => return,
                Ok(Some(event)) => self.event(event),
                Err(unreadable) => self.stop(unreadable),
            }
        }
    }

    /// Says once that it can't go on.
    fn stop(&mut self, why: Unreadable) {
        self.stopped = true;
        self.outputs.push_back(Output::Stop(why));
    }

    fn event(&mut self, event: Event<Origin>) {
        match event {
            Event::Send(addresses, message) => {
                self.outputs.push_back(Output::Send { addresses, message });
            }
            Event::Persist(seq, records) => {
                self.backlog.add(seq, &records);
                self.outputs.push_back(Output::Persist { seq, records });
                if mutants::active(Mutant::AnswerBeforeSync) {
                    let now = time(self.now);
                    self.consensus.node_mut().handle_persisted(now, seq);
                }
            }
            Event::SaveSnapshot(seq, snapshot, records) => {
                self.backlog.add(seq, &records);
                self.outputs.push_back(Output::SaveSnapshot {
                    seq,
                    snapshot,
                    records,
                });
            }
            Event::Restore(slot, state) => self.restore(slot, &state),
            Event::Decided(decided) => self.apply(decided),
            Event::Leads(ballot) => self.begin_to_lead(ballot),
            Event::Deposed => self.cease_to_lead(),
            Event::Lost(origin) => self.lost(&origin),
            Event::Removed => self.outputs.push_back(Output::Removed),
        }
    }

    fn restore(&mut self, slot: u64, state: &[u8]) {
        match postcards::decode::<State>(state) {
            Ok(state) => {
                self.state = state;
                self.regrouped = slot;
                self.unsaved = 0;
            }
            Err(why) => self.stop(Unreadable {
                slot,
                why: why.to_string(),
            }),
        }
    }

    /// Has a snapshot taken after so many bytes of commands, and not after
    /// [`SNAPSHOT_AFTER`](crate::limits::SNAPSHOT_AFTER).
    #[must_use]
    pub fn with_snapshots_after(mut self, bytes: usize) -> Self {
        self.snapshot_after = bytes;
        self
    }

    fn apply(&mut self, decided: Decided<Origin>) {
        for (command, origin) in decided.commands {
            let outcome = self.state.apply(&command);
            self.led(&command);
            if let Some(origin) = origin {
                self.decided(&command, origin, outcome);
            }
        }
        if decided.regroups {
            self.regrouped = decided.slot;
        }
        self.unsaved += decided.bytes;
        if self.unsaved >= self.snapshot_after {
            self.unsaved = 0;
            let state = postcards::encode(&self.state).into();
            let slot = paxos::Slot(decided.slot);
            self.consensus.node_mut().save_snapshot(slot, state);
        }
        self.look = true;
    }

    /// This peer was made leader; it answers once all know it.
    fn begin_to_lead(&mut self, ballot: Ballot) {
        if self.state.constants().is_none() {
            let bootstrap = Command::Bootstrap {
                cluster: ClusterId(self.entropy.draw()),
                settings: self.config.settings.clone(),
            };
            self.propose(&bootstrap, Origin::Own);
        }
        self.propose(&Command::Lead { ballot }, Origin::Own);
    }

    /// The own ballot was applied: from here on requests are answered, and all timers are afresh.
    fn led(&mut self, command: &Command) {
        let Command::Lead { ballot } = command else {
            return;
        };
        if self.consensus.leads() != Some(*ballot) || self.state.ballot() != *ballot {
            return;
        }
        self.forget_leading();
        self.leads = Some(*ballot);
        self.leases_checked = self.now;
        let until = self.now + CLIENT_LEASE;
        self.leases = self.state.clients().iter().map(|id| (id, until)).collect();
        tracing::info!(%ballot, "leading");
    }

    fn cease_to_lead(&mut self) {
        if let Some(ballot) = self.leads {
            tracing::info!(%ballot, "leading no more");
        }
        self.forget_leading();
        self.redirect_all();
    }

    /// Whoever waits here is to ask the leader.
    pub(super) fn redirect_all(&mut self) {
        for token in self.waiting.give_up() {
            self.redirect(token);
        }
        for replacing in std::mem::take(&mut self.replacing) {
            self.redirect(replacing.token);
        }
        for claim in std::mem::take(&mut self.claims) {
            self.redirect(claim.token);
        }
    }

    /// All that only a leader knows.
    fn forget_leading(&mut self) {
        self.leads = None;
        self.deposed = None;
        self.watches.clear();
        self.reported.clear();
        self.fences.clear();
        self.leases.clear();
        self.duties = Duties::default();
        self.recoveries.forget();
        self.damaged = Damaged::default();
        self.followed = NOTHING_FOLLOWED;
        self.next_look = None;
        self.look = true;
    }

    /// Nothing is known of a command, or it was not taken. Who asked may ask again: whatever can't
    /// run twice is recognised.
    pub(super) fn lost(&mut self, origin: &Origin) {
        match origin {
            Origin::Request(token) | Origin::Create(token, ..) => self.redirect(*token),
            Origin::Report(server) => {
                self.reported.remove(server);
            }
            Origin::Crash(server) => {
                if let Some(watch) = self.watches.get_mut(server) {
                    watch.declaring = false;
                }
            }
            Origin::Recovery(master) => self.recovery_decided(*master, true),
            Origin::Confirmed(server, duty, pieces) => {
                self.duties.undecided(self.now, *server, *duty, pieces);
                self.look = true;
            }
            // Waited for anew, and proposed again then.
            Origin::Fence(server) => _ = self.fences.remove(server),
            Origin::Expire(client) => _ = self.leases.insert(*client, self.now),
            Origin::Own => {}
        }
    }

    /// A command of this leader is decided and applied: its own side of it.
    fn decided(&mut self, command: &Command, origin: Origin, outcome: Outcome) {
        match origin {
            Origin::Own | Origin::Expire(_) => {}
            Origin::Fence(server) => _ = self.fences.remove(&server),
            Origin::Confirmed(server, duty, pieces) => {
                // What is owed of it now is what the state says.
                self.duties.undecided(self.now, server, duty, &pieces);
                self.followed = NOTHING_FOLLOWED;
            }
            Origin::Request(token) => self.answer_decided(token, command, outcome),
            Origin::Create(token, name, once) => self.create_decided(token, name, once, outcome),
            Origin::Crash(server) => tracing::warn!(%server, "server decided crashed"),
            Origin::Report(server) => {
                self.reported.remove(&server);
            }
            Origin::Recovery(master) => {
                if let Err(why) = &outcome {
                    tracing::warn!(%master, %why, "a step of a recovery is refused");
                }
                self.recovery_decided(master, outcome.is_err());
            }
        }
    }

    fn answer_decided(&mut self, token: u64, command: &Command, outcome: Outcome) {
        match (outcome, command) {
            (Err(why), _) => self.reply_decided(token, Answer::Refused(why)),
            (Ok(Applied::Server(server)), _) => self.answer_enlisted(token, server),
            (Ok(Applied::Client(client)), _) => self.answer_lease(token, client),
            (Ok(Applied::Table(table)), _) => self.wait(token, Wanted::Gone(table)),
            (Ok(Applied::Done), Command::AcceptLoss(AcceptedLoss { master, loss })) => {
                tracing::warn!(%master, ?loss, "an operator has given up a part of a log");
                self.reply_decided(token, Answer::Noted);
            }
            (Ok(Applied::Done), Command::RecordEpoch { .. }) => {
                self.reply_decided(token, Answer::EpochRecorded);
            }
            (Ok(Applied::Done), _) => self.reply_decided(token, Answer::Noted),
        }
    }

    fn create_decided(
        &mut self,
        token: u64,
        name: String,
        once: Option<ramkeep_wire::coordinator::Once>,
        outcome: Outcome,
    ) {
        match outcome {
            Ok(Applied::Table(table)) => self.wait(token, Wanted::Served(table)),
            Ok(_) => self.reply_decided(token, Answer::Noted),
            Err(_) if self.state.tables().is_dropping(&name) => {
                self.wait(token, Wanted::Room(name, once));
            }
            Err(why) => self.reply_decided(token, Answer::Refused(why)),
        }
    }

    /// Answers who waits for a change of the group that has come. It is known to a quorum of the new
    /// group then: one that is known to this leader alone would be lost with it, and so might the
    /// group, whose other members still count on the one that was lost.
    pub(super) fn settle_replacing(&mut self) {
        let node = self.consensus.node();
        let Some(group) = node.group().filter(|_| !self.replacing.is_empty()) else {
            return;
        };
        let slot = Some(paxos::Slot(self.regrouped));
        let members = node.members();
        let know = members.iter().filter(|member| member.decided >= slot);
        if know.count() < group.majority() {
            return;
        }
        let has = |id: GroupPeer| group.member(id).is_some();
        let done = |one: &Replacing| has(peer(one.by)) && !has(peer(one.lost));
        let (done, left): (Vec<_>, Vec<_>) = self.replacing.iter().copied().partition(done);
        self.replacing = left;
        for one in done {
            self.reply(one.token, Answer::Noted);
        }
    }

    /// Has another coordinator take the place of one.
    pub(super) fn replace(&mut self, replacing: Replacing) {
        use paxos::ReplaceError::{Behind, Busy, NoLearner};
        let Replacing { token, lost, by } = replacing;
        if self.replacing.len() >= MAX_REPLACING {
            return self.refuse(token, Refused::Limit(format!("{MAX_REPLACING} waiting")));
        }
        match self.consensus.replace(self.now, lost, by) {
            // Settled as soon as it is known.
            Ok(()) => self.replacing.push(replacing),
            Err(paxos::ReplaceError::NotLeader(_)) => self.redirect(token),
            Err(why @ (Behind(..) | Busy | NoLearner(_))) => {
                self.refuse(token, Refused::Limit(format!("{why}; ask again")));
            }
            Err(why) => self.refuse(token, Refused::Invalid(why.to_string())),
        }
    }
}
