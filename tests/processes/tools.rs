//! `load` and `bench` against real processes.

use serde_json::Value;

use crate::harness::{Cluster, run};

const ZONES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/zones.csv");

#[test]
fn the_rows_of_a_real_file_are_loaded_and_found() {
    let cluster = Cluster::start(&["--servers", "2", "--replicas", "1"]);
    let loaded = cluster.json(&["load", ZONES, "--table", "zones", "--key", "zone"]);
    let rows = std::fs::read_to_string(ZONES).unwrap().lines().count() - 1;
    assert_eq!(loaded["rows"], rows);

    let row = cluster.json(&["get", "zones", "Europe/Paris"]);
    let value: Value = serde_json::from_str(row["value"].as_str().unwrap()).unwrap();
    assert_eq!(value["country"], "France");
    assert_eq!(
        cluster.run(&["scan", "zones"]).stdout().lines().count(),
        rows
    );
}

#[test]
fn a_benchmark_starts_its_own_cluster_and_reports_percentiles() {
    let flags = [
        "--workload",
        "a",
        "--keys",
        "500",
        "--seconds",
        "1",
        "--memory",
        "64MiB",
    ];
    let report = run(&[&["bench", "--json"][..], &flags].concat()).json();
    assert_eq!(report["workload"], "a");
    assert_eq!(report["errors"], 0);
    assert!(report["operations"].as_u64().unwrap() > 0);
    assert!(report["throughput_per_s"].as_f64().unwrap() > 0.0);
    for kind in ["read", "write"] {
        let latency = &report["latency_us"][kind];
        let percentiles = ["p50", "p90", "p99", "p999", "max"].map(|name| latency[name].as_f64());
        let percentiles = percentiles.map(|value| value.expect("every percentile is a number"));
        assert!(percentiles.is_sorted(), "{report}");
    }
}
