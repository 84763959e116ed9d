//! Copied directories, lost coordinators, and who is of which cluster.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::harness::{Apart, Cluster, Done, arguments_of, await_that, run};

/// A cluster that keeps its files, with a value under a key.
fn cluster(data: &Path) -> Cluster {
    let data = data.to_str().unwrap();
    let cluster = Cluster::start(&["--servers", "2", "--replicas", "1", "--data", data]);
    cluster.json(&["table", "create", "t"]);
    cluster.json(&["put", "t", "k", "v"]);
    cluster
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(copied.unwrap().success());
}

/// The flags that a process was started with, but for those that tie it to its `up`.
fn flags(pid: i32) -> Vec<String> {
    let mut all = arguments_of(pid).into_iter().skip(1);
    let mut flags = Vec::new();
    while let Some(flag) = all.next() {
        match flag.as_str() {
            "--json" | "--new-cluster" => {}
            "--parent" => drop(all.next()),
            _ => flags.push(flag),
        }
    }
    flags
}

fn start(flags: &[String]) -> Apart {
    Apart::start(&flags.iter().map(String::as_str).collect::<Vec<_>>())
}

/// How often a text is in a file.
fn count(file: &Path, text: &str) -> usize {
    std::fs::read_to_string(file)
        .unwrap_or_default()
        .matches(text)
        .count()
}

/// What a process wrote, shown should the test fail.
struct Log(PathBuf);

impl Drop for Log {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(&self.0).unwrap_or_default());
        }
    }
}

#[test]
fn a_copy_of_a_whole_cluster_refuses_to_start_beside_its_original() {
    let directory = tempfile::tempdir().unwrap();
    let (original, copied) = (directory.path().join("d"), directory.path().join("d2"));
    let running = cluster(&original);
    copy(&original, &copied);
    let data = copied.to_str().unwrap();
    let flags = ["--servers", "2", "--replicas", "1", "--data", data];
    let beside = run(&[&["up", "--port", "0", "--memory", "64MiB"][..], &flags].concat());
    assert_eq!(beside.code(), 1, "{beside:?}");
    assert!(
        beside.stderr().contains("this is a copy of it"),
        "{beside:?}"
    );
    assert_eq!(running.json(&["get", "t", "k"])["value"], "v");
    running.json(&["put", "t", "k", "w"]);
    // Alone it goes on, from what it was a copy of.
    drop(running);
    let alone = Cluster::start(&flags);
    assert_eq!(alone.json(&["get", "t", "k"])["value"], "v");
}

#[test]
fn a_copy_of_a_servers_directory_is_refused_while_the_original_runs() {
    let directory = tempfile::tempdir().unwrap();
    let (original, copied) = (directory.path().join("d"), directory.path().join("s"));
    let mut running = cluster(&original);
    copy(&original.join("server-1"), &copied);
    let server = [
        "server",
        "--listen",
        "127.0.0.1:0",
        "--memory",
        "64MiB",
        "--frames",
        "64",
        "--coordinators",
        &running.coordinators,
        "--data",
        copied.to_str().unwrap(),
    ];
    let refused = run(&server);
    assert_ne!(refused.code(), 0, "{refused:?}");
    let address = &running.of_role("server")[0].address;
    assert!(refused.stderr().contains(address.as_str()), "{refused:?}");
    let status = running.json(&["status"]);
    let up = status["servers"].as_array().unwrap().iter();
    assert_eq!(
        up.filter(|server| server["state"] == "up").count(),
        2,
        "{status}"
    );
    assert_eq!(running.json(&["get", "t", "k"])["value"], "v");
    running.end(Signal::TERM);
}

