//! Calls that come again: late, twice, out of order, at the master that recovered their tablet.

use std::collections::BTreeMap;

use proptest::prelude::*;
use ramkeep_master::store::{MasterLease, Store};
use ramkeep_wire::data::{Op, RejectRules, Status};
use ramkeep_wire::entry::Entry;
use ramkeep_wire::limits::{MAX_CLIENTS_NAMED, MAX_RPC_WINDOW};
use ramkeep_wire::order::RecoveredTablet;
use ramkeep_wire::{ClientId, EndedClients, EndedRound, LogPosition, RpcId, Version};

use crate::replay::{empty, log_of, lost, recover};
use crate::support::{
    Ask, Connection, MASTER, Reply, TABLE, ask, each_entry, make_durable, store, whole,
};

const SEGMENT: u32 = 4_096;
const ONE: &[u8] = &1_i64.to_le_bytes();
const CLIENT: ClientId = ClientId(4);

/// A connection of a client on which its call `rpc` is sent next.
fn caller(client: ClientId, ack: u64, rpc: u64) -> Connection {
    Connection {
        client,
        ack: RpcId(ack),
        rpc: RpcId(rpc),
        ..Connection::default()
    }
}

/// What comes of a call, once all is durable.
fn call(store: &Store, ack: u64, rpc: u64, ask: Ask<'_>) -> Reply {
    call_of(CLIENT, store, ack, rpc, ask)
}

fn call_of(client: ClientId, store: &Store, ack: u64, rpc: u64, ask: Ask<'_>) -> Reply {
    let mut connection = caller(client, ack, rpc);
    let id = connection.send(store, &[ask])[0];
    make_durable(store);
    connection.release(store);
    connection.replies().remove(&id).expect("all is durable")
}

fn if_absent<'a>(key: &'a [u8], value: &'a [u8]) -> Ask<'a> {
    let rules = RejectRules {
        exists: true,
        ..RejectRules::default()
    };
    Ask {
        rules,
        ..ask(Op::Write, key, value)
    }
}

fn counter(store: &Store, key: &[u8]) -> i64 {
    let read = Connection::default().read(store, key).unwrap();
    read.value.try_into().map_or(0, i64::from_le_bytes)
}

/// Another master that has recovered all of this one's.
fn recovered(store: &Store) -> Store {
    recovered_knowing(store, &[])
}

fn recovered_knowing(store: &Store, ended: &[EndedClients]) -> Store {
    let target = empty(200);
    ended.iter().for_each(|page| target.clients_ended(page));
    let all = [lost(whole(TABLE), LogPosition::ZERO)];
    let finished = recover(&target, &all, &log_of(store, MASTER));
    let taken = RecoveredTablet {
        range: whole(TABLE),
        takeover: finished.takeover,
    };
    target.take_recovered(&[taken]).unwrap();
    target
}

fn completions(store: &Store) -> usize {
    let mut count = 0;
    each_entry(store, LogPosition(u64::MAX), |_, entry| {
        count += usize::from(matches!(entry, Entry::Completion(_)));
    });
    count
}

#[test]
fn a_call_that_comes_again_gets_its_result_and_does_not_run() {
    let store = store(true, SEGMENT, 8);
    let asks = || {
        [
            ask(Op::Write, b"k", b"v"),
            ask(Op::Increment, b"n", ONE),
            ask(Op::Remove, b"k", b""),
            ask(Op::Remove, b"k", b""),
        ]
    };
    let mut first = Vec::new();
    for (rpc, ask) in (1..).zip(asks()) {
        first.push(call(&store, 0, rpc, ask));
    }
    let end = store.writer().log().appended_position();
    for (rpc, ask) in (1..).zip(asks()) {
        assert_eq!(call(&store, 0, rpc, ask), first[rpc as usize - 1]);
    }
    assert_eq!(store.writer().log().appended_position(), end);
    assert_eq!(counter(&store, b"n"), 1);
}

#[test]
fn a_call_that_comes_again_waits_for_the_first_to_be_durable() {
    let store = store(true, SEGMENT, 8);
    let mut first = caller(CLIENT, 0, 1);
    let mut second = caller(CLIENT, 0, 1);
    assert_eq!(first.try_call(&store, ask(Op::Increment, b"n", ONE)), None);
    assert_eq!(second.try_call(&store, ask(Op::Increment, b"n", ONE)), None);
    second.release(&store);
    assert!(second.replies().is_empty(), "nothing is durable yet");
    make_durable(&store);
    second.release(&store);
    let replies: Vec<_> = second.replies().into_values().collect();
    assert_eq!(replies, [Reply::new(Status::Ok, 1, ONE)]);
}

