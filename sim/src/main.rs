//! `sim`: runs seeds of the simulator.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::Parser;
use ramkeep_wire::mutants::Mutant;
use sim::crash_points::CrashPoint;
use sim::faults::{Dying, Fault};
use sim::run::{Options, Report, run};
use sim::scenarios::{self, Scenario};
use sim::trace::Lines;

/// Runs whole Ramkeep clusters in virtual time, with faults, and checks what came of it.
#[derive(Debug, Parser)]
#[command(name = "sim", version)]
struct Arguments {
    /// Run this seed.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Run these seeds: `A..B`, without B.
    #[arg(long, value_parser = parse_range, value_name = "A..B")]
    seeds: Option<(u64, u64)>,
    /// Seeds run at the same time.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Print everything that happens.
    #[arg(long)]
    trace: bool,
    /// Plant this fault (see --list).
    #[arg(long, value_parser = parse_mutant)]
    mutant: Option<Mutant>,
    /// Somebody dies in this moment of recoveries (see --list).
    #[arg(long, value_parser = parse_point)]
    crash_at: Option<CrashPoint>,
    /// Play this story of SAFETY.md (see --list), or `all`.
    #[arg(long, conflicts_with_all = ["seed", "seeds"])]
    scenario: Option<String>,
    /// List the stories and the faults that can be planted.
    #[arg(long)]
    list: bool,
}

fn parse_range(text: &str) -> Result<(u64, u64), String> {
    let (first, end) = text.split_once("..").ok_or("a range is written A..B")?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| error.to_string());
    Ok((number(first)?, number(end)?))
}

fn parse_point(name: &str) -> Result<CrashPoint, String> {
    CrashPoint::from_name(name).ok_or_else(|| format!("no moment is called {name}"))
}

fn parse_mutant(name: &str) -> Result<Mutant, String> {
    Mutant::from_name(name).ok_or_else(|| format!("no planted fault is called {name}"))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.list {
        for scenario in scenarios::ALL {
            println!("scenario {}", scenario.name);
        }
        for point in CrashPoint::ALL {
            println!("crash-at {}", point.name());
        }
        for mutant in Mutant::ALL {
            println!("mutant {}", mutant.name());
        }
        return ExitCode::SUCCESS;
    }
    if arguments.mutant.is_some() && !cfg!(feature = "mutants") {
        eprintln!("planted faults need a build with `--features mutants`");
        return ExitCode::from(2);
    }
    if let Some(name) = &arguments.scenario {
        return play(&arguments, name);
    }
    let (first, end) = match (arguments.seed, arguments.seeds) {
        (Some(seed), _) => (seed, seed + 1),
        (None, Some(range)) => range,
        (None, None) => (0, 100),
    };
    name_the_seed_of_a_panic();
    let started = Instant::now();
    let next = AtomicU64::new(first);
    let total = Mutex::new(Totals::default());
    let jobs = arguments.jobs.clamp(1, 256);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    SEED.set(seed);
                    let report = run(options(&arguments, seed));
                    if let Ok(mut total) = total.lock() {
                        total.add(&report, arguments.trace || end == first + 1);
                    }
                }
            });
        }
    });
    let seconds = started.elapsed().as_secs_f64();
    let total = total.into_inner().unwrap_or_default();
    total.print(seconds, jobs);
    if total.findings == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

thread_local! {
    static SEED: Cell<u64> = const { Cell::new(0) };
}

/// Where panics abort, no report is made: the seed must be said before.
fn name_the_seed_of_a_panic() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        eprintln!("seed {}: FINDING: a core panicked", SEED.get());
        usual(panic);
    }));
}

