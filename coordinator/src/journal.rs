//! The journal's bytes: what a peer has on its disk, as a pure format. Little-endian.
//!
//! ```text
//! journal:   0       8      12    16            32      40    44
//!            | magic | peer | 0   | incarnation | after | crc | records ...
//!            |  8 B  | u32  | u32 |    16 B     |  u64  | u32 |
//!            crc: CRC-32C of bytes 0..40. The first record has index after + 1.
//!
//! record:    0     4     8       16
//!            | len | crc | index | payload ... len bytes
//!            | u32 | u32 |  u64  |
//!            crc: CRC-32C of len, index and payload. The payload is a list of `paxos::Record` in
//!            postcard, all that was written with one sync; indexes number the payloads. Zeros may
//!            follow the last record: space made ahead.
//!
//! snapshot:  0       8      12    16            32      40    48    52
//!            | magic | peer | 0   | incarnation | index | len | crc | payload ... len bytes
//!            |  8 B  | u32  | u32 |    16 B     |  u64  | u64 | u32 |
//!            crc: CRC-32C of bytes 0..48 and the payload, a `paxos::Snapshot` in postcard. `index`
//!            is above those of all records before it; the journal that goes on from it has it as
//!            `after`, and counts with it only.
//! ```
//! The incarnation is random, chosen when the directory is made: a journal and a snapshot of
//! different directories never mix, and a peer with a wiped disk is not the one that it was.
//!
//! # Invariants
//! 1. Records have consecutive indexes; what is read is a prefix of what was written.
//! 2. Indexes are below [`MAX_INDEX`], so that counting on never overflows.
//! 3. Only a torn tail is cut off: bytes at the end with no whole record in or after them, as a
//!    process killed while it wrote leaves them; they were never reported as persisted. Anything
//!    else that does not fit is refused, not repaired.
//!
//! Not guaranteed: a last record that rots on the disk looks like a torn one.

use ramkeep_wire::PeerId;
use ramkeep_wire::bytes::Reader;

use crate::limits::{MAX_RECORD, MAX_SNAPSHOT};

const JOURNAL_MAGIC: [u8; 8] = *b"RKJRNL2\n";
const SNAPSHOT_MAGIC: [u8; 8] = *b"RKSNAP2\n";
/// Bytes of a journal's header.
pub const HEADER_LEN: usize = 44;
/// Bytes of a record before its payload.
pub const RECORD_HEADER_LEN: usize = 16;
const SNAPSHOT_HEADER_LEN: usize = 52;
/// No journal gets so far: a file that says so is not believed, whatever its checksum.
pub const MAX_INDEX: u64 = 1 << 62;

/// Whose disk it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Which peer.
    pub peer: PeerId,
    /// Random, chosen when its directory was made.
    pub incarnation: [u8; 16],
}

/// Why bytes are not a journal or snapshot that can be gone on with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// Something else, or another format.
    #[error("not a {0} of this build's format")]
    Foreign(&'static str),
    /// The bytes before the records don't fit their checksum.
    #[error("the {0} is damaged: its checksum does not fit")]
    Checksum(&'static str),
    /// A record is damaged although whole ones follow.
    #[error("the journal is damaged at byte {at}: a whole record follows at byte {next}")]
    Damaged {
        /// Where.
        at: usize,
        /// Where the next whole record is.
        next: usize,
    },
    /// A whole record, but not the one that must come.
    #[error("at byte {at} of the journal is record {found} where record {expected} must be")]
    Order {
        /// Where.
        at: usize,
        /// Its index.
        found: u64,
        /// The index that follows.
        expected: u64,
    },
    /// The record that it goes on after can't be.
    #[error("the {what} goes on after record {index}, which no coordinator reaches")]
    Index {
        /// Journal or snapshot.
        what: &'static str,
        /// The record it names.
        index: u64,
    },
    /// Over a limit.
    #[error("{what} of {len} bytes is over the limit of {limit}")]
    TooLong {
        /// Record or snapshot.
        what: &'static str,
        /// Its length.
        len: u64,
        /// The limit.
        limit: usize,
    },
}

/// A journal as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journal {
    /// Whose.
    pub owner: Owner,
    /// The index before the first record.
    pub after: u64,
    /// The records, in order.
    pub records: Vec<(u64, Vec<u8>)>,
    /// Bytes up to the end of the last record.
    pub whole: usize,
    /// Bytes after them up to the last that is not zero: a torn tail.
    pub torn: usize,
}

