//! The command line without a cluster: usage, settings, failures.

use std::net::TcpListener;

use crate::harness::{Done, ramkeep, run};

#[test]
fn wrong_usage_is_exit_code_2() {
    for arguments in [
        &["--no-such-flag"][..],
        &["no-such-command"],
        &[],
        &["get", "table"],
        &["put", "t", "k", "v", "--if-absent", "--if-version", "3"],
        &["up", "--memory", "64 bananas"],
        &["up", "--coordinators", "2"],
        &["up", "--servers", "2", "--replicas", "2"],
        &["server", "--listen", "nowhere", "--data", "unused"],
    ] {
        let done = run(arguments);
        assert_eq!(done.code(), 2, "{arguments:?}: {done:?}");
        assert!(
            done.0.stdout.is_empty() && !done.0.stderr.is_empty(),
            "{done:?}"
        );
    }
}

#[test]
fn every_command_explains_itself() {
    for command in [
        "up",
        "coordinator",
        "server",
        "status",
        "table",
        "put",
        "get",
        "rm",
        "incr",
        "scan",
    ] {
        let done = run(&[command, "--help"]);
        assert_eq!(done.code(), 0, "{done:?}");
        assert!(done.stdout().contains("Usage: ramkeep"), "{done:?}");
    }
}

#[test]
fn without_a_cluster_a_command_says_so_in_one_line() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    run(&["status", "--coordinators", &address]).assert_failed(1, &address);
    let get = [
        "get",
        "t",
        "k",
        "--coordinators",
        &address,
        "--deadline",
        "300ms",
    ];
    run(&get).assert_failed(1, &address);
}

/// The address in a failure shows which setting won.
#[test]
fn a_flag_wins_over_a_variable_over_the_file_over_the_default() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ramkeep.toml");
    let config = file.to_str().unwrap();
    std::fs::write(
        &file,
        "coordinators = ['127.0.0.1:2']\ndeadline = '200ms'\n[status]\nkey-file = '/nowhere'\n",
    )
    .unwrap();

    run(&["status", "--config", config]).assert_failed(1, "/nowhere");
    run(&["table", "list", "--config", config]).assert_failed(1, "127.0.0.1:2");
    let with_variable = |flags: &[&str]| {
        let mut command = ramkeep();
        command
            .env("RAMKEEP_CONFIG", config)
            .env("RAMKEEP_COORDINATORS", "127.0.0.1:3");
        Done(
            command
                .args(["table", "list"])
                .args(flags)
                .output()
                .unwrap(),
        )
    };
    with_variable(&[]).assert_failed(1, "127.0.0.1:3");
    with_variable(&["--coordinators", "127.0.0.1:4"]).assert_failed(1, "127.0.0.1:4");
}

#[test]
fn a_configuration_file_with_a_slip_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ramkeep.toml");
    let with = |text: &str| {
        std::fs::write(&file, text).unwrap();
        run(&["status", "--config", file.to_str().unwrap()])
    };
    with("coordinatos = '127.0.0.1:2'").assert_failed(2, "coordinatos");
    with("[status]\nmemory = '1GiB'").assert_failed(2, "memory");
    with("= nonsense").assert_failed(1, "TOML");
    with("deadline = 'soon'").assert_failed(2, "deadline");
    run(&["status", "--config", "/no/such/file"]).assert_failed(1, "/no/such/file");
}

#[test]
fn without_a_key_a_process_refuses_to_be_reached_from_other_machines() {
    let directory = tempfile::tempdir().unwrap();
    let of = |role: &str| directory.path().join(role).to_str().unwrap().to_owned();
    let (coordinator, server) = (of("coordinator"), of("server"));
    for arguments in [
        &[
            "coordinator",
            "--id",
            "1",
            "--listen",
            "0.0.0.0:0",
            "--data",
            &coordinator,
        ][..],
        &[
            "server",
            "--listen",
            "0.0.0.0:0",
            "--data",
            &server,
            "--memory",
            "64MiB",
        ],
    ] {
        run(arguments).assert_failed(1, "key file");
    }
}

#[test]
fn with_json_a_failure_is_an_object_on_standard_error() {
    for (arguments, code, error) in [
        (
            &["status", "--json", "--coordinators", "127.0.0.1:1"][..],
            1,
            "no_cluster",
        ),
        (
            &["get", "t", "k", "--json", "--coordinators", "127.0.0.1:1"],
            1,
            "no_cluster",
        ),
        (
            &["table", "list", "--json", "--config", "/no/such/file"],
            1,
            "failed",
        ),
        (&["status", "--json", "--nonsense"], 2, "usage"),
    ] {
        let failed = run(arguments);
        failed.assert_failed(code, "");
        let told: serde_json::Value = serde_json::from_str(&failed.stderr()).unwrap();
        assert_eq!(told["error"], error, "{told}");
        assert!(!told["message"].as_str().unwrap().is_empty());
    }
}
