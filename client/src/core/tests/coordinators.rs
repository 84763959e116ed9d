//! Talking to the coordinators.

use ramkeep_wire::ClientId;
use ramkeep_wire::coordinator::{Once, Refused};

use super::*;

fn start(bench: &mut Bench, request: Request) -> OpId {
    let deadline = bench.now + Duration::from_secs(5);
    let op = bench.core.start_request(request, deadline).unwrap();
    bench.drain();
    op
}

fn create(bench: &mut Bench) -> OpId {
    let (name, once) = ("t".into(), None);
    start(bench, Request::CreateTable { name, once })
}

fn drop_table(bench: &mut Bench) -> OpId {
    let (name, once) = ("t".into(), None);
    start(bench, Request::DropTable { name, once })
}

fn lease_answer(client: ClientId) -> Answer {
    let lease_us = 60_000_000;
    Answer::ClientLease { client, lease_us }
}

/// Sees to it that the client lease is held; everything else that is asked meanwhile is forgotten.
fn hold_lease(bench: &mut Bench, client: ClientId) {
    if bench.core.client() == ClientId(0) {
        bench.core.lease.want_soon();
    }
    let is_open = |ask: &(_, _, Request)| matches!(ask.2, Request::OpenClientLease { .. });
    let mut asked = bench.asked();
    if !asked.iter().any(is_open) {
        bench.pass(Duration::ZERO);
        asked = bench.asked();
    }
    let open = asked
        .into_iter()
        .find(is_open)
        .expect("a lease is asked for");
    bench.answer_at(open.1, 1, lease_answer(client));
}

/// Knows a map and has the lease.
fn leased(coordinators: usize) -> Bench {
    let mut bench = Bench::fresh(coordinators);
    bench.answer_map(map(1, ONE, TWO));
    hold_lease(&mut bench, CLIENT);
    bench
}

fn not_leader(leader: Option<&str>, coordinators: &[&str]) -> Answer {
    Answer::Refused(Refused::NotLeader {
        leader: leader.map(str::to_owned),
        coordinators: coordinators.iter().map(|&one| one.to_owned()).collect(),
    })
}

fn once(request: &Request) -> Once {
    match request {
        Request::CreateTable { once, .. } | Request::DropTable { once, .. } => once.unwrap(),
        other => panic!("{other:?} does not run once"),
    }
}

fn table_answer() -> Answer {
    Answer::Table(map(1, ONE, TWO).tables.remove(0))
}

#[test]
fn a_coordinator_that_does_not_lead_is_left_for_the_next() {
    let mut bench = leased(3);
    bench.core.refresh_map();
    let op = create(&mut bench);
    let first = bench.asked();
    assert!(first.iter().all(|(peer, _, _)| *peer == 0) && first.len() == 2);
    bench.answer_at(first[1].1, 0, not_leader(None, &[]));
    let second = bench.asked();
    assert!(second.iter().all(|(peer, _, _)| *peer == 1) && second.len() == 2);
    bench.answer_at(first[1].1, 1, table_answer());
    assert_eq!(bench.result(op), None, "an answer to what was given up");
    bench.answer_at(second[1].1, 1, table_answer());
    assert!(matches!(bench.result(op), Some(Ok(Outcome::Answer(_)))));
}

#[test]
fn the_leader_that_is_named_is_asked_at_once_though_it_was_unknown() {
    let mut bench = Bench::fresh(1);
    let (_, correlation, _) = bench.asked().remove(0);
    bench.answer_at(correlation, 0, not_leader(Some("c:9"), &["c:0", "c:8", ""]));
    let (peer, correlation, _) = bench.asked().remove(0);
    assert_eq!(bench.core.addresses(Target::Coordinator(peer)), ["c:9"]);
    // The list was learned with it: the others are found when the leader is lost.
    bench.answer_at(correlation, 1, Answer::Map(Some(map(1, ONE, TWO))));
    bench.core.refresh_map();
    bench.drain();
    bench.asked();
    bench.break_link(Target::Coordinator(peer));
    let mut next = Vec::new();
    for _ in 0..2 {
        let (peer, _, _) = bench.asked().remove(0);
        next.push(bench.core.addresses(Target::Coordinator(peer))[0].clone());
        bench.break_link(Target::Coordinator(peer));
    }
    next.sort();
    assert_eq!(next, ["c:0", "c:8"]);
}

