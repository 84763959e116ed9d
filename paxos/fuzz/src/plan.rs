//! What a seed makes of a run: how many peers, how bad the network and the disks, how many faults.

use std::time::Duration;

use paxos::limits::{Sizes, Timing};

use crate::dice::Dice;

/// One microsecond of global time.
pub(crate) type Micros = u64;
pub(crate) const MILLI: Micros = 1_000;
pub(crate) const SECOND: Micros = 1_000_000;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Crash,
    CrashMany,
    CrashLeader,
    CrashMidway,
    Pause,
    PauseLeader,
    Cut,
    CutLeader,
    CutPair,
    CrashFollowers,
    Heal,
    Wipe,
    Replace,
    SlowDisk,
    SlowNetwork,
}

/// All choices of a seed.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) peers: u32,
    pub(crate) clients: u32,
    pub(crate) timing: Timing,
    pub(crate) sizes: Sizes,
    /// Of 1,000 messages.
    pub(crate) loss: u64,
    pub(crate) twice: u64,
    pub(crate) slow: u64,
    /// Longest delay of a slow message.
    pub(crate) slow_for: Micros,
    pub(crate) sync: Micros,
    pub(crate) sync_slow: u64,
    /// Between two commands of a client.
    pub(crate) think: Micros,
    pub(crate) padding: usize,
    pub(crate) snapshot_every: u64,
    pub(crate) snapshot_padding: usize,
    /// Between two faults, on average.
    pub(crate) fault_every: Micros,
    pub(crate) faults: Vec<Fault>,
    /// When faults end.
    pub(crate) calm_at: Micros,
    /// A run has converged this long after, or never will.
    pub(crate) patience: Micros,
}

impl Plan {
    pub(crate) fn new(dice: &mut Dice) -> Self {
        let peers = [1, 3, 3, 3, 3, 5, 5][dice.below(7)];
        let mut faults = vec![Fault::Heal];
        // Each run has its own mixture: one that does everything does nothing for long.
        for (fault, weight) in [
            (Fault::Crash, 3),
            (Fault::CrashMany, 1),
            (Fault::CrashLeader, 3),
            (Fault::CrashMidway, 3),
            (Fault::Pause, 2),
            (Fault::PauseLeader, 2),
            (Fault::Cut, 3),
            (Fault::CutLeader, 3),
            (Fault::CutPair, 3),
            (Fault::CrashFollowers, 2),
            (Fault::Wipe, 3),
            (Fault::Replace, 2),
            (Fault::SlowDisk, 1),
            (Fault::SlowNetwork, 1),
        ] {
            if dice.chance(600) {
                faults.extend(std::iter::repeat_n(fault, weight));
            }
        }
        Self {
            peers,
            clients: dice.between(1, 8) as u32,
            timing: timing(dice),
            sizes: Sizes {
                page_bytes: dice.between(100, 3_000) as usize,
                kept_bytes: dice.between(0, 4_000) as usize,
                ahead: dice.between(16, 64),
                caught_up: dice.between(2, 32),
                catch_up_first: dice.between(1, 16),
            },
            loss: [0, 5, 30, 100, 250][dice.below(5)],
            twice: [0, 10, 100][dice.below(3)],
            slow: [0, 5, 30, 100][dice.below(4)],
            slow_for: dice.between(10, 600) * MILLI,
            sync: dice.between(20, 3_000),
            sync_slow: [0, 5, 50][dice.below(3)],
            think: [0, 2, 10, 40][dice.below(4)] * MILLI + 200,
            padding: [0, 0, 40, 400][dice.below(4)],
            snapshot_every: dice.between(5, 120),
            snapshot_padding: [0, 100, 6_000][dice.below(3)],
            fault_every: [30, 100, 250, 600][dice.below(4)] * MILLI,
            faults,
            calm_at: dice.between(2, 5) * SECOND,
            patience: 20 * SECOND,
        }
    }
}

fn timing(dice: &mut Dice) -> Timing {
    let usual = Timing::default();
    match dice.below(4) {
        0 => Timing {
            lease: Duration::from_millis(400),
            ..usual
        },
        1 => Timing {
            election: Duration::from_millis(100),
            ..usual
        },
        _ => usual,
    }
}