#[test]
fn a_result_that_is_told_again_is_a_read() {
    let store = store(true, SEGMENT, 8);
    call(&store, 0, 1, ask(Op::Increment, b"n", ONE));
    let mut again = caller(CLIENT, 0, 1);
    again.send_under(&store, MasterLease::Lost, &[ask(Op::Increment, b"n", ONE)]);
    assert!(again.replies().is_empty(), "the lease is not held");
    again
        .session
        .release(&store, || MasterLease::Gone, &mut again.out);
    let replies: Vec<_> = again.replies().into_values().collect();
    assert_eq!(replies, [Reply::new(Status::WrongServer, 0, b"")]);
}

#[test]
fn a_call_that_was_rejected_is_not_done_when_it_comes_late() {
    let store = store(true, SEGMENT, 8);
    call(&store, 0, 1, ask(Op::Write, b"k", b"old"));
    let rejected = call(&store, 1, 2, if_absent(b"k", b"new"));
    assert_eq!(rejected, Reply::new(Status::Rejected, 1, b""));
    call_of(ClientId(9), &store, 0, 1, ask(Op::Remove, b"k", b""));
    assert_eq!(call(&store, 1, 2, if_absent(b"k", b"new")), rejected);
    let read = Connection::default().read(&store, b"k").unwrap();
    assert_eq!(read.status, Status::Absent);
}

#[test]
fn a_call_that_is_over_by_its_clients_word_is_stale() {
    let store = store(true, SEGMENT, 8);
    for rpc in 1..=3 {
        call(&store, 0, rpc, ask(Op::Increment, b"n", ONE));
    }
    call(&store, 2, 4, ask(Op::Increment, b"n", ONE));
    for rpc in 1..=2 {
        let late = call(&store, 0, rpc, ask(Op::Increment, b"n", ONE));
        assert_eq!(late.status, Status::Stale);
    }
    let third = call(&store, 0, 3, ask(Op::Increment, b"n", ONE));
    assert_eq!(third, Reply::new(Status::Ok, 3, &3_i64.to_le_bytes()));
    assert_eq!(counter(&store, b"n"), 4);
}

#[test]
fn calls_are_told_apart_by_client_and_those_of_nobody_run_each_time() {
    let store = store(true, SEGMENT, 8);
    for client in [1, 2, 0, 0, 1, 2] {
        call_of(
            ClientId(client),
            &store,
            0,
            1,
            ask(Op::Increment, b"n", ONE),
        );
    }
    assert_eq!(counter(&store, b"n"), 4);
    assert_eq!(completions(&store), 2);
}

#[test]
fn nothing_of_a_client_whose_lease_has_ended_runs() {
    let store = store(true, SEGMENT, 8);
    call(&store, 0, 1, ask(Op::Increment, b"n", ONE));
    let holding =
        |ids: &[u64]| EndedClients::among(ids.iter().copied().map(ClientId), ClientId(100));
    store.clients_ended(&holding(&[CLIENT.0, 7]));
    let known = call(&store, 0, 1, ask(Op::Increment, b"n", ONE));
    assert_eq!(known.status, Status::Ok, "its lease is held");
    store.clients_ended(&holding(&[7]));
    for rpc in [1, 2] {
        let reply = call(&store, 0, rpc, ask(Op::Increment, b"n", ONE));
        assert_eq!(reply.status, Status::LeaseOver);
    }
    store.clients_ended(&holding(&[CLIENT.0, 7]));
    let reply = call(&store, 0, 1, ask(Op::Increment, b"n", ONE));
    assert_eq!(reply.status, Status::LeaseOver, "old news changes nothing");
    for client in [7, 100] {
        call_of(
            ClientId(client),
            &store,
            0,
            1,
            ask(Op::Increment, b"n", ONE),
        );
    }
    assert_eq!(counter(&store, b"n"), 3);
}