#[test]
fn the_list_of_coordinators_does_not_grow_without_end() {
    let mut bench = Bench::fresh(1);
    for round in 0..40 {
        let addresses: Vec<_> = (0..10).map(|n| format!("x:{round}:{n}")).collect();
        let addresses: Vec<_> = addresses.iter().map(String::as_str).collect();
        while bench.asks.is_empty() {
            bench.pass(Duration::from_millis(20));
        }
        let (_, correlation, _) = bench.asked().remove(0);
        bench.answer_at(correlation, 0, not_leader(Some(addresses[0]), &addresses));
    }
    let last = Target::Coordinator(crate::limits::MAX_COORDINATORS - 1);
    assert_eq!(bench.core.addresses(last).len(), 1);
    let over = Target::Coordinator(crate::limits::MAX_COORDINATORS);
    assert!(bench.core.addresses(over).is_empty());
}

#[test]
fn during_an_election_all_are_asked_every_few_tens_of_milliseconds() {
    let mut bench = Bench::fresh(3);
    let begin = bench.now;
    let mut asked = [0; 3];
    while bench.now.since(begin) < Duration::from_secs(2) {
        for (peer, correlation, _) in bench.asked() {
            asked[peer] += 1;
            // Two that name each other, too.
            let named = ["c:1", "c:0", "c:0"][peer];
            bench.answer_at(correlation, 0, not_leader(Some(named), &[]));
        }
        bench.pass(Duration::from_millis(1));
    }
    let all: u32 = asked.iter().sum();
    assert!((150..=400).contains(&all), "{asked:?}");
    assert!(asked[0] > 20 && asked[1] > 20, "{asked:?}");
}

#[test]
fn one_that_names_a_lost_leader_does_not_hide_the_new_one() {
    let mut bench = Bench::fresh(3);
    let begin = bench.now;
    loop {
        bench.pass(Duration::from_millis(1));
        let Some((peer, correlation, _)) = bench.asked().pop() else {
            continue;
        };
        match peer {
            0 => bench.answer_at(correlation, 0, not_leader(Some("c:1"), &[])),
            1 => bench.break_link(Target::Coordinator(1)),
            _ => break,
        }
        assert!(bench.now.since(begin) < Duration::from_millis(100));
    }
}

#[test]
fn after_a_round_without_success_it_waits() {
    let mut bench = Bench::fresh(2);
    create(&mut bench);
    bench.asked();
    bench.break_link(Target::Coordinator(0));
    assert!(bench.asked().iter().all(|(peer, _, _)| *peer == 1));
    bench.break_link(Target::Coordinator(1));
    assert!(bench.asked().is_empty());
    bench.pass(Duration::from_millis(1));
    assert!(bench.asked().iter().all(|(peer, _, _)| *peer == 0));
}

#[test]
fn a_silent_coordinator_is_given_up_and_not_asked_again_soon() {
    let mut bench = Bench::fresh(3);
    bench.asked();
    bench.pass(Duration::from_millis(499));
    assert!(bench.asked().is_empty());
    bench.pass(Duration::from_millis(1));
    assert_eq!(bench.closed, [Target::Coordinator(0)]);
    let begin = bench.now;
    let mut asked = Vec::new();
    while bench.now.since(begin) < Duration::from_millis(290) {
        for (peer, correlation, _) in bench.asked() {
            asked.push(peer);
            bench.answer_at(correlation, 0, not_leader(Some("c:0"), &[]));
        }
        bench.pass(Duration::from_millis(1));
    }
    assert_eq!(asked[..4], [1, 2, 1, 2]);
    assert!(!asked.contains(&0) && asked.len() > 20, "{}", asked.len());
}

