//! What is left of a cluster when every process of it was killed: frames and journals.

use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;

use crate::backups::restarted;
use crate::harness::{Apart, Cluster, Member, arguments_of, await_that, is_gone, send};

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

/// Rows with keys and long values, of which a backup has some and another has others.
fn rows(count: usize) -> String {
    let row = |number| {
        let filler = "x".repeat(120_000);
        format!("{{\"k\":\"key {number}\",\"v\":\"{number} {filler}\"}}\n")
    };
    (0..count).map(row).collect()
}

/// The command's words, without the program's name.
fn words(command: &Value) -> Vec<&str> {
    command.as_str().unwrap().split(' ').skip(1).collect()
}

#[test]
fn what_is_lost_keeps_tablets_down_until_an_operator_names_it_and_the_rest_is_intact() {
    const ROWS: usize = 1_000;
    let data = tempfile::tempdir().unwrap();
    let cluster = up(data.path(), &["--replicas", "1"]);
    let file = data.path().join("rows.jsonl");
    std::fs::write(&file, rows(ROWS)).unwrap();
    let file = file.to_str().unwrap();
    cluster.json(&["load", file, "--table", "t", "--key", "k"]);
    let tablets = cluster.json(&["status"])["tablets"].clone();
    let servers: Vec<Member> = cluster.of_role("server").into_iter().cloned().collect();

    // More than one, so more than the copies that there are, and with all that they held.
    let (dead, left) = servers.split_at(3);
    let commands: Vec<_> = dead.iter().map(|one| arguments_of(one.pid)).collect();
    dead.iter().for_each(|one| send(one.pid, Signal::KILL));
    await_that("all are gone", || dead.iter().all(|one| is_gone(one.pid)));
    for command in &commands {
        let at = command.iter().position(|word| word == "--data").unwrap();
        std::fs::remove_dir_all(&command[at + 1]).unwrap();
    }
    let begin = |command: &Vec<String>| {
        let command = restarted(command);
        Apart::start(&command.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let _new: Vec<Apart> = commands.iter().map(begin).collect();

    let stuck = || {
        let recoveries = cluster.json(&["recovery", "list"])["recoveries"].clone();
        let recoveries = recoveries.as_array().unwrap().clone();
        let (stuck, others): (Vec<_>, Vec<_>) = recoveries
            .into_iter()
            .partition(|one| one["missing"].is_object());
        others.is_empty().then_some(stuck)
    };
    let mut found = Vec::new();
    await_that("what can be recovered is", || {
        found = stuck().unwrap_or_default();
        !found.is_empty()
    });
    let gone: Vec<u64> = dead.iter().map(|one| one.id).collect();
    for one in &found {
        assert_eq!(one["stuck"], true, "{one}");
        let (master, missing) = (one["master"].as_u64().unwrap(), &one["missing"]);
        let others: Vec<u64> = gone.iter().copied().filter(|id| *id != master).collect();
        assert_eq!(missing["dead"], serde_json::json!(others), "{one}");
        let right = words(&missing["accept"]);
        // One server less, and one segment more.
        let mut less = right.clone();
        let at = less.iter().position(|word| *word == "--dead").unwrap();
        less[at + 1] = less[at + 1].split(',').next().unwrap();
        let refused = "this is not what is missing";
        cluster.run(&less).assert_failed(1, refused);
        let more = [&right[..], &["--segments", "99999"]].concat();
        cluster.run(&more).assert_failed(1, refused);
        assert_eq!(cluster.json(&["status"])["losses"], serde_json::json!([]));
    }
    for one in &found {
        let accepted = cluster.json(&words(&one["missing"]["accept"]));
        assert_eq!(accepted["master"], one["master"]);
    }
    await_that("what is left is served", || {
        let status = cluster.json(&["status"]);
        let tablets = status["tablets"].as_array().unwrap();
        tablets.iter().all(|tablet| tablet["state"] == "normal")
    });
    let status = cluster.json(&["status"]);
    assert_eq!(status["losses"].as_array().unwrap().len(), found.len());

    let rows = cluster.run(&["scan", "t", "--json"]).stdout();
    let objects: Vec<Value> = rows
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    for object in &objects {
        let key = object["key"]
            .as_str()
            .unwrap()
            .strip_prefix("key ")
            .unwrap();
        let value = object["value"].as_str().unwrap();
        assert!(value.contains(&format!("\"v\":\"{key} xxx")), "{key}");
    }
    assert!(objects.len() < ROWS, "three logs had two copies at most");
    let lives = left[0].id;
    let own = tablets
        .as_array()
        .unwrap()
        .iter()
        .filter(|tablet| tablet["owner"] == lives);
    assert!(
        own.count() > 0 && objects.len() > ROWS / 8,
        "{}",
        objects.len()
    );
    cluster.json(&["put", "t", "key 1", "anew"]);
    assert_eq!(cluster.json(&["get", "t", "key 1"])["value"], "anew");
}
