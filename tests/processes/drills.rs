//! Small drills: every promise is kept while processes are killed, stopped and robbed of their
//! disks. Asserts on what was found, never on how long it took.

use serde_json::Value;

use crate::harness::run;

/// Runs a drill of little data that must pass.
fn drill(flags: &[&str]) -> Value {
    drill_of(&[flags, &["--size", "2MiB"]].concat())
}

/// Runs a drill that must pass.
fn drill_of(flags: &[&str]) -> Value {
    let done = run(&[&["drill"], flags, &["--json"]].concat());
    assert_eq!(done.code(), 0, "{done:?}");
    let report = done.json();
    assert_eq!(report["passed"], true);
    assert_none(
        &report,
        &[
            "lost_writes",
            "stale_reads",
            "wrong_values",
            "failed_operations",
        ],
    );
    assert_some(&report, &["objects", "operations", "acknowledged_writes"]);
    report
}

fn assert_none(report: &Value, fields: &[&str]) {
    for field in fields {
        assert_eq!(report[field], 0, "{field} of {report}");
    }
}

fn assert_some(report: &Value, fields: &[&str]) {
    for field in fields {
        assert!(report[field].as_u64() > Some(0), "{field} of {report}");
    }
}

const METADATA: [&str; 3] = ["metadata_applied_twice", "metadata_lost", "metadata_failed"];

#[test]
fn killing_the_leader_again_and_again_loses_no_command_and_runs_none_twice() {
    let report = drill(&["coordinator", "--kills", "3"]);
    assert_eq!(report["drill"], "coordinator");
    assert_eq!(report["kills"], 3);
    assert_none(&report, &METADATA);
    assert_some(&report, &["metadata_commands"]);
    let elected = ["p50", "p90", "max"].map(|name| report["elected_ms"][name].as_f64());
    assert!(elected[0] > Some(0.0) && elected.is_sorted(), "{report}");
}

#[test]
fn five_coordinators_outlive_their_leader_too() {
    let report = drill(&["coordinator", "--kills", "1", "--coordinators", "5"]);
    assert_none(&report, &METADATA);
}

#[test]
fn the_tablets_of_a_killed_server_are_served_by_others_with_nothing_lost() {
    let picture = std::env::temp_dir().join(format!("crash-{}.svg", std::process::id()));
    let path = picture.to_str().unwrap();
    let flags = [
        "crash", "--size", "16MiB", "--rounds", "2", "--seed", "7", "--steady", "100ms",
    ];
    let report = drill_of(&[&flags[..], &["--svg", path]].concat());
    assert_eq!(report["drill"], "crash");
    assert_some(&report, &["bytes_recovered"]);
    assert!(report["rounds"] == 2 && report["rounds_passed"] == 2 && report["seed"] == 7);
    for field in ["detect_ms", "recover_ms", "unavailable_ms"] {
        assert!(report[field].as_f64() > Some(0.0), "{field} of {report}");
    }
    let parts = report["parts_ms"].as_object().unwrap();
    for part in [
        "detect",
        "fence",
        "end",
        "plan",
        "replay",
        "commit",
        "first_read",
    ] {
        assert!(parts.contains_key(part), "{part} of {report}");
    }
    let svg = std::fs::read_to_string(&picture).unwrap();
    std::fs::remove_file(&picture).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("replayed"));
}

/// The report of drills with copies that are not to be trusted. Not every copy is looked at: so many
/// rounds that some damaged one is.
fn corrupt(copies: &str, rounds: &str) -> Value {
    let flags = ["corrupt", "--copies", copies, "--rounds", rounds];
    let report = drill_of(&[&flags[..], &["--size", "24MiB"]].concat());
    assert_eq!(report["drill"], "corrupt");
    assert_none(&report, &["damage_unnoticed", "accused_wrongly"]);
    report
}

#[test]
fn a_backup_whose_copies_are_damaged_is_named_and_honest_ones_are_used() {
    let report = corrupt("one", "3");
    assert_some(&report, &["replicas_damaged", "replicas_named"]);
}

