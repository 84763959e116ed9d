//! Segments that nobody has, and what is said of them.

use ramkeep_wire::limits::{MAX_GIVEN_UP, SEGMENT_SIZE};
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::{Micros, SegmentId};

use super::{Aim, Failure, Gather, Needed};

impl Gather {
    /// Once everybody has been asked: what is to be had from nobody is lost, or left out if it may be
    /// missing; what is to be had again is not lost any more.
    pub(super) fn note_missing(&mut self, now: Micros) {
        if !self.inventory.is_settled(now) {
            return;
        }
        let is_missing = |(segment, needed): &(&SegmentId, &Needed)| {
            !needed.taken && !self.is_to_be_had(**segment, needed)
        };
        let is_found =
            |(segment, needed): &(&SegmentId, &Needed)| self.is_to_be_had(**segment, needed);
        let copied = |(segment, needed): (&SegmentId, &Needed)| (*segment, *needed);
        let missing: Vec<_> = self.needed.iter().filter(is_missing).map(copied).collect();
        let found: Vec<_> = self.lost.iter().filter(is_found).map(copied).collect();
        for (segment, needed) in found {
            self.lost.remove(&segment);
            self.needed.insert(segment, needed);
        }
        for (segment, needed) in missing {
            self.needed.remove(&segment);
            let ignored = mutants::active(Mutant::MissingSegmentIgnored);
            if self.given_up.contains(&segment) || ignored {
                let master = self.master;
                tracing::warn!(%master, %segment, "a segment is left out: it was given up");
            } else {
                self.lost.insert(segment, needed);
                self.aim = Aim::Prove;
            }
        }
    }

    /// Whether a copy of a segment that may be it is with one who answers.
    fn is_to_be_had(&self, segment: SegmentId, needed: &Needed) -> bool {
        let mut copies = self.inventory.copies(segment);
        copies.any(|(server, info)| {
            !self.inventory.is_lost(server) && self.fits(segment, needed, info)
        })
    }

    /// Goes over to the replay when all is proved; fails when all is that can be.
    pub(super) fn judge(&mut self, now: Micros) -> Result<(), Failure> {
        if self.end.length as usize > SEGMENT_SIZE {
            return Err(format!("an end of {} bytes can't be", self.end.length).into());
        }
        if self.aim != Aim::Prove {
            return Ok(());
        }
        let proved = match self.has_digest {
            true => self.needed.values().all(|needed| needed.proved),
            false => self.needed.is_empty(),
        };
        let first = mutants::active(Mutant::FirstDamageOnly) && !self.lost.is_empty();
        if !(proved || first) {
            return Ok(());
        }
        if self.lost.is_empty() {
            self.aim = match self.admitted {
                true => Aim::Replay,
                false => Aim::Admit,
            };
        } else if self.inventory.is_settled(now) {
            return Err(self.failure());
        }
        Ok(())
    }

    fn failure(&self) -> Failure {
        let mut lost = self.lost.keys().copied();
        let mut why = lost
            .next()
            .map_or_else(String::new, |one| self.describe_missing(one));
        match lost.count() {
            0 => {}
            more => why += &format!("; nor {more} more segments"),
        }
        Failure {
            why,
            unproved: self.lost.keys().copied().take(MAX_GIVEN_UP).collect(),
            no_room: None,
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
