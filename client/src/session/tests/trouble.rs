//! Redirects, refusals, broken connections and deadlines.

use super::*;

#[test]
fn a_redirected_operation_follows_the_new_map() {
    let mut bench = Bench::new();
    let key = key(false, 0);
    let op = bench.start(write(&key, b"v"));
    bench.asked();
    let first = bench.respond_to_last(Status::WrongServer, 0, b"");
    bench.answer_map(map(2, ServerId(3), TWO));
    let second = bench.respond_to_last(Status::Ok, 8, b"");
    assert_eq!((first.server, second.server), (ONE, ServerId(3)));
    assert_eq!((first.rpc, &first.value), (second.rpc, &second.value));
    assert_eq!(bench.result(op), Some(Ok(Outcome::Written(Version(8)))));
}

#[test]
fn a_server_that_denies_what_the_map_says_is_asked_again_after_a_pause() {
    let mut bench = Bench::new();
    let key = key(false, 0);
    let op = bench.start(read(&key));
    bench.respond_to_last(Status::WrongServer, 0, b"");
    bench.answer(Answer::Map(None));
    assert!(bench.sent().is_empty(), "not at once");
    bench.pass(Duration::from_millis(2));
    bench.respond_to_last(Status::Ok, 1, b"v");
    assert_eq!(bench.result(op), Some(Ok(object(b"v", 1))));
}

#[test]
fn a_redirected_operation_tries_the_old_map_while_no_coordinator_answers() {
    let mut bench = Bench::new();
    let key = key(false, 0);
    let op = bench.start(read(&key));
    bench.respond_to_last(Status::WrongServer, 0, b"");
    bench.break_link(Target::Coordinator(0));
    bench.pass(Duration::from_millis(500));
    bench.respond_to_last(Status::Ok, 1, b"v");
    assert_eq!(bench.result(op), Some(Ok(object(b"v", 1))));
}

#[test]
fn retry_later_is_tried_again_at_growing_distances() {
    let mut bench = Bench::new();
    let key = key(false, 0);
    let op = bench.start(write(&key, b"v"));
    let mut waits = Vec::new();
    for _ in 0..4 {
        bench.respond_to_last(Status::RetryLater, 0, b"");
        let before = bench.now;
        while bench.items.is_empty() {
            bench.pass(Duration::from_micros(500));
        }
        waits.push(bench.now.since(before).as_millis());
    }
    assert_eq!(waits, [1, 2, 4, 8]);
    bench.respond_to_last(Status::Ok, 1, b"");
    assert_eq!(bench.result(op), Some(Ok(Outcome::Written(Version(1)))));
}

#[test]
fn a_tablet_nobody_serves_is_waited_for() {
    let mut bench = Bench::fresh(1);
    let mut down = map(1, ONE, TWO);
    down.tables[0].tablets[0].state = TabletState::Down;
    bench.answer_map(down);
    let key = key(false, 0);
    let op = bench.start(read(&key));
    bench.answer(Answer::Map(None));
    assert!(bench.sent().is_empty());
    bench.pass(Duration::from_millis(300));
    bench.answer_map(map(2, ServerId(3), TWO));
    let seen = bench.respond_to_last(Status::Ok, 1, b"v");
    assert_eq!(seen.server, ServerId(3));
    assert_eq!(bench.result(op), Some(Ok(object(b"v", 1))));
}

/// The map after server 1 crashed.
fn crashed(version: u64, state: TabletState) -> TabletMap {
    let mut map = map(version, ONE, TWO);
    map.tables[0].tablets[0].state = state;
    map.servers.retain(|(server, _)| *server != ONE);
    map
}

