//! From samples to tables: medians over the rounds, and the ratios between systems.

use std::fmt::Write as _;
use std::time::Duration;

use ramkeep_benches::{median, short};
use serde::Serialize;

use crate::measure::{
    DURABLE_BATCH, DURABLE_ONE, READ_FULL, READ_MULTI, READ_ONE, Sample, Test, WRITE_FULL,
    WRITE_ONE,
};
use crate::systems::System;

/// One system in one test.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    #[serde(skip)]
    key: (Test, System),
    test: &'static str,
    system: &'static str,
    /// Median over the rounds, in microseconds; of tests that measure round trips.
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_us: Option<Latency>,
    /// Median over the rounds.
    operations_per_s: f64,
    /// Processor time of the servers over elapsed time, all rounds together.
    server_cores: f64,
    /// Operations over the servers' processor time, all rounds together.
    operations_per_server_core_s: f64,
}

/// Percentiles of the round trip in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
struct Latency {
    p50: f64,
    p99: f64,
    p999: f64,
}

/// A figure to be reached, with what was measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Goal {
    what: &'static str,
    measured: f64,
    /// `"at most"` or `"at least"`.
    bound: &'static str,
    goal: f64,
    reached: bool,
}

/// All that was measured.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Report {
    rows: Vec<Row>,
    goals: Vec<Goal>,
}

impl Report {
    /// Medians of the samples; rows stay in the order in which tests and systems first came.
    pub(crate) fn new(samples: &[Sample]) -> Self {
        let mut keys: Vec<(Test, System)> = Vec::new();
        for sample in samples {
            let key = (sample.test, sample.system);
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        let row = |&key: &(Test, System)| {
            let mine = samples.iter().filter(|s| (s.test, s.system) == key);
            Row::new(key, &mine.collect::<Vec<_>>())
        };
        let mut report = Self {
            rows: keys.iter().map(row).collect(),
            goals: Vec::new(),
        };
        report.goals = report.goals();
        report
    }

    fn row(&self, test: Test, system: System) -> Option<&Row> {
        self.rows.iter().find(|row| row.key == (test, system))
    }

    /// Ramkeep's figure over another system's in the same test.
    fn ratio(&self, test: Test, other: (Test, System), figure: fn(&Row) -> f64) -> Option<f64> {
        let (ours, theirs) = (
            self.row(test, System::Ramkeep)?,
            self.row(other.0, other.1)?,
        );
        Some(figure(ours) / figure(theirs))
    }

    fn goals(&self) -> Vec<Goal> {
        let echo = (READ_ONE, System::Echo);
        let multi = self.row(READ_MULTI, System::Ramkeep).map(Row::per_core);
        let goals = [
            at_most(
                "read, median over the echo's",
                1.4,
                self.ratio(READ_ONE, echo, Row::p50),
            ),
            at_least(
                "read at depth 64, throughput of one core, over redis",
                3.0,
                self.ratio(READ_FULL, (READ_FULL, System::Redis), Row::throughput),
            ),
            at_least(
                "the same per second of CPU time used, over redis",
                3.0,
                self.ratio(READ_FULL, (READ_FULL, System::Redis), Row::per_core),
            ),
            at_least(
                "read at depth 64, throughput of one core, over memcached",
                3.0,
                self.ratio(READ_FULL, (READ_FULL, System::Memcached), Row::throughput),
            ),
            at_least(
                "the same per second of CPU time used, over memcached",
                3.0,
                self.ratio(READ_FULL, (READ_FULL, System::Memcached), Row::per_core),
            ),
            at_least("multi-read, objects a second per server core", 1.5e6, multi),
            at_most("write without copies, median over the echo's", 1.5, {
                self.ratio(WRITE_ONE, (WRITE_ONE, System::Echo), Row::p50)
            }),
            at_least(
                "write at depth 64, throughput over redis",
                2.0,
                self.ratio(WRITE_FULL, (WRITE_FULL, System::Redis), Row::throughput),
            ),
            at_most(
                "durable write, median over redis's",
                0.4,
                self.ratio(DURABLE_ONE, (DURABLE_ONE, System::Redis), Row::p50),
            ),
            at_least(
                "durable writes in batches of 64, throughput over redis",
                3.0,
                self.ratio(
                    DURABLE_BATCH,
                    (DURABLE_BATCH, System::Redis),
                    Row::throughput,
                ),
            ),
        ];
        goals.into_iter().flatten().collect()
    }

    /// The tables for a person.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        let mut last = None;
        for row in &self.rows {
            let test = row.key.0;
            if last != Some(test) {
                out += &heading(test);
                last = Some(test);
            }
            out += &self.line(row);
        }
        if !self.goals.is_empty() {
            out += "\nGoals\n";
        }
        for goal in &self.goals {
            let Goal {
                what,
                measured,
                bound,
                goal: wanted,
                reached,
            } = goal;
            let reached = if *reached { "reached" } else { "MISSED" };
            let (measured, wanted) = (short(*measured), short(*wanted));
            line(
                &mut out,
                format_args!("  {what:<56}{measured:>9}  {bound} {wanted:<6} {reached}"),
            );
        }
        out
    }

