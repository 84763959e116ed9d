//! Limits and times, by name.

use std::time::Duration;

/// Members of a group: 1, 3 or 5.
pub const GROUP_SIZES: [usize; 3] = [1, 3, 5];
/// Longest address of a member, bytes.
pub const MAX_ADDRESS: usize = 256;
/// Longest command, bytes.
pub const MAX_COMMAND: usize = 256 << 10;
/// Commands in one slot.
pub const MAX_BATCH: usize = 1_024;
/// Bytes of commands in one slot, unless its first command alone has more.
pub const MAX_BATCH_BYTES: usize = 256 << 10;
/// Commands that wait for a slot; more are refused.
pub const MAX_WAITING: usize = 16_384;
/// Bytes of commands that wait for a slot; more are refused.
pub const MAX_WAITING_BYTES: usize = 8 << 20;
/// Slots proposed and not decided.
pub const MAX_IN_FLIGHT: usize = 4;
/// Slots above the decided ones that an acceptor takes; it leaves higher ones unanswered.
pub const MAX_AHEAD: u64 = 256;
/// Bytes of entries in one message, unless its first entry alone has more.
pub const PAGE_BYTES: usize = 512 << 10;
/// Decided entries kept below the last snapshot, in bytes, for members that are a little behind.
pub const KEPT_BYTES: usize = 2 << 20;
/// Processes that learn without being members, as far as they are remembered.
pub const MAX_LEARNERS: usize = 16;
/// A learner this close to the leader can be taken into the group.
pub const CAUGHT_UP: u64 = 64;
/// One who sees another this far ahead catches up before it asks to lead.
pub const CATCH_UP_FIRST: u64 = 16;
/// Results kept for one client of a session table, beyond which it must acknowledge first.
pub const MAX_RESULTS: usize = 64;
/// Rates of two members' clocks differ by less than one part in this many. Who waits for another's
/// lease to run out waits that much longer than the lease.
pub const CLOCK_RATE_PARTS: u64 = 100;

/// The times of a group. All members use the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timing {
    /// Between two heartbeats of a leader.
    pub heartbeat: Duration,
    /// A leader's lease, counted from when it sent what was granted.
    pub lease: Duration,
    /// Silence of the leader after which a member asks to lead: between once and twice this.
    pub election: Duration,
    /// After which what was not answered is sent again.
    pub retry: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self::of_election(Duration::from_millis(250))
    }
}

impl Timing {
    /// Times in proportion to an election timeout.
    #[must_use]
    pub fn of_election(election: Duration) -> Self {
        Self {
            heartbeat: election * 4 / 25,
            lease: election * 4 / 5,
            election,
            retry: election * 8 / 25,
        }
    }

    /// How long one who granted a lease keeps to it, on its own clock.
    #[must_use]
    pub fn grant(&self) -> Duration {
        let margin = self.lease.as_micros() as u64 / CLOCK_RATE_PARTS + 1;
        self.lease + Duration::from_micros(margin)
    }
}

// A batch and the commit index fit a message beside each other, and so does a longest command.
const _: () = assert!(MAX_BATCH_BYTES <= PAGE_BYTES && MAX_COMMAND <= PAGE_BYTES);
const _: () = assert!(MAX_IN_FLIGHT as u64 * 4 <= MAX_AHEAD);

/// Sizes of what is sent and kept at once. A run that is to see pages, trimming and members that
/// are far behind takes smaller ones than [`Sizes::default`]; all members may differ in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sizes {
    /// See [`PAGE_BYTES`].
    pub page_bytes: usize,
    /// See [`KEPT_BYTES`].
    pub kept_bytes: usize,
    /// See [`MAX_AHEAD`].
    pub ahead: u64,
    /// See [`CAUGHT_UP`].
    pub caught_up: u64,
    /// See [`CATCH_UP_FIRST`].
    pub catch_up_first: u64,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            page_bytes: PAGE_BYTES,
            kept_bytes: KEPT_BYTES,
            ahead: MAX_AHEAD,
            caught_up: CAUGHT_UP,
            catch_up_first: CATCH_UP_FIRST,
        }
    }
}
