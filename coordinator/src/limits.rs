//! The coordinator's own limits and times, by name.

use std::time::Duration;

use ramkeep_wire::limits::{
    MAX_ADDRESS, MAX_ASSERTED_DEAD, MAX_GIVEN_UP, MAX_PAYLOAD, MAX_REPLICAS, MAX_SEGMENTS_PER_LOG,
    MAX_TABLE_NAME, MAX_TABLETS_PER_ORDER, MAX_TABLETS_PER_TABLE,
};

/// Addresses of one server.
pub const MAX_ADDRESSES: usize = 4;
/// Bytes the server list may take in a message.
pub const MAX_LIST_BYTES: usize = 256 << 10;
/// Bytes the tables with their tablets may take in a message, the owners' addresses apart.
pub const MAX_MAP_BYTES: usize = 768 << 10;
/// Crashed servers that hold nothing and are still listed; the oldest beyond are forgotten.
pub const CRASHED_KEPT: usize = 256;
/// Segments of one master with a recorded replication epoch. The floor, as it rises, frees them.
pub const MAX_EPOCHS_PER_MASTER: usize = 1_024;
/// Client leases at once.
pub const MAX_CLIENTS: usize = 65_536;

/// Commands proposed and not decided; requests beyond are refused.
pub const MAX_PROPOSALS: usize = 8_192;
/// Bytes of the commands proposed and not decided; requests beyond are refused.
pub const MAX_PROPOSED_BYTES: usize = 4 << 20;
/// Bytes given to the disk and not on it; with more this peer takes no part.
pub const MAX_UNWRITTEN_BYTES: usize = 8 << 20;
/// Writes given to the disk and not on it; with more this peer takes no part.
pub const MAX_UNWRITTEN_JOBS: usize = 16_384;
/// Client leases that end at one look.
pub const EXPIRED_AT_ONCE: usize = 1_024;
/// Longest command: an owner took all tablets of the largest table.
pub const MAX_COMMAND: usize = MAX_TABLETS_PER_TABLE * TABLET_BYTES + COMMAND_BYTES;
/// Largest payload of a journal record.
pub const MAX_RECORD: usize = 64 << 20;
/// Largest snapshot of the state.
pub const MAX_SNAPSHOT: usize = 1 << 30;
/// Journal bytes since the last snapshot, after which another is taken.
pub const SNAPSHOT_AFTER: usize = 4 << 20;
/// Requests that wait for owners to confirm.
pub const MAX_WAITING: usize = 16_384;

/// Tablets, after cutting, that one plan of a recovery gives out; one with more takes several.
pub const MAX_PLANNED_TABLETS: usize = MAX_TABLETS_PER_TABLE;
/// Partitions of one plan of a recovery.
pub const MAX_PARTITIONS: usize = 64;
/// Bytes of a crashed master's log for one recovery master, if there are enough of those: large, for each
/// of them reads and proves all segments that have anything for it.
pub const PARTITION_BYTES: u64 = 3 << 29;
/// Objects for one recovery master, if there are enough of those.
pub const PARTITION_OBJECTS: u64 = 8 << 20;
/// Accepted losses that are remembered beyond their recoveries.
pub const LOSSES_KEPT: usize = 64;
/// Crashed masters whose replicas are looked through at once.
pub const MAX_SEARCHES: usize = 4;
/// Replicas that one backup may show of one crashed master.
pub const MAX_LISTED: usize = 2 * MAX_SEGMENTS_PER_LOG;
/// Questions under way to backups; more wait.
pub const MAX_ASKED: usize = 256;
/// Requests that wait for a coordinator to be replaced.
pub const MAX_REPLACING: usize = 64;

