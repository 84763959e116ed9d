//! What happened when, told while it happens: on a terminal, not with `--json`.

use std::fmt::Display;
use std::time::Instant;

use serde_json::{Map, Value};

use crate::failure::Failure;
use crate::output::Output;

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

    /// The end of the drill of this name: a summary, and a failure unless it `passed`.
    pub(super) fn end(
        self,
        drill: &str,
        text: &str,
        fields: Map<String, Value>,
        passed: bool,
    ) -> Result<(), Failure> {
        let mut json = Map::new();
        json.insert("drill".into(), drill.into());
        json.extend(fields);
        json.insert("passed".into(), passed.into());
        let word = if passed { "passed" } else { "FAILED" };
        self.output
            .line(format!("{text}\n{drill}: {word}"), &Value::Object(json))?;
        if passed {
            return Ok(());
        }
        Err(Failure::new(format_args!(
            "the drill found what must not be: {}",
            text.lines().next().unwrap_or_default()
        )))
    }
}