#[test]
fn without_their_directories_the_coordinators_make_no_new_cluster_and_servers_say_whose_they_met() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("d");
    let running = cluster(&data);
    let log = Log(directory.path().join("log"));
    let spare = directory.path().join("spare");
    let to_log = Stdio::from(File::create(&log.0).unwrap());
    let server = ["server", "--listen", "127.0.0.1:0", "--memory", "64MiB"];
    let further = ["--data", spare.to_str().unwrap(), "--coordinators"];
    let joining = [&server[..], &further, &[&running.coordinators]].concat();
    let server = Apart::start_logging(&joining, to_log);
    let coordinators = running.of_role("coordinator");
    let flags: Vec<_> = coordinators.iter().map(|one| flags(one.pid)).collect();
    coordinators.iter().for_each(|one| one.kill());
    for number in 1..=3 {
        std::fs::remove_dir_all(data.join(format!("coordinator-{number}"))).unwrap();
    }
    let empty: Vec<Apart> = flags.iter().map(|flags| start(flags)).collect();
    let status = running.run(&["status"]);
    assert_ne!(status.code(), 0);
    assert!(status.stderr().contains("--new-cluster"), "{status:?}");
    drop(empty);
    let new: Vec<Apart> = flags
        .iter()
        .map(|flags| start(&[&flags[..], &["--new-cluster".to_owned()]].concat()))
        .collect();
    let met = "This server takes no part in that one";
    await_that("the server says so", || count(&log.0, met) > 0);
    let status = running.json(&["status"]);
    assert_eq!(status["servers"].as_array().unwrap().len(), 0, "{status}");
    assert_eq!(count(&log.0, met), 1);
    drop((new, server));
}

/// The last coordinator's flags, once the others are lost and it is stopped.
fn last_of_three(running: &Cluster, data: &Path) -> Vec<String> {
    let coordinators = running.of_role("coordinator");
    let flags = flags(coordinators[0].pid);
    for (number, lost) in (1..).zip(&coordinators).skip(1) {
        lost.kill();
        std::fs::remove_dir_all(data.join(format!("coordinator-{number}"))).unwrap();
    }
    await_that("it says what leads out", || {
        let status = running.run(&["status"]);
        status.code() != 0 && status.stderr().contains("ramkeep coordinator rescue")
    });
    coordinators[0].kill();
    flags
}

fn rescue(data: &Path, further: &[&str]) -> Done {
    let directory = data.join("coordinator-1");
    let line = [
        "coordinator",
        "rescue",
        "--json",
        "--data",
        directory.to_str().unwrap(),
    ];
    run(&[&line[..], further].concat())
}

#[test]
fn the_last_coordinators_directory_is_gone_on_from_once_it_is_confirmed() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("d");
    let running = cluster(&data);
    let flags = last_of_three(&running, &data);
    let asked = rescue(&data, &[]);
    assert_eq!(asked.code(), 2, "{asked:?}");
    let report: serde_json::Value = serde_json::from_str(&asked.stdout()).unwrap();
    let id = report["cluster"].as_str().unwrap();
    assert!(asked.stderr().contains(id), "{asked:?}");
    assert_eq!(report["lost_coordinators"].as_array().unwrap().len(), 2);
    let other = "0".repeat(id.len());
    assert_eq!(rescue(&data, &["--confirm", &other]).code(), 2);
    assert_eq!(rescue(&data, &["--confirm", id]).code(), 0);
    let _last = start(&flags);
    await_that("it leads", || running.run(&["status"]).code() == 0);
    assert_eq!(running.json(&["get", "t", "k"])["value"], "v");
    running.json(&["put", "t", "k", "w"]);
    running.json(&["table", "create", "another"]);
}

#[test]
fn a_rescue_makes_a_whole_group_again() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("d");
    let running = cluster(&data);
    let all: Vec<_> = running
        .of_role("coordinator")
        .iter()
        .map(|one| flags(one.pid))
        .collect();
    last_of_three(&running, &data);
    let asked = rescue(&data, &[]);
    let report: serde_json::Value = serde_json::from_str(&asked.stdout()).unwrap();
    let id = report["cluster"].as_str().unwrap();
    let with: Vec<String> = (2..)
        .zip(&running.addresses[1..])
        .map(|(id, address)| {
            let directory = data.join(format!("coordinator-{id}"));
            format!("{id}={address}={}", directory.display())
        })
        .collect();
    let done = rescue(&data, &["--with", &with.join(","), "--confirm", id]);
    assert_eq!(done.code(), 0, "{done:?}");
    let group: Vec<Apart> = all.iter().map(|flags| start(flags)).collect();
    await_that("one leads", || running.run(&["status"]).code() == 0);
    let status = running.json(&["status"]);
    assert_eq!(
        status["coordinators"].as_array().unwrap().len(),
        3,
        "{status}"
    );
    assert_eq!(running.json(&["get", "t", "k"])["value"], "v");
    drop(group);
}

