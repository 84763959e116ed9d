//! What came of clients' calls, so that a call that comes again gets its result and does not run
//! again (RIFL, Lee et al., SOSP 2015, sections 3 and 4).
//!
//! # Invariants
//! 1. A call that has run, and that its client has not said to be over, is known here: its result is
//!    saved before the writer is let go.
//! 2. Results are forgotten only up to the client's ack id, with their tablet, or with the client once
//!    its lease is known to have ended. Calls up to the ack id, and all of a client whose lease has
//!    ended, are refused from then on.
//! 3. What is kept is bounded: [`MAX_SAVED`] results of [`MAX_CLIENTS`] clients, and what clients that
//!    live may still ask for of what was replayed here.
//!
//! A call that changed something has a completion in the log, in the group of its effect. One that
//! changed nothing is known here alone: should the master crash, nobody has seen an answer of its
//! who could still ask, and the connections on which it could come late are gone with the master.

use std::collections::{BTreeMap, VecDeque};

use ramkeep_wire::data::Status;
use ramkeep_wire::entry::{Completion, NewEntry};
use ramkeep_wire::limits::MAX_RPC_WINDOW;
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::order::TabletGrant;
use ramkeep_wire::{
    ClientId, EndedClients, KeyHash, KnownEnded, LogPosition, RpcId, TableId, Version,
};

use super::answer::Answer;
use super::tablets::Owned;

/// Results that one master saves at most; who wants more is told to try again.
pub const MAX_SAVED: usize = 1 << 20;
/// Clients that one master knows at most.
pub const MAX_CLIENTS: usize = 1 << 17;
/// Room for results that a client without any keeps.
const KEPT_ROOM: usize = 1 << 10;

/// A call that runs now, for the first time. Only [`Completions::admit`] makes one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fresh {
    client: ClientId,
    rpc: RpcId,
    ack: RpcId,
}

impl Fresh {
    /// What is appended with the effect of the call.
    #[inline]
    pub(super) fn completion<'a>(
        &self,
        owned: Owned<'_>,
        version: Version,
        counter: Option<i64>,
    ) -> NewEntry<'a> {
        NewEntry::Completion(Completion {
            client: self.client,
            rpc: self.rpc,
            ack: self.ack,
            table: owned.table(),
            hash: owned.hash(),
            version,
            counter,
        })
    }
}

/// Whether a call may run.
#[derive(Debug)]
pub(super) enum Admission {
    /// It runs; its result must be saved.
    Fresh(Fresh),
    /// It runs, and nobody will ask for its result again.
    Unremembered,
    /// It ran.
    Known(Saved),
    /// It may not, or not now.
    Refused(Status),
}

/// A result.
#[derive(Clone, Copy, Debug)]
pub(super) struct Saved {
    rpc: RpcId,
    pub(super) version: Version,
    counter: i64,
    /// May be told once the log is durable up to here.
    pub(super) until: LogPosition,
    hash: KeyHash,
    table: TableId,
    pub(super) status: Status,
    has_counter: bool,
}

impl Saved {
    fn of(rpc: RpcId, owned: Owned<'_>, answer: &Answer) -> Self {
        Self {
            rpc,
            version: answer.version,
            counter: answer.counter.unwrap_or(0),
            until: answer.shown.err().unwrap_or(LogPosition::ZERO),
            hash: owned.hash(),
            table: owned.table(),
            status: answer.status,
            has_counter: answer.counter.is_some(),
        }
    }

    /// What it made of a counter.
    pub(super) fn counter(&self) -> Option<i64> {
        self.has_counter.then_some(self.counter)
    }

    fn is_of(&self, range: &TabletGrant) -> bool {
        self.table == range.table && (range.first..=range.last).contains(&self.hash)
    }
}

/// The calls of one client.
#[derive(Debug, Default)]
struct Calls {
    ack: RpcId,
    /// In growing order of rpc ids, all above `ack`.
    saved: VecDeque<Saved>,
}

impl Calls {
    /// Forgets what is over; returns how many that were.
    #[inline]
    fn acknowledge(&mut self, ack: RpcId) -> usize {
        if ack <= self.ack {
            return 0;
        }
        self.ack = ack;
        self.forget(ack)
    }

    fn forget(&mut self, ack: RpcId) -> usize {
        let before = self.saved.len();
        while self.saved.front().is_some_and(|saved| saved.rpc <= ack) {
            self.saved.pop_front();
        }
        before - self.saved.len()
    }

    #[inline]
    fn find(&self, rpc: RpcId) -> Result<usize, usize> {
        match self.saved.back() {
            Some(last) if last.rpc >= rpc => {
                self.saved.binary_search_by_key(&rpc, |saved| saved.rpc)
            }
            _ => Err(self.saved.len()),
        }
    }
}

/// All that is known of clients' calls.
#[derive(Debug, Default)]
pub(super) struct Completions {
    ended: KnownEnded,
    places: BTreeMap<ClientId, usize>,
    calls: Vec<Calls>,
    free: Vec<usize>,
    /// The client asked for last, and its place.
    last: Option<(ClientId, usize)>,
    saved: usize,
}

impl Completions {
    /// Nothing, but for which leases have ended.
    pub(super) fn knowing(ended: &KnownEnded) -> Self {
        Self {
            ended: ended.clone(),
            ..Self::default()
        }
    }

    /// The leases that are known to have ended.
    pub(super) fn ended(&self) -> &KnownEnded {
        &self.ended
    }

