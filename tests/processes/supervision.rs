//! `up` and its children: none survives it, and it survives any of them.

use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;

use rustix::process::Signal;

use crate::harness::{Cluster, arguments_of, await_that, is_gone, ramkeep, run, send};

#[test]
fn no_child_survives_a_killed_parent_and_the_next_one_removes_its_files() {
    let mut cluster = Cluster::start(&["--servers", "2", "--backups", "1"]);
    assert!(cluster.members.iter().all(|member| !is_gone(member.pid)));
    let left = directory_of(cluster.of_role("server")[0].pid);
    cluster.end(Signal::KILL);
    for member in &cluster.members {
        await_that("the child is gone", || is_gone(member.pid));
    }
    let _next = Cluster::start(&["--servers", "1", "--replicas", "0"]);
    assert!(!Path::new(&left).exists());
}

#[test]
fn a_stopped_parent_takes_its_children_and_its_files_along() {
    let mut cluster = Cluster::start(&["--servers", "2", "--replicas", "1"]);
    let data = directory_of(cluster.of_role("server")[0].pid);
    assert!(Path::new(&data).is_dir());
    cluster.end(Signal::INT);
    assert!(cluster.up.wait().unwrap().success());
    assert!(cluster.members.iter().all(|member| is_gone(member.pid)));
    assert!(!Path::new(&data).exists());
}

#[test]
fn the_end_of_a_child_is_told_and_the_others_go_on() {
    let cluster = Cluster::start(&["--servers", "1", "--backups", "3"]);
    cluster.json(&["table", "create", "t"]);
    let victim = cluster.of_role("backup")[0].clone();
    victim.kill();
    let event = cluster.next_event();
    assert_eq!(event["event"], "exited");
    assert_eq!(event["role"], "backup");
    assert_eq!(event["id"], victim.id);
    assert_eq!(event["pid"], victim.pid);
    assert_eq!(event["status"], "signal 9");
    cluster.json(&["put", "t", "k", "v"]);
}

#[test]
fn a_process_that_is_told_to_stop_ends_well() {
    let cluster = Cluster::start(&["--servers", "1", "--backups", "1", "--replicas", "0"]);
    for role in ["backup", "server", "coordinator"] {
        let member = cluster.of_role(role)[0];
        send(member.pid, Signal::TERM);
        let event = cluster.next_event();
        assert_eq!(event["id"], member.id);
        assert_eq!(event["status"], "exit code 0");
    }
}

#[test]
fn a_cluster_with_a_directory_starts_again_with_new_servers() {
    let directory = tempfile::tempdir().unwrap();
    let flags = [
        "--servers",
        "2",
        "--replicas",
        "1",
        "--data",
        directory.path().to_str().unwrap(),
    ];
    let mut first = Cluster::start(&flags);
    first.json(&["table", "create", "t"]);
    first.end(Signal::TERM);
    let again = Cluster::start(&flags);
    let newest = first.of_role("server").iter().map(|member| member.id).max();
    assert!(
        again
            .of_role("server")
            .iter()
            .all(|member| Some(member.id) > newest)
    );
    let tables = again.json(&["table", "list"]);
    assert_eq!(tables["tables"][0]["name"], "t");
    let status = again.json(&["status"]);
    assert!(
        status["ballot"].as_u64() > Some(1),
        "a new start leads under a new ballot"
    );
}

#[test]
fn a_second_cluster_on_the_same_port_says_that_it_is_taken() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    run(&["up", "--port", &port]).assert_failed(1, &format!("port {port} is taken"));
}

#[test]
fn a_directory_in_use_is_not_shared_by_a_second_cluster() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().to_str().unwrap();
    let flags = ["--servers", "1", "--replicas", "0", "--data", data];
    let _first = Cluster::start(&flags);
    let second = run(&[&["up", "--port", "0", "--memory", "64MiB"][..], &flags].concat());
    assert_eq!(second.code(), 1, "{second:?}");
    assert!(second.stderr().contains("in use"), "{second:?}");
}

#[test]
fn a_process_without_its_parent_ends() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = ramkeep();
    command.args([
        "coordinator",
        "--id",
        "1",
        "--listen",
        "127.0.0.1:0",
        "--data",
    ]);
    command
        .arg(directory.path())
        .args(["--parent", "1073741823"]);
    let status = command
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(1));
}

/// The directory that a server was given.
fn directory_of(pid: i32) -> String {
    let arguments = arguments_of(pid);
    let at = arguments
        .iter()
        .position(|argument| argument == "--data")
        .unwrap();
    arguments[at + 1].clone()
}
