//! Ramkeep beside redis, memcached and a bare echo: same machine, same client, in turns.
#![forbid(unsafe_code)]

mod echo;
mod engine;
mod measure;
mod memcache;
mod protocol;
mod ramkeep;
mod report;
mod resp;
mod systems;
mod workload;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use ramkeep_benches::failures_from;
pub(crate) use ramkeep_benches::process;
pub(crate) use ramkeep_benches::{Failure, Outcome};

use crate::echo::Sizes;
use crate::engine::Wait;
use crate::measure::{Effort, REPLICATED, SINGLE, Sample, Test};
use crate::process::Cores;
use crate::protocol::Op;
use crate::report::Report;
use crate::systems::{Running, Setting, System};

/// Copies beside the server's own in the durable tests.
const COPIES: usize = 2;

/// Compares Ramkeep with redis, memcached and a bare TCP echo on this machine.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Args {
    /// Fewer and shorter rounds: under 40 seconds
    #[arg(long)]
    quick: bool,
    /// Only these systems
    #[arg(long, value_delimiter = ',', value_enum)]
    only: Vec<System>,
    /// Only tests whose name contains this, for example `read` or `durable`
    #[arg(long, value_name = "PART")]
    test: Option<String>,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
    /// Objects in each system
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1000..=10_000_000))]
    keys: u32,
    /// Rounds; the table shows medians over them
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,
    /// Don't give server and client a core each where one server runs alone
    #[arg(long)]
    no_pin: bool,
    /// How the client waits in the replicated tests, where several processes share the cores
    #[arg(long, value_enum, default_value = "yield")]
    replicated_wait: Wait,
    #[command(flatten)]
    sizes: Sizes,
    #[command(subcommand)]
    hidden: Option<Hidden>,
}

#[derive(Debug, Subcommand)]
enum Hidden {
    /// The other side of the echo
    #[command(hide = true)]
    EchoServer {
        #[arg(value_enum)]
        wait: Wait,
        #[command(flatten)]
        sizes: Sizes,
    },
}

failures_from!(protocol::BadReply);

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = match args.hidden {
        Some(Hidden::EchoServer { wait, sizes }) => echo::serve(sizes, wait).map_err(Failure::from),
        None => compare(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("side_by_side: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn compare(args: &Args) -> Outcome<()> {
    let single = Setting {
        cores: Cores::choose(!args.no_pin)?,
        sizes: args.sizes,
        replicas: 0,
    };
    let replicated = Setting {
        cores: single.cores.shared(),
        replicas: COPIES,
        ..single
    };
    let (rounds, each) = if args.quick { (3, 200) } else { (5, 600) };
    let effort = Effort {
        rounds: args.rounds.unwrap_or(rounds),
        each: Duration::from_millis(each),
        keys: args.keys,
        wait: Wait::Spin,
    };
    let mut failures = Vec::new();
    let mut samples = phase(args, &SINGLE, Op::Set, single, effort, &mut failures)?;
    let effort = Effort {
        wait: args.replicated_wait,
        ..effort
    };
    samples.extend(phase(
        args,
        &REPLICATED,
        Op::DurableSet,
        replicated,
        effort,
        &mut failures,
    )?);
    if samples.is_empty() && failures.is_empty() {
        let names: Vec<&str> = SINGLE.iter().chain(&REPLICATED).map(|t| t.name).collect();
        return Err(Failure::new(format!(
            "no test for these systems has that in its name; the tests are {}",
            names.join(", ")
        )));
    }
    let report = Report::new(&samples);
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{}", report.text());
    }
    failures.into_iter().next().map_or(Ok(()), Err)
}

/// Starts the systems that take part, loads them, measures, and stops them.
fn phase(
    args: &Args,
    tests: &[Test],
    load: Op,
    setting: Setting,
    effort: Effort,
    failures: &mut Vec<Failure>,
) -> Outcome<Vec<Sample>> {
    let part = args.test.as_deref().unwrap_or_default();
    let tests: Vec<Test> = tests
        .iter()
        .copied()
        .filter(|t| t.name.contains(part))
        .collect();
    let wanted = participants(args, setting.replicas);
    if tests.is_empty() || wanted.is_empty() {
        return Ok(Vec::new());
    }
    if !args.json {
        let what = if setting.replicas == 0 {
            "one server"
        } else {
            "with two copies"
        };
        println!("{what}: {}", setting.cores);
    }
    setting.cores.enter_client()?;
    let mut running = Vec::new();
    for system in wanted {
        let one = Running::start(system, setting).map_err(|e| e.during(system.name(), "start"))?;
        measure::load(&one, load, effort).map_err(|e| e.during(system.name(), "load"))?;
        running.push(one);
    }
    Ok(measure::rounds(running, &tests, effort, failures))
}

fn participants(args: &Args, replicas: usize) -> Vec<System> {
    let all = [
        System::Echo,
        System::EchoYield,
        System::Ramkeep,
        System::Redis,
        System::Memcached,
    ];
    let listed = |system: System| {
        let name = if system == System::EchoYield {
            System::Echo
        } else {
            system
        };
        args.only.is_empty() || args.only.contains(&name)
    };
    let copies = |system| replicas == 0 || matches!(system, System::Ramkeep | System::Redis);
    all.into_iter()
        .filter(|&system| listed(system) && copies(system))
        .collect()
}