fn opening(magic: [u8; 8], owner: Owner, slot: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(SNAPSHOT_HEADER_LEN);
    bytes.extend_from_slice(&magic);
    bytes.extend_from_slice(&owner.peer.0.to_le_bytes());
    bytes.extend_from_slice(&0_u32.to_le_bytes());
    bytes.extend_from_slice(&owner.incarnation);
    bytes.extend_from_slice(&slot.to_le_bytes());
    bytes
}

/// The header of a journal whose first record has index `after + 1`.
#[must_use]
pub fn header(owner: Owner, after: u64) -> Vec<u8> {
    let mut bytes = opening(JOURNAL_MAGIC, owner, after);
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

/// Appends a record.
pub fn append_record(out: &mut Vec<u8>, index: u64, payload: &[u8]) -> Result<(), JournalError> {
    let len = u32::try_from(payload.len())
        .ok()
        .filter(|_| payload.len() <= MAX_RECORD)
        .ok_or(JournalError::TooLong {
            what: "a record",
            len: payload.len() as u64,
            limit: MAX_RECORD,
        })?;
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&record_crc(len, index, payload).to_le_bytes());
    out.extend_from_slice(&index.to_le_bytes());
    out.extend_from_slice(payload);
    Ok(())
}

fn record_crc(len: u32, index: u64, payload: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&len.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &index.to_le_bytes());
    crc32c::crc32c_append(crc, payload)
}

/// The whole record at the front of `bytes`, if one is there.
fn record(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut reader = Reader(bytes);
    let (len, crc, index) = (reader.u32().ok()?, reader.u32().ok()?, reader.u64().ok()?);
    let payload = reader.0.get(..len as usize)?;
    let fits = payload.len() <= MAX_RECORD && record_crc(len, index, payload) == crc;
    fits.then_some((index, payload))
}

/// Reads a whole journal file.
pub fn read(bytes: &[u8]) -> Result<Journal, JournalError> {
    let (owner, after) = read_opening(bytes, JOURNAL_MAGIC, "journal", HEADER_LEN)?;
    let crc = crc32c::crc32c(&bytes[..HEADER_LEN - 4]);
    if bytes[HEADER_LEN - 4..HEADER_LEN] != crc.to_le_bytes() {
        return Err(JournalError::Checksum("journal's header"));
    }
    check_index("journal", after)?;
    let mut journal = Journal {
        owner,
        after,
        records: Vec::new(),
        whole: HEADER_LEN,
        torn: 0,
    };
    let mut expected = after + 1;
    while let Some((index, payload)) = record(&bytes[journal.whole..]) {
        if index != expected {
            return Err(JournalError::Order {
                at: journal.whole,
                found: index,
                expected,
            });
        }
        journal.records.push((index, payload.to_vec()));
        journal.whole += RECORD_HEADER_LEN + payload.len();
        expected += 1;
    }
    let tail = &bytes[journal.whole..];
    journal.torn = tail
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |at| at + 1);
    match whole_record_in(tail, journal.torn, expected) {
        None => Ok(journal),
        Some(offset) => Err(JournalError::Damaged {
            at: journal.whole,
            next: journal.whole + offset,
        }),
    }
}

/// Looks for a later whole record at any byte of what seems to be a torn tail of `torn` bytes, and
/// perhaps zeros.
fn whole_record_in(tail: &[u8], torn: usize, expected: u64) -> Option<usize> {
    // No more records than this can lie between.
    let most = (tail.len() / RECORD_HEADER_LEN) as u64;
    (1..torn).find(|offset| {
        let bytes = &tail[*offset..];
        // The index is looked at first: it almost never fits by chance, and saves the checksum.
        let index = bytes.get(8..16).and_then(|b| Reader(b).u64().ok());
        let near = index.is_some_and(|i| i > expected && i - expected <= most);
        near && record(bytes).is_some()
    })
}

