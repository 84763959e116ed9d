//! What is left of a cluster when every process of it was killed: frames and journals.

use std::path::Path;

use rustix::process::Signal;

use crate::harness::{Cluster, await_that, is_gone, send};

/// `up` with files that outlive it.
fn up(data: &Path, flags: &[&str]) -> Cluster {
    let data = ["--data", data.to_str().unwrap()];
    Cluster::start(&[&data, flags].concat())
}

/// Kills `up` and all that it has started, at once.
fn kill_everything(mut cluster: Cluster) {
    let up = cluster.up.id().cast_signed();
    let mut all: Vec<i32> = cluster.members.iter().map(|member| member.pid).collect();
    all.push(up);
    all.iter().for_each(|pid| send(*pid, Signal::KILL));
    cluster.up.wait().unwrap();
    await_that("all are gone", || all.iter().all(|pid| is_gone(*pid)));
}

#[test]
fn a_cluster_started_again_with_the_files_of_a_killed_one_has_all_that_it_had() {
    let data = tempfile::tempdir().unwrap();
    let cluster = up(data.path(), &[]);
    cluster.json(&["table", "create", "t"]);
    for key in ["a", "b", "c"] {
        cluster.json(&["put", "t", key, "1"]);
    }
    let changed = cluster.json(&["put", "t", "a", "2"])["version"].clone();
    cluster.json(&["rm", "t", "b"]);
    cluster.json(&["incr", "t", "n", "7"]);
    let old: Vec<u64> = cluster.of_role("server").iter().map(|s| s.id).collect();
    kill_everything(cluster);

    // On other ports than before: an address is not an identity.
    let again = up(data.path(), &[]);
    let found = again.json(&["get", "t", "a"]);
    assert_eq!(
        (&found["value"], &found["version"]),
        (&"2".into(), &changed)
    );
    assert_eq!(again.json(&["get", "t", "c"])["value"], "1");
    again.run(&["get", "t", "b"]).assert_failed(1, "no key b");
    assert_eq!(again.json(&["incr", "t", "n", "1"])["value"], 8);
    let newer = again.json(&["put", "t", "b", "3"])["version"].as_u64();
    assert!(newer > Some(1), "{newer:?}: its versions go on");

    let status = again.json(&["status"]);
    let servers = status["servers"].as_array().unwrap();
    for server in servers {
        let id = server["id"].as_u64().unwrap();
        let (state, replaces) = (&server["state"], server["replaces"].as_u64());
        if old.contains(&id) {
            assert_eq!((state, replaces), (&"crashed".into(), None), "{server}");
        } else {
            assert_eq!(state, "up", "{server}");
            assert!(old.contains(&replaces.unwrap()), "{server}");
        }
    }
    await_that("nothing of the old servers is kept", || {
        let status = again.json(&["status"]);
        let servers = status["servers"].as_array().unwrap();
        let frames = servers.iter().filter(|server| server["frames"].is_object());
        frames.clone().count() == old.len()
            && frames.clone().all(|one| one["frames"]["inherited"] == 0)
    });
}
