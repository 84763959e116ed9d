//! Runs seeds: `paxos-fuzz --seeds 0..20000 [--jobs 2]`, `paxos-fuzz --seed 7 --trace`.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use paxos_fuzz::{Counts, Finding, run};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).cloned()
    };
    let trace = arguments.iter().any(|argument| argument == "--trace");
    #[cfg(feature = "mutants")]
    if let Some(name) = value("--mutant") {
        let all = paxos::mutants::Mutant::ALL;
        let Some(mutant) = all.into_iter().find(|mutant| format!("{mutant:?}") == name) else {
            eprintln!("--mutant takes one of {all:?}");
            return ExitCode::from(2);
        };
        paxos::mutants::plant(Some(mutant));
    }
    if let Some(seed) = value("--seed").and_then(|seed| seed.parse().ok()) {
        return one(seed, trace);
    }
    let range = value("--seeds").unwrap_or_else(|| "0..2000".to_owned());
    let bounds = range
        .split_once("..")
        .and_then(|(low, high)| Some((low.parse::<u64>().ok()?, high.parse::<u64>().ok()?)));
    let Some((low, high)) = bounds else {
        eprintln!("--seeds takes a range such as 0..2000, not {range}");
        return ExitCode::from(2);
    };
    let jobs = value("--jobs")
        .and_then(|jobs| jobs.parse().ok())
        .unwrap_or(1);
    many(low, high, jobs)
}

fn one(seed: u64, trace: bool) -> ExitCode {
    let outcome = run(seed, trace);
    print_counts(&outcome.counts);
    match outcome.finding {
        None => ExitCode::SUCCESS,
        Some(finding) => {
            println!("seed {seed}: {finding}");
            ExitCode::FAILURE
        }
    }
}

fn many(low: u64, high: u64, jobs: usize) -> ExitCode {
    let next = AtomicU64::new(low);
    let total = Mutex::new((Counts::default(), Vec::<(u64, Finding)>::new()));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| worker(&next, high, &total));
        }
    });
    let seconds = begun.elapsed().as_secs_f64();
    let Ok((counts, mut findings)) = total.into_inner() else {
        return ExitCode::FAILURE;
    };
    findings.sort_by_key(|(seed, _)| *seed);
    print_counts(&counts);
    let seeds = high.saturating_sub(low);
    println!(
        "{seeds} seeds in {seconds:.1} s, {:.0} a second; {} findings",
        seeds as f64 / seconds,
        findings.len()
    );
    for (seed, finding) in &findings {
        println!("seed {seed}: {finding}");
    }
    ExitCode::from(u8::from(!findings.is_empty()))
}

fn worker(next: &AtomicU64, high: u64, total: &Mutex<(Counts, Vec<(u64, Finding)>)>) {
    let (mut counts, mut findings) = (Counts::default(), Vec::new());
    loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= high {
            break;
        }
        let outcome = run(seed, false);
        counts.add(&outcome.counts);
        findings.extend(outcome.finding.map(|finding| (seed, finding)));
    }
    if let Ok(mut total) = total.lock() {
        total.0.add(&counts);
        total.1.extend(findings);
    }
}

fn print_counts(counts: &Counts) {
    for (name, count) in counts.named() {
        println!("{:>16} {count}", name.replace('_', " "));
    }
}