fn read_opening(
    bytes: &[u8],
    magic: [u8; 8],
    what: &'static str,
    len: usize,
) -> Result<(Owner, u64), JournalError> {
    let foreign = JournalError::Foreign(what);
    if bytes.len() < len || bytes[..8] != magic {
        return Err(foreign);
    }
    let mut reader = Reader(&bytes[8..]);
    let mut opening = || {
        let (peer, reserved) = (PeerId(reader.u32()?), reader.u32()?);
        let incarnation = reader.array()?;
        let owner = Owner { peer, incarnation };
        Ok::<_, ramkeep_wire::bytes::Short>((reserved, owner, reader.u64()?))
    };
    match opening() {
        Ok((0, owner, slot)) => Ok((owner, slot)),
        _ => Err(foreign),
    }
}

/// A snapshot file, after record `index`.
pub fn snapshot(owner: Owner, index: u64, payload: &[u8]) -> Result<Vec<u8>, JournalError> {
    check_snapshot_len(payload.len() as u64)?;
    let mut bytes = opening(SNAPSHOT_MAGIC, owner, index);
    bytes.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), payload);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(payload);
    Ok(bytes)
}

/// Reads a snapshot file: whose it is, after which record, and its payload.
pub fn read_snapshot(bytes: &[u8]) -> Result<(Owner, u64, &[u8]), JournalError> {
    let (owner, index) = read_opening(bytes, SNAPSHOT_MAGIC, "snapshot", SNAPSHOT_HEADER_LEN)?;
    let (head, payload) = bytes.split_at(SNAPSHOT_HEADER_LEN);
    let mut reader = Reader(&head[40..]);
    let (Ok(len), Ok(crc)) = (reader.u64(), reader.u32()) else {
        return Err(JournalError::Foreign("snapshot"));
    };
    check_snapshot_len(len)?;
    let fits = len == payload.len() as u64
        && crc32c::crc32c_append(crc32c::crc32c(&head[..48]), payload) == crc;
    if !fits {
        return Err(JournalError::Checksum("snapshot"));
    }
    check_index("snapshot", index)?;
    Ok((owner, index, payload))
}

fn check_index(what: &'static str, index: u64) -> Result<(), JournalError> {
    if index < MAX_INDEX {
        Ok(())
    } else {
        Err(JournalError::Index { what, index })
    }
}

