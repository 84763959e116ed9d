//! A cluster does its job through the command line.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::harness::Cluster;

#[test]
fn what_is_put_is_got_counted_scanned_and_removed() {
    let cluster = Cluster::start(&["--servers", "3"]);
    let table = cluster.json(&["table", "create", "flights"]);
    assert_eq!(table["name"], "flights");

    let first = cluster.json(&["put", "flights", "AF1", "Paris"])["version"]
        .as_u64()
        .unwrap();
    let got = cluster.json(&["get", "flights", "AF1"]);
    assert_eq!(
        got,
        json!({ "key": "AF1", "value": "Paris", "version": first })
    );
    let second = cluster.json(&["put", "flights", "AF1", "New York"])["version"]
        .as_u64()
        .unwrap();
    assert!(second > first, "versions never go back");
    assert_eq!(
        cluster.run(&["get", "flights", "AF1"]).stdout(),
        "New York\n"
    );

    assert_eq!(
        cluster.json(&["incr", "flights", "seats", "40"])["value"],
        40
    );
    assert_eq!(
        cluster.json(&["incr", "flights", "seats", "-2"])["value"],
        38
    );
    assert_eq!(cluster.run(&["incr", "flights", "seats"]).stdout(), "39\n");

    let scanned = cluster.run(&["scan", "flights", "--json"]).stdout();
    let objects: Vec<Value> = scanned
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(objects.len(), 2);
    assert!(objects.contains(&cluster.json(&["get", "flights", "AF1"])));

    assert_eq!(cluster.json(&["rm", "flights", "AF1"])["version"], second);
    cluster
        .run(&["get", "flights", "AF1"])
        .assert_failed(1, "AF1");
    cluster
        .run(&["rm", "flights", "AF1"])
        .assert_failed(1, "AF1");

    assert_eq!(cluster.json(&["table", "drop", "flights"])["dropped"], true);
    cluster
        .run(&["get", "flights", "seats"])
        .assert_failed(1, "flights");
    cluster
        .run(&["table", "drop", "flights"])
        .assert_failed(1, "flights");
}

#[test]
fn bytes_that_are_no_text_pass_through_and_appear_as_base64() {
    let cluster = Cluster::start(&["--servers", "1", "--replicas", "0"]);
    cluster.json(&["table", "create", "t"]);
    let bytes = [0xff, 0x00, b'\n', 0xfe];
    let put = cluster.run_with(&["put", "t", "k", "-"], &bytes);
    assert_eq!(put.code(), 0, "{put:?}");
    let got = cluster.json(&["get", "t", "k"]);
    assert_eq!(got["value_base64"], "/wAK/g==");
    assert!(got.get("value").is_none());
    assert_eq!(
        cluster.run(&["get", "t", "k"]).0.stdout,
        [&bytes[..], b"\n"].concat()
    );
}

#[test]
fn a_condition_that_does_not_hold_is_a_failure_and_changes_nothing() {
    let cluster = Cluster::start(&["--servers", "1", "--replicas", "0"]);
    cluster.json(&["table", "create", "t"]);
    cluster
        .run(&["put", "t", "k", "v", "--if-exists"])
        .assert_failed(1, "no such object");
    let version = cluster.json(&["put", "t", "k", "1", "--if-absent"])["version"].to_string();
    cluster
        .run(&["put", "t", "k", "2", "--if-absent"])
        .assert_failed(1, &version);
    let newer =
        cluster.json(&["put", "t", "k", "3", "--if-version", &version])["version"].to_string();
    cluster
        .run(&["put", "t", "k", "4", "--if-version", &version])
        .assert_failed(1, &newer);
    cluster
        .run(&["rm", "t", "k", "--if-version", &version])
        .assert_failed(1, &newer);
    assert_eq!(cluster.json(&["get", "t", "k"])["value"], "3");
    cluster.json(&["rm", "t", "k", "--if-version", &newer]);
}

#[test]
fn status_shows_every_process_table_and_tablet() {
    let cluster = Cluster::start(&["--servers", "2", "--backups", "1"]);
    cluster.json(&["table", "create", "t"]);
    for key in 0..50 {
        cluster.json(&["put", "t", &format!("key {key}"), "value"]);
    }
    let status = cluster.json(&["status"]);
    assert!((1..=3).contains(&status["leader"].as_u64().unwrap()));
    assert!(status["ballot"].as_u64().unwrap() > 0);
    for (place, address) in cluster.addresses.iter().enumerate() {
        assert_eq!(status["coordinators"][place]["address"], *address);
    }
    assert_eq!(status["recoveries"], json!([]));

    let ids = |value: &Value| -> Vec<u64> {
        value
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["id"].as_u64().unwrap())
            .collect()
    };
    let started: Vec<u64> = cluster
        .members
        .iter()
        .filter(|m| m.role != "coordinator")
        .map(|m| m.id)
        .collect();
    assert_eq!(ids(&status["servers"]), started);
    let states: Vec<&Value> = status["servers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|server| &server["state"])
        .collect();
    assert!(states.iter().all(|state| **state == "up"), "{states:?}");

    assert_eq!(status["tables"][0]["name"], "t");
    let tablets = status["tablets"].as_array().unwrap();
    assert_eq!(tablets.first().unwrap()["first"], "0000000000000000");
    assert_eq!(tablets.last().unwrap()["last"], "ffffffffffffffff");
    let text = cluster.run(&["status"]).stdout();
    for member in &cluster.members {
        assert!(text.contains(&member.address), "{text}");
    }
}

