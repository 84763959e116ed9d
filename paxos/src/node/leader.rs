//! What a leader keeps beside the acceptor's log: promises, what is in flight, what waits, and who
//! granted it a lease since when.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use super::{ProposeError, Token};
use crate::limits::{MAX_BATCH, MAX_BATCH_BYTES, MAX_COMMAND, MAX_WAITING, MAX_WAITING_BYTES};
use crate::message::Reported;
use crate::mutants::{self, Mutant};
use crate::types::{Ballot, Entry, Group, Member, PeerId, Slot, Time};

/// A slot proposed and not decided.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct InFlight {
    pub(super) votes: BTreeSet<PeerId>,
    pub(super) tokens: Vec<Token>,
}

/// How far the report of a peer that promised has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Report {
    /// The next page begins here.
    Next(Slot),
    /// All is reported.
    Whole,
}

/// What a leader knows of a member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Progress {
    /// When what it granted last was sent; `None` before it granted anything under this ballot.
    pub(super) granted: Option<Time>,
    /// When it was last heard.
    pub(super) heard: Time,
    /// Its last decided slot.
    pub(super) decided: Slot,
}

/// One who asks for promises, and leads once it has them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Leader {
    pub(super) ballot: Ballot,
    /// When it began.
    pub(super) since: Time,
    /// Whether the ballot is on the disk, so that it may be used.
    pub(super) usable: bool,
    pub(super) reports: BTreeMap<PeerId, Report>,
    /// Of each slot not proposed yet, what was reported under the highest ballot.
    pub(super) reported: BTreeMap<Slot, Reported>,
    /// The next slot to propose.
    pub(super) next: Slot,
    pub(super) in_flight: BTreeMap<Slot, InFlight>,
    /// The slot in flight that changes the group.
    pub(super) barrier: Option<Slot>,
    /// The first slot of its own.
    pub(super) opening: Option<Slot>,
    /// `opening` is decided: all decided before this ballot is known.
    pub(super) leads: bool,
    waiting: VecDeque<(Bytes, Token)>,
    waiting_bytes: usize,
    /// A member that is to be replaced, and by whom.
    pub(super) change: Option<(PeerId, Member)>,
    pub(super) progress: BTreeMap<PeerId, Progress>,
    pub(super) heartbeat_due: Time,
    pub(super) retry_due: Time,
}

impl Leader {
    pub(super) fn new(ballot: Ballot, now: Time, next: Slot) -> Self {
        Self {
            ballot,
            since: now,
            usable: false,
            reports: BTreeMap::new(),
            reported: BTreeMap::new(),
            next,
            in_flight: BTreeMap::new(),
            barrier: None,
            opening: None,
            leads: false,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            change: None,
            progress: BTreeMap::new(),
            heartbeat_due: now,
            retry_due: now,
        }
    }

    /// Whether a quorum of this group promised, and reported all.
    pub(super) fn prepared(&self, group: &Group) -> bool {
        let whole = |id| self.reports.get(&id) == Some(&Report::Whole);
        quorum(group, whole)
    }

    /// Until when a quorum granted the lease; for ever in a group of one.
    pub(super) fn lease_until(&self, group: &Group, me: PeerId, lease: Duration) -> Time {
        if mutants::active(Mutant::ReadWithoutLease) {
            return Time(u64::MAX);
        }
        let mut granted: Vec<Option<Time>> = Vec::with_capacity(group.members.len());
        for member in group.members.iter().filter(|member| member.id != me) {
            let progress = self.progress.get(&member.id);
            granted.push(progress.and_then(|progress| progress.granted));
        }
        granted.sort_unstable_by(|a, b| b.cmp(a));
        // This peer itself is one of the quorum.
        match group.majority().checked_sub(2).map(|at| granted.get(at)) {
            None => Time(u64::MAX),
            Some(Some(Some(sent))) => *sent + lease,
            Some(_) => Time(0),
        }
    }

    pub(super) fn merge(&mut self, reported: Vec<Reported>) {
        for report in reported.into_iter().filter(|r| r.slot >= self.next) {
            let known = self.reported.get(&report.slot);
            let better = known.is_none_or(|known| {
                if mutants::active(Mutant::AdoptLowestBallot) {
                    report.ballot < known.ballot
                } else {
                    report.ballot > known.ballot
                }
            });
            if better {
                self.reported.insert(report.slot, report);
            }
        }
    }

    pub(super) fn enqueue(&mut self, command: Bytes, token: Token) -> Result<(), ProposeError> {
        if command.len() > MAX_COMMAND {
            return Err(ProposeError::TooLong);
        }
        if self.waiting.len() >= MAX_WAITING || self.waiting_bytes >= MAX_WAITING_BYTES {
            return Err(ProposeError::Full);
        }
        self.waiting_bytes += command.len();
        self.waiting.push_back((command, token));
        Ok(())
    }

    /// The commands of the next slot, if any wait.
    pub(super) fn batch(&mut self) -> Option<(Entry, Vec<Token>)> {
        let (mut commands, mut tokens, mut bytes) = (Vec::new(), Vec::new(), 0);
        while let Some((command, _)) = self.waiting.front() {
            bytes += command.len();
            let full = commands.len() >= MAX_BATCH || bytes > MAX_BATCH_BYTES;
            if full && !commands.is_empty() {
                break;
            }
            let (command, token) = self.waiting.pop_front()?;
            self.waiting_bytes -= command.len();
            commands.push(command);
            tokens.push(token);
        }
        (!commands.is_empty()).then_some((Entry::Commands(commands), tokens))
    }

    /// Whether the slot has a quorum of votes.
    pub(super) fn is_chosen(&self, slot: Slot, group: &Group) -> bool {
        let votes = self.in_flight.get(&slot).map(|slot| &slot.votes);
        votes.is_some_and(|votes| quorum(group, |id| votes.contains(&id)))
    }

    /// All proposals that nothing more will be said of, with whether they may be decided.
    pub(super) fn lost(&mut self) -> Vec<(Token, bool)> {
        let in_flight = std::mem::take(&mut self.in_flight);
        let tokens = in_flight.into_values().flat_map(|slot| slot.tokens);
        let mut lost: Vec<(Token, bool)> = tokens.map(|token| (token, true)).collect();
        lost.extend(self.waiting.drain(..).map(|(_, token)| (token, false)));
        self.waiting_bytes = 0;
        lost
    }
}

/// Whether more than half of the members are in a set.
pub(super) fn quorum(group: &Group, is_in: impl Fn(PeerId) -> bool) -> bool {
    let count = group
        .members
        .iter()
        .filter(|member| is_in(member.id))
        .count();
    let enough = if mutants::active(Mutant::HalfIsEnough) {
        group.members.len() / 2
    } else {
        group.majority()
    };
    count >= enough.max(1)
}
