//! What a client asks of the coordinators. How they are asked is tested in ramkeep-control.

use ramkeep_wire::ClientId;
use ramkeep_wire::coordinator::{Once, Refused};

use super::*;

fn create(bench: &mut Bench) -> OpId {
    let (name, once) = ("t".into(), None);
    bench.ask(Request::CreateTable { name, once })
}

fn drop_table(bench: &mut Bench) -> OpId {
    let (name, once) = ("t".into(), None);
    bench.ask(Request::DropTable { name, once })
}

fn lease_answer(client: ClientId) -> Answer {
    let lease_us = 60_000_000;
    Answer::ClientLease { client, lease_us }
}

/// Sees to it that the client lease is held; everything else that is asked meanwhile is forgotten.
fn hold_lease(bench: &mut Bench, client: ClientId) {
    if bench.session.client() == ClientId(0) {
        bench.session.core.lease_mut().want_soon();
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
fn an_answer_from_before_the_present_leader_is_not_taken() {
    let mut bench = Bench::fresh(2);
    let (_, correlation, _) = bench.asked().remove(0);
    bench.answer_at(correlation, 5, Answer::Map(Some(map(7, ONE, TWO))));
    bench.session.refresh_map();
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
    assert_eq!(
        (bench.result(op), bench.session.client()),
        (None, ClientId(0))
    );
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
    assert_eq!(bench.session.client(), CLIENT);
}

#[test]
fn the_lease_is_given_back_at_the_end() {
    assert_eq!(Bench::unleased().session.farewell(), None);
    let request = Request::CloseClientLease { client: CLIENT };
    let (link, bytes) = leased(1).session.farewell().unwrap();
    assert_eq!(link, Target::Coordinator(0));
    let (farewell, _) = envelope::parse(&bytes).unwrap().unwrap();
    assert_eq!(postcards::decode(farewell.payload), Ok(request));
}

#[test]
fn at_the_deadline_a_request_says_whether_it_was_sent() {
    let mut bench = leased(1);
    bench.hold(Target::Coordinator(0));
    bench.break_link(Target::Coordinator(0));
    let unsent = create(&mut bench);
    bench.pass(Duration::from_secs(5));
    let reason = "coordinator c:0: no connection in time".to_owned();
    assert_eq!(
        bench.result(unsent),
        Some(Err(Error::Unavailable { reason }))
    );
    bench.let_through(Target::Coordinator(0));
    let sent = create(&mut bench);
    bench.pass(Duration::from_millis(128));
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
