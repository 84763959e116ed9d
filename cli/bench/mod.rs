//! `ramkeep bench`: load against a cluster, and what it measured.

mod cluster;
mod keys;
mod report;
mod run;
mod workload;

use std::time::Duration;

use clap::Args;
use indicatif::ProgressBar;
use ramkeep_client::Client;

use crate::connect::ConnectArgs;
use crate::failure::Failure;
use crate::output::Output;
use crate::units;
use run::Plan;
use workload::Workload;

/// The table that is used unless another is named.
const TABLE: &str = "bench";

/// Put load on a cluster, or on one that is started for it.
///
/// Workloads a to f are YCSB's (scrambled zipfian keys; d: latest); read, write and mixed choose
/// keys evenly. Without --coordinators a cluster is started and stopped again.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// a, b, c, d, e, f, read, write or mixed
    #[arg(long, default_value = "a")]
    workload: Workload,
    /// Keys in the table, put there first
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,
    /// Bytes of each value
    #[arg(long, default_value_t = 100)]
    value_size: usize,
    /// Connections
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    clients: u16,
    /// Operations under way on each connection
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=4096))]
    depth: u16,
    /// Operations a second in all, started whether or not earlier ones are done (open loop)
    #[arg(long, value_parser = rate)]
    rate: Option<f64>,
    /// How long to run
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// The table to use
    #[arg(long, default_value = TABLE)]
    table: String,
    /// The keys are in the table from a run before: don't put them there again
    #[arg(long)]
    no_fill: bool,
    /// Seeds the choice of keys
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    own: cluster::OwnCluster,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err("a rate is a positive number of operations a second".into()),
    }
}

impl BenchArgs {
    /// Runs the benchmark.
    pub(crate) fn run(mut self, output: Output) -> Result<(), Failure> {
        if self.value_size > ramkeep_wire::limits::MAX_VALUE {
            let limit = units::Size(ramkeep_wire::limits::MAX_VALUE as u64);
            return Err(Failure::usage(format_args!("a value has at most {limit}")));
        }
        // Stopped when it goes out of scope, also when the run fails.
        let _own = match self.connect.coordinators {
            Some(_) => None,
            None => {
                let started = self.own.start(output.is_json())?;
                self.connect.coordinators = Some(started.coordinators().to_vec());
                Some(started)
            }
        };
        crate::runtime::current_thread()?.block_on(self.measure(output))
    }

    fn plan(&self) -> Plan {
        Plan {
            workload: self.workload,
            keys: self.keys,
            value_size: self.value_size,
            depth: usize::from(self.depth),
            rate: self.rate,
            duration: Duration::from_secs(self.seconds),
            seed: self.seed,
        }
    }

    async fn measure(self, output: Output) -> Result<(), Failure> {
        let mut clients: Vec<Client> = Vec::new();
        for _ in 0..self.clients {
            clients.push(self.connect.client().await?);
        }
        let plan = self.plan();
        let table = clients[0]
            .create_table(&self.table)
            .await
            .map_err(Failure::new)?;
        if !self.no_fill {
            let bar = ProgressBar::new(plan.keys);
            let filled = run::fill(&table, &plan, |done| bar.set_position(done)).await;
            bar.finish_and_clear();
            filled.map_err(Failure::new)?;
        }
        let (measured, elapsed) = run::run(clients, &self.table, plan)
            .await
            .map_err(Failure::new)?;
        let name = self.workload.name;
        Ok(output.line(measured.text(name, elapsed), &measured.json(name, elapsed))?)
    }
}
