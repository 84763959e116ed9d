//! Connections: batches, envelopes, leases and limits.

use ramkeep_master::store::{DataSession, Gate, MasterLease, Store};
use ramkeep_wire::data::{self, DataError, Item, Op, RejectRules, Status};
use ramkeep_wire::envelope;
use ramkeep_wire::limits::{MAX_IN_FLIGHT_ITEMS, MAX_ITEMS, MAX_UNSENT, MAX_VALUE, RESPONSE_SPLIT};
use ramkeep_wire::{ClientId, RpcId};

use crate::support::{Connection, Reply, TABLE, ask, header, make_durable, store};

fn large_store() -> Store {
    store(false, 8 << 20, 6)
}

#[test]
fn items_of_an_envelope_are_done_in_order() {
    let store = store(false, 64 << 10, 4);
    let mut connection = Connection::default();
    let ids = connection.send(
        &store,
        &[
            ask(Op::Read, b"k", b""),
            ask(Op::Write, b"k", b"1"),
            ask(Op::Read, b"k", b""),
            ask(Op::Remove, b"k", b""),
            ask(Op::Read, b"k", b""),
        ],
    );
    let replies = connection.replies();
    let replies: Vec<_> = ids.iter().map(|id| replies[id].clone()).collect();
    let expected = [
        Reply::new(Status::Absent, 0, b""),
        Reply::new(Status::Ok, 1, b""),
        Reply::new(Status::Ok, 1, b"1"),
        Reply::new(Status::Ok, 1, b""),
        Reply::new(Status::Absent, 0, b""),
    ];
    assert_eq!(replies, expected);
}

#[test]
fn many_large_answers_are_split_over_envelopes() {
    let store = large_store();
    let mut connection = Connection::default();
    let value = vec![3; 100 << 10];
    for key in 0..10u8 {
        connection.write(&store, &[key], &value).unwrap();
    }
    let keys: Vec<[u8; 1]> = (0..10u8).map(|key| [key]).collect();
    let asks: Vec<_> = keys.iter().map(|key| ask(Op::Read, key, b"")).collect();
    connection.send(&store, &asks);
    let mut rest = &connection.out[..];
    let mut envelopes = 0;
    while let Some((envelope, len)) = envelope::parse(rest).unwrap() {
        assert!(envelope.payload.len() <= RESPONSE_SPLIT);
        envelopes += 1;
        rest = &rest[len..];
    }
    assert!(envelopes >= 5);
    assert_eq!(connection.replies().len(), 10);
}

#[test]
fn the_largest_value_can_be_written_and_read() {
    let store = large_store();
    let mut connection = Connection::default();
    let value = vec![9; MAX_VALUE];
    assert_eq!(
        connection.write(&store, b"k", &value).unwrap().status,
        Status::Ok
    );
    assert_eq!(
        connection.read(&store, b"k"),
        Some(Reply::new(Status::Ok, 1, &value))
    );
}

#[test]
fn answers_past_what_a_connection_may_have_unsent_are_put_off() {
    let store = large_store();
    let mut connection = Connection::default();
    let value = vec![9; MAX_VALUE];
    connection.write(&store, b"k", &value).unwrap();
    let asks: Vec<_> = (0..50).map(|_| ask(Op::Read, b"k", b"")).collect();
    connection.send(&store, &asks);
    assert!(connection.out.len() < MAX_UNSENT + MAX_VALUE + 50 * 20 + 4096);
    let replies = connection.replies();
    assert_eq!(replies.len(), 50);
    assert!(
        replies
            .values()
            .any(|reply| reply.status == Status::RetryLater)
    );
    assert!(replies.values().any(|reply| reply.status == Status::Ok));
}

#[test]
fn held_answers_are_bounded_and_a_connection_with_so_many_is_full() {
    let store = store(true, 1 << 20, 8);
    let mut connection = Connection::default();
    let asks: Vec<_> = (0..MAX_ITEMS).map(|_| ask(Op::Write, b"k", b"v")).collect();
    while !connection.session.full() {
        connection.send(&store, &asks);
    }
    assert!(connection.replies().is_empty());
    connection.send(&store, &asks);
    let replies = connection.replies();
    assert_eq!(replies.len(), MAX_ITEMS);
    assert!(
        replies
            .values()
            .all(|reply| reply.status == Status::RetryLater)
    );
    make_durable(&store);
    connection.release(&store);
    assert_eq!(connection.replies().len(), MAX_IN_FLIGHT_ITEMS);
    assert!(!connection.session.full() && !connection.session.holds());
}

