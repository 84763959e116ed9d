//! Requests that run once, and those that may take long.

use std::time::Duration;

use ramkeep_control::{Sequencing, Unanswered};
use ramkeep_wire::ClientId;
use ramkeep_wire::coordinator::{AcceptedLoss, Answer, Loss, Once, Refused, Request};

use crate::bench::{
    Bench, CLIENT, SECOND, create, drop_table, map_after, maybe, not_leader, once, table,
};

#[test]
fn a_mutation_may_take_long_at_a_coordinator_that_lives() {
    let mut bench = Bench::leased(2);
    let owner = bench.ask(create());
    let first = bench.asked().pop().unwrap();
    let mut again = Vec::new();
    for _ in 0..4 {
        bench.pass(Duration::from_millis(600));
        for (peer, correlation, request) in bench.asked() {
            assert_eq!(peer, 0);
            match request {
                Request::Map { .. } => bench.answer_at(0, correlation, 1, Answer::Map(None)),
                request => again.push((correlation, request)),
            }
        }
    }
    let (correlation, request) = again.remove(0);
    assert!(again.is_empty(), "{again:?}");
    assert_eq!(once(&request), once(&first.2));
    bench.answer_at(0, correlation, 1, table());
    assert_eq!(bench.result(owner), Some(Ok(table())));
    assert!(bench.done.is_empty(), "the probes are nobody's");
}

#[test]
fn what_an_operator_decides_may_take_long_too() {
    let accept = Request::AcceptLoss(AcceptedLoss {
        master: ramkeep_wire::ServerId(1),
        loss: Loss::default(),
    });
    for request in [accept, drop_table()] {
        let mut bench = Bench::leased(2);
        bench.ask(request);
        bench.pass(Duration::from_millis(600));
        let asked = bench.asked();
        assert_eq!(asked.len(), 2);
        assert!(matches!(asked[1], (0, _, Request::Map { .. })));
    }
}

#[test]
fn a_mutation_leaves_a_coordinator_that_died_with_the_same_sequence() {
    let mut bench = Bench::leased(2);
    let owner = bench.ask(create());
    let (_, _, first) = bench.asked().pop().unwrap();
    bench.pass(Duration::from_millis(1_000));
    let asked = bench.asked();
    assert!(matches!(asked[0], (0, _, Request::Map { .. })), "{asked:?}");
    let is_create = |ask: &(_, _, Request)| matches!(ask.2, Request::CreateTable { .. });
    let (peer, correlation, second) = asked.into_iter().find(is_create).unwrap();
    assert_eq!((peer, once(&second)), (1, once(&first)));
    bench.answer_at(1, correlation, 1, table());
    assert_eq!(bench.result(owner), Some(Ok(table())));
}

#[test]
fn a_probe_does_not_ask_for_a_map_that_was_had() {
    let mut bench = Bench::leased(1);
    bench.ask(map_after(0));
    bench.answer(crate::bench::map(7));
    bench.ask(create());
    bench.pass(Duration::from_millis(600));
    assert_eq!(bench.asked().pop().unwrap().2, map_after(7));
}

#[test]
fn a_request_without_a_master_is_made_again_until_its_deadline() {
    let mut bench = Bench::leased(1);
    let owner = bench.ask(create());
    let first = bench.answer(Answer::Refused(Refused::NoMaster));
    assert_eq!(bench.result(owner), None);
    bench.pass(Duration::from_millis(2));
    assert_eq!(bench.answer(table()), first);
    assert_eq!(bench.result(owner), Some(Ok(table())));
}

#[test]
fn what_the_leader_always_refused_was_not_applied() {
    let mut bench = Bench::leased(1);
    let owner = bench.ask(create());
    while bench.done.is_empty() {
        for (peer, correlation, _) in bench.asked() {
            let refused = Answer::Refused(Refused::NoMaster);
            bench.answer_at(peer, correlation, 1, refused);
        }
        bench.pass(Duration::from_millis(100));
    }
    let unanswered = Unanswered {
        maybe_applied: false,
        reason: Some("the coordinator: no master is ready".into()),
    };
    assert_eq!(bench.result(owner), Some(Err(unanswered)));
}

