//! How long a caller polls before it sleeps.

use ramkeep_rpc::PollMode;
use ramkeep_wire::Micros;

/// Shortest time that an answer is polled for, in microseconds.
const MIN_WINDOW: u64 = 50;
/// Longest.
const MAX_WINDOW: u64 = 1_000;
/// Looks at the socket between two looks at the clock.
const LOOKS_PER_CLOCK: u32 = 8;

/// The time that answers are polled for: doubled by each answer that a longest spin would have
/// met, halved by each that it would not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window(u64);

impl Default for Window {
    fn default() -> Self {
        Self(MIN_WINDOW)
    }
}

impl Window {
    /// An answer came after so many microseconds.
    pub(crate) fn learn(&mut self, micros: u64) {
        self.0 = if micros <= MAX_WINDOW {
            (self.0 * 2).min(MAX_WINDOW)
        } else {
            (self.0 / 2).max(MIN_WINDOW)
        };
    }
}

/// One call's polling.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spin {
    since: Micros,
    looks: u32,
}

impl Spin {
    pub(crate) fn new(now: Micros) -> Self {
        Self {
            since: now,
            looks: 0,
        }
    }

    /// Time spent so far, in microseconds.
    pub(crate) fn elapsed(&self, now: Micros) -> u64 {
        now.0.saturating_sub(self.since.0)
    }

    /// After a look that found nothing: whether to look again rather than sleep.
    pub(crate) fn keeps_on(
        &mut self,
        mode: PollMode,
        window: Window,
        clock: impl FnOnce() -> Micros,
    ) -> bool {
        match mode {
            PollMode::Always => true,
            PollMode::Never => false,
            PollMode::Adaptive => {
                self.looks += 1;
                !self.looks.is_multiple_of(LOOKS_PER_CLOCK) || self.elapsed(clock()) < window.0
            }
        }
    }

    /// Something came, if not for this call: the time begins anew.
    pub(crate) fn restart(&mut self, now: Micros) {
        *self = Self::new(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spun(window: Window) -> u64 {
        let (mut spin, mut now) = (Spin::new(Micros(0)), 0);
        while spin.keeps_on(PollMode::Adaptive, window, || Micros(now)) {
            now += 1;
        }
        now
    }

    #[test]
    fn polling_goes_on_longer_while_answers_come_quickly() {
        let mut window = Window::default();
        assert!((50..60).contains(&spun(window)));
        (0..10).for_each(|_| window.learn(10));
        assert!((1_000..1_010).contains(&spun(window)));
        (0..10).for_each(|_| window.learn(5_000));
        assert!((50..60).contains(&spun(window)));
    }
}