#[test]
fn a_server_says_itself_how_it_is_also_without_a_coordinator() {
    let cluster = Cluster::start(&["--servers", "1", "--backups", "1", "--replicas", "1"]);
    cluster.json(&["table", "create", "t"]);
    cluster.json(&["put", "t", "key", "value"]);
    cluster.of_role("coordinator")[0].kill();
    let asked = |role: &str| {
        let address = cluster.of_role(role)[0].address.clone();
        cluster.json(&["status", "--server", &address])
    };
    let (server, backup) = (asked("server"), asked("backup"));
    assert_eq!(server["master"]["objects"], 1);
    assert_eq!(server["tablets"], 1);
    assert!(server["backup"]["frames"].as_u64().unwrap() > 0);
    assert_eq!(backup["master"], Value::Null);
    assert_eq!(backup["backup"]["used"], 1);
}

#[test]
fn a_scan_shows_every_object_once() {
    let cluster = Cluster::start(&["--servers", "2", "--replicas", "1"]);
    cluster.json(&["table", "create", "t"]);
    let mut wanted = BTreeMap::new();
    for number in 0..40 {
        let (key, value) = (format!("key-{number}"), format!("value {number}"));
        cluster.json(&["put", "t", &key, &value]);
        wanted.insert(key, value);
    }
    let scanned = cluster.run(&["scan", "t"]).stdout();
    let found: Vec<(String, String)> = scanned
        .lines()
        .map(|line| line.split_once('\t').unwrap())
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    assert_eq!(found.len(), wanted.len());
    assert_eq!(found.into_iter().collect::<BTreeMap<_, _>>(), wanted);
}

#[test]
fn processes_and_clients_with_the_same_key_file_understand_each_other_and_others_do_not() {
    let directory = tempfile::tempdir().unwrap();
    let [ours, theirs] = ["ours", "theirs"].map(|name| {
        let path = directory.path().join(name);
        std::fs::write(&path, format!("a shared secret of {name}\n")).unwrap();
        path.to_str().unwrap().to_owned()
    });
    let cluster = Cluster::start(&["--servers", "2", "--replicas", "1", "--key-file", &ours]);
    cluster.json(&["table", "create", "t", "--key-file", &ours]);
    cluster.json(&["put", "t", "k", "v", "--key-file", &ours]);
    assert_eq!(
        cluster.json(&["get", "t", "k", "--key-file", &ours])["value"],
        "v"
    );
    cluster.run(&["status"]).assert_failed(1, "key");
    cluster
        .run(&["status", "--key-file", &theirs])
        .assert_failed(1, "key");
}

#[test]
fn the_status_for_prometheus_is_one_figure_a_line_of_families_told_once() {
    let cluster = Cluster::start(&["--servers", "3"]);
    cluster.json(&["table", "create", "flights"]);
    cluster.json(&["put", "flights", "AF1", "Paris"]);
    let text = cluster.run(&["status", "--prometheus"]).stdout();
    assert!(text.ends_with("# EOF\n"), "{text}");
    let figure = |line: &str| {
        let (name, value) = line.rsplit_once(' ').expect("a name and a value");
        (name.to_owned(), value.parse::<f64>().expect("a number"))
    };
    let lines = || text.lines();
    let figures: BTreeMap<String, f64> = lines()
        .filter(|line| !line.starts_with('#'))
        .map(figure)
        .collect();
    assert_eq!(figures["ramkeep_servers{state=\"up\"}"], 3.0);
    assert_eq!(figures["ramkeep_recoveries"], 0.0);
    assert_eq!(figures["ramkeep_damaged_replicas{server=\"1\"}"], 0.0);
    let of = |family: &str| {
        let all = figures.iter();
        all.filter(|(name, _)| name.starts_with(&format!("{family}{{")))
            .count()
    };
    assert_eq!(of("ramkeep_coordinator_leads"), 3);
    assert_eq!(of("ramkeep_memory_limit_bytes"), 3);
    assert_eq!(of("ramkeep_frames"), 3);
    let families: Vec<&str> = lines().filter(|line| line.starts_with("# TYPE")).collect();
    let unique: std::collections::BTreeSet<_> = families.iter().collect();
    assert!(
        families.len() > 20 && unique.len() == families.len(),
        "{text}"
    );
    cluster
        .run(&["status", "--prometheus", "--json"])
        .assert_failed(2, "--json");
}
