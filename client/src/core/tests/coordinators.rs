//! Talking to the coordinators.

use ramkeep_wire::coordinator::Refused;

use super::*;

fn create(bench: &mut Bench) -> OpId {
    let request = Request::CreateTable {
        name: "t".into(),
        once: None,
    };
    let deadline = bench.now + Duration::from_secs(5);
    let op = bench.core.start_request(request, deadline).unwrap();
    bench.drain();
    op
}

fn drop_table(bench: &mut Bench) -> OpId {
    let request = Request::DropTable {
        name: "t".into(),
        once: None,
    };
    let deadline = bench.now + Duration::from_secs(5);
    let op = bench.core.start_request(request, deadline).unwrap();
    bench.drain();
    op
}

fn table_answer() -> Answer {
    Answer::Table(map(1, ONE, TWO).tables.remove(0))
}

#[test]
fn a_coordinator_that_does_not_lead_is_left_for_the_next() {
    let mut bench = Bench::fresh(3);
    let op = create(&mut bench);
    let first = bench.asked();
    assert!(first.iter().all(|(peer, _, _)| *peer == 0) && first.len() == 2);
    let not_leader = Answer::Refused(Refused::NotLeader {
        leader: None,
        coordinators: Vec::new(),
    });
    bench.answer_at(first[1].1, 0, not_leader);
    let second = bench.asked();
    assert!(second.iter().all(|(peer, _, _)| *peer == 1) && second.len() == 2);
    bench.answer_at(first[1].1, 1, table_answer());
    assert_eq!(bench.result(op), None, "an answer to what was given up");
    bench.answer_at(second[1].1, 1, table_answer());
    assert!(matches!(bench.result(op), Some(Ok(Outcome::Answer(_)))));
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
fn a_silent_coordinator_is_given_up() {
    let mut bench = Bench::fresh(2);
    bench.asked();
    bench.pass(Duration::from_secs(2));
    let asked = bench.asked();
    assert_eq!(asked.iter().map(|ask| ask.0).collect::<Vec<_>>(), [1]);
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
    let mut bench = Bench::new();
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
        let mut bench = Bench::new();
        let op = drop_table(&mut bench);
        bench.answer(Answer::Refused(refused));
        assert_eq!(bench.result(op), Some(Err(error)));
    }
}

#[test]
fn a_drop_asked_twice_may_find_itself_done() {
    let mut bench = Bench::new();
    let op = drop_table(&mut bench);
    bench.asked();
    bench.break_link(Target::Coordinator(0));
    bench.pass(Duration::from_millis(1));
    bench.answer(Answer::Refused(Refused::NoSuchTable));
    let dropped = Outcome::Answer(Box::new(Answer::Dropped));
    assert_eq!(bench.result(op), Some(Ok(dropped)));
}

#[test]
fn at_the_deadline_a_request_says_whether_it_was_sent() {
    let mut bench = Bench::new();
    bench.break_link(Target::Coordinator(0));
    bench.core.handle_connecting(Target::Coordinator(0));
    let unsent = create(&mut bench);
    bench.pass(Duration::from_secs(5));
    let reason = "coordinator c:0: broken".to_owned();
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
    let mut bench = Bench::new();
    let op = create(&mut bench);
    bench.answer(Answer::Dropped);
    assert!(matches!(bench.result(op), Some(Err(Error::Protocol(_)))));
}
