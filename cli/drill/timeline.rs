//! What happened when, told while it happens: on a terminal, not with `--json`.

use std::fmt::Display;
use std::time::Instant;

use serde_json::{Map, Value};

use crate::failure::Failure;
use crate::output::Output;

/// Counts of the summary that spoil a drill.
const MUST_BE_NONE: [&str; 11] = [
    "lost_writes",
    "stale_reads",
    "wrong_values",
    "revived_objects",
    "versions_back",
    "failed_operations",
    "metadata_applied_twice",
    "metadata_lost",
    "metadata_failed",
    "answers_after_fence",
    "leaders_elected_by_it",
];

/// Tells of a drill from its start on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeline {
    start: Instant,
    output: Output,
}

impl Timeline {
    /// It starts now.
    pub(super) fn new(output: Output) -> Self {
        Self {
            start: Instant::now(),
            output,
        }
    }

    /// Something happened.
    pub(super) fn tell(self, what: impl Display) -> Result<(), Failure> {
        if self.output.is_json() {
            return Ok(());
        }
        let at = self.start.elapsed().as_secs_f64();
        Ok(self
            .output
            .line(format!("{at:8.3} s  {what}"), &Value::Null)?)
    }

    /// The end of the drill of this name: a summary, and a failure if it counts what must not be.
    pub(super) fn end(
        self,
        drill: &str,
        text: &str,
        fields: Map<String, Value>,
    ) -> Result<(), Failure> {
        let found = found(&fields);
        let mut json = Map::new();
        json.insert("drill".into(), drill.into());
        json.extend(fields);
        json.insert("passed".into(), found.is_empty().into());
        let word = if found.is_empty() { "passed" } else { "FAILED" };
        self.output
            .line(format!("{text}\n{drill}: {word}"), &Value::Object(json))?;
        if found.is_empty() {
            return Ok(());
        }
        Err(Failure::new(format_args!(
            "the drill found what must not be: {}",
            found.join(", ")
        )))
    }
}

/// What a summary counts of what must not be.
fn found(fields: &Map<String, Value>) -> Vec<String> {
    let found = MUST_BE_NONE.iter().filter_map(|name| {
        let count = fields.get(*name)?;
        (*count != 0).then(|| format!("{name} {count}"))
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_finding_of_any_kind_spoils_a_drill() {
        let mut fields: Map<String, Value> = (MUST_BE_NONE.iter())
            .map(|name| ((*name).to_owned(), 0.into()))
            .collect();
        fields.insert("operations".into(), 7.into());
        assert!(found(&fields).is_empty());
        for name in MUST_BE_NONE {
            let mut spoilt = fields.clone();
            spoilt.insert(name.into(), 2.into());
            assert_eq!(found(&spoilt), [format!("{name} 2")]);
        }
    }
}
