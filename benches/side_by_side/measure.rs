//! The measurements: which there are, and running them in turns.
//!
//! # Invariants
//! 1. Within a round every system runs a test before any runs the next: what disturbs the machine
//!    for a while disturbs all of them.
//! 2. Connections last for one measurement, so a system that polls while it has traffic is asleep
//!    in the others' turns.

use std::time::Duration;

use crate::engine::{Shape, Until, Wait};
use crate::process::cpu_time;
use crate::protocol::Op;
use crate::systems::{Running, System};
use crate::workload::Keys;
use crate::{Failure, Outcome};

/// Requests in flight of the throughput tests.
const DEPTH: u32 = 64;
/// Keys of a multi-read.
const MULTI: u32 = 100;
/// Writes of one measurement at most: what a log without a cleaner has room for.
const MAX_WRITES: u64 = 400_000;
/// The part of a measurement that warms up before it.
const WARM_UP: u32 = 8;

/// One row group of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Test {
    /// Name in JSON.
    pub(crate) name: &'static str,
    /// Heading of its table.
    pub(crate) title: &'static str,
    /// What is laid on the connection.
    pub(crate) shape: Shape,
}

impl Test {
    const fn new(name: &'static str, title: &'static str, op: Op, batch: u32, window: u32) -> Self {
        Self {
            name,
            title,
            shape: Shape { op, batch, window },
        }
    }

    /// Operations of one measurement at most.
    fn most(self) -> u64 {
        match self.shape.op {
            Op::Get | Op::MultiGet => u64::MAX,
            Op::Set | Op::DurableSet => MAX_WRITES,
        }
    }

    /// Whether round trips are what it measures.
    pub(crate) fn is_latency(self) -> bool {
        self.shape.window == 1
    }
}

/// Reads one at a time.
pub(crate) const READ_ONE: Test = Test::new("read_depth_1", "Read, one at a time", Op::Get, 1, 1);
/// Reads at depth 64 with the window kept filled: the server always has the next request.
pub(crate) const READ_FULL: Test = Test::new(
    "read_depth_64",
    "Read, depth 64 kept filled (by 32)",
    Op::Get,
    DEPTH / 2,
    DEPTH,
);
/// Reads in batches of 64, each sent when the one before is answered.
pub(crate) const READ_BATCH: Test = Test::new(
    "read_batch_64",
    "Read, batches of 64, one at a time",
    Op::Get,
    DEPTH,
    DEPTH,
);
/// Multi-reads, two in flight.
pub(crate) const READ_MULTI: Test = Test::new(
    "multi_read_100",
    "Multi-read of 100 keys, two in flight",
    Op::MultiGet,
    MULTI,
    2 * MULTI,
);
/// Writes one at a time, no copies.
pub(crate) const WRITE_ONE: Test = Test::new(
    "write_depth_1",
    "Write without copies, one at a time",
    Op::Set,
    1,
    1,
);
/// Writes at depth 64 with the window kept filled.
pub(crate) const WRITE_FULL: Test = Test::new(
    "write_depth_64",
    "Write without copies, depth 64 kept filled (by 32)",
    Op::Set,
    DEPTH / 2,
    DEPTH,
);
/// Durable writes one at a time.
pub(crate) const DURABLE_ONE: Test = Test::new(
    "durable_write_depth_1",
    "Write with two copies, one at a time",
    Op::DurableSet,
    1,
    1,
);
/// Durable writes in batches of 64.
pub(crate) const DURABLE_BATCH: Test = Test::new(
    "durable_write_batch_64",
    "Write with two copies, batches of 64",
    Op::DurableSet,
    DEPTH,
    DEPTH,
);

/// What one server alone is asked.
pub(crate) const SINGLE: [Test; 6] = [
    READ_ONE, READ_FULL, READ_BATCH, READ_MULTI, WRITE_ONE, WRITE_FULL,
];
/// What a server with two copies is asked.
pub(crate) const REPLICATED: [Test; 2] = [DURABLE_ONE, DURABLE_BATCH];

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Of this test.
    pub(crate) test: Test,
    /// On this system.
    pub(crate) system: System,
    /// Objects read or written.
    pub(crate) operations: u64,
    /// How long it took.
    pub(crate) elapsed: Duration,
    /// Processor time of all server processes meanwhile.
    pub(crate) cpu: Duration,
    /// Percentiles 50, 99 and 99.9 of the round trip, in nanoseconds.
    pub(crate) percentiles: [u64; 3],
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// Rounds of all tests.
    pub(crate) rounds: u32,
    /// Length of one measurement.
    pub(crate) each: Duration,
    /// Objects in each system.
    pub(crate) keys: u32,
    /// How the client waits.
    pub(crate) wait: Wait,
}

/// Writes every key once.
pub(crate) fn load(running: &Running, op: Op, effort: Effort) -> Outcome<()> {
    if matches!(running.system, System::Echo | System::EchoYield) {
        return Ok(());
    }
    let shape = Shape {
        op,
        batch: DEPTH,
        window: DEPTH,
    };
    let mut session = running.open(effort.wait)?;
    session.run(
        shape,
        &mut Keys::InOrder(0),
        Until::Count(effort.keys.into()),
    )?;
    Ok(())
}

/// All tests on all systems, in turns. A system that fails takes no further turn, and its failure
/// is added to `failures`.
pub(crate) fn rounds(
    mut running: Vec<Running>,
    tests: &[Test],
    effort: Effort,
    failures: &mut Vec<Failure>,
) -> Vec<Sample> {
    let mut samples = Vec::new();
    for round in 0..effort.rounds {
        for &test in tests {
            running.retain(|one| {
                if is_echo(one.system) && !test.is_latency() {
                    return true;
                }
                let measured = measure(one, test, effort, round);
                let failed = measured.map(|sample| samples.push(sample)).err();
                let goes_on = failed.is_none();
                failures.extend(failed.map(|e| e.during(one.system.name(), test.name)));
                goes_on
            });
        }
        // Whoever goes first in one round goes last in the next.
        running.reverse();
    }
    samples
}

fn is_echo(system: System) -> bool {
    matches!(system, System::Echo | System::EchoYield)
}

fn measure(running: &Running, test: Test, effort: Effort, round: u32) -> Outcome<Sample> {
    let mut session = running.open(effort.wait)?;
    let mut keys = Keys::random(effort.keys, u64::from(round) + 1);
    session.run(
        test.shape,
        &mut keys,
        Until::Elapsed(effort.each / WARM_UP, test.most() / u64::from(WARM_UP)),
    )?;
    let pids = running.pids();
    let before = cpu_time(&pids)?;
    let run = session.run(
        test.shape,
        &mut keys,
        Until::Elapsed(effort.each, test.most()),
    )?;
    let cpu = cpu_time(&pids)?.saturating_sub(before);
    let percentiles = [50.0, 99.0, 99.9].map(|p| run.latency.value_at_percentile(p));
    let (operations, elapsed) = (run.operations, run.elapsed);
    Ok(Sample {
        test,
        system: running.system,
        operations,
        elapsed,
        cpu,
        percentiles,
    })
}