    /// Whether the call `rpc` of a client, whose calls up to `ack` are over, may run.
    #[inline]
    pub(super) fn admit(&mut self, client: ClientId, ack: RpcId, rpc: RpcId) -> Admission {
        if client == ClientId(0) || rpc == RpcId(0) {
            return Admission::Unremembered;
        }
        let calls = match self.enter(client, MAX_CLIENTS) {
            Ok(place) => &mut self.calls[place],
            Err(status) => return Admission::Refused(status),
        };
        self.saved -= calls.acknowledge(ack);
        if mutants::active(Mutant::ForgetUnacknowledged) {
            self.saved -= calls.forget(RpcId(rpc.0 - 1));
        }
        if rpc <= calls.ack {
            return Admission::Refused(Status::Stale);
        }
        match calls.find(rpc) {
            Ok(at) if !mutants::active(Mutant::ForgetCompletion) => {
                Admission::Known(calls.saved[at])
            }
            _ if rpc.0 - calls.ack.0 > MAX_RPC_WINDOW || self.saved >= MAX_SAVED => {
                Admission::Refused(Status::RetryLater)
            }
            _ => Admission::Fresh(Fresh {
                client,
                rpc,
                ack: calls.ack,
            }),
        }
    }

    /// Saves what came of a call.
    #[inline]
    pub(super) fn save(&mut self, fresh: Fresh, owned: Owned<'_>, answer: &Answer) {
        self.put(fresh.client, Saved::of(fresh.rpc, owned, answer));
    }

    fn put(&mut self, client: ClientId, saved: Saved) {
        let Ok(place) = self.enter(client, usize::MAX) else {
            return;
        };
        let calls = &mut self.calls[place];
        match calls.find(saved.rpc) {
            Ok(at) => calls.saved[at] = saved,
            Err(at) => {
                calls.saved.insert(at, saved);
                self.saved += 1;
            }
        }
    }

    /// The place of a client whose lease is not known to have ended; of one more than `most` there is
    /// none.
    #[inline]
    fn enter(&mut self, client: ClientId, most: usize) -> Result<usize, Status> {
        match self.last {
            Some((last, place)) if last == client => Ok(place),
            _ => self.look_up(client, most),
        }
    }

    fn look_up(&mut self, client: ClientId, most: usize) -> Result<usize, Status> {
        let place = match self.places.get(&client) {
            Some(place) => *place,
            None if self.ended.has(client) && !mutants::active(Mutant::ServeEndedClients) => {
                return Err(Status::LeaseOver);
            }
            None if self.places.len() >= most => return Err(Status::RetryLater),
            None => {
                let place = self.free.pop().unwrap_or_else(|| {
                    self.calls.push(Calls::default());
                    self.calls.len() - 1
                });
                self.places.insert(client, place);
                place
            }
        };
        self.last = Some((client, place));
        Ok(place)
    }

    /// Forgets the clients whose leases have ended. Only those are looked at that something is said of.
    pub(super) fn clients_ended(&mut self, ended: &EndedClients) {
        if !self.ended.learn(ended) {
            return;
        }
        self.last = None;
        let known = self.places.range(ended.from..ended.below);
        let over = known.filter(|(client, _)| self.ended.has(**client));
        let over: Vec<ClientId> = over.map(|(client, _)| *client).collect();
        for client in over {
            if let Some(place) = self.places.remove(&client) {
                self.saved -= std::mem::take(&mut self.calls[place]).saved.len();
                self.free.push(place);
            }
        }
    }

    /// Forgets results of what is not served here any more: a whole table, or ranges.
    pub(super) fn forget_where(&mut self, ranges: &[TabletGrant]) {
        for calls in &mut self.calls {
            let before = calls.saved.len();
            if before == 0 {
                continue;
            }
            let gone = |saved: &Saved| ranges.iter().any(|range| saved.is_of(range));
            calls.saved.retain(|saved| !gone(saved));
            self.saved -= before - calls.saved.len();
            if calls.saved.is_empty() {
                calls.saved.shrink_to(KEPT_ROOM);
            }
        }
    }

    /// Notes a completion of another master's log that belongs here, `until` a position of this log.
    pub(super) fn replayed(&mut self, completion: &Completion, until: LogPosition) {
        let Completion {
            client,
            rpc,
            table,
            hash,
            version,
            counter,
            ..
        } = *completion;
        self.put(
            client,
            Saved {
                rpc,
                version,
                counter: counter.unwrap_or(0),
                until,
                hash,
                table,
                status: Status::Ok,
                has_counter: counter.is_some(),
            },
        );
    }

    /// Notes what a client said in another master's log. False if nothing of the call is wanted.
    pub(super) fn heard(&mut self, client: ClientId, ack: RpcId, rpc: RpcId) -> bool {
        let Ok(place) = self.enter(client, usize::MAX) else {
            return false;
        };
        let calls = &mut self.calls[place];
        self.saved -= calls.acknowledge(ack);
        rpc > calls.ack
    }

    /// How many results are saved.
    pub(super) fn len(&self) -> usize {
        self.saved
    }

    /// Takes a result out, with what a completion of it says.
    pub(super) fn pop(&mut self) -> Option<Completion> {
        while let Some((&client, &place)) = self.places.first_key_value() {
            let calls = &mut self.calls[place];
            if let Some(saved) = calls.saved.pop_front() {
                self.saved -= 1;
                return Some(Completion {
                    client,
                    rpc: saved.rpc,
                    ack: calls.ack,
                    table: saved.table,
                    hash: saved.hash,
                    version: saved.version,
                    counter: saved.counter(),
                });
            }
            self.places.pop_first();
            self.last = None;
        }
        None
    }
}
