//! The one clock of a process.
//!
//! It counts the time that a machine is suspended (`CLOCK_BOOTTIME`, SAFETY 7): a lease must run
//! out while its holder sleeps. Read through the vDSO, it costs about as much as a cache miss.

use ramkeep_wire::Micros;
use rustix::time::{ClockId, clock_gettime};

/// The time now, in microseconds since the machine's boot.
#[must_use]
#[inline]
pub fn now() -> Micros {
    let time = clock_gettime(ClockId::Boottime);
    // Seconds and nanoseconds since boot are never negative.
    Micros(time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_nsec.unsigned_abs() / 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_never_goes_back() {
        let mut last = now();
        for _ in 0..10_000 {
            let next = now();
            assert!(next >= last);
            last = next;
        }
    }
}