/// All that is said when every client up to `last` lives but for one.
fn all_pages(last: u64, ended: ClientId) -> Vec<EndedClients> {
    let (mut pages, mut round) = (Vec::new(), EndedRound::default());
    while !round.is_complete() {
        let from = round.wants();
        let living = (from.0.max(1)..=last).map(ClientId);
        let living = living.filter(|client| *client != ended);
        let page = EndedClients::page(from, living, ClientId(last + 1));
        round.took(&page);
        pages.push(page);
    }
    pages
}

#[test]
fn however_many_clients_live_those_that_have_ended_are_refused_and_forgotten() {
    let many = 5 * MAX_CLIENTS_NAMED as u64;
    let (first, ended) = (store(true, SEGMENT, 20), ClientId(many - 10));
    for client in [1, many, ended.0] {
        let client = ClientId(client);
        call_of(client, &first, 0, 1, ask(Op::Increment, b"n", ONE));
    }
    let pages = all_pages(many, ended);
    assert!(pages.len() > 4, "{}", pages.len());
    let second = recovered_knowing(&first, &pages);
    assert_eq!(completions(&second), 2, "of those who live");
    pages.iter().for_each(|page| first.clients_ended(page));
    for store in [&first, &second] {
        let over = call_of(ended, store, 0, 1, ask(Op::Increment, b"n", ONE));
        assert_eq!(over.status, Status::LeaseOver);
        for client in [1, many] {
            let client = ClientId(client);
            let known = call_of(client, store, 0, 1, ask(Op::Increment, b"n", ONE));
            assert_eq!(known.status, Status::Ok);
        }
        assert_eq!(counter(store, b"n"), 3);
    }
}

#[test]
fn a_call_too_far_ahead_of_what_is_over_has_to_wait() {
    let store = store(true, SEGMENT, 8);
    let last = call(
        &store,
        10,
        10 + MAX_RPC_WINDOW,
        ask(Op::Increment, b"n", ONE),
    );
    assert_eq!(last.status, Status::Ok);
    let over = call(
        &store,
        10,
        11 + MAX_RPC_WINDOW,
        ask(Op::Increment, b"n", ONE),
    );
    assert_eq!(over.status, Status::RetryLater);
    let later = call(
        &store,
        11,
        11 + MAX_RPC_WINDOW,
        ask(Op::Increment, b"n", ONE),
    );
    assert_eq!(later.status, Status::Ok);
}

#[test]
fn a_call_runs_once_across_recoveries() {
    let first = store(true, SEGMENT, 20);
    let done = call(&first, 0, 5, ask(Op::Increment, b"n", ONE));
    call_of(ClientId(9), &first, 0, 1, ask(Op::Increment, b"n", ONE));
    let second = recovered(&first);
    assert_eq!(call(&second, 0, 5, ask(Op::Increment, b"n", ONE)), done);
    let third = recovered_from(&second);
    assert_eq!(call(&third, 0, 5, ask(Op::Increment, b"n", ONE)), done);
    assert_eq!(counter(&third, b"n"), 2);
}

/// What a second recovery makes of a master that has recovered: earlier entries don't count.
fn recovered_from(store: &Store) -> Store {
    let takeover = store.tablets().iter().next().unwrap().takeover;
    let target = empty(200);
    let log = log_of(store, ramkeep_wire::ServerId(8));
    let finished = recover(&target, &[lost(whole(TABLE), takeover)], &log);
    let taken = RecoveredTablet {
        range: whole(TABLE),
        takeover: finished.takeover,
    };
    target.take_recovered(&[taken]).unwrap();
    target
}

#[test]
fn only_what_may_be_asked_for_again_is_replayed() {
    let first = store(true, SEGMENT, 60);
    for rpc in 1..=100 {
        call(&first, rpc.max(3) - 3, rpc, ask(Op::Increment, b"n", ONE));
    }
    let second = recovered(&first);
    assert_eq!((completions(&first), completions(&second)), (100, 3));
    let stale = call(&second, 0, 50, ask(Op::Increment, b"n", ONE));
    assert_eq!(stale.status, Status::Stale);
    let ended = EndedClients::among([].into_iter(), ClientId(100));
    let third = recovered_knowing(&first, &[ended]);
    assert_eq!(completions(&third), 0);
    let over = call(&third, 0, 100, ask(Op::Increment, b"n", ONE));
    assert_eq!(over.status, Status::LeaseOver);
}

