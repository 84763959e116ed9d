//! Segments that nobody has, and what is said of them.

use ramkeep_wire::backup::ReplicaInfo;
use ramkeep_wire::limits::SEGMENT_SIZE;
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::{Micros, SegmentId, ServerId};

use super::Gather;

impl Gather {
    /// A segment that may be missing, and is to be had from nobody, is not waited for.
    pub(super) fn leave_given_up(&mut self, now: Micros) {
        if mutants::active(Mutant::MissingSegmentIgnored) {
            self.given_up = self.needed.keys().copied().collect();
        }
        if !self.inventory.is_settled(now) {
            return;
        }
        let given_up = self.given_up.iter().copied();
        let missing: Vec<_> = given_up.filter(|one| self.is_missing(*one)).collect();
        for segment in missing {
            let master = self.master;
            tracing::warn!(%master, %segment, "a segment is left out: it was given up");
            self.needed.remove(&segment);
        }
    }

    /// Whether a needed segment is to be had from nobody, now that everybody has been asked.
    fn is_missing(&self, segment: SegmentId) -> bool {
        let Some(needed) = self.needed.get(&segment) else {
            return false;
        };
        let usable = |(server, info): (ServerId, &ReplicaInfo)| {
            !self.inventory.is_lost(server) && self.fits(segment, needed, info)
        };
        !needed.taken && !self.inventory.copies(segment).any(usable)
    }

    /// Fails if a segment is to be had from nobody.
    pub(super) fn check_missing(&mut self, now: Micros) -> Result<(), String> {
        if self.end.length as usize > SEGMENT_SIZE {
            return Err(format!("an end of {} bytes can't be", self.end.length));
        }
        if !self.inventory.is_settled(now) {
            return Ok(());
        }
        let mut needed = self.needed.keys().rev();
        match needed.find(|segment| self.is_missing(**segment)) {
            Some(segment) => Err(self.describe_missing(*segment)),
            None => Ok(()),
        }
    }

    fn describe_missing(&self, segment: SegmentId) -> String {
        let damaged: Vec<_> = self.inventory.set_aside(segment).collect();
        let mut other = Vec::new();
        let mut silent = Vec::new();
        for (server, info) in self.inventory.copies(segment) {
            if self.inventory.is_lost(server) {
                silent.push(server);
            } else {
                other.push((server, info.length, info.closed));
            }
        }
        let master = self.master;
        let mut text = format!("no backup has {segment:?} of {master:?} whole");
        let mut add = |what: &str, who: String| text.push_str(&format!("; {what} {who}"));
        if !damaged.is_empty() {
            add("damaged on", format!("{damaged:?}"));
        }
        for (server, length, closed) in other {
            let state = if closed { "closed" } else { "open" };
            add(
                "another state on",
                format!("{server:?} ({length} bytes, {state})"),
            );
        }
        if !silent.is_empty() {
            add("held by silent", format!("{silent:?}"));
        }
        text
    }
}
