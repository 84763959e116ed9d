//! What a round over all recoveries shares, and what comes of it.
//!
//! # Invariants
//! 1. Tokens of questions are never given twice by one process: no late answer fits another question.
//! 2. Questions under way are bounded.

use std::collections::BTreeMap;

use ramkeep_wire::ServerId;
use ramkeep_wire::backup::BackupRequest;

use super::View;
use super::planning::Budget;
use crate::command::Command;
use crate::limits::MAX_ASKED;

/// What a step of a recovery wants done.
pub(super) enum Act {
    Ask {
        server: ServerId,
        token: u64,
        request: BackupRequest,
    },
    /// Of the recovery of this master.
    Propose(ServerId, Command),
}

/// Questions under way.
#[derive(Debug, Default)]
pub(super) struct Questions {
    /// About whose log, and whom.
    asked: BTreeMap<u64, (ServerId, ServerId)>,
    /// Last token given; grows over all times of leading.
    tokens: u64,
}

/// A round over all recoveries.
pub(super) struct Round<'a> {
    pub(super) view: &'a View<'a>,
    pub(super) questions: &'a mut Questions,
    /// Searches that may be begun.
    pub(super) room: usize,
    pub(super) budget: Budget,
    pub(super) acts: Vec<Act>,
}

impl Questions {
    /// None; later tokens are above all that were given.
    pub(super) fn anew(&self) -> Self {
        Self {
            tokens: self.tokens,
            ..Self::default()
        }
    }

    /// Asks `server` about the log of `master`; the question's token, unless too many are under way.
    pub(super) fn ask(
        &mut self,
        master: ServerId,
        server: ServerId,
        request: BackupRequest,
        acts: &mut Vec<Act>,
    ) -> Option<u64> {
        if self.asked.len() >= MAX_ASKED {
            return None;
        }
        self.tokens += 1;
        self.asked.insert(self.tokens, (master, server));
        acts.push(Act::Ask {
            server,
            token: self.tokens,
            request,
        });
        Some(self.tokens)
    }

    /// The answer to a question came: about whose log.
    pub(super) fn answered(&mut self, token: u64) -> Option<ServerId> {
        self.asked.remove(&token).map(|(master, _)| master)
    }

    /// Nobody listens to what the dead answer.
    pub(super) fn forget_the_dead(&mut self, view: &View<'_>) {
        self.asked
            .retain(|_, (_, server)| view.backups.contains_key(server));
    }
}