/// The same flags, with these values instead.
fn with(flags: &[String], values: &[(&str, String)]) -> Vec<String> {
    let mut flags = flags.to_vec();
    for (flag, value) in values {
        let at = flags.iter().position(|one| one == flag).unwrap();
        flags[at + 1].clone_from(value);
    }
    flags
}

/// The value of a flag.
fn value_of(flags: &[String], flag: &str) -> String {
    let at = flags.iter().position(|one| one == flag).unwrap();
    flags[at + 1].clone()
}

/// An address at which nobody listens now.
fn free_address() -> String {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    free.local_addr().unwrap().to_string()
}

#[test]
fn a_moved_coordinator_is_found_by_all_once_one_of_them_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("d");
    let running = cluster(&data);
    let coordinators = running.of_role("coordinator");
    let flags: Vec<_> = coordinators.iter().map(|one| flags(one.pid)).collect();
    // Two of three stop, and one of those goes on elsewhere.
    coordinators[1].kill();
    coordinators[2].kill();
    let (from, to) = (running.addresses[2].clone(), free_address());
    let home = directory.path().join("moved");
    std::fs::rename(data.join("coordinator-3"), &home).unwrap();
    let peers = value_of(&flags[0], "--peers").replace(&format!("3={from}"), &format!("3={to}"));
    let changed = [
        ("--listen", to.clone()),
        ("--data", home.to_str().unwrap().to_owned()),
        ("--peers", peers.clone()),
    ];
    let _moved = start(&with(&flags[2], &changed));
    let remedy = format!("(coordinator 1) again with 3={to}");
    await_that("it says from where it calls", || {
        let status = running.run(&["status", "--json"]);
        if status.code() == 0 {
            return false;
        }
        let told: serde_json::Value = serde_json::from_str(&status.stderr()).unwrap();
        assert_eq!(told["error"], "no_cluster", "{told}");
        told["message"].as_str().unwrap().contains(&remedy)
    });
    coordinators[0].kill();
    let mut told = start(&with(&flags[0], &[("--peers", peers)]));
    let recorded = |running: &Cluster| {
        let status = running.run(&["status", "--json"]);
        status.code() == 0 && status.stdout().contains(&to) && !status.stdout().contains(&from)
    };
    await_that("the group has its address", || recorded(&running));
    assert_eq!(running.json(&["get", "t", "k"])["value"], "v");
    // Who was told nothing finds it, too; so do servers and clients.
    let _untold = start(&flags[1]);
    drop(told.process.kill());
    drop(told.process.wait());
    await_that("the two others go on", || recorded(&running));
    running.json(&["put", "t", "k", "w"]);
    running.json(&["table", "create", "another"]);
    assert_eq!(running.json(&["get", "t", "k"])["value"], "w");
}

#[test]
fn a_process_of_one_role_is_refused_with_a_directory_of_the_other_and_leaves_it_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("d");
    let mut running = cluster(&data);
    let coordinator = flags(running.of_role("coordinator")[0].pid);
    let server = flags(running.of_role("server")[0].pid);
    running.end(Signal::TERM);
    let files = |role: &str| {
        let mut names: Vec<_> = std::fs::read_dir(data.join(role))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    for (flags, of, whose) in [
        (&coordinator, "server-1", "the directory of a server"),
        (&server, "coordinator-1", "the directory of a coordinator"),
    ] {
        let before = files(of);
        let place = data.join(of).to_str().unwrap().to_owned();
        let line = with(flags, &[("--data", place)]);
        let refused = run(&line.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(refused.code(), 1, "{refused:?}");
        assert!(refused.stderr().contains(whose), "{refused:?}");
        assert_eq!(files(of), before);
    }
    let data = data.to_str().unwrap();
    let again = Cluster::start(&["--servers", "2", "--replicas", "1", "--data", data]);
    assert_eq!(again.json(&["get", "t", "k"])["value"], "v");
}
