//! Failure detection: who has been silent, who is asked, who is dead.
//!
//! # Invariants
//! 1. A heartbeat or any reply clears a suspicion.
//! 2. Nobody is decided crashed without probes that went unanswered, and time for answers to them.
//! 3. Silence counts only while this coordinator was awake and leading: timers start afresh with
//!    [`Watch::afresh`] (SAFETY 8), and time in which it was starved is taken off ([`Watch::starved`]).
//! 4. What another server says only begins a suspicion, and no more often than every
//!    [`REPORT_SPACING`]: the leader's own probes decide (SAFETY 10).

use std::time::Duration;

use ramkeep_wire::coordinator::{Heartbeat, SuspicionCounts};
use ramkeep_wire::{ListVersion, Micros};

use crate::limits::{
    CLOSED_CRASH_AFTER, CRASH_AFTER, MIN_PROBES, PROBE_CLOSED_EVERY, PROBE_EVERY, REPORT_SPACING,
};

/// What the leader knows of a living server beside the replicated state. Lost with the leader.
#[derive(Debug)]
pub(super) struct Watch {
    heard: Micros,
    suspicion: Option<Suspicion>,
    /// When another server's word began a suspicion last.
    reported: Option<Micros>,
    pub(super) counts: SuspicionCounts,
    /// The last report.
    pub(super) heartbeat: Option<Heartbeat>,
    /// The newest server list that it is known to have.
    pub(super) confirmed: ListVersion,
    /// Its crash has been proposed.
    pub(super) declaring: bool,
}

#[derive(Debug)]
struct Suspicion {
    since: Micros,
    probes: u32,
    last_probe: Option<Micros>,
    closed_since: Option<Micros>,
    refused: u32,
}

/// What to do about a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing.
    Fine,
    /// Ask it now.
    Probe,
    /// It was asked; wait.
    Wait,
    /// It is dead.
    Dead,
}

impl Watch {
    pub(super) fn new(now: Micros) -> Self {
        Self {
            heard: now,
            suspicion: None,
            reported: None,
            counts: SuspicionCounts::default(),
            heartbeat: None,
            confirmed: ListVersion(0),
            declaring: false,
        }
    }

    /// One of whom nothing was heard for ever, for a planted fault.
    pub(super) fn long_silent() -> Self {
        let mut watch = Self::new(Micros(0));
        watch.suspect(Micros(0));
        (0..MIN_PROBES).for_each(|_| watch.probed(Micros(0)));
        watch
    }

    /// Whatever silence there was does not count.
    pub(super) fn afresh(&mut self, now: Micros) {
        self.heard = now;
        self.suspicion = None;
    }

    /// It gave a sign of life.
    pub(super) fn hear(&mut self, now: Micros) {
        self.heard = now;
        self.suspicion = None;
    }

    /// This coordinator did not run for so long, and heard nobody: that much of the silence is its
    /// own. Ports that refused did so all the same.
    pub(super) fn starved(&mut self, late: Duration) {
        self.heard = self.heard + late;
        if let Some(suspicion) = &mut self.suspicion {
            suspicion.since = suspicion.since + late;
            suspicion.last_probe = suspicion.last_probe.map(|at| at + late);
        }
    }

    /// Somebody has reason to think that it is dead.
    pub(super) fn suspect(&mut self, now: Micros) {
        if self.suspicion.is_none() {
            self.counts.suspicions += 1;
            self.suspicion = Some(Suspicion {
                since: now,
                probes: 0,
                last_probe: None,
                closed_since: None,
                refused: 0,
            });
        }
    }

    /// Another server takes it for dead. Whether that is a reason to look now.
    pub(super) fn report(&mut self, now: Micros) -> bool {
        self.counts.reports += 1;
        let lately = |at: Micros| now < at + REPORT_SPACING;
        if self.suspicion.is_some() || self.reported.is_some_and(lately) {
            return false;
        }
        self.reported = Some(now);
        self.suspect(now);
        true
    }

    /// A connection to it closed.
    pub(super) fn closed(&mut self, now: Micros) {
        self.suspect(now);
        if let Some(suspicion) = &mut self.suspicion {
            suspicion.closed_since.get_or_insert(now);
        }
    }

    /// No process listens at its address.
    pub(super) fn refused(&mut self, now: Micros) {
        self.closed(now);
        if let Some(suspicion) = &mut self.suspicion {
            suspicion.refused += 1;
        }
    }

    /// A probe goes out.
    pub(super) fn probed(&mut self, now: Micros) {
        self.counts.probes += 1;
        if let Some(suspicion) = &mut self.suspicion {
            suspicion.probes += 1;
            suspicion.last_probe = Some(now);
        }
    }

    /// Judges it; begins to suspect it if it was silent for `suspect_after`.
    pub(super) fn judge(&mut self, now: Micros, suspect_after: Duration) -> Verdict {
        if self.suspicion.is_none() && now.since(self.heard) >= suspect_after {
            self.suspect(now);
        }
        let Some(suspicion) = &self.suspicion else {
            return Verdict::Fine;
        };
        let spacing = suspicion.spacing();
        if suspicion.last_probe.is_none_or(|at| now >= at + spacing) {
            // The last probe had its time to be answered.
            return if suspicion.is_over(now) {
                Verdict::Dead
            } else {
                Verdict::Probe
            };
        }
        Verdict::Wait
    }