fn check_snapshot_len(len: u64) -> Result<(), JournalError> {
    if len <= MAX_SNAPSHOT as u64 {
        return Ok(());
    }
    Err(JournalError::TooLong {
        what: "a snapshot",
        len,
        limit: MAX_SNAPSHOT,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OWNER: Owner = Owner {
        peer: PeerId(3),
        incarnation: [7; 16],
    };

    fn file(after: u64, payloads: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = header(OWNER, after);
        for (index, payload) in (after + 1..).zip(payloads) {
            append_record(&mut bytes, index, payload).unwrap();
        }
        bytes
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn golden_journal_never_changes() {
        let bytes = file(4, &[b"ramkeep".to_vec(), Vec::new()]);
        assert_eq!(
            hex(&bytes),
            include_str!("../tests/golden/journal.hex").trim()
        );
    }

    #[test]
    fn golden_snapshot_never_changes() {
        let bytes = snapshot(OWNER, 4, b"state").unwrap();
        assert_eq!(
            hex(&bytes),
            include_str!("../tests/golden/snapshot.hex").trim()
        );
        assert_eq!(read_snapshot(&bytes), Ok((OWNER, 4, &b"state"[..])));
    }

    #[test]
    fn damage_before_the_end_is_refused() {
        let mut bytes = file(0, &[vec![1; 20], vec![2; 20], vec![3; 20]]);
        bytes[HEADER_LEN + RECORD_HEADER_LEN + 5] ^= 1;
        assert!(matches!(
            read(&bytes),
            Err(JournalError::Damaged { at: HEADER_LEN, .. })
        ));
    }

    #[test]
    fn damage_to_a_length_before_the_end_is_refused() {
        let mut bytes = file(0, &[vec![1; 20], vec![2; 20], vec![3; 20]]);
        bytes[HEADER_LEN + 1] = 0xff;
        assert!(matches!(
            read(&bytes),
            Err(JournalError::Damaged { at: HEADER_LEN, .. })
        ));
    }

    #[test]
    fn a_missing_record_is_refused() {
        let mut bytes = file(0, &[vec![1; 20]]);
        append_record(&mut bytes, 3, b"x").unwrap();
        let expected = JournalError::Order {
            at: HEADER_LEN + 36,
            found: 3,
            expected: 2,
        };
        assert_eq!(read(&bytes), Err(expected));
    }

    #[test]
    fn foreign_files_are_refused() {
        assert_eq!(read(b""), Err(JournalError::Foreign("journal")));
        assert_eq!(read(&[0x5a; 100]), Err(JournalError::Foreign("journal")));
        let snapshot = snapshot(OWNER, 4, b"state").unwrap();
        assert_eq!(read(&snapshot), Err(JournalError::Foreign("journal")));
        let mut bytes = file(0, &[]);
        bytes[9] ^= 1;
        assert_eq!(
            read(&bytes),
            Err(JournalError::Checksum("journal's header"))
        );
        let mut bytes = file(0, &[]);
        bytes[12] = 1;
        let crc = crc32c::crc32c(&bytes[..HEADER_LEN - 4]);
        bytes[HEADER_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(read(&bytes), Err(JournalError::Foreign("journal")));
    }

    #[test]
    fn an_index_that_nobody_reaches_is_refused() {
        for index in [MAX_INDEX, u64::MAX - 1, u64::MAX] {
            let what = "journal";
            let refused = Err(JournalError::Index { what, index });
            assert_eq!(read(&header(OWNER, index)), refused);
            let what = "snapshot";
            let refused = Err(JournalError::Index { what, index });
            let bytes = snapshot(OWNER, index, b"state").unwrap();
            assert_eq!(read_snapshot(&bytes), refused);
        }
        let last = file(MAX_INDEX - 1, &[vec![1], vec![2]]);
        assert_eq!(read(&last).unwrap().records.len(), 2);
    }

    #[test]
    fn zeros_at_the_end_are_space_made_ahead() {
        let mut bytes = file(0, &[vec![1; 20]]);
        bytes.extend_from_slice(&[0; 4_096]);
        let journal = read(&bytes).unwrap();
        assert_eq!((journal.records.len(), journal.torn), (1, 0));
    }

    proptest! {
        #[test]
        fn a_file_cut_anywhere_gives_a_prefix(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..8),
            cut in any::<prop::sample::Index>(),
        ) {
            let bytes = file(9, &payloads);
            let cut = cut.index(bytes.len() + 1);
            match read(&bytes[..cut]) {
                Err(JournalError::Foreign(_)) => prop_assert!(cut < HEADER_LEN),
                Err(other) => prop_assert!(false, "{other}"),
                Ok(journal) => {
                    prop_assert!(journal.whole + journal.torn <= cut);
                    prop_assert!(cut < bytes.len() || journal.records.len() == payloads.len());
                    for ((index, record), (place, payload)) in
                        journal.records.iter().zip(payloads.iter().enumerate())
                    {
                        prop_assert_eq!(*index, 10 + place as u64);
                        prop_assert_eq!(record, payload);
                    }
                }
            }
        }

        #[test]
        fn a_flipped_bit_is_never_taken_for_data(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 1..6),
            at in any::<prop::sample::Index>(),
            bit in 0..8_u32,
        ) {
            let mut bytes = file(0, &payloads);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            if let Ok(journal) = read(&bytes) {
                // Only the last record may have been taken for torn.
                prop_assert_eq!(journal.records.len() + 1, payloads.len());
            }
        }

        #[test]
        fn random_bytes_are_refused_or_harmless(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut with_header = header(OWNER, 0);
            with_header.extend_from_slice(&bytes);
            prop_assert!(read(&bytes).is_err());
            prop_assert!(read(&with_header).is_ok_and(|journal| journal.records.is_empty()));
            prop_assert!(read_snapshot(&bytes).is_err());
        }
    }
}
