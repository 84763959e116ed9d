//! The client's own limits, by name. Those of messages are in [`ramkeep_wire::limits`].

use std::time::Duration;

use ramkeep_control::peers::PATIENCE;
use ramkeep_wire::data::{ITEM_HEADER_LEN, REQUEST_HEADER_LEN};
pub use ramkeep_wire::limits::MAX_COORDINATORS;
use ramkeep_wire::limits::{MAX_IN_FLIGHT_ITEMS, MAX_KEY, MAX_PAYLOAD, MAX_VALUE};

/// Operations begun and not finished; further callers wait.
pub const MAX_PENDING: usize = 1 << 16;
/// Bytes of keys and values of those operations; a single operation may always begin.
pub const MAX_PENDING_BYTES: usize = 64 << 20;
/// An envelope is closed once its items have grown past this.
pub const MAX_BATCH_BYTES: usize = 256 << 10;
/// Bytes unsent on one connection, past which no further envelope is put on it.
pub const MAX_LINK_UNSENT: usize = 1 << 20;
/// Requests to the coordinator begun and not finished.
pub const MAX_CONTROL: usize = 1_024;
/// Connections to each server that one client may use.
pub const MAX_CONNECTIONS_PER_SERVER: usize = 64;
/// Buffers of finished operations are kept for the next up to this size.
pub(crate) const KEEP_BUFFER: usize = 1 << 10;

/// How long operations may take, unless the caller says otherwise.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);
/// First wait before trying again; each further one is twice as long.
pub(crate) const BACKOFF_FIRST: Duration = Duration::from_millis(1);
/// Longest wait before trying again.
pub(crate) const BACKOFF_LAST: Duration = Duration::from_millis(128);
/// Longest wait for a tablet that nobody serves now, until the map is asked for anew. A recovery
/// takes tenths of a second and more, and what waits for it should notice its end soon.
pub(crate) const NOT_SERVED_LAST: Duration = Duration::from_millis(32);
/// A request that may take long is sent again after this, to a coordinator that answers others.
pub(crate) const SLOW_PATIENCE: Duration = Duration::from_secs(2);
/// When answers have been owed by a server for this long, the map is asked for anew.
pub(crate) const SILENCE: Duration = Duration::from_millis(500);
/// A mutation waits this long for the client lease; then it goes out as one that is not remembered.
pub(crate) const LEASE_PATIENCE: Duration = Duration::from_secs(1);
/// An operation sent to the wrong server waits this long for a newer map before it tries the old.
pub(crate) const MAP_PATIENCE: Duration = Duration::from_millis(200);

const _: () =
    assert!(REQUEST_HEADER_LEN + ITEM_HEADER_LEN + 16 + MAX_KEY + MAX_VALUE <= MAX_PAYLOAD);
const _: () = assert!(PATIENCE.as_micros() < SLOW_PATIENCE.as_micros());
const _: () = assert!(MAX_BATCH_BYTES <= MAX_PAYLOAD);
const _: () = assert!(MAX_PENDING >= MAX_IN_FLIGHT_ITEMS);
const _: () = assert!(MAX_PENDING <= 1 << 16, "a wire id has 16 bits of slot");

/// The wait before try number `attempts` (1: the first retry).
pub(crate) fn backoff(attempts: u32) -> Duration {
    (BACKOFF_FIRST * 2u32.saturating_pow(attempts.saturating_sub(1).min(16))).min(BACKOFF_LAST)
}
