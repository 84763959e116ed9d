//! What came of all rounds.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::deaths::Recovered;
use crate::columns::Columns;
use crate::drill::counts::{Tally, ms};
use crate::drill::timeline::spoilt;
use crate::units::Size;

/// What came of one round.
#[derive(Clone, Debug)]
pub(in crate::drill) struct Outcome {
    /// What repeats its choices.
    pub(in crate::drill) seed: u64,
    /// In the order of their deaths.
    pub(in crate::drill) recovered: Vec<Recovered>,
    /// Of all keys.
    pub(in crate::drill) tally: Tally,
    pub(in crate::drill) objects: usize,
    /// Loaded.
    pub(in crate::drill) bytes: u64,
    /// Of those, what the dead had.
    pub(in crate::drill) lost_memory: u64,
    /// What else there is to say of it, for programs; numbers are added up over rounds.
    pub(in crate::drill) fields: Map<String, Value>,
    /// The same for people; may be empty.
    pub(in crate::drill) note: String,
}

impl Outcome {
    /// The longest outage of a server's keys.
    pub(in crate::drill) fn longest(&self) -> Option<&Recovered> {
        self.recovered.iter().max_by_key(|one| one.unavailable)
    }

    /// How long something was not to be had.
    pub(in crate::drill) fn unavailable(&self) -> Duration {
        let slowest = self.tally.slowest_read.max(self.tally.slowest_write);
        match self.longest() {
            Some(one) if one.unavailable > Duration::ZERO => one.unavailable,
            _ => slowest,
        }
    }

    fn most(&self, of: impl Fn(&Recovered) -> Duration) -> Duration {
        self.recovered.iter().map(of).max().unwrap_or_default()
    }

    fn victims(&self) -> Vec<u64> {
        self.recovered.iter().map(|one| one.id).collect()
    }

    /// For programs.
    pub(in crate::drill) fn json(&self) -> Map<String, Value> {
        let mut fields = self.tally.json();
        let parts = self.longest().map(|one| {
            let parts = one.parts.iter();
            let parts = parts.map(|(name, took)| ((*name).to_owned(), ms(*took).into()));
            Value::Object(parts.collect())
        });
        let own = [
            ("seed", self.seed.into()),
            ("victims", self.victims().into()),
            ("objects", self.objects.into()),
            ("bytes", self.bytes.into()),
            ("bytes_recovered", self.lost_memory.into()),
            ("detect_ms", ms(self.most(|one| one.detect)).into()),
            ("first_read_ms", ms(self.most(|one| one.first_read)).into()),
            ("recover_ms", ms(self.most(|one| one.recover)).into()),
            ("served_ms", ms(self.most(|one| one.served)).into()),
            ("unavailable_ms", ms(self.unavailable()).into()),
            ("parts_ms", parts.unwrap_or_default()),
        ];
        fields.extend(own.map(|(name, value)| (name.to_owned(), value)));
        fields.extend(self.fields.clone());
        fields
    }

    /// Whether it found nothing that must not be.
    pub(in crate::drill) fn passed(&self) -> bool {
        spoilt(&self.json()).is_empty()
    }

    /// For people.
    pub(in crate::drill) fn text(&self) -> String {
        let parts = self.longest().into_iter().flat_map(|one| &one.parts);
        let parts: Vec<String> = parts
            .map(|(name, took)| format!("{} {}", name.replace('_', " "), ms(*took)))
            .collect();
        let (victims, size) = (self.victims(), Size(self.lost_memory));
        let detected = ms(self.most(|one| one.detect));
        let served = ms(self.most(|one| one.served));
        let outage = if self.recovered.iter().any(|one| one.given_up) {
            format!("not all of it served after {served} ms, when no more was waited for")
        } else {
            format!(
                "first read served after {} ms, new owners decided after {} ms, all tablets served \
                 after {served} ms, unavailable {} ms",
                ms(self.most(|one| one.first_read)),
                ms(self.most(|one| one.recover)),
                ms(self.unavailable()),
            )
        };
        format!(
            "servers {victims:?} killed, with {size} of data: decided crashed after {detected} ms, \
             {outage}\n  of which ms: {}\n{}",
            parts.join(", "),
            self.tally.text(),
        ) + &self.note
    }
}