#[test]
fn a_tablet_in_recovery_is_waited_for_and_asked_about_often() {
    let mut bench = Bench::new();
    let key = key(false, 0);
    let op = bench.start(read(&key));
    bench.sent();
    bench.break_link(Target::Server(ONE));
    bench.answer_map(crashed(2, TabletState::Down));
    for version in 3..60 {
        bench.pass(Duration::from_millis(50));
        bench.answer_map(crashed(version, TabletState::Recovering));
        assert_eq!(bench.sent(), [], "nobody may answer yet");
        assert_eq!(bench.result(op), None);
    }
    bench.pass(Duration::from_millis(50));
    bench.answer_map(map(60, TWO, TWO));
    let seen = bench.respond_to_last(Status::Ok, 4, b"kept");
    assert_eq!(seen.server, TWO);
    assert_eq!(bench.result(op), Some(Ok(object(b"kept", 4))));
}

#[test]
fn what_waited_for_a_recovery_in_vain_says_so() {
    let mut bench = Bench::fresh(1);
    bench.answer_map(crashed(2, TabletState::Recovering));
    let key = key(false, 0);
    let op = bench.start_within(write(&key, b"v"), Duration::from_millis(300));
    bench.pass(Duration::from_millis(301));
    let Some(Err(Error::Unavailable { reason })) = bench.result(op) else {
        panic!("it was not applied, and that is known");
    };
    assert!(
        reason.contains("being recovered") && reason.contains("server 1"),
        "{reason}"
    );
}

#[test]
fn an_unknown_table_is_not_found_only_by_a_map_asked_for_since() {
    let mut bench = Bench::fresh(1);
    let unknown = Operation::Read {
        table: TableId(9),
        key: b"k",
    };
    let op = bench.start(unknown);
    bench.answer_map(map(1, ONE, TWO));
    assert_eq!(bench.result(op), None, "that map was asked for before");
    bench.answer(Answer::Map(None));
    assert_eq!(bench.result(op), Some(Err(Error::TableNotFound)));
}

#[test]
fn a_mutation_whose_connection_broke_is_sent_again_as_the_same_call() {
    let mut bench = Bench::new();
    let key = key(false, 0);
    let op = bench.start(write(&key, b"v"));
    let first = bench.sent().pop().unwrap();
    bench.break_link(Target::Server(ONE));
    assert_eq!(bench.result(op), None);
    bench.pass(Duration::from_millis(5));
    let second = bench.respond_to_last(Status::Ok, 3, b"");
    assert_eq!(first, second);
    assert_eq!((second.client, second.rpc), (CLIENT, RpcId(1)));
    assert_eq!(bench.result(op), Some(Ok(Outcome::Written(Version(3)))));
}

#[test]
fn a_call_follows_its_tablet_through_a_recovery() {
    let mut bench = Bench::new();
    let key = key(false, 0);
    let op = bench.start(write(&key, b"v"));
    let first = bench.sent().pop().unwrap();
    bench.break_link(Target::Server(ONE));
    bench.answer_map(crashed(2, TabletState::Recovering));
    bench.pass(Duration::from_millis(50));
    bench.answer_map(map(3, TWO, TWO));
    let second = bench.respond_to_last(Status::Ok, 3, b"");
    assert_eq!(second.server, TWO);
    assert_eq!((second.client, second.rpc), (first.client, first.rpc));
    assert_eq!(bench.result(op), Some(Ok(Outcome::Written(Version(3)))));
}

#[test]
fn without_a_lease_a_mutation_whose_connection_broke_is_not_sent_again() {
    let mut bench = Bench::unleased();
    let key = key(false, 0);
    let op = bench.start(write(&key, b"v"));
    bench.pass(Duration::from_millis(999));
    assert!(bench.sent().is_empty(), "it waits for the lease");
    bench.pass(Duration::from_millis(1));
    assert_eq!(
        bench.sent().pop().map(|seen| seen.client),
        Some(ClientId(0))
    );
    bench.break_link(Target::Server(ONE));
    assert_eq!(bench.result(op), Some(Err(MAYBE)));
    bench.pass(Duration::from_secs(1));
    assert!(bench.sent().is_empty());
}