fn play(arguments: &Arguments, name: &str) -> ExitCode {
    let chosen: Vec<Scenario> = match name {
        "all" => scenarios::ALL.to_vec(),
        name => Scenario::named(name).into_iter().collect(),
    };
    if chosen.is_empty() {
        eprintln!("no scenario is called {name}; --list names them");
        return ExitCode::from(2);
    }
    let mut code = ExitCode::SUCCESS;
    for scenario in chosen {
        match scenario.play(arguments.mutant, lines(arguments)) {
            Ok(()) => println!("{}: as it should be", scenario.name),
            Err(why) => {
                println!("{}: FINDING: {why}", scenario.name);
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}

fn lines(arguments: &Arguments) -> Lines {
    if arguments.trace {
        Lines::Print
    } else {
        Lines::No
    }
}

fn options(arguments: &Arguments, seed: u64) -> Options {
    Options {
        seed,
        mutant: arguments.mutant,
        crash_at: arguments.crash_at,
        lines: lines(arguments),
    }
}

#[derive(Debug, Default)]
struct Totals {
    seeds: u64,
    findings: u64,
    operations: usize,
    refused: u64,
    events: u64,
    recoveries: usize,
    too_full: usize,
    gave_up: u64,
    short_of_frames: u64,
    faults: BTreeMap<Fault, u32>,
    virtual_seconds: f64,
    struck: BTreeMap<(CrashPoint, Dying), u32>,
    reached: BTreeMap<CrashPoint, u32>,
    /// Seeds within the promise in which masters were recovered, several at a time, and a log in several
    /// partitions.
    recovered: [u64; 3],
}

impl Totals {
    fn add(&mut self, report: &Report, verbose: bool) {
        self.seeds += 1;
        self.operations += report.operations;
        self.refused += report.refused;
        self.events += report.events;
        self.recoveries += report.recoveries;
        self.too_full += report.too_full;
        self.gave_up += u64::from(report.gave_up);
        self.short_of_frames += u64::from(report.short_of_frames);
        for (fault, times) in &report.faults {
            *self.faults.entry(*fault).or_default() += times;
        }
        self.virtual_seconds += report.virtual_seconds;
        if !report.beyond {
            let most = report.most;
            let had = [most.masters > 0, most.masters > 1, most.partitions > 1];
            for (seeds, had) in self.recovered.iter_mut().zip(had) {
                *seeds += u64::from(had);
            }
        }
        for (struck, times) in &report.struck {
            *self.struck.entry(*struck).or_default() += times;
        }
        for (point, times) in &report.reached {
            *self.reached.entry(*point).or_default() += times;
        }
        if !report.findings.is_empty() {
            self.findings += 1;
            for finding in &report.findings {
                println!("seed {}: FINDING: {finding}", report.seed);
            }
        }
        if verbose {
            println!("seed {}: trace {:016x}", report.seed, report.trace);
        }
    }

    fn print(&self, seconds: f64, jobs: usize) {
        let rate = self.seeds as f64 / seconds / jobs as f64;
        println!(
            "{} seeds, {} with findings; {} operations ({} refused or open), {} events, {} faults, \
             {} logs recovered, {} dead masters too large for the rest, \
             losses given up in {}, frames short in {}, {:.0} virtual seconds",
            self.seeds,
            self.findings,
            self.operations,
            self.refused,
            self.events,
            self.faults.values().sum::<u32>(),
            self.recoveries,
            self.too_full,
            self.gave_up,
            self.short_of_frames,
            self.virtual_seconds,
        );
        let [some, several, shared] = self.recovered;
        println!(
            "within the promise: {some} seeds with a master to recover, {several} with several at a time, \
             {shared} with a log in several partitions"
        );
        println!("faults: {:?}", self.faults);
        for point in CrashPoint::ALL {
            let struck = Dying::ALL.map(|role| self.struck.get(&(*point, role)).unwrap_or(&0));
            let [leader, master, backup] = struck;
            println!(
                "{}: {} times; the leader died {leader} times then, a recovery master {master}, \
                 a backup {backup}",
                point.name(),
                self.reached.get(point).unwrap_or(&0),
            );
        }
        println!(
            "{seconds:.1} s with {jobs} jobs: {rate:.2} seeds/s per core, {:.0} per core-hour",
            rate * 3600.0
        );
    }
}