/// Of all rounds together: sums of what is counted, the longest of what is measured.
pub(in crate::drill) fn totals(seed: u64, outcomes: &[Outcome]) -> Map<String, Value> {
    let Some(longest) = outcomes.iter().max_by_key(|one| one.unavailable()) else {
        return Map::new();
    };
    let tally = outcomes
        .iter()
        .fold(Tally::default(), |sum, one| sum.and(one.tally));
    let mut fields = longest.json();
    fields.extend(tally.json());
    // Of numbers of one round only; sums and maxima of all replace them.
    fields.remove("victims");
    for name in outcomes.iter().flat_map(|one| one.fields.keys()) {
        let numbers = outcomes.iter().map(|one| one.fields.get(name));
        let sum: Option<u64> = numbers.map(|one| one.and_then(Value::as_u64)).sum();
        if let Some(sum) = sum {
            fields.insert(name.clone(), sum.into());
        }
    }
    let most = |of: fn(&Recovered) -> Duration| {
        let most = outcomes.iter().map(|one| one.most(of)).max();
        ms(most.unwrap_or_default())
    };
    let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>();
    let kills: usize = outcomes.iter().map(|one| one.recovered.len()).sum();
    let passed = outcomes.iter().filter(|one| one.passed()).count();
    let own = [
        ("seed", seed.into()),
        ("rounds", outcomes.len().into()),
        ("rounds_passed", passed.into()),
        ("kills", kills.into()),
        ("objects", sum(|one| one.objects as u64).into()),
        ("bytes", sum(|one| one.bytes).into()),
        ("bytes_recovered", sum(|one| one.lost_memory).into()),
        ("detect_ms", most(|one| one.detect).into()),
        ("first_read_ms", most(|one| one.first_read).into()),
        ("recover_ms", most(|one| one.recover).into()),
        ("served_ms", most(|one| one.served).into()),
        ("unavailable_ms", ms(longest.unavailable()).into()),
        ("median_ms", medians(outcomes)),
        ("each", outcomes.iter().map(each).collect()),
    ];
    fields.extend(own.map(|(name, value)| (name.to_owned(), value)));
    fields
}

fn each(outcome: &Outcome) -> Value {
    let mut fields = outcome.json();
    fields.insert("passed".to_owned(), outcome.passed().into());
    Value::Object(fields)
}

fn medians(outcomes: &[Outcome]) -> Value {
    let median = |of: &dyn Fn(&Outcome) -> Duration| {
        let mut all: Vec<Duration> = outcomes.iter().map(of).collect();
        all.sort_unstable();
        ms(all.get(all.len() / 2).copied().unwrap_or_default())
    };
    json!({
        "detect": median(&|one| one.most(|one| one.detect)),
        "recover": median(&|one| one.most(|one| one.recover)),
        "unavailable": median(&|one| one.unavailable()),
    })
}

/// All rounds, a line each.
pub(in crate::drill) fn table(outcomes: &[Outcome]) -> String {
    let mut columns = Columns::new([
        ">round",
        ">seed",
        "killed",
        ">detect ms",
        ">recover ms",
        ">unavailable ms",
        ">acknowledged",
        ">lost",
        ">stale",
        ">wrong",
        ">failed",
        "",
    ]);
    for (at, one) in outcomes.iter().enumerate() {
        let victims: Vec<String> = one.victims().iter().map(u64::to_string).collect();
        columns.row([
            (at + 1).to_string(),
            one.seed.to_string(),
            victims.join(" "),
            ms(one.most(|one| one.detect)).to_string(),
            ms(one.most(|one| one.recover)).to_string(),
            ms(one.unavailable()).to_string(),
            one.tally.acknowledged_writes.to_string(),
            one.tally.lost_writes.to_string(),
            one.tally.stale_reads.to_string(),
            one.tally.wrong_values.to_string(),
            one.tally.failed.to_string(),
            if one.passed() { "passed" } else { "FAILED" }.to_owned(),
        ]);
    }
    columns.to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn outcome(seed: u64, unavailable: u64, lost_writes: u64) -> Outcome {
        let ms = Duration::from_millis;
        Outcome {
            seed,
            recovered: vec![Recovered {
                id: seed,
                killed: Instant::now(),
                healing: None,
                given_up: false,
                detect: ms(unavailable / 2),
                first_read: ms(unavailable),
                recover: ms(unavailable),
                served: ms(unavailable),
                unavailable: ms(unavailable),
                parts: vec![
                    ("detect", ms(unavailable / 2)),
                    ("replay", ms(unavailable / 2)),
                ],
            }],
            tally: Tally {
                acknowledged_writes: 7,
                lost_writes,
                ..<_>::default()
            },
            objects: 10,
            bytes: 1_000,
            lost_memory: 250,
            fields: Map::new(),
            note: String::new(),
        }
    }

    #[test]
    fn totals_are_sums_of_counts_and_the_longest_of_times() {
        let totals = totals(
            5,
            &[outcome(5, 100, 0), outcome(6, 300, 1), outcome(7, 200, 0)],
        );
        let wanted = json!({
            "rounds": 3, "rounds_passed": 2, "kills": 3, "objects": 30, "bytes_recovered": 750,
            "acknowledged_writes": 21, "lost_writes": 1, "seed": 5, "unavailable_ms": 300.0,
            "detect_ms": 150.0, "parts_ms": { "detect": 150.0, "replay": 150.0 },
        });
        for (name, value) in wanted.as_object().unwrap() {
            assert_eq!(totals.get(name), Some(value), "{name}");
        }
        assert_eq!(totals["median_ms"]["unavailable"], 200.0);
        assert_eq!(totals["each"][1]["passed"], false);
        assert_eq!(spoilt(&totals), ["lost_writes 1"]);
    }
}