#[test]
fn without_the_master_lease_nothing_that_was_looked_up_goes_out() {
    let store = store(false, 64 << 10, 4);
    let mut connection = Connection::default();
    connection.write(&store, b"k", b"v").unwrap();
    let asks = [ask(Op::Read, b"k", b""), ask(Op::Read, b"absent", b"")];
    connection.send_under(&store, MasterLease::Lost, &asks);
    assert!(connection.out.is_empty() && connection.session.holds());
    assert!(
        !connection
            .session
            .release(&store, || MasterLease::Lost, &mut connection.out)
    );
    connection.release(&store);
    let statuses: Vec<_> = connection
        .replies()
        .into_values()
        .map(|reply| reply.status)
        .collect();
    assert_eq!(statuses, [Status::Ok, Status::Absent]);
}

#[test]
fn a_closed_gate_refuses_mutations_and_lets_reads_through() {
    let store = store(false, 64 << 10, 4);
    let mut connection = Connection::default();
    connection.write(&store, b"k", b"v").unwrap();
    let before = store.writer().log().appended_position();
    for (gate, status) in [
        (Gate::NotReady, Status::RetryLater),
        (Gate::NotEnoughBackups, Status::NotEnoughBackups),
    ] {
        store.set_write_gate(gate);
        let refused = Some(Reply::new(status, 0, b""));
        assert_eq!(connection.write(&store, b"k", b"w"), refused);
        assert_eq!(connection.remove(&store, b"k"), refused);
        assert_eq!(
            connection.try_call(&store, ask(Op::Increment, b"n", &[0; 8])),
            refused
        );
        assert_eq!(
            connection.read(&store, b"k"),
            Some(Reply::new(Status::Ok, 1, b"v"))
        );
    }
    assert_eq!(store.writer().log().appended_position(), before);
    store.set_write_gate(Gate::Open);
    assert_eq!(
        connection.write(&store, b"k", b"w"),
        Some(Reply::new(Status::Ok, 2, b""))
    );
}

#[test]
fn counters_add_up_and_refuse_what_is_none() {
    let store = store(false, 64 << 10, 4);
    let mut connection = Connection::default();
    let mut add = |key: &[u8], n: i64| {
        let reply = connection.call(&store, ask(Op::Increment, key, &n.to_le_bytes()));
        let value = <[u8; 8]>::try_from(&reply.value[..]).map(i64::from_le_bytes);
        (reply.status, reply.version.0, value.ok())
    };
    assert_eq!(add(b"n", 5), (Status::Ok, 1, Some(5)));
    assert_eq!(add(b"n", -7), (Status::Ok, 2, Some(-2)));
    assert_eq!(add(b"n", i64::MAX), (Status::Ok, 3, Some(i64::MAX - 2)));
    assert_eq!(add(b"n", 3), (Status::Overflow, 3, None));
    assert_eq!(add(b"n", 2), (Status::Ok, 4, Some(i64::MAX)));
    let mut connection = Connection::default();
    connection.write(&store, b"text", b"seven b").unwrap();
    let refused = connection.call(&store, ask(Op::Increment, b"text", &1i64.to_le_bytes()));
    assert_eq!(refused, Reply::new(Status::NotACounter, 1, b""));
    let refused = connection.call(&store, ask(Op::Increment, b"n", b"seven b"));
    assert_eq!(refused, Reply::new(Status::Invalid, 0, b""));
}