#[test]
fn a_retried_call_that_is_not_answered_in_time_may_have_been_applied() {
    let mut bench = Bench::new();
    let key = key(false, 0);
    let op = bench.start_within(write(&key, b"v"), Duration::from_secs(1));
    bench.sent();
    bench.break_link(Target::Server(ONE));
    bench.pass(Duration::from_millis(5));
    bench.respond_to_last(Status::RetryLater, 0, b"");
    bench.break_link(Target::Server(ONE));
    bench.pass(Duration::from_secs(1));
    assert_eq!(bench.result(op), Some(Err(MAYBE)));
}

#[test]
fn a_call_refused_with_its_lease_goes_out_under_the_next_unless_it_may_have_run() {
    let mut bench = Bench::new();
    let (low, high) = (key(false, 0), key(true, 0));
    let surely_not = bench.start(write(&low, b"v"));
    let perhaps = bench.start(write(&high, b"v"));
    let seen = bench.sent();
    bench.break_link(Target::Server(TWO));
    bench.pass(Duration::from_millis(5));
    let again = bench.sent().pop().unwrap();
    bench.respond(ONE, &[answer(seen[0].id, Status::LeaseOver, 0, b"")]);
    bench.respond(TWO, &[answer(again.id, Status::LeaseOver, 0, b"")]);
    assert_eq!(bench.result(perhaps), Some(Err(MAYBE)));
    assert!(bench.sent().is_empty(), "the other waits for a lease");
    bench.pass(Duration::from_millis(1));
    let is_open = |(_, _, ask): &(_, _, Request)| matches!(ask, Request::OpenClientLease { .. });
    let at = bench.asks.iter().position(is_open).unwrap();
    let (_, correlation, _) = bench.asks.remove(at);
    let (client, lease_us) = (ClientId(9), 60_000_000);
    bench.answer_at(correlation, 1, Answer::ClientLease { client, lease_us });
    assert_eq!(bench.respond_to_last(Status::Ok, 1, b"").client, client);
    assert!(matches!(bench.result(surely_not), Some(Ok(_))));
}

#[test]
fn a_call_that_cannot_be_remembered_goes_out_as_nobody_s() {
    let mut bench = Bench::new();
    let key = key(false, 0);
    let op = bench.start(write(&key, b"v"));
    bench.respond_to_last(Status::NotRemembered, 0, b"");
    let seen = bench.sent().pop().unwrap();
    assert_eq!(seen.client, ClientId(0));
    bench.break_link(Target::Server(ONE));
    assert_eq!(bench.result(op), Some(Err(MAYBE)));
}

#[test]
fn reads_and_what_was_never_sent_go_out_again_after_a_broken_connection() {
    let mut bench = Bench::new();
    let key = key(false, 0);
    let reading = bench.start(read(&key));
    let first = bench.sent()[0].clone();
    bench.break_link(Target::Server(ONE));
    let writing = bench.start(write(&key, b"v"));
    assert!(bench.sent().is_empty(), "the connection rests for a moment");
    bench.pass(Duration::from_millis(5));
    let seen = bench.sent();
    assert_eq!(
        seen.iter().map(|seen| seen.op).collect::<Vec<_>>(),
        [Op::Read, Op::Write]
    );
    assert_eq!(
        seen[0].id, first.id,
        "the broken connection owes nothing any more"
    );
    bench.respond(
        ONE,
        &[
            answer(seen[0].id, Status::Ok, 1, b"v"),
            answer(seen[1].id, Status::Ok, 2, b""),
        ],
    );
    assert_eq!(bench.result(reading), Some(Ok(object(b"v", 1))));
    assert_eq!(
        bench.result(writing),
        Some(Ok(Outcome::Written(Version(2))))
    );
}

