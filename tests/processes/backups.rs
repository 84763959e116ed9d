//! Losing a backup process loses nothing, and a backup that comes back has what it had.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ramkeep_client::Client;
use ramkeep_rpc::{Caller, Identity};
use ramkeep_wire::backup::{BackupRequest, BackupResponse, ReplicaInfo};
use ramkeep_wire::envelope::Kind;
use ramkeep_wire::{Party, SegmentId, ServerId, postcards};

use crate::harness::{Apart, Cluster, Member, arguments_of, await_that};

const BEFORE: u32 = 300;
const AFTER: u32 = 700;

#[tokio::test]
async fn killing_one_backup_during_writes_fails_none_and_loses_none() {
    let cluster = Cluster::start(&["--servers", "1", "--backups", "3", "--replicas", "2"]);
    let client = Client::connect(&cluster.addresses).await.unwrap();
    let table = client.create_table("t").await.unwrap();
    let mut acknowledged = BTreeMap::new();
    for number in 0..BEFORE + AFTER {
        if number == BEFORE {
            cluster.of_role("backup")[1].kill();
        }
        let (key, value) = (format!("key {}", number % 500), format!("value {number}"));
        table.write(key.as_bytes(), value.as_bytes()).await.unwrap();
        acknowledged.insert(key, value);
    }
    for (key, value) in &acknowledged {
        let object = table.read(key.as_bytes()).await.unwrap().unwrap();
        assert_eq!(&object.value[..], value.as_bytes());
    }
}

#[tokio::test]
async fn a_backup_that_restarts_with_its_directory_still_has_its_replicas() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().to_str().unwrap();
    let flags = [
        "--servers",
        "1",
        "--backups",
        "2",
        "--replicas",
        "2",
        "--data",
        data,
    ];
    let cluster = Cluster::start(&flags);
    let master = ServerId(cluster.of_role("server")[0].id);
    cluster.json(&["table", "create", "t"]);
    cluster.json(&["put", "t", "k", "v"]);

    let old = cluster.of_role("backup")[0].clone();
    let held = segments(&inventory(&old, master).await);
    assert!(!held.is_empty());
    let arguments = restarted(&arguments_of(old.pid));
    old.kill();
    let new = Apart::start(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(
        new.member.id > old.id,
        "a restarted process is a new server"
    );

    let found = inventory(&new.member, master).await;
    assert!(
        segments(&found).is_superset(&held),
        "{found:?} lacks some of {held:?}"
    );
    await_that("the restarted backup is in use and writes go on", || {
        cluster.run(&["put", "t", "k", "w"]).code() == 0
    });
    assert_eq!(cluster.json(&["get", "t", "k"])["value"], "w");
}

#[test]
fn with_too_few_backups_writes_are_refused_and_reads_go_on() {
    let flags = [
        "--servers",
        "1",
        "--backups",
        "2",
        "--replicas",
        "2",
        "--backup-wait",
        "300ms",
    ];
    let cluster = Cluster::start(&flags);
    cluster.json(&["table", "create", "t"]);
    cluster.json(&["put", "t", "k", "v"]);
    cluster.of_role("backup")[0].kill();
    let put = ["put", "t", "other", "w", "--deadline", "1s"];
    await_that("a write is refused for want of backups", || {
        let done = cluster.run(&put);
        done.assert_failed(1, "");
        done.stderr().contains("fewer backups")
    });
    assert_eq!(cluster.run(&["get", "t", "k"]).stdout(), "v\n");
}

fn segments(inventory: &[ReplicaInfo]) -> BTreeSet<SegmentId> {
    inventory.iter().map(|replica| replica.segment).collect()
}

/// What a backup holds of `master`, asked in that master's name: anybody else's question would
/// fence it.
async fn inventory(backup: &Member, master: ServerId) -> Vec<ReplicaInfo> {
    let identity = Identity::new(None).with_party(Party::server(master));
    let link = backup.link(&identity).await;
    let request = BackupRequest::Inventory {
        master,
        after: None,
    };
    let answer = Caller::new(link)
        .call(
            Kind::BackupRequest,
            &postcards::encode(&request),
            Duration::from_secs(5),
        )
        .await
        .unwrap();
    match postcards::decode(&answer).unwrap() {
        BackupResponse::Inventory(replicas) => replicas,
        other => panic!("{other:?}"),
    }
}

/// The arguments to start the process with again: on any port, without its parent.
pub(crate) fn restarted(arguments: &[String]) -> Vec<String> {
    let mut result = Vec::new();
    let mut rest = arguments.iter().skip(1);
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--json" => {}
            "--parent" => {
                rest.next();
            }
            "--listen" => {
                rest.next();
                result.extend(["--listen".to_owned(), "127.0.0.1:0".to_owned()]);
            }
            _ => result.push(argument.clone()),
        }
    }
    result
}
