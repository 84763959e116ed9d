//! Who may answer, with real processes: one that slept, and one that nobody vouches for.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::task::Poll;
use std::time::Duration;

use ramkeep_client::Client;
use ramkeep_rpc::{Identity, Link, clock, poll_until};
use ramkeep_wire::bytes::Reader;
use ramkeep_wire::data::{self, Item, Op, RejectRules, ResponseItem, Status};
use ramkeep_wire::envelope::{self, Kind};
use ramkeep_wire::{ClientId, RpcId, TableId};
use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Cluster, Member, await_that, send};

const KEYS: u32 = 60;

fn keys() -> Vec<String> {
    (0..KEYS).map(|number| format!("key {number}")).collect()
}

/// A connection to one server, past the client library, which would go elsewhere.
async fn connect(member: &Member) -> Link {
    member.link(&Identity::new(None)).await
}

fn ask(link: &Link, table: TableId, keys: &[String], first: u32) {
    let sent = link.send(|out| {
        let header = link.header(Kind::DataRequest, u64::from(first));
        let start = envelope::begin(out, header);
        let request = data::begin_request(out, ClientId(0), RpcId(0));
        for (id, key) in (first..).zip(keys) {
            Item {
                op: Op::Read,
                id,
                table,
                rpc: RpcId(0),
                rules: RejectRules::default(),
                key: key.as_bytes(),
                value: &[],
            }
            .write(out);
        }
        data::set_count(out, request, keys.len() as u32);
        envelope::seal(out, start);
    });
    sent.unwrap();
}

/// What is answered until `wanted` answers are there or the connection is closed.
async fn answers(link: &Link, wanted: usize) -> BTreeMap<u32, Status> {
    let found = RefCell::new(BTreeMap::new());
    let deadline = clock::now() + Duration::from_secs(20);
    let outcome = poll_until(
        link,
        Some(deadline),
        |envelope| {
            let mut reader = Reader(envelope.payload);
            while let Some(item) = ResponseItem::read(&mut reader).unwrap() {
                found.borrow_mut().insert(item.id, item.status);
            }
        },
        |_| match found.borrow().len() {
            got if got >= wanted => Poll::Ready(()),
            _ => Poll::Pending,
        },
    );
    // An error: it was closed.
    drop(outcome.await);
    found.into_inner()
}

fn server(cluster: &Cluster, id: u64) -> Option<Value> {
    let status = cluster.json(&["status"]);
    let servers = status["servers"].as_array().unwrap().clone();
    servers.into_iter().find(|server| server["id"] == id)
}

/// Stops a process, and waits until every thread of it has stopped: until then it may answer.
fn put_to_sleep(pid: i32) {
    send(pid, Signal::STOP);
    let sleeps = |thread: &std::path::Path| {
        let stat = std::fs::read_to_string(thread.join("stat")).unwrap_or_default();
        let state = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.chars().next());
        state == Some('T')
    };
    await_that("a process sleeps", || {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        threads.flatten().all(|thread| sleeps(&thread.path()))
    });
}

#[tokio::test]
async fn a_server_that_slept_beyond_its_death_answers_nothing_and_joins_as_another() {
    let cluster = Cluster::start(&["--servers", "4", "--replicas", "2"]);
    let client = Client::connect(&cluster.addresses).await.unwrap();
    let table = client.create_table("t").await.unwrap();
    for key in keys() {
        table.write(key.as_bytes(), b"v").await.unwrap();
    }
    let id = cluster.json(&["status"])["tables"][0]["id"].as_u64();
    let id = TableId(u32::try_from(id.unwrap()).unwrap());
    let sleeper = cluster.of_role("server")[1].clone();
    let link = connect(&sleeper).await;
    ask(&link, id, &keys(), 0);
    let before = answers(&link, KEYS as usize).await;
    assert!(before.values().any(|status| *status == Status::Ok));

    put_to_sleep(sleeper.pid);
    // It finds this when it wakes up.
    ask(&link, id, &keys(), 1_000);
    await_that("the sleeper is decided crashed", || {
        server(&cluster, sleeper.id).is_none_or(|server| server["state"] == "crashed")
    });
    send(sleeper.pid, Signal::CONT);
    let after = answers(&link, KEYS as usize).await;
    let told = |status: &&Status| matches!(status, Status::Ok | Status::Absent);
    assert_eq!(after.values().filter(told).count(), 0, "{after:?}");

    let event = cluster.next_event();
    assert_eq!(event["event"], "process");
    let new = Member::read(&event);
    assert_eq!(new.pid, sleeper.pid, "the same process");
    assert!(new.id > sleeper.id, "and another server");
    await_that("the new server is in service", || {
        server(&cluster, new.id).is_some_and(|server| server["state"] == "up")
    });
    let replaced = server(&cluster, new.id).unwrap()["replaces"].clone();
    assert_eq!(replaced, sleeper.id);
    await_that("its tablets are served by others", || {
        let status = cluster.json(&["status"]);
        let tablets = status["tablets"].as_array().unwrap();
        let served = |tablet: &Value| tablet["state"] == "normal";
        tablets
            .iter()
            .all(|tablet| served(tablet) && tablet["owner"] != sleeper.id)
    });
    for key in keys() {
        let object = table.read(key.as_bytes()).await.unwrap();
        assert_eq!(object.unwrap().value, "v", "{key} is recovered");
    }
    cluster.json(&["table", "create", "other"]);
}

#[tokio::test]
async fn a_master_without_backups_serves_nothing_once_its_coordinator_is_gone() {
    let cluster = Cluster::start(&["--coordinators", "1", "--servers", "1", "--replicas", "0"]);
    let client = Client::builder()
        .coordinators(&cluster.addresses)
        .deadline(Duration::from_secs(1))
        .connect()
        .await
        .unwrap();
    let table = client.create_table("t").await.unwrap();
    table.write(b"k", b"v").await.unwrap();
    assert!(table.read(b"k").await.unwrap().is_some());
    let link = connect(cluster.of_role("server")[0]).await;
    cluster.of_role("coordinator")[0].kill();
    let id = TableId(1);
    for round in 0.. {
        ask(&link, id, &["k".to_owned()], round);
        let answer = answers(&link, 1).await;
        if answer.values().all(|status| *status == Status::WrongServer) {
            break;
        }
        assert!(round < 1_000_000, "it goes on serving");
    }
    assert!(table.read(b"k").await.is_err());
}