#[test]
fn what_waits_for_a_dead_server_moves_with_the_map() {
    let mut bench = Bench::new();
    let key = key(false, 0);
    bench.break_link(Target::Server(ONE));
    let op = bench.start(write(&key, b"v"));
    assert!(bench.sent().is_empty());
    bench.answer_map(map(2, ServerId(3), TWO));
    let seen = bench.respond_to_last(Status::Ok, 1, b"");
    assert_eq!(seen.server, ServerId(3));
    assert_eq!(bench.result(op), Some(Ok(Outcome::Written(Version(1)))));
    bench.pass(Duration::from_secs(1));
    assert!(bench.sent().is_empty(), "sent once");
}

#[test]
fn a_broken_server_is_tried_again_without_the_coordinator() {
    let mut bench = Bench::new();
    let key = key(false, 0);
    let op = bench.start(read(&key));
    bench.sent();
    bench.break_link(Target::Server(ONE));
    bench.break_link(Target::Coordinator(0));
    bench.pass(Duration::from_millis(50));
    bench.respond_to_last(Status::Ok, 1, b"v");
    assert_eq!(bench.result(op), Some(Ok(object(b"v", 1))));
}

#[test]
fn a_deadline_tells_whether_the_operation_was_sent() {
    let mut bench = Bench::new();
    let (low, high) = (key(false, 0), key(true, 0));
    bench.break_link(Target::Server(TWO));
    bench.hold(Target::Server(TWO));
    let second = Duration::from_secs(1);
    let sent_write = bench.start_within(write(&low, b"v"), second);
    let sent_read = bench.start_within(read(&low), second);
    let unsent_write = bench.start_within(write(&high, b"v"), second);
    bench.pass(second - Duration::from_micros(1));
    assert!(bench.done.is_empty());
    bench.pass(Duration::from_micros(1));
    assert_eq!(bench.result(sent_write), Some(Err(MAYBE)));
    assert_eq!(bench.result(sent_read), Some(Err(NOT)));
    let reason = "server 2: broken".to_owned();
    assert_eq!(
        bench.result(unsent_write),
        Some(Err(Error::Unavailable { reason }))
    );
    bench.let_through(Target::Server(TWO));
    bench.sent();
    bench.drain();
    assert!(bench.sent().is_empty(), "what is over is not sent");
}

#[test]
fn an_answer_after_the_deadline_changes_nothing() {
    let mut bench = Bench::new();
    let key = key(false, 0);
    let op = bench.start_within(write(&key, b"v"), Duration::from_secs(1));
    let id = bench.sent()[0].id;
    bench.pass(Duration::from_secs(2));
    assert_eq!(bench.result(op), Some(Err(MAYBE)));
    bench.respond(ONE, &[answer(id, Status::Ok, 1, b"")]);
    assert!(bench.done.is_empty() && !bench.closed.contains(&Target::Server(ONE)));
}

#[test]
fn an_operation_that_was_told_to_wait_was_not_applied() {
    let mut bench = Bench::new();
    let key = key(false, 0);
    let op = bench.start_within(write(&key, b"v"), Duration::from_millis(1));
    bench.respond_to_last(Status::RetryLater, 0, b"");
    bench.pass(Duration::from_millis(1));
    assert_eq!(bench.result(op), Some(Err(NOT)));
}

#[test]
fn a_malformed_answer_closes_the_connection() {
    let mut bench = Bench::new();
    let key = key(false, 0);
    let writing = bench.start(write(&key, b"v"));
    bench.receive(Target::Server(ONE), Kind::DataResponse, 0, &[1, 2, 3]);
    assert_eq!(bench.closed, [Target::Server(ONE)]);
    assert_eq!(bench.result(writing), None, "it is tried again");
    bench.sent();
    bench.pass(Duration::from_millis(5));
    bench.respond_to_last(Status::Ok, 1, b"");
    assert!(matches!(bench.result(writing), Some(Ok(_))));
}

