//! A cluster of real processes that lives as long as a benchmark.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use clap::Args;
use serde_json::Value;

use crate::failure::Failure;

/// The cluster that is started when none is named.
#[derive(Debug, Args)]
pub(crate) struct OwnCluster {
    /// Servers of the cluster that is started when no --coordinators are given
    #[arg(long, default_value_t = 3)]
    servers: u16,
    /// Processes of it that run only a backup
    #[arg(long, default_value_t = 0)]
    backups: u16,
    /// Copies of each segment on backups
    #[arg(long, default_value_t = 2)]
    replicas: u8,
    /// Memory of each master
    #[arg(long, default_value = "1GiB")]
    memory: String,
}

/// A running cluster; stopped when dropped.
#[derive(Debug)]
pub(super) struct Started {
    child: Child,
    coordinators: Vec<String>,
}

impl OwnCluster {
    /// Starts the cluster and waits until it is ready.
    pub(super) fn start(&self, quiet: bool) -> Result<Started, Failure> {
        let cannot = |what: &dyn std::fmt::Display| {
            Failure::new(format_args!(
                "cannot start a cluster for the benchmark: {what}"
            ))
        };
        let program = std::env::current_exe().map_err(|error| cannot(&error))?;
        if !quiet {
            eprintln!(
                "starting a cluster: {} servers, {} backups, {} copies",
                self.servers, self.backups, self.replicas
            );
        }
        let mut child = Command::new(program)
            .args(["up", "--json", "--port", "0"])
            .args(["--parent", &std::process::id().to_string()])
            .args(["--servers", &self.servers.to_string()])
            .args(["--backups", &self.backups.to_string()])
            .args(["--replicas", &self.replicas.to_string()])
            .args(["--memory", &self.memory])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| cannot(&error))?;
        let out = child.stdout.take().expect("standard output is piped");
        let mut started = Started {
            child,
            coordinators: Vec::new(),
        };
        let mut lines = BufReader::new(out).lines();
        while let Some(Ok(line)) = lines.next() {
            let Ok(event) = serde_json::from_str::<Value>(&line) else {
                continue;
            };
            if event["event"] == "ready" {
                let addresses = event["coordinators"].as_array().into_iter().flatten();
                started.coordinators = addresses
                    .filter_map(|a| a.as_str().map(str::to_owned))
                    .collect();
                // Keeps reading, so that the cluster never blocks on its output.
                std::thread::spawn(move || lines.for_each(drop));
                return Ok(started);
            }
        }
        Err(cannot(&"it ended before it was ready"))
    }
}

impl Started {
    /// Where its coordinators listen.
    pub(super) fn coordinators(&self) -> &[String] {
        &self.coordinators
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        // It stops its own children; nothing to be done if it is gone already.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}
