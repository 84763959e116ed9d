//! Routing, batching and results while all goes well.

use ramkeep_wire::coordinator::Request;
use ramkeep_wire::data::ScanObject;
use ramkeep_wire::limits::{MAX_IN_FLIGHT_ITEMS, MAX_ITEMS, MAX_KEY, MAX_VALUE};

use super::*;
use crate::limits::{MAX_BATCH_BYTES, MAX_PENDING};
use crate::types::ScanPosition;

#[test]
fn operations_go_to_the_owner_of_their_key_and_bring_back_its_answer() {
    let mut bench = Bench::new();
    let (low, high) = (key(false, 0), key(true, 0));
    let first = bench.start(read(&low));
    let seen = bench.respond_to_last(Status::Ok, 3, b"v");
    assert_eq!((seen.server, &seen.key), (ONE, &low));
    assert_eq!(bench.result(first), Some(Ok(object(b"v", 3))));
    let second = bench.start(write(&high, b"w"));
    let seen = bench.respond_to_last(Status::Ok, 4, b"");
    assert_eq!((seen.server, &seen.value[..]), (TWO, &b"w"[..]));
    assert_eq!(bench.result(second), Some(Ok(Outcome::Written(Version(4)))));
}

#[test]
fn each_operation_understands_its_answers() {
    let mut bench = Bench::new();
    let key = key(false, 0);
    let remove = Operation::Remove {
        table: TABLE,
        key: &key,
        reject: Reject::never(),
    };
    let increment = Operation::Increment {
        table: TABLE,
        key: &key,
        delta: -5,
    };
    let rejected = |version| Err(Error::Rejected { version });
    let minus_five = &(-5_i64).to_le_bytes()[..];
    let incremented = Outcome::Incremented {
        value: -5,
        version: Version(9),
    };
    let cases = [
        (
            read(&key),
            Status::Absent,
            0,
            &b""[..],
            Ok(Outcome::Read(None)),
        ),
        (
            remove,
            Status::Ok,
            7,
            b"",
            Ok(Outcome::Removed(Some(Version(7)))),
        ),
        (remove, Status::Ok, 0, b"", Ok(Outcome::Removed(None))),
        (remove, Status::Absent, 0, b"", Ok(Outcome::Removed(None))),
        (increment, Status::Ok, 9, minus_five, Ok(incremented)),
        (
            increment,
            Status::NotACounter,
            9,
            b"",
            Err(Error::NotACounter),
        ),
        (increment, Status::Overflow, 9, b"", Err(Error::Overflow)),
        (
            write(&key, b"v"),
            Status::Rejected,
            2,
            b"",
            rejected(Some(Version(2))),
        ),
        (write(&key, b"v"), Status::Rejected, 0, b"", rejected(None)),
        (
            write(&key, b"v"),
            Status::OutOfMemory,
            0,
            b"",
            Err(Error::OutOfMemory),
        ),
        (
            write(&key, b"v"),
            Status::NotEnoughBackups,
            0,
            b"",
            Err(Error::NotEnoughBackups),
        ),
    ];
    for (operation, status, version, value, expected) in cases {
        let op = bench.start(operation);
        bench.respond_to_last(status, version, value);
        assert_eq!(bench.result(op), Some(expected), "{operation:?} {status:?}");
    }
}

#[test]
fn limits_are_checked_before_anything_is_sent() {
    let mut bench = Bench::new();
    let (long, huge) = (vec![b'k'; MAX_KEY + 1], vec![0; MAX_VALUE + 1]);
    let cases = [
        (read(&long), Error::TooLarge),
        (write(b"k", &huge), Error::TooLarge),
        (read(b""), Error::EmptyKey),
    ];
    for (operation, error) in cases {
        let refused = bench.begin(operation, Micros(u64::MAX));
        assert_eq!(refused, Err(NotStarted::Refused(error)));
    }
    bench.drain();
    assert!(bench.sent().is_empty());
    bench.start(write(&long[1..], &huge[1..]));
    assert_eq!(bench.sent().len(), 1);
}