    fn line(&self, row: &Row) -> String {
        let mut out = String::new();
        let test = row.key.0;
        let against = |system, figure: fn(&Row) -> f64| {
            self.row(test, system).map_or("-".into(), |other| {
                format!("{:.2}", figure(row) / figure(other))
            })
        };
        let system = row.system;
        if let Some(Latency { p50, p99, p999 }) = row.latency_us {
            let (echo, ramkeep) = (
                against(System::Echo, Row::p50),
                against(System::Ramkeep, Row::p50),
            );
            line(
                &mut out,
                format_args!(
                    "  {system:<16}{p50:>12.1}{p99:>12.1}{p999:>12.1}{echo:>12}{ramkeep:>12}"
                ),
            );
        } else {
            let (all, cores, each) = (
                short(row.operations_per_s),
                row.server_cores,
                short(row.operations_per_server_core_s),
            );
            let (wall, core) = (
                against(System::Ramkeep, Row::throughput),
                against(System::Ramkeep, Row::per_core),
            );
            line(
                &mut out,
                format_args!("  {system:<16}{all:>12}{cores:>12.2}{each:>12}{wall:>12}{core:>12}"),
            );
        }
        out
    }
}

impl Row {
    fn new(key: (Test, System), samples: &[&Sample]) -> Self {
        let sum = |of: fn(&Sample) -> Duration| {
            samples
                .iter()
                .map(|s| of(s))
                .sum::<Duration>()
                .as_secs_f64()
        };
        let (cpu, elapsed) = (sum(|s| s.cpu), sum(|s| s.elapsed));
        let operations = samples.iter().map(|s| s.operations).sum::<u64>() as f64;
        let percentile = |i: usize| {
            median(
                samples
                    .iter()
                    .map(|s| s.percentiles[i] as f64 / 1e3)
                    .collect(),
            )
        };
        let rate = |s: &&Sample| s.operations as f64 / s.elapsed.as_secs_f64();
        Self {
            key,
            test: key.0.name,
            system: key.1.name(),
            latency_us: key.0.is_latency().then(|| Latency {
                p50: percentile(0),
                p99: percentile(1),
                p999: percentile(2),
            }),
            operations_per_s: median(samples.iter().map(rate).collect()),
            server_cores: cpu / elapsed,
            operations_per_server_core_s: operations / cpu.max(f64::EPSILON),
        }
    }

    fn p50(&self) -> f64 {
        self.latency_us.map_or(f64::NAN, |latency| latency.p50)
    }

    fn throughput(&self) -> f64 {
        self.operations_per_s
    }

    fn per_core(&self) -> f64 {
        self.operations_per_server_core_s
    }
}

fn at_most(what: &'static str, goal: f64, measured: Option<f64>) -> Option<Goal> {
    let measured = measured?;
    Some(Goal {
        what,
        measured,
        bound: "at most",
        goal,
        reached: measured <= goal,
    })
}

fn at_least(what: &'static str, goal: f64, measured: Option<f64>) -> Option<Goal> {
    let measured = measured?;
    Some(Goal {
        what,
        measured,
        bound: "at least",
        goal,
        reached: measured >= goal,
    })
}

fn heading(test: Test) -> String {
    let columns = if test.is_latency() {
        ["p50 us", "p99 us", "p99.9 us", "of echo", "of ramkeep"]
    } else {
        [
            "objects/s",
            "cores used",
            "per core s",
            "/ramkeep",
            "core/ramkeep",
        ]
    };
    let columns: String = columns
        .iter()
        .map(|column| format!("{column:>12}"))
        .collect();
    format!("\n{}\n  {:<16}{columns}\n", test.title, "")
}

fn line(out: &mut String, content: std::fmt::Arguments<'_>) {
    writeln!(out, "{content}").expect("writing to a String cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(test: Test, system: System, p50: u64, operations: u64) -> Sample {
        let second = Duration::from_secs(1);
        Sample {
            test,
            system,
            operations,
            elapsed: second,
            cpu: second / 2,
            percentiles: [p50; 3],
        }
    }

    #[test]
    fn medians_and_goals_come_from_all_rounds() {
        let samples = [
            sample(READ_ONE, System::Echo, 10_000, 1),
            sample(READ_ONE, System::Ramkeep, 12_000, 1),
            sample(READ_ONE, System::Ramkeep, 90_000, 1),
            sample(READ_ONE, System::Ramkeep, 13_000, 1),
            sample(READ_FULL, System::Ramkeep, 0, 400),
            sample(READ_FULL, System::Redis, 0, 200),
        ];
        let report = Report::new(&samples);
        let read = &report.goals[0];
        assert!(
            read.reached && (read.measured - 1.3).abs() < 1e-9,
            "{read:?}"
        );
        let redis = &report.goals[1];
        assert!(
            !redis.reached && (redis.measured - 2.0).abs() < 1e-9,
            "{redis:?}"
        );
        assert!((report.rows[2].operations_per_server_core_s - 800.0).abs() < 1e-9);
    }
}
