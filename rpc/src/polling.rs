//! When to poll a socket and when to sleep on it.
//!
//! Waking a sleeping thread is what costs most in a small request, so whoever waits for bytes polls
//! first. How long is adapted to the traffic: it doubles as long as a longest spin would bridge the
//! gap to the next bytes, and halves when it would not. An idle process sleeps.

use std::fmt;
use std::str::FromStr;

use ramkeep_wire::Micros;

/// How a process waits for its sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PollMode {
    /// Polls while there is traffic and for a bounded time after it, then sleeps.
    #[default]
    Adaptive,
    /// Polls as long as a connection is open.
    Always,
    /// Sleeps whenever there is nothing to do.
    Never,
}

/// Text that names no poll mode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no poll mode: use adaptive, always or never")]
pub struct PollModeError(String);

impl FromStr for PollMode {
    type Err = PollModeError;

    fn from_str(text: &str) -> Result<Self, PollModeError> {
        match text {
            "adaptive" => Ok(Self::Adaptive),
            "always" => Ok(Self::Always),
            "never" => Ok(Self::Never),
            other => Err(PollModeError(other.to_owned())),
        }
    }
}

impl fmt::Display for PollMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Adaptive => "adaptive",
            Self::Always => "always",
            Self::Never => "never",
        })
    }
}

/// Shortest time that is polled after traffic, in microseconds.
pub const MIN_SPIN_MICROS: u32 = 50;
/// Longest, in microseconds.
pub const MAX_SPIN_MICROS: u32 = 1_000;
/// Idle looks at the socket between two looks at the clock.
pub const SPINS_PER_CLOCK: u32 = 8;

const _: () = assert!(MIN_SPIN_MICROS < MAX_SPIN_MICROS);

/// How long a wait for one connection's bytes polls.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    mode: PollMode,
    window: u32,
    since: Micros,
    spins: u32,
}

impl Pace {
    pub(crate) fn new(mode: PollMode, now: Micros) -> Self {
        Self {
            mode,
            window: MIN_SPIN_MICROS,
            since: now,
            spins: 0,
        }
    }

    /// A wait begins.
    pub(crate) fn start(&mut self, now: Micros) {
        self.since = now;
        self.spins = 0;
    }

    /// Bytes came, and a new wait begins.
    pub(crate) fn traffic(&mut self, now: Micros) {
        let gap = now.0.saturating_sub(self.since.0);
        self.window = if gap <= u64::from(MAX_SPIN_MICROS) {
            (self.window * 2).min(MAX_SPIN_MICROS)
        } else {
            (self.window / 2).max(MIN_SPIN_MICROS)
        };
        self.start(now);
    }

    /// After a look that found nothing: whether to look again rather than sleep. `clock` is asked
    /// rarely.
    pub(crate) fn keeps_on(&mut self, clock: impl FnOnce() -> Micros) -> bool {
        match self.mode {
            PollMode::Never => false,
            PollMode::Always => true,
            PollMode::Adaptive => {
                self.spins += 1;
                !self.spins.is_multiple_of(SPINS_PER_CLOCK)
                    || clock().0.saturating_sub(self.since.0) < u64::from(self.window)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spins_until_sleep(pace: &mut Pace, from: u64) -> u64 {
        let mut now = from;
        while pace.keeps_on(|| Micros(now)) {
            now += 1;
        }
        now - from
    }

    #[test]
    fn polling_goes_on_longer_while_traffic_keeps_coming() {
        let mut pace = Pace::new(PollMode::Adaptive, Micros(0));
        let idle = spins_until_sleep(&mut pace, 0);
        assert!(idle >= u64::from(MIN_SPIN_MICROS));
        for now in 1..20 {
            pace.traffic(Micros(now * 100));
        }
        let busy = spins_until_sleep(&mut pace, 1_900);
        assert!(busy >= u64::from(MAX_SPIN_MICROS) && busy < u64::from(MAX_SPIN_MICROS) + 50);
        for now in 1..20 {
            pace.traffic(Micros(now * 10_000));
        }
        let slow = spins_until_sleep(&mut pace, 190_000);
        assert!(slow < u64::from(MIN_SPIN_MICROS) + 50);
    }

    #[test]
    fn modes_other_than_adaptive_do_not_look_at_the_clock() {
        let unasked = || unreachable!("the clock was asked");
        assert!(!Pace::new(PollMode::Never, Micros(0)).keeps_on(unasked));
        let mut always = Pace::new(PollMode::Always, Micros(0));
        for _ in 0..100 {
            assert!(always.keeps_on(unasked));
        }
    }

    #[test]
    fn modes_survive_printing() {
        for mode in [PollMode::Adaptive, PollMode::Always, PollMode::Never] {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        assert!("sometimes".parse::<PollMode>().is_err());
    }
}