/// How long a client lease lasts without renewal.
pub const CLIENT_LEASE: Duration = Duration::from_secs(60);
/// How often client leases are looked through.
pub const LEASE_CHECK: Duration = Duration::from_secs(1);
/// Between two probes of a suspected server.
pub const PROBE_EVERY: Duration = Duration::from_millis(100);
/// Probes without an answer before a suspected server can be decided crashed; and connections refused
/// before its port counts as closed.
pub const MIN_PROBES: u32 = 3;
/// A suspected server that answers no probe for so long is decided crashed.
pub const CRASH_AFTER: Duration = Duration::from_secs(2);
/// The same for one whose port refuses connections, time and again: no process is there, and
/// whichever comes there next is another server. One that is slow does not refuse.
pub const CLOSED_CRASH_AFTER: Duration = Duration::from_millis(150);
/// Between two probes of a server whose connections close.
pub const PROBE_CLOSED_EVERY: Duration = Duration::from_millis(50);
/// What other servers say of one begins a suspicion at most so often.
pub const REPORT_SPACING: Duration = Duration::from_millis(100);
/// A tick that comes so much later than it was asked for shows that the coordinator was starved: as
/// much of others' silence was its own.
pub const STARVED: Duration = Duration::from_millis(20);
/// Without any input or tick for so long the coordinator itself was asleep: all timers start
/// afresh, since the silence was its own.
pub const PAUSE_SEEN: Duration = Duration::from_secs(1);
/// First repetition of an unconfirmed order; doubles up to [`RETRY_MOST`].
pub const RETRY_FIRST: Duration = Duration::from_millis(50);
/// Longest time between repetitions of an unconfirmed order.
pub const RETRY_MOST: Duration = Duration::from_secs(1);
/// Between two server lists sent to one server.
pub const UPDATE_SPACING: Duration = Duration::from_millis(10);
/// Between two questions to a recovery master how far it is.
pub const RECOVER_POLL: Duration = Duration::from_millis(100);
/// So many of the first come four times as often: a small log is replayed at once.
pub const RECOVER_SOON: u32 = 80;
/// Until backups are asked again for what a recovery lacks, and until a recovery master that can't
/// go on is asked again.
pub const ASK_AGAIN: Duration = Duration::from_millis(300);
/// The same for a recovery that lacks something time and again; at once whenever servers come or go, or an
/// operator has accepted a loss.
pub const ASK_AT_LEAST: Duration = Duration::from_secs(5);
/// How long it counts that a recovery master had less room than it reported.
pub const REFUSAL_COUNTS: Duration = Duration::from_secs(30);
/// How often it is looked whether who replays still has the backups for it.
pub const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long a recovery master may lack backups, or frames on them, before one that lacks none replays instead.
pub const STARVED_WAIT: Duration = Duration::from_secs(3);
/// Until a backup that was not reached, or that is not ready to answer, is asked again.
pub const ASK_SOON: Duration = Duration::from_millis(50);
/// How long the search for a log's end waits for backups that enlisted after its master had crashed: they
/// hold what their directories brought, if anything. Whoever died meanwhile has been found dead by then;
/// one that still shows nothing counts as not back yet.
pub const NEWCOMER_WAIT: Duration = Duration::from_secs(3);
/// How long a recovery may wait for masters that are joining, so that after a start of everything not
/// the first of them gets all.
pub const JOIN_WAIT: Duration = Duration::from_millis(500);
/// How long a request waits for owners to confirm before it is refused.
pub const WAIT_MOST: Duration = Duration::from_secs(30);

/// Most bytes that one tablet takes in postcard: ids and hashes as varints, and its state.
pub(crate) const TABLET_BYTES: usize = 5 + 10 + 10 + 10 + 10 + 1;
/// Most bytes of a table beside its name and tablets.
pub(crate) const TABLE_BYTES: usize = 5 + 3 + 3;
/// Most bytes of a server beside its addresses.
pub(crate) const SERVER_BYTES: usize = 10 + 2 + 3 + 1 + 11 + 1;

/// Most bytes of a command beside its tablets, addresses, name or backups.
const COMMAND_BYTES: usize = 256;

// A tablet map carries all tables and the addresses of owners.
const _: () = assert!(MAX_MAP_BYTES + MAX_LIST_BYTES + 1_024 < MAX_PAYLOAD);
// The largest table fits.
const _: () = assert!(MAX_TABLETS_PER_TABLE * TABLET_BYTES + 1_024 < MAX_MAP_BYTES);
const _: () = assert!(SNAPSHOT_AFTER < MAX_RECORD);
const _: () = assert!(CRASH_AFTER.as_millis() < NEWCOMER_WAIT.as_millis());
// What a server confirms with one answer is one command.
const _: () = assert!(MAX_TABLETS_PER_ORDER * TABLET_BYTES + COMMAND_BYTES <= MAX_COMMAND);
// What a request may bring fits a command, and a full batch of the longest ones fits a record.
const _: () = assert!(MAX_ADDRESSES * (MAX_ADDRESS + 2) + COMMAND_BYTES <= MAX_COMMAND);
const _: () = assert!(MAX_TABLE_NAME + COMMAND_BYTES <= MAX_COMMAND);
// A plan in which every partition has one tablet.
const _: () = assert!(MAX_PLANNED_TABLETS * (25 + 13) + COMMAND_BYTES <= MAX_COMMAND);
const _: () = assert!(MAX_PARTITIONS <= MAX_PLANNED_TABLETS);
// A loss: ids as varints.
const _: () = assert!((MAX_GIVEN_UP + MAX_ASSERTED_DEAD) * 10 + COMMAND_BYTES <= MAX_COMMAND);
const _: () = assert!(MAX_REPLICAS * 10 + COMMAND_BYTES <= MAX_COMMAND);
const _: () = assert!(paxos::limits::MAX_BATCH_BYTES + MAX_COMMAND <= MAX_RECORD);