#[test]
fn one_honest_copy_of_each_segment_is_enough() {
    let report = corrupt("all-but-one", "3");
    assert_some(&report, &["replicas_damaged", "replicas_named"]);
}

#[test]
fn a_living_master_finds_its_damaged_replicas_and_replicates_anew() {
    let report = corrupt("healed", "1");
    assert_some(&report, &["replicas_damaged", "replicas_named"]);
    assert_eq!(report["replicas_damaged"], report["replicas_named"]);
    assert_eq!(report["each"][0]["victims"].as_array().unwrap().len(), 2);
}

#[test]
fn a_valid_copy_of_an_older_state_takes_nothing_away() {
    let report = corrupt("stale", "1");
    assert_none(&report, &["replicas_damaged", "replicas_named"]);
    assert_eq!(report["each"][0]["victims"].as_array().unwrap().len(), 2);
}

#[test]
fn everything_killed_at_once_comes_back_with_nothing_lost() {
    let report = drill_of(&["cold", "--size", "8MiB"]);
    assert_eq!(report["drill"], "cold");
    assert_none(&report, &["revived_objects", "versions_back"]);
    assert_some(&report, &["removed_objects"]);
    for field in ["restart_ms", "first_read_ms", "recover_ms"] {
        assert!(report[field].as_f64() > Some(0.0), "{field} of {report}");
    }
}

#[test]
fn everything_killed_again_while_it_comes_back_loses_nothing_either() {
    let flags = ["cold", "--size", "32MiB", "--kills", "3"];
    let report = drill_of(&[&flags[..], &["--during-recovery"]].concat());
    assert_eq!(report["kills"], 3);
    assert_none(&report, &["revived_objects", "versions_back"]);
}

#[test]
fn a_server_that_was_stopped_beyond_its_lease_serves_nothing_when_it_wakes() {
    let report = drill(&["pause", "--seconds", "0"]);
    assert_eq!(report["drill"], "pause");
    assert_none(&report, &["answers_after_fence"]);
    assert_none(&report, &["tablets_down"]);
    assert!(report["detect_ms"].as_f64() > Some(0.0), "{report}");
    let (old, new) = (report["server"].as_u64(), report["came_back_as"].as_u64());
    assert!(new > old, "it is a new server: {report}");
}

#[test]
fn without_any_coordinator_reads_and_writes_go_on_and_afterwards_all_else_does() {
    let report = drill(&["outage", "--seconds", "5"]);
    assert_eq!(report["drill"], "outage");
    assert_eq!(report["seconds"], 5);
    for field in ["leader_ms", "enlist_ms", "create_ms", "epoch_change_ms"] {
        assert!(report[field].as_f64() > Some(0.0), "{field} of {report}");
    }
}

#[test]
fn a_coordinator_that_lost_its_disk_votes_only_after_it_is_a_new_member() {
    let report = drill(&["rejoin"]);
    assert_eq!(report["drill"], "rejoin");
    assert_none(&report, &["leaders_elected_by_it"]);
    assert_none(&report, &METADATA);
    assert_some(&report, &["tables"]);
}

#[test]
fn nobody_is_taken_for_dead_under_load_but_who_is_killed() {
    let report = drill(&["load", "--for", "3s", "--clients", "2", "--kill"]);
    assert_eq!(report["drill"], "load");
    assert_none(&report, &["servers_declared_dead", "leader_changes"]);
    assert_some(&report, &["load_operations", "objects"]);
    assert!(report["detect_ms"].as_f64() > Some(0.0), "{report}");
    for field in ["symptoms_reported", "suspicions", "verifications"] {
        assert!(report[field].is_u64(), "{field} of {report}");
    }
}