#[test]
fn a_coordinator_that_does_not_accept_connections_in_time_is_given_up() {
    let mut bench = Bench::fresh(2);
    bench.core.handle_connecting(Target::Coordinator(0));
    bench.asked();
    bench
        .core
        .handle_link_down(bench.now, Target::Coordinator(1), "broken");
    bench.pass(Duration::from_millis(500));
    let peers: Vec<_> = bench.asked().iter().map(|ask| ask.0).collect();
    assert!(peers.iter().all(|peer| *peer == 1), "{peers:?}");
}

#[test]
fn a_mutation_may_take_long_at_a_coordinator_that_lives() {
    let mut bench = leased(2);
    let op = create(&mut bench);
    let first = bench.asked().pop().unwrap();
    let mut again = Vec::new();
    for _ in 0..4 {
        bench.pass(Duration::from_millis(600));
        for (peer, correlation, request) in bench.asked() {
            assert_eq!(peer, 0);
            match request {
                Request::Map { .. } => bench.answer_at(correlation, 1, Answer::Map(None)),
                request => again.push((correlation, request)),
            }
        }
    }
    let (correlation, request) = again.remove(0);
    assert!(again.is_empty(), "{again:?}");
    assert_eq!(once(&request), once(&first.2));
    bench.answer_at(correlation, 1, table_answer());
    assert!(matches!(bench.result(op), Some(Ok(_))));
}

#[test]
fn a_mutation_leaves_a_coordinator_that_died_with_the_same_sequence() {
    let mut bench = leased(2);
    let op = create(&mut bench);
    let (_, _, first) = bench.asked().pop().unwrap();
    bench.pass(Duration::from_millis(1_000));
    let asked = bench.asked();
    assert!(matches!(asked[0], (0, _, Request::Map { .. })), "{asked:?}");
    let is_create = |ask: &(_, _, Request)| matches!(ask.2, Request::CreateTable { .. });
    let (peer, correlation, second) = asked.into_iter().find(is_create).unwrap();
    assert_eq!((peer, once(&second)), (1, once(&first)));
    bench.answer_at(correlation, 1, table_answer());
    assert!(matches!(bench.result(op), Some(Ok(_))));
}

#[test]
fn an_answer_from_before_the_present_leader_is_not_taken() {
    let mut bench = Bench::fresh(2);
    let (_, correlation, _) = bench.asked().remove(0);
    bench.answer_at(correlation, 5, Answer::Map(Some(map(7, ONE, TWO))));
    bench.core.refresh_map();
    bench.drain();
    let (_, correlation, _) = bench.asked().remove(0);
    bench.answer_at(correlation, 4, Answer::Map(Some(map(9, TWO, ONE))));
    let (peer, _, request) = bench.asked().remove(0);
    assert_eq!(peer, 1);
    let known = MapVersion(7);
    assert_eq!(request, Request::Map { known });
}

#[test]
fn a_request_without_a_master_is_made_again_until_its_deadline() {
    let mut bench = leased(1);
    let op = create(&mut bench);
    bench.answer(Answer::Refused(Refused::NoMaster));
    assert_eq!(bench.result(op), None);
    bench.pass(Duration::from_millis(2));
    bench.answer(table_answer());
    assert!(matches!(bench.result(op), Some(Ok(_))));
}

#[test]
fn refusals_become_errors_to_act_on() {
    let cases = [
        (Refused::NoSuchTable, Error::TableNotFound),
        (Refused::TableName, Error::InvalidTableName),
        (
            Refused::Limit("tables".into()),
            Error::LimitReached("tables".into()),
        ),
    ];
    for (refused, error) in cases {
        let mut bench = leased(1);
        let op = drop_table(&mut bench);
        bench.answer(Answer::Refused(refused));
        assert_eq!(bench.result(op), Some(Err(error)));
    }
}