#[test]
fn a_tablet_that_is_recovered_a_second_time_brings_its_calls_again() {
    let first = store(true, SEGMENT, 20);
    let done = call(&first, 0, 1, ask(Op::Increment, b"n", ONE));
    let target = empty(200);
    let all = [lost(whole(TABLE), LogPosition::ZERO)];
    recover(&target, &all, &log_of(&first, MASTER));
    // It was not taken; another attempt begins, and what the first appended is before its takeover.
    let finished = recover(&target, &all, &log_of(&first, MASTER));
    let range = whole(TABLE);
    let takeover = finished.takeover;
    target
        .take_recovered(&[RecoveredTablet { range, takeover }])
        .unwrap();
    let last = recovered_from(&target);
    assert_eq!(call(&last, 0, 1, ask(Op::Increment, b"n", ONE)), done);
    assert_eq!(counter(&last, b"n"), 1);
}

#[test]
fn a_removal_without_room_for_its_completion_is_left_to_nobodys_call() {
    let store = store(true, SEGMENT, 4);
    let mut keys = Vec::new();
    for n in 0..1_000_u64 {
        let key = n.to_le_bytes();
        let reply = call_of(ClientId(0), &store, 0, 0, ask(Op::Write, &key, b"v"));
        match reply.status {
            Status::Ok => keys.push(key),
            status => {
                assert_eq!(status, Status::OutOfMemory);
                break;
            }
        }
    }
    let mut refused = 0;
    for (rpc, key) in (1..).zip(&keys) {
        let reply = call(&store, 0, rpc, ask(Op::Remove, key, b""));
        if reply.status == Status::NotRemembered {
            refused += 1;
            let late = call(&store, 0, rpc, ask(Op::Remove, key, b""));
            assert_eq!(late.status, Status::NotRemembered);
            let reply = call_of(ClientId(0), &store, 0, 0, ask(Op::Remove, key, b""));
            assert_eq!(reply.status, Status::Ok, "removing always works");
        } else {
            assert_eq!(reply.status, Status::Ok);
        }
    }
    assert!(refused > 0, "memory was full");
    assert_eq!(store.stats().objects, 0);
}

#[derive(Clone, Debug)]
enum Step {
    Call { client: usize, op: u8, key: u8 },
    Again { client: usize, nth: usize },
    Late { client: usize, nth: usize },
    Over { client: usize, nth: usize },
    Recover,
}

fn step() -> impl Strategy<Value = Step> {
    let (client, nth) = (0..2_usize, 0..8_usize);
    let pair = (client.clone(), nth);
    prop_oneof![
        8 => (client, 0..4_u8, 0..3_u8).prop_map(|(client, op, key)| Step::Call { client, op, key }),
        6 => pair.clone().prop_map(|(client, nth)| Step::Again { client, nth }),
        2 => pair.clone().prop_map(|(client, nth)| Step::Late { client, nth }),
        2 => pair.prop_map(|(client, nth)| Step::Over { client, nth }),
        1 => Just(Step::Recover),
    ]
}

/// A call, and what came of it while it counts.
#[derive(Clone, Debug)]
struct Made {
    op: u8,
    key: [u8; 1],
    reply: Option<Reply>,
}

impl Made {
    fn ask(&self) -> Ask<'_> {
        match self.op {
            0 => ask(Op::Write, &self.key, &[0; 8]),
            1 => ask(Op::Remove, &self.key, b""),
            2 => ask(Op::Increment, &self.key, ONE),
            _ => if_absent(&self.key, &[9; 8]),
        }
    }
}

/// Clients with their calls, and the counters that these made.
struct Model {
    store: Store,
    calls: [BTreeMap<u64, Made>; 2],
    over: [Vec<(u64, Made)>; 2],
    ack: [u64; 2],
    next: [u64; 2],
    objects: BTreeMap<[u8; 1], i64>,
    versions: BTreeMap<[u8; 1], Version>,
}

impl Model {
    fn new() -> Self {
        Self {
            store: store(true, SEGMENT, 60),
            calls: Default::default(),
            over: Default::default(),
            ack: [0; 2],
            next: [1; 2],
            objects: BTreeMap::new(),
            versions: BTreeMap::new(),
        }
    }

    fn send(&self, client: usize, rpc: u64, made: &Made) -> Reply {
        let id = ClientId(client as u64 + 1);
        call_of(id, &self.store, self.ack[client], rpc, made.ask())
    }

