//! Timers that rest: a process that is due again as soon as it has let time pass keeps its core busy for
//! nothing.
//!
//! # Invariants
//! 1. Whoever has said [`MOST`] times in a row, after it let time pass, that it is due at once is a
//!    finding. What the network brings meanwhile is no rest.

use ramkeep_wire::Micros;

use super::World;
use crate::network::ProcessId;

/// Times in a row that a process may be due at once: more than it takes to answer from its own frames
/// all that recoveries may have asked for.
const MOST: u32 = 1_000;

/// How often in a row a process let time pass and was due at once.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TimerRest(u32);

impl TimerRest {
    /// A process that has handled something is due then.
    pub(super) fn look(&mut self, due: Option<Micros>, now: Micros) {
        if due.is_none_or(|due| due > now) {
            self.0 = 0;
        }
    }

    /// A process has let time pass. Whether its timer never rests.
    fn ticked(&mut self) -> bool {
        self.0 += 1;
        self.0 == MOST
    }
}

impl World {
    /// Notes it if a process that has just let time pass does nothing else.
    pub(super) fn judge_rest(&mut self, process: ProcessId) {
        let Some(running) = self.processes.get_mut(&process) else {
            return;
        };
        if running.timer.1.is_some_and(|at| at <= self.events.now()) && running.rest.ticked() {
            let address = &self.machines[running.machine].address;
            let now = self.events.now().0 as f64 / 1000.0;
            self.wrongs
                .push(format!("{address}: its timer never rests (at {now:.3} ms)"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ticks until it is a finding, with what is due after each.
    fn ticks(mut due_after: impl FnMut(u32) -> Option<u64>) -> Option<u32> {
        let (mut rest, now) = (TimerRest::default(), Micros(7));
        (1..=3 * MOST).find(|tick| {
            let due = due_after(*tick).map(Micros);
            rest.look(due, now);
            due.is_some_and(|due| due <= now) && rest.ticked()
        })
    }

    #[test]
    fn a_timer_that_is_due_at_once_again_and_again_never_rests() {
        assert_eq!(ticks(|_| Some(7)), Some(MOST));
        assert_eq!(ticks(|_| Some(0)), Some(MOST));
    }

    #[test]
    fn a_timer_that_rests_now_and_then_does() {
        assert_eq!(ticks(|_| Some(8)), None);
        assert_eq!(ticks(|_| None), None);
        assert_eq!(ticks(|tick| Some(7 + u64::from(tick % MOST == 0))), None);
    }
}
