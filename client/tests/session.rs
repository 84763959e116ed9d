//! The client against a cluster in this process, over sockets on loopback, while all goes well.
#![cfg(feature = "shell")]
#![forbid(unsafe_code)]

mod common;

use std::time::Duration;

use common::Cluster;
use ramkeep_client::limits::MAX_PENDING;
use ramkeep_client::{Client, Error, PollMode, Reject, Version};
use ramkeep_wire::hello::SharedKey;
use ramkeep_wire::limits::{MAX_KEY, MAX_VALUE};

#[tokio::test]
async fn the_session_of_the_documentation_works() {
    let cluster = Cluster::start(2);
    let client = cluster.client().await;
    let flights = client.create_table("flights").await.unwrap();
    let version = flights.write(b"LH400", b"on time").await.unwrap();
    let found = flights.read(b"LH400").await.unwrap().unwrap();
    assert_eq!(
        (&found.value[..], found.version),
        (&b"on time"[..], version)
    );
    let newer = flights.write(b"LH400", b"delayed").await.unwrap();
    let swap = Reject::unless_version(version);
    let refused = flights.write_with(b"LH400", b"boarding", swap).await;
    let version = Some(newer);
    assert_eq!(refused, Err(Error::Rejected { version }));
    let create = flights.write_with(b"LH400", b"x", Reject::exists()).await;
    assert_eq!(create, Err(Error::Rejected { version }));
    let update = flights.write_with(b"LH401", b"x", Reject::absent()).await;
    assert_eq!(update, Err(Error::Rejected { version: None }));
    assert_eq!(flights.increment(b"seats", 5).await, Ok(5));
    assert_eq!(flights.increment(b"seats", -7).await, Ok(-2));
    let counter = flights.increment(b"LH400", 1).await;
    assert_eq!(counter, Err(Error::NotACounter));
    assert_eq!(
        flights.increment(b"seats", i64::MIN).await,
        Err(Error::Overflow)
    );
    assert_eq!(flights.remove(b"LH400").await, Ok(Some(newer)));
    assert_eq!(flights.remove(b"LH400").await, Ok(None));
    assert_eq!(flights.read(b"LH400").await, Ok(None));
}

#[tokio::test]
async fn tables_are_made_found_listed_and_dropped() {
    let cluster = Cluster::start(2);
    let client = cluster.client().await;
    assert_eq!(client.table("t").await.unwrap_err(), Error::TableNotFound);
    let table = client.create_table("t").await.unwrap();
    let again = client.create_table("t").await.unwrap();
    let found = client.table("t").await.unwrap();
    assert_eq!((table.id(), table.id()), (again.id(), found.id()));
    let names: Vec<_> = (client.tables().await.unwrap().into_iter())
        .map(|table| (table.name, table.tablets))
        .collect();
    assert_eq!(names, [("t".to_owned(), 2)]);
    client.drop_table("t").await.unwrap();
    assert_eq!(client.drop_table("t").await, Err(Error::TableNotFound));
    assert_eq!(table.read(b"k").await, Err(Error::TableNotFound));
    let long = "n".repeat(256);
    for name in ["", &long] {
        let refused = client.create_table(name).await.unwrap_err();
        assert_eq!(refused, Error::InvalidTableName);
    }
}

#[tokio::test]
async fn many_results_are_in_the_order_of_the_arguments() {
    let cluster = Cluster::start(3);
    let client = cluster.client().await;
    let table = client.create_table("t").await.unwrap();
    let count = 10_000;
    let items: Vec<_> = (0..count)
        .map(|n| (format!("key-{n}"), format!("value-{n}")))
        .collect();
    let written = table.multi_write(&items).await;
    let versions: Vec<Version> = written.into_iter().map(Result::unwrap).collect();
    assert_eq!(versions.len(), count);
    let mut keys: Vec<_> = items.iter().map(|(key, _)| key.clone()).collect();
    keys.reverse();
    keys.insert(5, "absent".to_owned());
    let mut found = table.multi_read(&keys).await.unwrap();
    assert_eq!(found.remove(5), None);
    for (n, object) in found.into_iter().rev().enumerate() {
        let object = object.unwrap();
        let expected = (format!("value-{n}").into_bytes(), versions[n]);
        assert_eq!((object.value.to_vec(), object.version), expected);
    }
    let removed = table.multi_remove(&["key-3", "absent", "key-1"]).await;
    let expected = [Some(versions[3]), None, Some(versions[1])].map(Ok);
    assert_eq!(removed, expected);
    let sizes = cluster.envelopes();
    assert!(sizes.iter().any(|size| *size > 500), "batched: {sizes:?}");
}

#[tokio::test]
async fn a_result_of_many_may_be_an_error_of_its_own() {
    let cluster = Cluster::start(1);
    let client = cluster.client().await;
    let table = client.create_table("t").await.unwrap();
    let long = vec![b'k'; MAX_KEY + 1];
    let results = table
        .multi_write(&[(&b"a"[..], b"1"), (&long, b"2"), (b"", b"3"), (b"b", b"4")])
        .await;
    assert!(results[0].is_ok() && results[3].is_ok());
    assert_eq!(results[1], Err(Error::TooLarge));
    assert_eq!(results[2], Err(Error::EmptyKey));
    let none: Vec<&[u8]> = Vec::new();
    assert_eq!(table.multi_read(&none).await, Ok(Vec::new()));
    assert_eq!(table.multi_read(&[&long]).await, Err(Error::TooLarge));
}

