//! What happened when, told while it happens: on a terminal, not with `--json`.

use std::fmt::Display;
use std::path::Path;
use std::time::Instant;

use parking_lot::Mutex;
use serde_json::{Map, Value};

use super::picture::{self, Mark, Part, Scene};
use super::workload::{Group, Shared};
use crate::failure::Failure;
use crate::output::Output;

/// Counts of the summary that spoil a drill.
const MUST_BE_NONE: [&str; 27] = [
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
    "servers_declared_dead",
    "leader_changes",
    "damage_unnoticed",
    "accused_wrongly",
    "rounds_failed",
    "tablets_unserved",
    "tablets_unexplained",
    "puts_failed",
    "churn_failed",
    "sides_stuck",
    "sides_late",
    "clients_refused",
    "clients_failed",
    "status_failed",
    "joins_failed",
    "recoveries_failed",
];

/// Tells of a drill from its start on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeline {
    start: Instant,
    output: Output,
    /// Lives as long as the process, which runs one drill.
    story: &'static Mutex<Story>,
}

/// What a picture is to show.
#[derive(Debug, Default)]
struct Story {
    marks: Vec<Mark>,
    parts: Vec<Part>,
}

impl Timeline {
    /// It starts now.
    pub(super) fn new(output: Output) -> Self {
        Self {
            start: Instant::now(),
            output,
            story: Box::leak(Box::default()),
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

    /// Something for the picture happened at `at`.
    pub(super) fn mark(self, at: Instant, name: impl Display) {
        let name = name.to_string();
        self.story.lock().marks.push(Mark { at, name });
    }

    /// As [`Timeline::tell`], and a mark now.
    pub(super) fn tell_mark(self, name: &str, what: impl Display) -> Result<(), Failure> {
        self.mark(Instant::now(), name);
        self.tell(what)
    }

    /// Something for the picture took from one moment to another.
    pub(super) fn part(self, name: &str, from: Instant, to: Instant) {
        let name = name.to_owned();
        self.story.lock().parts.push(Part { name, from, to });
    }

    /// A new round begins: what was marked before is drawn no more.
    pub(super) fn begin_picture(self) {
        *self.story.lock() = Story::default();
    }

    /// Draws what was marked into the file that `--svg` names. `hurt`: whose keys the drill hurts.
    pub(super) fn draw(
        self,
        path: Option<&Path>,
        title: &str,
        shared: &Shared,
        hurt: impl Fn(&Group) -> bool,
    ) -> Result<(), Failure> {
        let Some(path) = path else { return Ok(()) };
        let story = self.story.lock();
        let span = picture::span(&story.marks);
        let samples = span.map(|(from, to)| shared.samples.between(from, to));
        let hurt: Vec<bool> = shared.groups.iter().map(hurt).collect();
        let scene = Scene {
            title,
            marks: &story.marks,
            parts: &story.parts,
            samples: &samples.unwrap_or_default(),
            hurt: &hurt,
        };
        picture::save(&scene, path)?;
        drop(story);
        self.tell(format_args!("picture: {}", path.display()))
    }

    /// The drill of this name can't be done here, which is no failure of it.
    pub(super) fn skip(self, drill: &str, why: &str) -> Result<(), Failure> {
        let json = serde_json::json!({ "drill": drill, "skipped": why });
        Ok(self
            .output
            .line(format!("{drill}: skipped: {why}"), &json)?)
    }

    /// The end of the drill of this name: a summary, and a failure if it counts what must not be.
    pub(super) fn end(
        self,
        drill: &str,
        text: &str,
        fields: Map<String, Value>,
    ) -> Result<(), Failure> {
        let found = spoilt(&fields);
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
pub(super) fn spoilt(fields: &Map<String, Value>) -> Vec<String> {
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
        assert!(spoilt(&fields).is_empty());
        for name in MUST_BE_NONE {
            let mut spoilt = fields.clone();
            spoilt.insert(name.into(), 2.into());
            assert_eq!(self::spoilt(&spoilt), [format!("{name} 2")]);
        }
    }
}
