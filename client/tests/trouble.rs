//! The client against a cluster in this process that redirects, hesitates, hangs up and dies.
#![cfg(feature = "shell")]
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    reason = "a test stops where the stage falls down"
)]

mod common;

use std::time::Duration;

use common::{Cluster, Fault};
use ramkeep_client::{Client, Error, Table};
use ramkeep_wire::ServerId;
use ramkeep_wire::data::Status;

const MAYBE: Error = Error::Timeout {
    maybe_applied: true,
};

async fn table(cluster: &Cluster) -> Table {
    let client = cluster.client().await;
    client.create_table("t").await.unwrap()
}

#[tokio::test]
async fn hesitation_and_redirects_are_not_seen_by_callers() {
    let cluster = Cluster::start(2);
    let table = table(&cluster).await;
    cluster.order(&[
        Fault::Say(Status::RetryLater),
        Fault::Say(Status::WrongServer),
        Fault::Say(Status::RetryLater),
    ]);
    let version = table.write(b"k", b"v").await.unwrap();
    assert_eq!(cluster.unmet(), 0);
    cluster.move_all_to(ServerId(2));
    assert_eq!(table.read(b"k").await.unwrap().unwrap().version, version);
    cluster.move_all_to(ServerId(1));
    let keys: Vec<_> = (0..500_u32).map(u32::to_le_bytes).collect();
    assert_eq!(table.multi_read(&keys).await.unwrap().len(), 500);
}

#[tokio::test]
async fn tablets_move_to_a_server_that_was_not_known() {
    let mut cluster = Cluster::start(1);
    let table = table(&cluster).await;
    table.write(b"k", b"v").await.unwrap();
    cluster.add_server(ServerId(7));
    cluster.move_all_to(ServerId(7));
    assert!(table.read(b"k").await.unwrap().is_some());
}

#[tokio::test]
async fn a_read_survives_a_broken_connection() {
    let cluster = Cluster::start(1);
    let table = table(&cluster).await;
    table.write(b"k", b"v").await.unwrap();
    cluster.order(&[Fault::Hang, Fault::Hang]);
    assert!(table.read(b"k").await.unwrap().is_some());
    assert_eq!(cluster.unmet(), 0);
}

#[tokio::test]
async fn a_mutation_on_a_broken_connection_is_applied_once() {
    let cluster = Cluster::start(1);
    let table = table(&cluster).await;
    cluster.order(&[Fault::DoAndHang]);
    assert_eq!(
        table.increment(b"n", 1).await,
        Ok(1),
        "it was applied before"
    );
    cluster.order(&[Fault::Hang, Fault::Hang, Fault::DoAndHang]);
    assert_eq!(table.increment(b"n", 1).await, Ok(2));
    assert_eq!(table.increment(b"n", 0).await, Ok(2));
}

#[tokio::test]
async fn a_server_that_stopped_between_two_operations_does_not_spoil_the_next() {
    let mut cluster = Cluster::start(1);
    let table = table(&cluster).await;
    table.write(b"k", b"v").await.unwrap();
    cluster.stop(1).await;
    cluster.add_server(ServerId(2));
    cluster.move_all_to(ServerId(2));
    assert!(table.read(b"k").await.unwrap().is_some());
    assert!(table.write(b"k", b"w").await.is_ok());
}

#[tokio::test]
async fn what_cannot_be_read_ends_the_connection_and_not_the_client() {
    let cluster = Cluster::start(1);
    let table = table(&cluster).await;
    cluster.order(&[Fault::Babble]);
    assert!(table.write(b"k", b"v").await.is_ok());
    assert!(table.read(b"k").await.unwrap().is_some());
}

#[tokio::test]
async fn the_deadline_ends_what_is_not_answered() {
    let cluster = Cluster::start(1);
    let patient = table(&cluster).await;
    let hasty = patient.with_deadline(Duration::from_millis(50));
    cluster.order(&[Fault::Silence, Fault::Silence]);
    assert_eq!(hasty.write(b"k", b"v").await, Err(MAYBE));
    let not = Error::Timeout {
        maybe_applied: false,
    };
    assert_eq!(hasty.read(b"k").await, Err(not));
    assert!(patient.write(b"k", b"v").await.is_ok());
}