#[test]
fn mutations_wait_for_the_client_lease_and_are_numbered() {
    let mut bench = Bench::unleased();
    let making = create(&mut bench);
    assert!(bench.asked().is_empty());
    hold_lease(&mut bench, CLIENT);
    drop_table(&mut bench);
    let asked = bench.asked();
    let onces: Vec<_> = asked.iter().map(|ask| once(&ask.2)).collect();
    let number = |sequence, acked| Once {
        client: CLIENT,
        sequence,
        acked,
    };
    assert_eq!(onces, [number(1, 1), number(2, 1)]);
    bench.answer_at(asked[0].1, 1, table_answer());
    assert!(matches!(bench.result(making), Some(Ok(_))));
    create(&mut bench);
    assert_eq!(once(&bench.asked()[0].2), number(3, 2));
}

#[test]
fn a_drop_is_sent_again_as_the_same_and_believes_what_is_answered() {
    let mut bench = leased(1);
    let op = drop_table(&mut bench);
    let (_, _, first) = bench.asked().pop().unwrap();
    bench.break_link(Target::Coordinator(0));
    bench.pass(Duration::from_millis(1));
    let second = bench.answer(Answer::Refused(Refused::NoSuchTable));
    assert_eq!(first, second);
    assert_eq!(bench.result(op), Some(Err(Error::TableNotFound)));
}

#[test]
fn a_mutation_refused_with_its_lease_is_made_anew_if_it_was_sent_once() {
    let mut bench = leased(1);
    let op = create(&mut bench);
    bench.answer(Answer::Refused(Refused::Unknown));
    assert_eq!((bench.result(op), bench.core.client()), (None, ClientId(0)));
    hold_lease(&mut bench, ClientId(6));
    bench.pass(Duration::from_millis(1));
    let request = bench.answer(table_answer());
    assert_eq!(once(&request).client, ClientId(6));
    assert!(matches!(bench.result(op), Some(Ok(_))));
}

#[test]
fn a_mutation_whose_lease_was_lost_between_two_sends_may_have_been_applied() {
    let mut bench = leased(1);
    let op = create(&mut bench);
    bench.asked();
    bench.break_link(Target::Coordinator(0));
    bench.pass(Duration::from_millis(1));
    bench.answer(Answer::Refused(Refused::Unknown));
    assert_eq!(bench.result(op), Some(Err(MAYBE)));
}

#[test]
fn a_lease_that_is_not_renewed_for_a_moment_is_not_lost() {
    let mut bench = leased(1);
    bench.pass(Duration::from_secs(20));
    let limit = Refused::Limit("commands".into());
    let request = bench.answer(Answer::Refused(limit));
    assert_eq!(request, Request::RenewClientLease { client: CLIENT });
    bench.pass(Duration::from_secs(1));
    assert_eq!(bench.answer(Answer::Noted), request);
    assert_eq!(bench.core.client(), CLIENT);
}

#[test]
fn the_lease_is_given_back_at_the_end() {
    assert_eq!(Bench::unleased().core.farewell(), None);
    let request = Request::CloseClientLease { client: CLIENT };
    let farewell = leased(1).core.farewell();
    assert_eq!(farewell, Some((Target::Coordinator(0), request)));
}

#[test]
fn at_the_deadline_a_request_says_whether_it_was_sent() {
    let mut bench = leased(1);
    bench.break_link(Target::Coordinator(0));
    bench.core.handle_connecting(Target::Coordinator(0));
    let unsent = create(&mut bench);
    bench.pass(Duration::from_secs(5));
    let reason = "coordinator c:0: no connection in time".to_owned();
    assert_eq!(
        bench.result(unsent),
        Some(Err(Error::Unavailable { reason }))
    );
    bench.core.handle_link_up(Target::Coordinator(0));
    let sent = create(&mut bench);
    assert!(!bench.asked().is_empty());
    bench.pass(Duration::from_secs(5));
    assert_eq!(bench.result(sent), Some(Err(MAYBE)));
}

#[test]
fn an_answer_to_another_question_is_an_error() {
    let mut bench = leased(1);
    let op = create(&mut bench);
    bench.answer(Answer::Dropped);
    assert!(matches!(bench.result(op), Some(Err(Error::Protocol(_)))));
}
