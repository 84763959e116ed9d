//! `drill all`: every kind of death and damage, a few times each, and one table of what came of it.
//!
//! # Invariants
//! 1. Each drill is a process of its own, one after the other: none feels what another left.
//! 2. A drill that fails does not keep the others from running; the whole has then failed.

use std::process::Stdio;

use clap::Args;
use serde_json::{Map, Value};
use tokio::process::Command;

use super::timeline::Timeline;
use crate::columns::Columns;
use crate::failure::Failure;
use crate::units::Size;

/// Lines of a failed drill's standard error that are shown.
const WORDS: usize = 12;

/// Flags of `drill all`.
#[derive(Clone, Debug, Args)]
pub(crate) struct AllArgs {
    /// Plain crashes in a row
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    crashes: u32,
    /// How often each other drill runs
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// Processes with a master and a backup each
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(6..=32))]
    servers: u32,
    /// Data of each master
    #[arg(long, default_value = "64MiB")]
    size: Size,
    /// Only drills with this in their name
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

/// One kind of drill.
struct Kind {
    /// As it is typed.
    words: &'static str,
    /// It runs its own rounds.
    in_rounds: bool,
}

const fn kind(words: &'static str, in_rounds: bool) -> Kind {
    Kind { words, in_rounds }
}

const PLAIN: &str = "crash";
const KINDS: [Kind; 10] = [
    kind(PLAIN, true),
    kind("crash --kills 2 --at-once", true),
    kind("crash --kills 2 --during-recovery", true),
    kind("crash --coordinator", true),
    kind("crash --role backup", true),
    kind("corrupt --copies one", true),
    kind("corrupt --copies all-but-one --replicas 3", true),
    kind("corrupt --copies stale", true),
    kind("corrupt --copies healed", true),
    kind("cold", false),
];

/// What came of one kind.
struct Done {
    words: String,
    rounds: u32,
    passed: u32,
    /// Summaries of its processes, as they printed them.
    reports: Vec<Value>,
    /// What the first that failed said.
    complaint: String,
}

impl AllArgs {
    /// All drills.
    pub(super) async fn run(&self, timeline: Timeline) -> Result<(), Failure> {
        let wanted = |kind: &&Kind| {
            let only = self.only.as_deref();
            only.is_none_or(|text| kind.words.contains(text))
        };
        let mut all = Vec::new();
        for kind in KINDS.iter().filter(wanted) {
            let done = self.run_kind(kind).await?;
            timeline.tell(format_args!(
                "{}: {} of {} passed{}",
                done.words, done.passed, done.rounds, done.complaint
            ))?;
            all.push(done);
        }
        if all.is_empty() {
            return Err(Failure::usage("--only: no drill has that in its name"));
        }
        let failed: u32 = all.iter().map(|done| done.rounds - done.passed).sum();
        let mut fields = Map::new();
        let rounds: u32 = all.iter().map(|done| done.rounds).sum();
        fields.insert("rounds".into(), rounds.into());
        fields.insert("rounds_failed".into(), failed.into());
        let reports = all.iter().flat_map(|done| done.reports.iter().cloned());
        fields.insert("drills".into(), reports.collect());
        timeline.end("all", table(&all).to_string().trim_end(), fields)
    }

    async fn run_kind(&self, kind: &Kind) -> Result<Done, Failure> {
        let rounds = if kind.words == PLAIN {
            self.crashes
        } else {
            self.rounds
        };
        let (times, each) = if kind.in_rounds {
            (1, rounds)
        } else {
            (rounds, 1)
        };
        let mut done = Done {
            words: kind.words.to_owned(),
            rounds,
            passed: 0,
            reports: Vec::new(),
            complaint: String::new(),
        };
        for _ in 0..times {
            let mut words: Vec<String> = kind.words.split(' ').map(str::to_owned).collect();
            words.extend(["--servers".into(), self.servers.to_string()]);
            words.extend(["--size".into(), self.size_of(kind).0.to_string()]);
            if kind.in_rounds {
                words.extend(["--rounds".into(), each.to_string()]);
            }
            let (report, complaint) = drill(&words).await?;
            done.passed += passed(report.as_ref());
            done.reports.extend(report);
            if done.complaint.is_empty() {
                done.complaint = complaint;
            }
        }
        Ok(done)
    }

    /// `cold` takes the size of all data, the others that of each master's.
    fn size_of(&self, kind: &Kind) -> Size {
        match kind.in_rounds {
            true => self.size,
            false => Size(self.size.0 * u64::from(self.servers)),
        }
    }
}

/// Rounds of a summary that passed. One that did not come to its end has none.
fn passed(report: Option<&Value>) -> u32 {
    let Some(report) = report else { return 0 };
    let rounds = report["rounds_passed"].as_u64();
    let whole = u64::from(report["passed"] == true);
    u32::try_from(rounds.unwrap_or(whole)).unwrap_or(u32::MAX)
}

/// Runs one drill. Its summary, if it came to one, and what it said if it failed.
async fn drill(words: &[String]) -> Result<(Option<Value>, String), Failure> {
    let program = std::env::current_exe()?;
    let mut command = Command::new(program);
    command.arg("drill").args(words).arg("--json");
    // What it starts ends with it.
    command.kill_on_drop(true).stdin(Stdio::null());
    let output = command.output().await?;
    let report = serde_json::from_slice(&output.stdout).ok();
    if output.status.success() {
        return Ok((report, String::new()));
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let mut last: Vec<&str> = words.lines().rev().take(WORDS).collect();
    last.reverse();
    Ok((report, format!("\n{}", last.join("\n"))))
}

fn table(all: &[Done]) -> Columns<9> {
    let mut columns = Columns::new([
        "drill",
        ">rounds",
        ">passed",
        ">acknowledged",
        ">lost",
        ">stale",
        ">wrong",
        ">failed",
        ">unavailable ms",
    ]);
    for done in all {
        let sum = |name: &str| {
            let counts = done.reports.iter().filter_map(|one| one[name].as_u64());
            counts.sum::<u64>().to_string()
        };
        let longest = done.reports.iter();
        let longest = longest.filter_map(|one| one["unavailable_ms"].as_f64());
        columns.row([
            done.words.clone(),
            done.rounds.to_string(),
            done.passed.to_string(),
            sum("acknowledged_writes"),
            sum("lost_writes"),
            sum("stale_reads"),
            sum("wrong_values"),
            sum("failed_operations"),
            longest.fold(0.0, f64::max).to_string(),
        ]);
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_round_has_passed_only_if_its_summary_says_so() {
        assert_eq!(passed(None), 0);
        assert_eq!(passed(Some(&json!({ "passed": true }))), 1);
        assert_eq!(passed(Some(&json!({ "passed": false }))), 0);
        let some = json!({ "passed": false, "rounds": 5, "rounds_passed": 4 });
        assert_eq!(passed(Some(&some)), 4);
    }
}
