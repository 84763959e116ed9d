//! Losses that operators have accepted (SAFETY 19).
//!
//! # Invariants
//! 1. A loss is accepted only of a crashed master with tablets that wait for its log. If where it ends
//!    was decided before, that is given up with it: every try from then on gets the same.
//! 2. Who is asserted dead was decided crashed, and nobody has come back with its frames.
//! 3. Accepting what is accepted changes nothing: it gives up no plan that was made with it.

use std::collections::BTreeMap;

use ramkeep_wire::ServerId;
use ramkeep_wire::coordinator::{AcceptedLoss, Loss, Refused};
use ramkeep_wire::limits::{MAX_ASSERTED_DEAD, MAX_GIVEN_UP};
use serde::{Deserialize, Serialize};

use super::State;
use crate::command::{Applied, Outcome};
use crate::limits::LOSSES_KEPT;

/// The accepted losses, by master. Ids grow, so the oldest come first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Losses(BTreeMap<ServerId, Loss>);

impl Losses {
    /// What is given up of this master's log.
    #[must_use]
    pub fn of(&self, master: ServerId) -> Option<&Loss> {
        self.0.get(&master)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = AcceptedLoss> + '_ {
        self.0.iter().map(|(master, loss)| AcceptedLoss {
            master: *master,
            loss: loss.clone(),
        })
    }
}

/// What can be judged of a loss by itself.
pub(crate) fn check_loss(loss: &Loss) -> Result<(), Refused> {
    let grows = loss.segments.is_sorted_by(|a, b| a < b) && loss.dead.is_sorted_by(|a, b| a < b);
    if !grows || (loss.segments.is_empty() && !loss.tail) {
        let what = "a loss names something, each segment and server once, in order";
        return Err(Refused::Invalid(what.into()));
    }
    if loss.segments.len() > MAX_GIVEN_UP || loss.dead.len() > MAX_ASSERTED_DEAD {
        return Err(Refused::Limit(format!(
            "{MAX_GIVEN_UP} segments and {MAX_ASSERTED_DEAD} servers given up"
        )));
    }
    Ok(())
}

impl State {
    pub(super) fn accept_loss(&mut self, accepted: &AcceptedLoss) -> Outcome {
        let AcceptedLoss { master, loss } = accepted;
        check_loss(loss)?;
        self.check_crashed(*master)?;
        if self.losses.of(*master) == Some(loss) {
            return Ok(Applied::Done);
        }
        let tables = &self.tables;
        let is_waited_for = |master: ServerId| tables.lost().any(|tablet| tablet.owner == master);
        if !is_waited_for(*master) {
            let what = format!("no tablet waits for the log of {master:?}");
            return Err(Refused::Invalid(what));
        }
        let away = self.servers.away();
        if let Some(there) = loss.dead.iter().find(|server| !away.contains(server)) {
            let what = format!("{there:?} is not dead, or its frames are there");
            return Err(Refused::Invalid(what));
        }
        self.losses.0.insert(*master, loss.clone());
        while self.losses.0.len() > LOSSES_KEPT {
            let mut known = self.losses.0.keys().copied();
            let Some(oldest) = known.find(|one| !is_waited_for(*one)) else {
                break;
            };
            self.losses.0.remove(&oldest);
        }
        self.give_up_plan(*master);
        Ok(Applied::Done)
    }
}