    /// A call that has not run where it is sent.
    fn run(&mut self, client: usize, rpc: u64, made: &Made) {
        let reply = self.send(client, rpc, made);
        let before = self.objects.get(&made.key).copied();
        let (status, after) = match (made.op, before) {
            (0, _) => (Status::Ok, Some(0)),
            (1, _) => (Status::Ok, None),
            (2, _) => (Status::Ok, Some(before.unwrap_or(0) + 1)),
            (_, Some(there)) => (Status::Rejected, Some(there)),
            (_, None) => (Status::Ok, Some(i64::from_le_bytes([9; 8]))),
        };
        assert_eq!(reply.status, status);
        if made.op == 2 {
            assert_eq!(reply.value, after.unwrap().to_le_bytes());
        }
        let seen = self.versions.entry(made.key).or_default();
        if reply.status == Status::Ok && made.op != 1 {
            assert!(reply.version > *seen, "a version was used twice");
            *seen = reply.version;
        }
        match after {
            Some(value) => self.objects.insert(made.key, value),
            None => self.objects.remove(&made.key),
        };
        let ran = Made {
            reply: Some(reply),
            ..made.clone()
        };
        self.calls[client].insert(rpc, ran);
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Call { client, op, key } => {
                let rpc = self.next[client];
                self.next[client] += 1;
                let (key, reply) = ([key], None);
                self.run(client, rpc, &Made { op, key, reply });
            }
            Step::Again { client, nth } => {
                let found = self.calls[client].iter().rev().nth(nth);
                let Some((rpc, made)) = found.map(|(rpc, made)| (*rpc, made.clone())) else {
                    return;
                };
                match &made.reply {
                    Some(reply) => assert_eq!(self.send(client, rpc, &made), *reply),
                    None => self.run(client, rpc, &made),
                }
            }
            Step::Late { client, nth } => {
                if let Some((rpc, made)) = self.over[client].iter().rev().nth(nth) {
                    assert_eq!(self.send(client, *rpc, made).status, Status::Stale);
                }
            }
            Step::Over { client, nth } => {
                let Some((&ack, _)) = self.calls[client].iter().rev().nth(nth) else {
                    return;
                };
                self.ack[client] = ack;
                let left = self.calls[client].split_off(&(ack + 1));
                let over = std::mem::replace(&mut self.calls[client], left);
                self.over[client].extend(over);
            }
            Step::Recover => {
                self.store = recovered(&self.store);
                // What changed nothing may run again: nobody who asks again has seen its result.
                for made in self.calls.iter_mut().flat_map(BTreeMap::values_mut) {
                    let changed = made.reply.as_ref().is_some_and(|reply| {
                        reply.status == Status::Ok && reply.version != Version(0)
                    });
                    made.reply = made.reply.take().filter(|_| changed);
                }
            }
        }
    }

    fn check(&self) {
        for (key, value) in &self.objects {
            assert_eq!(counter(&self.store, key), *value, "of {key:?}");
        }
        assert_eq!(self.store.stats().objects, self.objects.len() as u64);
    }
}

/// One recovery only: the second one's takeover is another story.
fn story(steps: &[Step]) {
    let mut model = Model::new();
    let mut recovered = false;
    for step in steps {
        if matches!(step, Step::Recover) && std::mem::replace(&mut recovered, true) {
            continue;
        }
        model.take(step);
    }
    model.check();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 60 } else { 1_000 }))]

    #[test]
    fn calls_run_once_however_often_and_late_they_come(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        story(&steps);
    }
}

#[cfg(feature = "mutants")]
mod planted {
    use ramkeep_wire::mutants::{self, Mutant};

    #[test]
    fn planted_faults_in_remembering_calls_are_caught() {
        let tests: [(Mutant, fn()); 4] = [
            (
                Mutant::ForgetCompletion,
                super::a_call_that_comes_again_gets_its_result_and_does_not_run,
            ),
            (
                Mutant::ForgetUnacknowledged,
                super::a_call_that_is_over_by_its_clients_word_is_stale,
            ),
            (
                Mutant::ServeEndedClients,
                super::nothing_of_a_client_whose_lease_has_ended_runs,
            ),
            (
                Mutant::CompletionsNotReplayed,
                super::a_call_runs_once_across_recoveries,
            ),
        ];
        for (mutant, test) in tests {
            let caught = mutants::fails(mutant, test);
            assert!(caught, "{} went unnoticed", mutant.name());
        }
    }
}