#[test]
fn what_one_that_leads_no_more_was_asked_may_have_been_applied() {
    let mut bench = Bench::leased(1);
    let owner = bench.ask_within(create(), Duration::from_micros(500));
    bench.answer(not_leader(None, &[]));
    bench.pass(Duration::from_micros(500));
    assert_eq!(
        bench.result(owner),
        maybe(Some("coordinator c:0: it does not lead"))
    );
}

#[test]
fn mutations_wait_for_the_client_lease_and_are_numbered() {
    let mut bench = Bench::new(1, Sequencing::AwaitsLease);
    let making = bench.ask(create());
    assert!(bench.asked().is_empty());
    bench.ask(drop_table());
    bench.talk.set_sequencing(Sequencing::Under(CLIENT));
    bench.drain();
    let asked = bench.asked();
    let onces: Vec<_> = asked.iter().map(|ask| once(&ask.2)).collect();
    let number = |sequence, acked| Once {
        client: CLIENT,
        sequence,
        acked,
    };
    assert_eq!(onces, [number(1, 1), number(2, 1)]);
    bench.answer_at(0, asked[0].1, 1, table());
    assert_eq!(bench.result(making), Some(Ok(table())));
    bench.ask(create());
    assert_eq!(once(&bench.asked()[0].2), number(3, 2));
}

#[test]
fn what_the_asker_numbered_stays_as_it_is() {
    let given = Once {
        client: ClientId(9),
        sequence: 40,
        acked: 40,
    };
    for once in [Some(given), None] {
        let name = "t".to_owned();
        let request = Request::DropTable { name, once };
        let mut bench = Bench::new(1, Sequencing::AsGiven);
        let owner = bench.ask(request.clone());
        let unknown = Answer::Refused(Refused::Unknown);
        assert_eq!(bench.answer(unknown.clone()), request);
        assert_eq!(bench.result(owner), Some(Ok(unknown)));
    }
}

/// The numbers under which a drop is sent before and after its connection broke.
pub(crate) fn numbers_of_a_drop_that_is_sent_again() -> [Once; 2] {
    let mut bench = Bench::leased(1);
    let owner = bench.ask(drop_table());
    let (_, _, first) = bench.asked().pop().unwrap();
    bench.break_link(0);
    bench.pass(Duration::from_millis(1));
    let gone = Answer::Refused(Refused::NoSuchTable);
    let second = bench.answer(gone.clone());
    assert_eq!(bench.result(owner), Some(Ok(gone)));
    [once(&first), once(&second)]
}

#[test]
fn a_drop_is_sent_again_as_the_same_and_believes_what_is_answered() {
    let [first, second] = numbers_of_a_drop_that_is_sent_again();
    assert_eq!(first, second);
}

#[test]
fn a_mutation_refused_with_its_lease_is_made_anew_if_it_was_sent_once() {
    let mut bench = Bench::leased(1);
    let owner = bench.ask(create());
    bench.answer(Answer::Refused(Refused::Unknown));
    assert_eq!(bench.result(owner), None);
    assert_eq!(bench.talk.pop_forgotten(), Some(CLIENT));
    bench.pass(SECOND);
    assert!(bench.asked().is_empty(), "it waits for another lease");
    bench.talk.set_sequencing(Sequencing::Under(ClientId(6)));
    bench.drain();
    let request = bench.answer(table());
    assert_eq!(once(&request).client, ClientId(6));
    assert_eq!(bench.result(owner), Some(Ok(table())));
}

/// What comes of a mutation whose lease is not known any more when it is sent again.
pub(crate) fn mutation_whose_lease_was_lost() -> Option<Result<Answer, Unanswered>> {
    let mut bench = Bench::leased(1);
    let owner = bench.ask(create());
    bench.asked();
    bench.break_link(0);
    bench.pass(Duration::from_millis(1));
    bench.answer(Answer::Refused(Refused::Unknown));
    bench.result(owner)
}

#[test]
fn a_mutation_whose_lease_was_lost_between_two_sends_may_have_been_applied() {
    let reason = "the client lease ended before it was answered";
    assert_eq!(mutation_whose_lease_was_lost(), maybe(Some(reason)));
}