#[test]
fn an_answer_that_fits_no_such_question_closes_the_connection() {
    let mut bench = Bench::new();
    let (key, other) = (key(false, 0), key(false, 1));
    let counter = Operation::Increment {
        table: TABLE,
        key: &key,
        delta: 1,
    };
    let wrong = bench.start(counter);
    let id = bench.sent()[0].id;
    let bystander = bench.start(read(&other));
    bench.respond(ONE, &[answer(id, Status::Ok, 1, b"seven b")]);
    assert_eq!(bench.closed, [Target::Server(ONE)]);
    assert!(matches!(bench.result(wrong), Some(Err(Error::Protocol(_)))));
    bench.sent();
    bench.pass(Duration::from_millis(5));
    bench.respond_to_last(Status::Absent, 0, b"");
    assert_eq!(bench.result(bystander), Some(Ok(Outcome::Read(None))));
}

#[test]
fn a_page_out_of_order_is_not_taken() {
    let mut bench = Bench::new();
    let mut keys = [key(false, 0), key(false, 1)];
    keys.sort_by_key(|key| std::cmp::Reverse(key_hash(TABLE, key)));
    let mut page = vec![0];
    for key in &keys {
        let version = Version(1);
        ramkeep_wire::data::ScanObject {
            version,
            key,
            value: b"",
        }
        .write(&mut page);
    }
    let from = crate::types::ScanPosition::default();
    let op = bench.start(Operation::Scan {
        table: TABLE,
        from: &from,
    });
    bench.respond_to_last(Status::Ok, 0, &page);
    assert!(matches!(bench.result(op), Some(Err(Error::Protocol(_)))));
}

#[test]
fn a_cancelled_operation_that_was_not_sent_never_is() {
    let mut bench = Bench::new();
    let key = key(false, 0);
    let op = bench.begin(write(&key, b"v"), Micros(u64::MAX)).unwrap();
    bench.cancel(op);
    bench.drain();
    assert!(bench.sent().is_empty());
}

#[test]
fn a_server_that_left_the_map_is_forgotten() {
    let mut bench = Bench::new();
    let mut smaller = map(2, ONE, ONE);
    smaller.servers.truncate(1);
    bench.session.refresh_map();
    bench.drain();
    bench.answer_map(smaller);
    assert_eq!(
        bench.closed,
        [Target::Server(TWO), Target::Server(ServerId(3))]
    );
}

#[test]
fn a_server_that_owes_answers_for_long_has_the_map_asked_for() {
    let mut bench = Bench::new();
    let key = key(false, 0);
    let reading = bench.start(read(&key));
    let writing = bench.start(write(&key, b"v"));
    bench.sent();
    bench.pass(Duration::from_millis(499));
    assert!(bench.asked().is_empty());
    bench.pass(Duration::from_millis(1));
    let mut moved = map(2, ServerId(3), TWO);
    moved.servers.remove(0);
    bench.answer_map(moved);
    assert_eq!(bench.closed, [Target::Server(ONE)]);
    let seen = bench.sent();
    let ops: Vec<_> = seen.iter().map(|seen| (seen.server, seen.op)).collect();
    assert_eq!(ops, [(ServerId(3), Op::Read), (ServerId(3), Op::Write)]);
    let answers = [
        answer(seen[0].id, Status::Ok, 1, b"v"),
        answer(seen[1].id, Status::Ok, 2, b""),
    ];
    bench.respond(ServerId(3), &answers);
    assert_eq!(bench.result(reading), Some(Ok(object(b"v", 1))));
    assert!(matches!(bench.result(writing), Some(Ok(_))));
}

#[test]
fn a_full_connection_does_not_hold_up_others() {
    let mut bench = Bench::new();
    let (low, high) = (key(false, 0), key(true, 0));
    bench.session.full(bench.now, Target::Server(ONE));
    bench.start(write(&low, b"v"));
    bench.start(write(&high, b"v"));
    let servers: Vec<_> = bench.sent().iter().map(|seen| seen.server).collect();
    assert_eq!(servers, [TWO]);
    bench.pass(Duration::from_millis(1));
    let servers: Vec<_> = bench.sent().iter().map(|seen| seen.server).collect();
    assert_eq!(servers, [ONE]);
}
