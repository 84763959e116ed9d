//! Every limit by name. A message over its limit is refused before memory is taken for it.

use std::time::Duration;

/// Bytes of a segment, and of a frame's contents.
pub const SEGMENT_SIZE: usize = 8 << 20;
/// Longest key.
pub const MAX_KEY: usize = (64 << 10) - 1;
/// Shortest key.
pub const MIN_KEY: usize = 1;
/// Longest value.
pub const MAX_VALUE: usize = 1 << 20;
/// Longest entry group: an object with optional fields, the tombstone of the one it replaces and a
/// completion.
pub const MAX_GROUP: usize = MAX_VALUE + 2 * MAX_KEY + 1024;
/// Segments a log may have at once: its digest must fit well inside a segment.
pub const MAX_SEGMENTS_PER_LOG: usize = 65_536;
/// Largest payload of any envelope.
pub const MAX_PAYLOAD: usize = MAX_GROUP + (64 << 10);
/// A response envelope is closed once its payload has grown past this; the rest goes in another.
pub const RESPONSE_SPLIT: usize = 256 << 10;
/// Items in one data envelope.
pub const MAX_ITEMS: usize = 4_096;
/// Data items in flight on one connection; a client that has more waits.
pub const MAX_IN_FLIGHT_ITEMS: usize = 8_192;
/// A client's rpc ids are at most so far above its ack id: what a master may have to remember of it.
pub const MAX_RPC_WINDOW: u64 = (1 << 16) - 1;
/// Clients named in one page when a coordinator tells which leases have ended.
pub const MAX_CLIENTS_NAMED: usize = 1_024;
/// Bytes of replies held or unsent on one connection, past which the server stops reading from it.
pub const MAX_UNSENT: usize = 8 << 20;
/// Largest page of a scan, in bytes, unless its first object alone is larger.
pub const MAX_SCAN_PAGE: usize = 256 << 10;
/// Bytes of a segment in one replication message.
pub const MAX_REPLICATE_BYTES: usize = MAX_GROUP;
/// Replication messages in flight to one backup for one segment.
pub const MAX_REPLICATES_IN_FLIGHT: usize = 8;
/// Damaged replicas that a server reports, and that the coordinator shows.
pub const MAX_DAMAGED_REPORTED: usize = 256;
/// Replicas in one page of an inventory.
pub const MAX_INVENTORY: usize = 4_096;
/// Tries that one recovery master has at a time: those it works on, and those whose outcome it keeps.
pub const MAX_TRIES_HELD: usize = 64;
/// Segments of one log that can be given up.
pub const MAX_GIVEN_UP: usize = 2_048;
/// Servers that are asserted dead with them.
pub const MAX_ASSERTED_DEAD: usize = 1_024;
/// Of a backup's frames one in so many is kept for recovery: a log is copied anew before its old
/// replicas are freed.
pub const KEPT_OF_FRAMES: usize = 4;
/// Rates of two machines' clocks differ by less than one part in this many. The margin is on one
/// side only: who granted a lease waits that much longer than the lease before it takes it for over
/// (backups before they answer recovery, the coordinator before it takes a master for fenced). Who
/// holds a lease counts its whole length, from when it sent the request.
pub const CLOCK_RATE_PARTS: u64 = 100;
/// A server probes one of the others about as often.
pub const PROBE_INTERVAL: Duration = Duration::from_millis(100);
/// A probe without an answer for so long is a symptom, which the coordinator verifies.
pub const PROBE_PATIENCE: Duration = Duration::from_millis(50);
/// With no tick for so long who probes was itself not running: what it did not hear is its own doing.
pub const PROBE_PAUSE: Duration = Duration::from_millis(30);
/// Copies beside the master's own.
pub const MAX_REPLICAS: usize = 7;
/// Longest table name, in bytes of UTF-8.
pub const MAX_TABLE_NAME: usize = 255;
/// Tables in a cluster.
pub const MAX_TABLES: usize = 16_384;
/// Tablets one table may be cut into.
pub const MAX_TABLETS_PER_TABLE: usize = 1_024;
/// Tablets that one order gives to a server, of whatever tables, and tables that one order drops; who owes more
/// gives several, one after the other.
pub const MAX_TABLETS_PER_ORDER: usize = 1_024;
/// Servers in a server list (living and kept as crashed).
pub const MAX_SERVERS: usize = 4_096;
/// Coordinators that a process can be given, and learns of.
pub const MAX_COORDINATORS: usize = 16;
/// Connections a process accepts.
pub const MAX_CONNECTIONS: usize = 4_096;
/// Further connections of one process: of servers and coordinators, and of those in their handshake.
pub const RESERVED_CONNECTIONS: usize = 512;
/// A hello must be complete within this many bytes.
pub const MAX_HELLO: usize = 1_024;
/// Addresses of one process.
pub const MAX_ADDRESS: usize = 256;

const _: () = assert!(PROBE_PATIENCE.as_millis() < PROBE_INTERVAL.as_millis());
const _: () = assert!(MAX_GROUP + (64 << 10) < SEGMENT_SIZE);
const _: () = assert!(MAX_REPLICATE_BYTES + 256 <= MAX_PAYLOAD);
const _: () = assert!(MAX_SEGMENTS_PER_LOG * 48 < SEGMENT_SIZE / 2);
const _: () = assert!(MAX_INVENTORY * 128 < MAX_PAYLOAD);
// A page of clients is never long beside what else an answer carries.
const _: () = assert!(MAX_CLIENTS_NAMED * 10 + 64 < (64 << 10));
// A tablet with a position takes at most 45 bytes.
const _: () = assert!(MAX_TABLETS_PER_ORDER * 45 + 1_024 < MAX_PAYLOAD);
const _: () = assert!(MAX_ITEMS <= MAX_IN_FLIGHT_ITEMS);