#[tokio::test]
async fn largest_objects_go_through() {
    let cluster = Cluster::start(1);
    let client = cluster.client().await;
    let table = client.create_table("t").await.unwrap();
    let key = vec![b'k'; MAX_KEY];
    let value: Vec<u8> = (0..MAX_VALUE).map(|n| n as u8).collect();
    let items: Vec<_> = (0..20_u8).map(|n| (vec![n], value.clone())).collect();
    table.write(&key, &value).await.unwrap();
    let results = table.multi_write(&items).await;
    assert!(results.iter().all(Result::is_ok));
    let keys: Vec<_> = items.iter().map(|(key, _)| key).collect();
    let found = table.multi_read(&keys).await.unwrap();
    assert!(
        found
            .iter()
            .all(|object| object.as_ref().unwrap().value == value)
    );
    assert_eq!(table.read(&key).await.unwrap().unwrap().value, value);
    let huge = vec![0; MAX_VALUE + 1];
    assert_eq!(table.write(b"k", &huge).await, Err(Error::TooLarge));
}

#[tokio::test]
async fn a_scan_brings_every_object_once() {
    let cluster = Cluster::start(3);
    let client = cluster.client().await;
    let table = client.create_table("t").await.unwrap();
    let other = client.create_table("other").await.unwrap();
    other.write("not this", "x").await.unwrap();
    let items: Vec<_> = (0..5_000)
        .map(|n| (format!("key-{n:05}"), format!("{n}")))
        .collect();
    table.multi_write(&items).await;
    let mut scan = table.scan();
    let mut found = Vec::new();
    while let Some(entry) = scan.next().await {
        let (key, object) = entry.unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        found.push((text(&key), text(&object.value)));
    }
    found.sort();
    assert_eq!(found, items);
    assert!(scan.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tasks_share_a_client() {
    let cluster = Cluster::start(2);
    for connections in [1, 2] {
        let client = Client::builder()
            .coordinators([&cluster.coordinator])
            .connections(connections)
            .connect()
            .await
            .unwrap();
        let table = client.create_table("t").await.unwrap();
        let tasks: Vec<_> = (0..32)
            .map(|task| {
                let table = table.clone();
                tokio::spawn(async move {
                    for n in 0..100_u32 {
                        let key = format!("{task}-{n}");
                        let version = table.write(&key, n.to_le_bytes()).await.unwrap();
                        let object = table.read(&key).await.unwrap().unwrap();
                        assert_eq!(object.value[..], n.to_le_bytes());
                        assert_eq!(object.version, version);
                        table.increment("sum", 1).await.unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let expected = 3_200 * connections as i64;
        assert_eq!(table.increment("sum", 0).await, Ok(expected));
    }
}

#[tokio::test]
async fn tasks_of_one_thread_share_envelopes() {
    let cluster = Cluster::start(1);
    let client = cluster.client().await;
    let table = client.create_table("t").await.unwrap();
    cluster.envelopes();
    let tasks: Vec<_> = (0..64)
        .map(|task| {
            let table = table.clone();
            tokio::spawn(async move {
                for _ in 0..50 {
                    table.increment(format!("{task}"), 1).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let envelopes = cluster.envelopes();
    assert_eq!(envelopes.iter().sum::<usize>(), 64 * 50);
    assert!(
        envelopes.len() < 64 * 50 / 4,
        "{} envelopes",
        envelopes.len()
    );
}

#[tokio::test]
async fn every_poll_mode_works() {
    for mode in [PollMode::Adaptive, PollMode::Always, PollMode::Never] {
        let cluster = Cluster::start_with(2, None, mode);
        let client = Client::builder()
            .coordinators([&cluster.coordinator])
            .poll_mode(mode)
            .connect()
            .await
            .unwrap();
        let table = client.create_table("t").await.unwrap();
        for n in 0..50_u8 {
            table.write([n], [n]).await.unwrap();
        }
        for n in 0..50_u8 {
            assert_eq!(table.read([n]).await.unwrap().unwrap().value[..], [n]);
        }
    }
}

#[tokio::test]
async fn a_key_file_opens_the_cluster_and_its_lack_does_not() {
    let contents = b"a secret of sixteen bytes and more\n";
    let path = std::env::temp_dir().join(format!("ramkeep-client-key-{}", std::process::id()));
    std::fs::write(&path, contents).unwrap();
    let key = SharedKey::from_file_contents(contents);
    let cluster = Cluster::start_with(1, key, PollMode::Adaptive);
    let builder = Client::builder().coordinators([&cluster.coordinator]);
    let client = builder.clone().key_file(&path).connect().await.unwrap();
    let table = client.create_table("t").await.unwrap();
    table.write(b"k", b"v").await.unwrap();
    // Refused at once, not at the deadline.
    let refused = builder.clone().deadline(Duration::from_secs(600)).connect();
    let refused = refused.await.unwrap_err();
    assert!(matches!(refused, Error::Unavailable { .. }), "{refused}");
    std::fs::write(&path, b"short").unwrap();
    let refused = builder.key_file(&path).connect().await.unwrap_err();
    assert!(matches!(refused, Error::KeyFile(_)), "{refused}");
    std::fs::remove_file(&path).unwrap();
}

#[tokio::test]
async fn more_operations_than_may_be_under_way_wait_for_their_turn() {
    let cluster = Cluster::start(1);
    let client = cluster.client().await;
    let table = client.create_table("t").await.unwrap();
    let keys: Vec<_> = (0..4_096_u32).map(u32::to_le_bytes).collect();
    let calls = MAX_PENDING / keys.len() + 3;
    let tasks: Vec<_> = (0..calls)
        .map(|_| {
            let (table, keys) = (table.clone(), keys.clone());
            tokio::spawn(async move { table.multi_read(&keys).await.unwrap().len() })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap(), keys.len());
    }
}
