//! Clocks that start anywhere and run at their own rate.

use ramkeep_wire::Micros;
use ramkeep_wire::limits::CLOCK_RATE_PARTS;

use crate::rng::Rng;

/// A process's clock: monotonic, of any origin, faster or slower by some parts per million.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: u64,
    ppm: i64,
}

// Two of them at opposite ends differ by just less than the bound that leases count on.
const _: () = {
    let (fast, slow) = (1_000_000 + MAX_DRIFT_PPM, 1_000_000 - MAX_DRIFT_PPM);
    assert!((fast - slow) * (CLOCK_RATE_PARTS as i64) < slow);
    assert!((fast - slow + 200) * (CLOCK_RATE_PARTS as i64) > slow);
};

/// Clocks differ by at most this many parts per million from true time; two of them by twice that.
pub const MAX_DRIFT_PPM: i64 = 4_950;

impl Clock {
    /// A clock as a machine might have it.
    #[must_use]
    pub fn random(rng: &mut Rng) -> Self {
        let span = MAX_DRIFT_PPM as u64 * 2 + 1;
        Self {
            origin: rng.below(1_000_000..1 << 40),
            ppm: rng.below(0..span) as i64 - MAX_DRIFT_PPM,
        }
    }

    /// The same clock, with another rate from `now` of true time on.
    #[must_use]
    pub fn at_rate(&self, now: Micros, ppm: i64) -> Self {
        let same = Self { origin: 0, ppm };
        let origin = self.shows(now).0 - same.shows(now).0;
        Self { origin, ppm }
    }

    /// What it shows at `now` of true time.
    #[must_use]
    pub fn shows(&self, now: Micros) -> Micros {
        let scaled = i128::from(now.0) * i128::from(1_000_000 + self.ppm) / 1_000_000;
        Micros(self.origin + scaled as u64)
    }

    /// The first moment of true time at which it shows at least `shown`.
    #[must_use]
    pub fn when(&self, shown: Micros) -> Micros {
        let elapsed = i128::from(shown.0.saturating_sub(self.origin));
        let rate = i128::from(1_000_000 + self.ppm);
        let mut now = Micros((elapsed * 1_000_000 / rate) as u64);
        while self.shows(now) < shown {
            now.0 += 1;
        }
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_is_never_early_by_its_own_clock() {
        let mut rng = Rng::new(1);
        for _ in 0..100 {
            let clock = Clock::random(&mut rng);
            let now = Micros(rng.below(0..10_000_000));
            let wanted = Micros(clock.shows(now).0 + rng.below(0..1_000_000));
            let due = clock.when(wanted);
            assert!(clock.shows(due) >= wanted && due.0 + 1 >= now.0);
            assert!(due.0 == 0 || clock.shows(Micros(due.0 - 1)) < wanted);
        }
    }
}
