//! Requests whose answer waits for owners to confirm.

use ramkeep_wire::coordinator::{Answer, Once, Refused};
use ramkeep_wire::{Micros, TableId};

use crate::limits::{MAX_WAITING, WAIT_MOST};
use crate::state::State;

/// What a request waits for.
#[derive(Clone, Debug)]
pub(super) enum Wanted {
    /// A table that is being dropped to be gone, so that one of its name can be made.
    Room(String, Option<Once>),
    /// A table to be served.
    Served(TableId),
    /// A table to be gone.
    Gone(TableId),
}

/// What became of a waiting request.
#[derive(Debug)]
pub(super) enum Settled {
    /// Answer it.
    Answer(u64, Answer),
    /// Try again to make the table.
    Create(u64, String, Option<Once>),
}

#[derive(Debug)]
struct Waiter {
    token: u64,
    wanted: Wanted,
    until: Micros,
}

/// The requests that wait.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    all: Vec<Waiter>,
}

impl Waiting {
    pub(super) fn add(&mut self, now: Micros, token: u64, wanted: Wanted) -> Result<(), Refused> {
        if self.all.len() >= MAX_WAITING {
            return Err(Refused::Limit(format!("{MAX_WAITING} requests waiting")));
        }
        self.all.push(Waiter {
            token,
            wanted,
            until: now + WAIT_MOST,
        });
        Ok(())
    }

    /// Takes out what can be answered now.
    pub(super) fn settle(&mut self, now: Micros, state: &State) -> Vec<Settled> {
        let mut settled = Vec::new();
        self.all.retain(|waiter| {
            let found = settle(waiter, state).or_else(|| {
                let why = "the time that owners have to confirm; ask again".into();
                let late = Answer::Refused(Refused::Limit(why));
                (now >= waiter.until).then_some(Settled::Answer(waiter.token, late))
            });
            let stays = found.is_none();
            settled.extend(found);
            stays
        });
        settled
    }

    /// All who wait, who wait no more.
    pub(super) fn give_up(&mut self) -> Vec<u64> {
        let all = std::mem::take(&mut self.all);
        all.into_iter().map(|waiter| waiter.token).collect()
    }

    /// When the first has waited too long.
    pub(super) fn due(&self) -> Option<Micros> {
        self.all.iter().map(|waiter| waiter.until).min()
    }
}

fn settle(waiter: &Waiter, state: &State) -> Option<Settled> {
    let token = waiter.token;
    match &waiter.wanted {
        Wanted::Room(name, once) => {
            let record = state.tables().by_name(name);
            record
                .is_none_or(|record| record.dropping.is_none())
                .then(|| Settled::Create(token, name.clone(), *once))
        }
        Wanted::Served(table) => match state.table(*table) {
            // A table with a crashed owner is answered as it stands: there is nothing to wait for.
            Some(record) if record.is_normal() || record.is_down() => {
                Some(Settled::Answer(token, Answer::Table(record.table.clone())))
            }
            Some(record) if record.dropping.is_none() => None,
            _ => Some(Settled::Answer(
                token,
                Answer::Refused(Refused::NoSuchTable),
            )),
        },
        Wanted::Gone(table) => state
            .table(*table)
            .is_none()
            .then_some(Settled::Answer(token, Answer::Dropped)),
    }
}
