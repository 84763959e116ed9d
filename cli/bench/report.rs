//! What a run measured, as text and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::workload::Action;

/// Longest latency that is told apart, microseconds.
const LONGEST_US: u64 = 600_000_000;

/// Latencies and failures of one task, merged at the end.
#[derive(Clone, Debug, Default)]
pub(super) struct Measured {
    histograms: BTreeMap<&'static str, Histogram<u64>>,
    pub(super) operations: u64,
    pub(super) errors: BTreeMap<String, u64>,
}

impl Measured {
    /// Notes an operation that succeeded.
    pub(super) fn done(&mut self, action: Action, latency: Duration) {
        self.operations += 1;
        let histogram = self.histograms.entry(action.label()).or_insert_with(|| {
            Histogram::new_with_bounds(1, LONGEST_US * 1000, 3).expect("constant bounds fit")
        });
        // In nanoseconds: medians of a few microseconds deserve their fractions.
        histogram.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).max(1));
    }

    /// Notes an operation that failed.
    pub(super) fn failed(&mut self, error: &dyn std::fmt::Display) {
        self.operations += 1;
        *self.errors.entry(error.to_string()).or_default() += 1;
    }

    /// Adds what another task measured.
    pub(super) fn merge(&mut self, other: Self) {
        self.operations += other.operations;
        for (label, histogram) in other.histograms {
            match self.histograms.get_mut(label) {
                Some(known) => known.add(&histogram).expect("all have the same bounds"),
                None => drop(self.histograms.insert(label, histogram)),
            }
        }
        for (error, count) in other.errors {
            *self.errors.entry(error).or_default() += count;
        }
    }

    /// How many failed.
    pub(super) fn error_count(&self) -> u64 {
        self.errors.values().sum()
    }

    /// The JSON of the interfaces page.
    pub(super) fn json(&self, workload: &str, elapsed: Duration) -> Value {
        let latencies: serde_json::Map<String, Value> = self
            .histograms
            .iter()
            .map(|(label, histogram)| ((*label).to_owned(), latency_json(histogram)))
            .collect();
        json!({
            "workload": workload,
            "operations": self.operations,
            "errors": self.error_count(),
            "throughput_per_s": self.throughput(elapsed),
            "latency_us": latencies,
            "seconds": elapsed.as_secs_f64(),
            "error_kinds": self.errors,
        })
    }

    fn throughput(&self, elapsed: Duration) -> f64 {
        let done = self.operations - self.error_count();
        (done as f64 / elapsed.as_secs_f64().max(1e-9) * 10.0).round() / 10.0
    }

    /// A table for people.
    pub(super) fn text(&self, workload: &str, elapsed: Duration) -> String {
        let mut text = format!(
            "workload {workload}: {} operations in {:.1} s, {:.0}/s, {} errors\n",
            self.operations,
            elapsed.as_secs_f64(),
            self.throughput(elapsed),
            self.error_count()
        );
        let _ = writeln!(
            text,
            "{:<18}{:>10}{:>10}{:>10}{:>10}{:>10}  (us)",
            "", "p50", "p90", "p99", "p99.9", "max"
        );
        for (label, histogram) in &self.histograms {
            let _ = write!(text, "{label:<18}");
            for value in quantiles(histogram) {
                let _ = write!(text, "{value:>10.1}");
            }
            text.push('\n');
        }
        for (error, count) in &self.errors {
            let _ = writeln!(text, "{count} times: {error}");
        }
        text.trim_end().to_owned()
    }
}

fn quantiles(histogram: &Histogram<u64>) -> [f64; 5] {
    let at = |q: f64| histogram.value_at_quantile(q) as f64 / 1000.0;
    [
        at(0.5),
        at(0.9),
        at(0.99),
        at(0.999),
        histogram.max() as f64 / 1000.0,
    ]
}

fn latency_json(histogram: &Histogram<u64>) -> Value {
    let [p50, p90, p99, p999, max] = quantiles(histogram).map(|us| (us * 10.0).round() / 10.0);
    json!({ "p50": p50, "p90": p90, "p99": p99, "p999": p999, "max": max })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tasks_measured_adds_up() {
        let mut all = Measured::default();
        for latency in [10, 20, 30] {
            let mut one = Measured::default();
            one.done(Action::Read, Duration::from_micros(latency));
            one.failed(&"no answer in time");
            all.merge(one);
        }
        let json = all.json("a", Duration::from_secs(1));
        assert_eq!(
            (json["operations"].as_u64(), json["errors"].as_u64()),
            (Some(6), Some(3))
        );
        let median = json["latency_us"]["read"]["p50"]
            .as_f64()
            .expect("reads were measured");
        assert!((19.9..20.2).contains(&median), "{median}");
        assert!(
            all.text("a", Duration::from_secs(1))
                .contains("3 times: no answer in time")
        );
    }
}
