//! What came of each cut.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Cut;
use super::sides::Side;
use crate::columns::Columns;
use crate::drill::counts::{Tally, ms};

/// A cut that has healed.
pub(super) struct Healed {
    pub(super) cut: Cut,
    /// From healing to the first packet that got through.
    pub(super) first_packet: Duration,
    pub(super) sides: Vec<WentOn>,
    /// Operations on keys of servers that were cut off, failed before everybody went on.
    pub(super) excused: Tally,
    pub(super) commands_failed: u64,
}

/// When a side went on, from the first packet; `None`: not at all.
pub(super) struct WentOn {
    pub(super) name: String,
    pub(super) first: Option<Duration>,
    pub(super) all: Option<Duration>,
}

impl WentOn {
    /// After the first packet passed.
    pub(super) fn since(passed: Instant, side: Side) -> Self {
        let after = |at: Instant| at.saturating_duration_since(passed);
        Self {
            name: side.name,
            first: side.first.map(after),
            all: side.all.map(after),
        }
    }
}

fn shown(time: Option<Duration>) -> String {
    time.map_or_else(|| "never".to_owned(), |time| ms(time).to_string())
}

impl Healed {
    /// For people.
    pub(super) fn text(&self) -> String {
        let sides = self.sides.iter().map(|side| {
            let (first, all) = (shown(side.first), shown(side.all));
            format!("{} after {first} ms, all of it after {all} ms", side.name)
        });
        sides.collect::<Vec<_>>().join("; ")
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        let sides = self.sides.iter().map(|side| {
            json!({ "name": side.name, "first_ms": side.first.map(ms), "all_ms": side.all.map(ms) })
        });
        json!({
            "cut": self.cut.name(),
            "seconds": self.cut.time.as_secs_f64(),
            "first_packet_ms": ms(self.first_packet),
            "sides": sides.collect::<Vec<_>>(),
            "failed_meanwhile": self.excused.failed,
            "commands_failed": self.commands_failed,
        })
    }
}

/// All cuts, a line for each side.
pub(super) fn table(healed: &[Healed]) -> Columns<5> {
    let mut columns = Columns::new([
        "cut",
        ">failed meanwhile",
        "who goes on",
        ">first ms",
        ">all ms",
    ]);
    for one in healed {
        for side in &one.sides {
            columns.row([
                one.cut.name(),
                (one.excused.failed + one.commands_failed).to_string(),
                side.name.clone(),
                shown(side.first),
                shown(side.all),
            ]);
        }
    }
    columns
}
