//! Data requests over real sockets.
#![cfg(feature = "shell")]
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::task::Poll;
use std::time::Duration;

use ramkeep_rpc::{Identity, Link, PollMode, clock, poll_until};
use ramkeep_wire::bytes::Reader;
use ramkeep_wire::coordinator::ServerList;
use ramkeep_wire::data::{self, Item, Op, RejectRules, ResponseItem, ScanCursor, Status};
use ramkeep_wire::envelope::{self, Kind};
use ramkeep_wire::order::{Command, OrderReply, TabletGrant};
use ramkeep_wire::{ClientId, KeyHash, Party, RpcId, ServerId, TableId};

use common::Running;

const FULL: TableId = TableId(1);
const EMPTY: TableId = TableId(2);
const SEGMENT: u32 = 8 << 20;
const MEMORY: u64 = 256 << 20;

fn grant(table: TableId) -> TabletGrant {
    TabletGrant {
        table,
        first: KeyHash(0),
        last: KeyHash(u64::MAX),
    }
}

/// A master without backups that serves two tables.
async fn server(mode: PollMode) -> Running {
    let (settings, list) = (common::settings(SEGMENT), ServerList::default());
    let running = Running::start(ServerId(1), settings, list, MEMORY, mode).await;
    let grants = vec![grant(FULL), grant(EMPTY)];
    let taken = running.order(Command::TakeTablets(grants));
    assert!(matches!(taken, OrderReply::Taken(_)), "{taken:?}");
    running
}

fn item<'a>(op: Op, id: u32, table: TableId, key: &'a [u8], value: &'a [u8]) -> Item<'a> {
    Item {
        op,
        id,
        table,
        rpc: RpcId(0),
        rules: RejectRules::default(),
        key,
        value,
    }
}

/// Sends each group of items as an envelope, all in one go, and waits for all answers; a value is
/// only measured.
async fn ask(server: &Running, groups: &[Vec<Item<'_>>]) -> BTreeMap<u32, (Status, usize)> {
    let identity = Identity::new(None).with_cluster(common::CLUSTER);
    let address = server.serving.address();
    let link = Link::connect(address, &identity, Party::NONE, PollMode::Never);
    let link = link.await.unwrap();
    link.send(|out| {
        for group in groups {
            let header = link.header(Kind::DataRequest, 1);
            let start = envelope::begin(out, header);
            let first = data::begin_request(out, ClientId(0), RpcId(0));
            group.iter().for_each(|item| item.write(out));
            data::set_count(out, first, group.len() as u32);
            envelope::seal(out, start);
        }
    })
    .unwrap();
    let wanted: usize = groups.iter().map(Vec::len).sum();
    let answers = std::cell::RefCell::new(BTreeMap::new());
    let deadline = clock::now() + Duration::from_secs(20);
    let outcome = poll_until(
        &link,
        Some(deadline),
        |envelope| {
            let mut reader = Reader(envelope.payload);
            while let Some(item) = ResponseItem::read(&mut reader).unwrap() {
                let answer = (item.status, item.value.len());
                answers.borrow_mut().insert(item.id, answer);
            }
        },
        |_| match answers.borrow().len() {
            got if got == wanted => Poll::Ready(()),
            _ => Poll::Pending,
        },
    );
    outcome.await.expect("all are answered in time");
    answers.into_inner()
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap().block_on(future)
}

#[test]
fn more_than_a_connection_may_leave_unsent_can_be_asked_for_in_one_go() {
    let value = vec![7; 1 << 20];
    run(async {
        let server = server(PollMode::Adaptive).await;
        let written = ask(&server, &[vec![item(Op::Write, 0, FULL, b"k", &value)]]).await;
        assert_eq!(written[&0], (Status::Ok, 0));
        let reads: Vec<Vec<Item<'_>>> = (0..40)
            .map(|id| vec![item(Op::Read, id, FULL, b"k", &[])])
            .collect();
        let read = ask(&server, &reads).await;
        assert!(read.values().all(|got| *got == (Status::Ok, value.len())));
        let again = ask(&server, &reads[..1]).await;
        assert_eq!(again[&0], (Status::Ok, value.len()), "it still serves");
    });
}

#[test]
fn a_scan_that_finds_little_goes_on_when_nothing_else_happens() {
    let keys: Vec<[u8; 4]> = (0..40_000u32).map(u32::to_le_bytes).collect();
    run(async {
        let server = server(PollMode::Never).await;
        for some in keys.chunks(4_000) {
            let items = some.iter().enumerate();
            let items = items.map(|(id, key)| item(Op::Write, id as u32, FULL, key, b"value"));
            ask(&server, &[items.collect()]).await;
        }
        let mut cursor = Vec::new();
        ScanCursor {
            hash: KeyHash(0),
            until: KeyHash(u64::MAX),
            after: &[],
        }
        .write(&mut cursor);
        let page = ask(&server, &[vec![item(Op::Scan, 0, EMPTY, &[], &cursor)]]).await;
        assert_eq!(page[&0], (Status::Ok, 1), "an empty last page");
    });
}

#[test]
fn an_order_takes_tablets_of_many_tables_and_one_that_is_refused_holds_up_no_other() {
    run(async {
        let server = server(PollMode::Never).await;
        let other = |number: u32| TableId(10 + number);
        let overlaps = TabletGrant {
            last: KeyHash(u64::MAX / 2),
            ..grant(FULL)
        };
        let mut grants: Vec<_> = (0..500).map(|number| grant(other(number))).collect();
        grants.insert(7, overlaps);
        for _ in 0..2 {
            let OrderReply::Taken(taken) = server.order(Command::TakeTablets(grants.clone()))
            else {
                panic!("not taken");
            };
            let refused: Vec<_> = (0..).zip(&taken).filter(|(_, at)| at.is_none()).collect();
            assert_eq!((taken.len(), refused), (501, vec![(7, &None)]));
        }
        let of = |table, id| item(Op::Write, id, table, b"k", b"v");
        let written = [of(other(6), 0), of(other(499), 1), of(FULL, 2)];
        let all_ok = |answers: BTreeMap<u32, (Status, usize)>| {
            answers.values().all(|(status, _)| *status == Status::Ok)
        };
        assert!(all_ok(ask(&server, &[written.to_vec()]).await));

        let dropped = (1..499).map(other).collect();
        let reply = server.order(Command::DropTables(dropped));
        assert_eq!(reply, OrderReply::Done);
        let answers = ask(&server, &[written.to_vec()]).await;
        assert_eq!(answers[&0].0, Status::WrongServer);
        assert_eq!((answers[&1].0, answers[&2].0), (Status::Ok, Status::Ok));
    });
}