#[test]
fn with_memory_filled_to_a_share_all_is_served_and_written_to_after_a_kill() {
    let flags = ["crash", "--fill", "0.2", "--memory", "64MiB"];
    let report = drill_of(&[&flags[..], &["--steady", "100ms"]].concat());
    assert_eq!(report["fits"], true);
    for share in ["fullest_before", "fullest_after"] {
        assert!(report[share].as_f64() >= Some(0.2), "{share} of {report}");
    }
    assert_eq!(report["memory_before"].as_array().unwrap().len(), 4);
    assert_eq!(report["memory_after"].as_array().unwrap().len(), 3);
    assert_eq!(report["puts"], 16, "4 to each tablet");
    let tablets = ["tablets_unserved", "tablets_down", "tablets_unexplained"];
    assert_none(&report, &[&tablets[..], &["puts_failed"]].concat());
}

#[test]
fn data_spread_over_many_tables_is_served_again_in_each_of_them() {
    let flags = ["crash", "--tables", "12", "--size", "1MiB"];
    let report = drill_of(&[&flags[..], &["--steady", "100ms"]].concat());
    assert_eq!(report["puts"], 12 * 16, "4 to each tablet of every table");
    assert_none(&report, &["tablets_unserved", "puts_failed"]);
    assert!(report["served_ms"].as_f64() <= report["unavailable_ms"].as_f64());
}

#[test]
fn clients_that_come_and_go_beside_a_drill_all_write() {
    let flags = ["crash", "--role", "backup", "--size", "1MiB"];
    let report = drill_of(&[&flags[..], &["--client-churn", "2"]].concat());
    assert_some(&report, &["churn_clients"]);
    assert_none(&report, &["churn_failed"]);
}

#[test]
fn while_many_clients_are_connected_servers_come_and_die_and_the_status_is_told() {
    let report = drill(&["clients", "--clients", "40"]);
    assert_eq!(report["drill"], "clients");
    assert_eq!(report["clients"], 40);
    assert_some(&report, &["status_asked"]);
    let clients = ["clients_refused", "clients_failed", "status_failed"];
    assert_none(&report, &clients);
    assert_none(&report, &["joins_failed", "recoveries_failed"]);
    for field in ["connect_ms", "join_ms", "detect_ms", "recover_ms"] {
        assert!(report[field].as_f64() > Some(0.0), "{field} of {report}");
    }
}

/// Where no network namespaces can be made the drill says so, and that is all there is to see.
#[test]
fn a_link_that_was_cut_for_a_second_is_used_again() {
    let flags = [
        "drill", "cut", "--for", "1s", "--way", "both", "--size", "2MiB",
    ];
    let done = run(&[&flags[..], &["--json"]].concat());
    assert_eq!(done.code(), 0, "{done:?}");
    let report = done.json();
    if report["skipped"].is_string() {
        assert_eq!(report["drill"], "cut");
        return;
    }
    assert_eq!(report["passed"], true);
    assert_none(
        &report,
        &["lost_writes", "failed_operations", "sides_stuck"],
    );
    let cuts = report["cuts"].as_array().unwrap();
    assert_eq!(cuts.len(), 3, "clients, a server and the leader: {report}");
    for side in cuts.iter().flat_map(|cut| cut["sides"].as_array().unwrap()) {
        assert!(
            side["first_ms"].as_f64() <= side["all_ms"].as_f64(),
            "{side}"
        );
    }
}

#[test]
fn shares_and_links_that_are_none_are_wrong_usage() {
    for (flags, words) in [
        (&["crash", "--fill", "1.2"][..], "0.01 to 0.99"),
        (&["crash", "--fill", "0.5", "--size", "1MiB"], "--size"),
        (&["crash", "--tables", "0"], "--tables"),
        (&["clients", "--clients", "0"], "--clients"),
        (&["cut", "--link", "moon"], "moon"),
        (&["cut", "--for", "long"], "--for"),
    ] {
        let done = run(&[&["drill"], flags].concat());
        done.assert_failed(2, words);
    }
}

#[test]
fn a_drill_without_enough_coordinators_is_wrong_usage() {
    let done = run(&["drill", "coordinator", "--coordinators", "1"]);
    done.assert_failed(2, "3 or 5");
}