#[test]
fn operations_begun_together_leave_in_one_envelope_per_server_and_in_order() {
    let mut bench = Bench::new();
    let keys: Vec<_> = (0..20).map(|n| key(n % 2 == 1, n / 2)).collect();
    for key in &keys {
        let deadline = bench.now + Duration::from_secs(1);
        bench.begin(read(key), deadline).unwrap();
    }
    bench.drain();
    assert_eq!(bench.envelopes, [(ONE, 10), (TWO, 10)]);
    let seen: Vec<_> = bench.sent().into_iter().map(|seen| seen.key).collect();
    let expected: Vec<_> = (keys.iter().step_by(2))
        .chain(keys.iter().skip(1).step_by(2))
        .cloned()
        .collect();
    assert_eq!(seen, expected);
}

#[test]
fn answers_may_come_in_any_order_and_in_several_envelopes() {
    let mut bench = Bench::new();
    let key = key(false, 0);
    let ops = [(); 3].map(|()| {
        let deadline = bench.now + Duration::from_secs(1);
        bench.begin(read(&key), deadline).unwrap()
    });
    bench.drain();
    let ids: Vec<_> = bench.sent().iter().map(|seen| seen.id).collect();
    bench.respond(ONE, &[answer(ids[2], Status::Ok, 3, b"c")]);
    bench.respond(
        ONE,
        &[
            answer(ids[1], Status::Ok, 2, b"b"),
            answer(ids[0], Status::Ok, 1, b"a"),
        ],
    );
    let results = ops.map(|op| bench.result(op).unwrap().unwrap());
    assert_eq!(results, [object(b"a", 1), object(b"b", 2), object(b"c", 3)]);
}

#[test]
fn envelopes_are_split_by_count_and_by_bytes() {
    let mut bench = Bench::new();
    let key = key(false, 0);
    let deadline = bench.now + Duration::from_secs(1);
    for _ in 0..MAX_ITEMS + 5 {
        bench.begin(read(&key), deadline).unwrap();
    }
    bench.drain();
    assert_eq!(bench.envelopes, [(ONE, MAX_ITEMS), (ONE, 5)]);
    bench.envelopes.clear();
    let half = vec![0; MAX_BATCH_BYTES / 2];
    for _ in 0..3 {
        let write = write(&key, &half);
        bench.begin(write, deadline).unwrap();
    }
    bench.drain();
    assert_eq!(bench.envelopes, [(ONE, 1), (ONE, 1), (ONE, 1)]);
}

#[test]
fn items_over_the_connection_s_limit_wait_for_answers() {
    let mut bench = Bench::new();
    let key = key(false, 0);
    let deadline = bench.now + Duration::from_secs(1);
    for _ in 0..MAX_IN_FLIGHT_ITEMS + 3 {
        bench.begin(read(&key), deadline).unwrap();
    }
    bench.drain();
    let seen = bench.sent();
    assert_eq!(seen.len(), MAX_IN_FLIGHT_ITEMS);
    bench.respond(ONE, &[answer(seen[0].id, Status::Absent, 0, b"")]);
    assert_eq!(bench.sent().len(), 1);
}

#[test]
fn there_is_a_most_of_operations_under_way() {
    let mut bench = Bench::new();
    let key = key(false, 0);
    let deadline = bench.now + Duration::from_secs(1);
    for _ in 0..MAX_PENDING {
        bench.begin(read(&key), deadline).unwrap();
    }
    let refused = bench.begin(read(&key), deadline);
    assert_eq!(refused, Err(NotStarted::Full));
    bench.drain();
    bench.respond_to_last(Status::Absent, 0, b"");
    assert!(bench.begin(read(&key), deadline).is_ok());
}

#[test]
fn answers_nobody_waits_for_are_ignored() {
    let mut bench = Bench::new();
    let key = key(false, 0);
    let op = bench.start(read(&key));
    let id = bench.sent()[0].id;
    bench.respond(ONE, &[answer(id ^ 0x8000_0001, Status::Ok, 1, b"no")]);
    bench.respond(TWO, &[answer(id, Status::Ok, 1, b"another server's")]);
    assert_eq!(bench.result(op), None);
    let twice = [
        answer(id, Status::Ok, 2, b"yes"),
        answer(id, Status::Ok, 3, b"again"),
    ];
    bench.respond(ONE, &twice);
    assert_eq!(bench.result(op), Some(Ok(object(b"yes", 2))));
    assert_eq!((bench.done.len(), bench.closed.len()), (0, 0));
}