#[tokio::test]
async fn operations_given_up_do_not_disturb_others() {
    let cluster = Cluster::start(1);
    let table = table(&cluster).await;
    // What is given up before there is a connection is never sent.
    table.write(b"k", b"v").await.unwrap();
    for n in 0..20_u32 {
        cluster.order(&[Fault::Silence]);
        let given_up = tokio::time::timeout(Duration::from_millis(1), table.read(b"a")).await;
        assert!(given_up.is_err());
        table.write(b"k", n.to_le_bytes()).await.unwrap();
        let found = table.read(b"k").await.unwrap().unwrap();
        assert_eq!(found.value[..], n.to_le_bytes());
    }
}

#[tokio::test]
async fn a_leader_that_is_not_polled_any_more_is_replaced() {
    let cluster = Cluster::start(1);
    let table = table(&cluster).await;
    table.write(b"k", b"v").await.unwrap();
    let mut stuck = Box::pin(table.read(b"k"));
    // Polled once: it leads now. Then nobody polls it, and nobody drops it.
    let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(stuck.as_mut().poll(cx))).await;
    assert!(polled.is_pending());
    for _ in 0..3 {
        assert!(table.read(b"k").await.unwrap().is_some());
    }
    assert!(stuck.await.unwrap().is_some());
}

#[tokio::test]
async fn no_coordinator_at_all_is_said_with_its_address() {
    let builder = Client::builder().deadline(Duration::from_millis(100));
    let nobody = "127.0.0.1:1";
    let error = builder.clone().coordinators([nobody]).connect().await;
    match error.unwrap_err() {
        Error::Unavailable { reason } => assert!(reason.contains(nobody), "{reason}"),
        other => panic!("{other}"),
    }
    let none: [&str; 0] = [];
    let error = builder.coordinators(none).connect().await;
    assert!(matches!(error, Err(Error::Unavailable { .. })));
}

#[tokio::test]
async fn one_coordinator_that_lives_is_enough() {
    let cluster = Cluster::start(1);
    let coordinators = ["127.0.0.1:1", "not an address", &cluster.coordinator];
    let client = Client::connect(coordinators).await.unwrap();
    let table = client.create_table("t").await.unwrap();
    table.write(b"k", b"v").await.unwrap();
}

#[tokio::test]
async fn reads_and_writes_go_on_without_a_coordinator() {
    let mut cluster = Cluster::start(1);
    let table = table(&cluster).await;
    table.write(b"k", b"v").await.unwrap();
    cluster.stop(0).await;
    for n in 0..100_u32 {
        table.write(b"k", n.to_le_bytes()).await.unwrap();
    }
    cluster.order(&[Fault::Hang]);
    assert!(table.read(b"k").await.unwrap().is_some(), "connects again");
}

#[tokio::test]
async fn requests_wait_for_a_leader_until_the_deadline() {
    let cluster = Cluster::start(1);
    let client = cluster.client().await;
    cluster.depose_coordinator(true);
    let hasty = client.with_deadline(Duration::from_millis(50));
    // It was not sent: it has no client lease, which only a leader gives.
    let error = hasty.create_table("t").await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    let patient = client.create_table("t");
    cluster.depose_coordinator(false);
    assert!(patient.await.is_ok());
}

#[test]
fn a_client_ends_with_the_runtime_that_connected_it() {
    let cluster = Cluster::start(1);
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap()
    };
    let first = runtime();
    let table = first.block_on(table(&cluster));
    let second = runtime();
    drop(first);
    let error = second.block_on(table.read(b"k")).unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
}

#[test]
fn a_client_is_usable_from_another_runtime() {
    let cluster = Cluster::start(1);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let table = runtime.block_on(table(&cluster));
    let other = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    other.block_on(async {
        table.write(b"k", b"v").await.unwrap();
        assert!(table.read(b"k").await.unwrap().is_some());
    });
}