    /// When to judge it next.
    pub(super) fn due(&self, suspect_after: Duration) -> Micros {
        match &self.suspicion {
            None => self.heard + suspect_after,
            Some(suspicion) => suspicion
                .last_probe
                .map_or(suspicion.since, |at| at + suspicion.spacing()),
        }
    }
}

impl Suspicion {
    /// One whose connections close has nothing to be patient about.
    fn spacing(&self) -> Duration {
        if self.closed_since.is_some() {
            PROBE_CLOSED_EVERY
        } else {
            PROBE_EVERY
        }
    }

    fn is_over(&self, now: Micros) -> bool {
        if self.probes < MIN_PROBES {
            return false;
        }
        let closed = |since: Micros| now.since(since) >= CLOSED_CRASH_AFTER;
        let refused = self.refused >= MIN_PROBES && self.closed_since.is_some_and(closed);
        refused || now.since(self.since) >= CRASH_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUSPECT: Duration = Duration::from_millis(500);

    /// Judges every 10 ms until the server is dead or `until`; probes meet `answer`.
    fn run(
        watch: &mut Watch,
        from: u64,
        until: u64,
        mut probe: impl FnMut(&mut Watch, Micros),
    ) -> Option<u64> {
        for ms in (from..until).step_by(10) {
            let now = Micros(ms * 1_000);
            match watch.judge(now, SUSPECT) {
                Verdict::Dead => return Some(ms),
                Verdict::Probe => {
                    watch.probed(now);
                    probe(watch, now);
                }
                Verdict::Fine | Verdict::Wait => {}
            }
        }
        None
    }

    #[test]
    fn a_silent_server_is_probed_and_then_dead() {
        let mut watch = Watch::new(Micros(0));
        let mut probes = 0;
        let dead = run(&mut watch, 0, 10_000, |_, _| probes += 1).unwrap();
        assert!((2_500..2_700).contains(&dead), "{dead}");
        assert!(probes >= MIN_PROBES);
    }

    #[test]
    fn a_closed_port_is_dead_sooner() {
        let mut watch = Watch::new(Micros(0));
        watch.closed(Micros(0));
        let dead = run(&mut watch, 0, 10_000, Watch::refused).unwrap();
        assert!((150..200).contains(&dead), "{dead}");
    }

    #[test]
    fn a_port_that_refused_once_is_not_yet_closed() {
        let mut watch = Watch::new(Micros(0));
        watch.closed(Micros(0));
        let mut refuses = true;
        let dead = run(&mut watch, 0, 10_000, |watch, now| {
            if std::mem::take(&mut refuses) {
                watch.refused(now);
            }
        });
        assert!(dead.unwrap() >= 2_000, "{dead:?}");
    }

    #[test]
    fn a_closed_connection_alone_is_not_death() {
        let mut watch = Watch::new(Micros(0));
        watch.closed(Micros(0));
        assert_eq!(run(&mut watch, 0, 10_000, Watch::hear), None);
    }

    #[test]
    fn what_others_say_is_verified_at_a_bounded_pace() {
        let mut watch = Watch::new(Micros(0));
        let mut verified = 0;
        for ms in 0..1_000 {
            let now = Micros(ms * 1_000);
            verified += u32::from(watch.report(now));
            // It answers at once.
            watch.hear(now);
        }
        assert_eq!(verified, 10);
        assert_eq!((watch.counts.reports, watch.counts.suspicions), (1_000, 10));
    }

    #[test]
    fn others_say_so_and_still_the_leaders_own_probes_decide() {
        let mut watch = Watch::new(Micros(0));
        let dead = run(&mut watch, 0, 10_000, |watch, now| {
            watch.report(now);
        });
        assert!(dead.unwrap() >= 2_000, "{dead:?}");
        let mut watch = Watch::new(Micros(0));
        let mut reporting = |from| {
            watch.report(Micros(from * 1_000));
            run(&mut watch, from, from + 1_000, Watch::hear)
        };
        assert!((0..100).all(|second| reporting(second * 1_000).is_none()));
    }

    #[test]
    fn time_in_which_the_coordinator_did_not_run_is_nobodys_silence() {
        let mut watch = Watch::new(Micros(0));
        watch.report(Micros(0));
        assert_eq!(run(&mut watch, 0, 1_900, |_, _| ()), None);
        // Again and again it runs for 10 ms of 900, each time before the answers reach it.
        for round in 0..10 {
            watch.starved(Duration::from_millis(890));
            let from = 1_900 + 900 * round + 890;
            assert_eq!(run(&mut watch, from, from + 10, |_, _| ()), None);
        }
        let dead = run(&mut watch, 10_900, 20_000, |_, _| ());
        assert!(dead.is_some());
    }

    #[test]
    fn sleep_of_the_coordinator_is_not_silence_of_the_server() {
        let mut watch = Watch::new(Micros(0));
        assert_eq!(run(&mut watch, 0, 2_000, |_, _| ()), None, "suspected only");
        watch.afresh(Micros(60_000_000));
        assert_eq!(watch.judge(Micros(60_000_000), SUSPECT), Verdict::Fine);
    }
}