#[test]
fn a_payload_that_cannot_be_read_is_an_error_and_leaves_whole_envelopes() {
    let store = store(false, 64 << 10, 4);
    let mut payload = Vec::new();
    let start = data::begin_request(&mut payload, ClientId(0), RpcId(0));
    for id in 0..40u32 {
        let (op, rpc, rules) = (Op::Write, RpcId(0), RejectRules::default());
        let key = id.to_le_bytes();
        Item {
            op,
            id,
            table: TABLE,
            rpc,
            rules,
            key: &key,
            value: b"v",
        }
        .write(&mut payload);
    }
    data::set_count(&mut payload, start, 40);
    for cut in 0..payload.len() {
        let mut connection = Connection::default();
        let mut batch = connection.session.begin(&store, &mut connection.out);
        batch
            .envelope(&header(), &payload[..cut])
            .expect_err("cut short");
        drop(batch);
        let replies = connection.replies();
        assert!(
            replies
                .values()
                .all(|reply| reply.status == Status::Ok || cut < payload.len())
        );
    }
    payload.push(0);
    let (mut session, mut out) = (DataSession::new(), Vec::new());
    let mut batch = session.begin(&store, &mut out);
    assert_eq!(
        batch.envelope(&header(), &payload),
        Err(DataError::Trailing)
    );
}

#[test]
fn several_envelopes_make_one_batch_under_one_lock() {
    let store = store(false, 64 << 10, 4);
    let (mut session, mut out) = (DataSession::new(), Vec::new());
    let mut payload = Vec::new();
    let start = data::begin_request(&mut payload, ClientId(0), RpcId(0));
    let (op, rpc, rules) = (Op::Write, RpcId(0), RejectRules::default());
    Item {
        op,
        id: 4,
        table: TABLE,
        rpc,
        rules,
        key: b"k",
        value: b"v",
    }
    .write(&mut payload);
    data::set_count(&mut payload, start, 1);
    let mut batch = session.begin(&store, &mut out);
    assert!(batch.writer().is_none());
    batch.envelope(&header(), &payload).unwrap();
    batch.envelope(&header(), &payload).unwrap();
    assert_eq!(
        batch
            .writer()
            .expect("locked by the first write")
            .stats()
            .objects,
        1
    );
    batch.end(|| MasterLease::Held);
    let (envelope, len) = envelope::parse(&out).unwrap().unwrap();
    assert_eq!(
        (len, envelope.payload.len()),
        (out.len(), 2 * 20),
        "answered in one envelope"
    );
    assert_eq!(store.stats().objects, 1, "the lock is free again");
}

#[test]
fn a_lease_that_does_not_come_back_sends_readers_elsewhere_and_keeps_writers_waiting() {
    let store = store(true, 64 << 10, 4);
    let mut connection = Connection::default();
    let asks = [
        ask(Op::Write, b"k", b"v"),
        ask(Op::Read, b"k", b""),
        ask(Op::Read, b"absent", b""),
        ask(Op::Remove, b"absent", b""),
    ];
    let ids = connection.send_under(&store, MasterLease::Lost, &asks);
    let gone = || MasterLease::Gone;
    let released = |connection: &mut Connection| {
        connection
            .session
            .release(&store, gone, &mut connection.out)
    };
    assert!(
        !released(&mut connection),
        "the write is not durable, and comes first"
    );
    make_durable(&store);
    assert!(released(&mut connection));
    let replies = connection.replies();
    let status = |at: usize| replies[&ids[at]].status;
    assert_eq!(
        status(0),
        Status::Ok,
        "what its backups have needs no lease"
    );
    assert_eq!(
        [status(1), status(2), status(3)],
        [Status::WrongServer; 3],
        "what was looked up does, whatever was asked"
    );
    assert!(!connection.session.holds());
}

#[test]
fn a_write_without_backups_is_never_sent_elsewhere_once_it_is_done() {
    let store = store(false, 64 << 10, 4);
    let mut connection = Connection::default();
    let one = 1i64.to_le_bytes();
    let asks = [ask(Op::Increment, b"n", &one)];
    let ids = connection.send_under(&store, MasterLease::Gone, &asks);
    let gone = || MasterLease::Gone;
    let out = &mut connection.out;
    assert!(
        !connection.session.release(&store, gone, out),
        "it was done"
    );
    connection.release(&store);
    assert_eq!(connection.replies()[&ids[0]].status, Status::Ok);
}
