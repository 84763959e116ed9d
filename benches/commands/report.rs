//! From samples to the table: medians over the rounds, and the ratios between the systems.

use std::fmt::Write as _;

use ramkeep_benches::{median, short};
use ramkeep_wire::coordinator::GroupCounters;
use serde::Serialize;

use crate::disk::{DiskCost, SyncCost};
use crate::systems::{Sample, System};

/// Commands a second that three coordinators are to do.
const THROUGHPUT: f64 = 20_000.0;
/// Ramkeep's commands a second over etcd's at equal concurrency, at least.
const THROUGHPUT_RATIO: f64 = 3.0;
/// Ramkeep's median latency over etcd's at equal concurrency, at most.
const LATENCY_RATIO: f64 = 0.7;

/// One system with so many commands outstanding; all figures are medians over the rounds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) system: System,
    pub(crate) outstanding: usize,
    pub(crate) rounds: usize,
    pub(crate) commands_per_s: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// Processor time of the client per command, microseconds.
    pub(crate) client_cpu_us: f64,
    /// Processor time of all servers together per command, microseconds.
    pub(crate) server_cpu_us: f64,
    /// Of the leader's log, by its own count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) leader_log: Option<LeaderLog>,
}

/// What the leader's log did.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct LeaderLog {
    /// Commands that one sync of the log carried.
    commands_per_sync: f64,
    /// Mean, microseconds.
    sync_us: f64,
}

/// Ramkeep's figures over etcd's at the same number of commands outstanding.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Ratio {
    outstanding: usize,
    commands_per_s: f64,
    p50: f64,
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
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) members: usize,
    pub(crate) disk: DiskCost,
    pub(crate) rows: Vec<Row>,
    pub(crate) ratios: Vec<Ratio>,
    pub(crate) goals: Vec<Goal>,
    /// What each coordinator counted in the whole run.
    pub(crate) counters: Vec<GroupCounters>,
}

impl Report {
    /// Medians of the samples; rows stay in the order of concurrency, then of systems.
    pub(crate) fn new(members: usize, disk: &[DiskCost], samples: &[Sample]) -> Self {
        let mut keys: Vec<(usize, System)> = Vec::new();
        for sample in samples {
            let key = (sample.outstanding, sample.system);
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        keys.sort_by_key(|&(outstanding, system)| (outstanding, system.name()));
        let rows: Vec<Row> = (keys.iter())
            .map(|&(outstanding, system)| {
                let of = |s: &&Sample| (s.outstanding, s.system) == (outstanding, system);
                Row::new(
                    outstanding,
                    system,
                    &samples.iter().filter(of).collect::<Vec<_>>(),
                )
            })
            .collect();
        let ratios: Vec<Ratio> = rows.iter().filter_map(|row| ratio(row, &rows)).collect();
        let goals = goals(&rows, &ratios);
        Self {
            members,
            disk: DiskCost::median(disk),
            rows,
            ratios,
            goals,
            counters: Vec::new(),
        }
    }

    /// What the coordinators did for a batch of commands, each by its own count.
    fn count(&self, out: &mut String) {
        let leads = self.counters.iter().max_by_key(|counters| counters.slots);
        let Some(leader) = leads.filter(|leader| leader.slots > 0) else {
            return;
        };
        let batches = leader.slots as f64;
        let per_batch = leader.commands as f64 / batches;
        line(
            out,
            format_args!("\n{batches} batches, {per_batch:.1} commands each; for a batch:"),
        );
        for (id, one) in (1..).zip(&self.counters) {
            line(
                out,
                format_args!(
                    "  coordinator {id}: {:.3} accepts sent, {:.3} sent again, {:.3} taken, {:.3} syncs",
                    one.accepts_sent as f64 / batches,
                    one.accepts_resent as f64 / batches,
                    one.accepts_taken as f64 / batches,
                    one.syncs as f64 / batches,
                ),
            );
        }
    }

    /// The tables for a person.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        for (way, cost) in [
            ("written before", self.disk.written_before),
            ("reserved only ", self.disk.reserved_only),
        ] {
            let SyncCost {
                p50_us,
                p99_us,
                per_s,
            } = cost;
            line(
                &mut out,
                format_args!(
                    "4 KiB appended and fdatasync, blocks {way}: p50 {p50_us:.0} us, p99 {p99_us:.0} us, {per_s:.0}/s"
                ),
            );
        }
        line(
            &mut out,
            format_args!(
                "\n{:>11} {:<8}{:>11}{:>10}{:>10}{:>11}{:>11}{:>10}{:>9}",
                "outstanding",
                "",
                "commands/s",
                "p50 us",
                "p99 us",
                "client us",
                "server us",
                "cmd/sync",
                "sync us"
            ),
        );
        for row in &self.rows {
            let [per_sync, sync] = row.leader_log.map_or(["-".into(), "-".into()], |log| {
                [
                    format!("{:.1}", log.commands_per_sync),
                    format!("{:.0}", log.sync_us),
                ]
            });
            line(
                &mut out,
                format_args!(
                    "{:>11} {:<8}{:>11.0}{:>10.0}{:>10.0}{:>11.1}{:>11.1}{per_sync:>10}{sync:>9}",
                    row.outstanding,
                    row.system.name(),
                    row.commands_per_s,
                    row.p50_us,
                    row.p99_us,
                    row.client_cpu_us,
                    row.server_cpu_us,
                ),
            );
        }
        if !self.ratios.is_empty() {
            out += "\nRamkeep over etcd   commands/s       p50\n";
        }
        for ratio in &self.ratios {
            line(
                &mut out,
                format_args!(
                    "{:>11} {:>18.2}{:>10.2}",
                    ratio.outstanding, ratio.commands_per_s, ratio.p50
                ),
            );
        }
        if !self.goals.is_empty() {
            out += "\nGoals\n";
        }
        for goal in &self.goals {
            let reached = if goal.reached { "reached" } else { "MISSED" };
            let (measured, wanted) = (short(goal.measured), short(goal.goal));
            line(
                &mut out,
                format_args!(
                    "  {:<56}{measured:>9}  {} {wanted:<6} {reached}",
                    goal.what, goal.bound
                ),
            );
        }
        self.count(&mut out);
        out
    }
}