#[test]
fn ids_are_not_used_twice_while_an_answer_is_owed() {
    let mut bench = Bench::new();
    let key = key(false, 0);
    let cancelled = bench.start(read(&key));
    let first = bench.sent()[0].id;
    bench.cancel(cancelled);
    bench.start(read(&key));
    let second = bench.sent()[0].id;
    assert_ne!(first & 0xffff, second & 0xffff, "the slot is still taken");
    bench.respond(ONE, &[answer(first, Status::Absent, 0, b"")]);
    assert!(bench.done.is_empty());
    bench.start(read(&key));
    let third = bench.sent()[0].id;
    assert_eq!(first & 0xffff, third & 0xffff, "the slot is free again");
    assert_ne!(first, third);
}

#[test]
fn mutations_carry_growing_rpc_ids_and_wait_for_a_client_lease() {
    let mut bench = Bench::unleased();
    let key = key(false, 0);
    bench.start(read(&key));
    assert_eq!((bench.sent()[0].rpc, bench.asked().len()), (RpcId(0), 0));
    bench.start(write(&key, b"1"));
    bench.start(write(&key, b"2"));
    assert!(bench.sent().is_empty(), "they wait");
    let client = ramkeep_wire::ClientId(5);
    let request = bench.answer(Answer::ClientLease {
        client,
        lease_us: 60_000_000,
    });
    assert_eq!(request, Request::OpenClientLease { nonce: [7; 16] });
    assert_eq!(bench.session.client(), client);
    let calls: Vec<_> = bench
        .sent()
        .iter()
        .map(|seen| (seen.client, seen.rpc))
        .collect();
    assert_eq!(calls, [(client, RpcId(1)), (client, RpcId(2))]);
    bench.pass(Duration::from_secs(20));
    let (_, _, request) = bench.asked().pop().unwrap();
    assert_eq!(request, Request::RenewClientLease { client });
}

#[test]
fn a_scan_goes_through_each_tablet_to_its_end() {
    let mut bench = Bench::new();
    let mut keys: Vec<_> = (0..3).map(|n| key(false, n)).collect();
    keys.sort_by_key(|key| key_hash(TABLE, key));
    let page = |more: u8, keys: &[Vec<u8>]| {
        let mut page = vec![more];
        for key in keys {
            let version = Version(1);
            let value = b"v";
            ScanObject {
                version,
                key,
                value,
            }
            .write(&mut page);
        }
        page
    };
    let scan = |bench: &mut Bench, from: &ScanPosition, page: Vec<u8>| {
        let op = bench.start(Operation::Scan { table: TABLE, from });
        let seen = bench.respond_to_last(Status::Ok, 0, &page);
        let Some(Ok(Outcome::Page(page))) = bench.result(op) else {
            panic!("no page");
        };
        (seen, *page)
    };
    let begin = ScanPosition::default();
    let (seen, first) = scan(&mut bench, &begin, page(1, &keys[..2]));
    assert_eq!(
        (seen.server, &seen.value[8..16]),
        (ONE, &HALF.to_le_bytes()[..])
    );
    assert_eq!(first.objects.len(), 2);
    let next = first.next.unwrap();
    assert_eq!(
        (&next.after[..], next.hash),
        (&keys[1][..], key_hash(TABLE, &keys[1]))
    );
    let (_, second) = scan(&mut bench, &next, page(0, &keys[2..]));
    let next = second.next.unwrap();
    assert_eq!((next.hash, next.after.len()), (KeyHash(HALF + 1), 0));
    let (seen, last) = scan(&mut bench, &next, page(0, &[]));
    assert_eq!((seen.server, last.objects.len(), last.next), (TWO, 0, None));
}