impl Row {
    fn new(outstanding: usize, system: System, samples: &[&Sample]) -> Self {
        let over = |figure: &dyn Fn(&Sample) -> f64| {
            median(samples.iter().map(|sample| figure(sample)).collect())
        };
        let commands = |s: &Sample| s.run.commands as f64;
        let log = |s: &&Sample| {
            let syncs = s.syncs.filter(|syncs| syncs.count > 0)?;
            let count = syncs.count as f64;
            Some((commands(s) / count, syncs.seconds * 1e6 / count))
        };
        let logs: Vec<(f64, f64)> = samples.iter().filter_map(log).collect();
        Self {
            system,
            outstanding,
            rounds: samples.len(),
            commands_per_s: over(&|s| commands(s) / s.run.elapsed.as_secs_f64()),
            p50_us: over(&|s| s.run.percentiles[0] as f64 / 1e3),
            p99_us: over(&|s| s.run.percentiles[1] as f64 / 1e3),
            client_cpu_us: over(&|s| s.run.client_cpu.as_secs_f64() * 1e6 / commands(s)),
            server_cpu_us: over(&|s| s.run.server_cpu.as_secs_f64() * 1e6 / commands(s)),
            leader_log: (!logs.is_empty()).then(|| LeaderLog {
                commands_per_sync: median(logs.iter().map(|log| log.0).collect()),
                sync_us: median(logs.iter().map(|log| log.1).collect()),
            }),
        }
    }
}

/// Of a Ramkeep row over etcd's.
fn ratio(ours: &Row, rows: &[Row]) -> Option<Ratio> {
    let theirs = (rows.iter())
        .find(|row| row.system == System::Etcd && row.outstanding == ours.outstanding)?;
    (ours.system == System::Ramkeep).then(|| Ratio {
        outstanding: ours.outstanding,
        commands_per_s: ours.commands_per_s / theirs.commands_per_s,
        p50: ours.p50_us / theirs.p50_us,
    })
}

fn goals(rows: &[Row], ratios: &[Ratio]) -> Vec<Goal> {
    let ours = rows.iter().filter(|row| row.system == System::Ramkeep);
    let best = ours.map(|row| row.commands_per_s).reduce(f64::max);
    let least = ratios.iter().map(|r| r.commands_per_s).reduce(f64::min);
    let most = ratios.iter().map(|r| r.p50).reduce(f64::max);
    let at_least = |what, measured: f64, goal| Goal {
        what,
        measured,
        bound: "at least",
        goal,
        reached: measured >= goal,
    };
    let goals = [
        best.map(|best| at_least("commands a second, best concurrency", best, THROUGHPUT)),
        least.map(|least| {
            let what = "commands a second over etcd's, least of all concurrencies";
            at_least(what, least, THROUGHPUT_RATIO)
        }),
        most.map(|most| Goal {
            what: "median latency over etcd's, most of all concurrencies",
            measured: most,
            bound: "at most",
            goal: LATENCY_RATIO,
            reached: most <= LATENCY_RATIO,
        }),
    ];
    goals.into_iter().flatten().collect()
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(out, "{text}").expect("writing to a string does not fail");
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::engine::Run;
    use crate::systems::Syncs;

    fn sample(system: System, outstanding: usize, commands: u64, p50: u64) -> Sample {
        let second = Duration::from_secs(1);
        Sample {
            system,
            outstanding,
            run: Run {
                commands,
                elapsed: second,
                percentiles: [p50 * 1_000; 2],
                client_cpu: second / 2,
                server_cpu: second,
            },
            syncs: (system == System::Etcd).then_some(Syncs {
                count: commands / 10,
                seconds: 0.5,
            }),
        }
    }

    #[test]
    fn ratios_are_of_medians_at_equal_concurrency_and_goals_take_the_worst() {
        let cost = SyncCost {
            p50_us: 1.0,
            p99_us: 1.0,
            per_s: 1.0,
        };
        let disk = DiskCost {
            written_before: cost,
            reserved_only: cost,
        };
        let samples = [
            sample(System::Ramkeep, 16, 30_000, 60),
            sample(System::Ramkeep, 16, 10, 60),
            sample(System::Ramkeep, 16, 40_000, 60),
            sample(System::Etcd, 16, 10_000, 100),
            sample(System::Ramkeep, 1, 2_000, 80),
            sample(System::Etcd, 1, 1_000, 100),
        ];
        let report = Report::new(3, &[disk], &samples);
        let ratios: Vec<_> = (report.ratios.iter())
            .map(|r| (r.outstanding, r.commands_per_s, r.p50))
            .collect();
        assert_eq!(ratios, [(1, 2.0, 0.8), (16, 3.0, 0.6)]);
        let reached: Vec<_> = report.goals.iter().map(|goal| goal.reached).collect();
        assert_eq!(reached, [true, false, false]);
        let log = report.rows[0].leader_log.unwrap();
        assert!(
            (log.commands_per_sync - 10.0).abs() < 1e-9 && (log.sync_us - 5_000.0).abs() < 1e-6
        );
        assert!(report.text().contains("MISSED"));
    }
}
