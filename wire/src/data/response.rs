//! Responses: what came of a request's items (`Kind::DataResponse`).
//!
//! Response payload: items until the end:
//! ```text
//!  0    4        5    6    8           12        20
//!  | id | status | 0  | 0  | value_len | version | value
//!  | u32|  u8    | u8 | u16|   u32     |  u64    |
//! ```
//! Items are answered in any order, each once; answers to one request may come in several
//! envelopes. An item's id is unique among those in flight on its connection.

use super::error::DataError;
use crate::bytes::Reader;
use crate::ids::Version;

/// Bytes of a response item before its value.
pub const RESPONSE_ITEM_LEN: usize = 20;

/// What came of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Status {
    /// Done. Read: value and version. Write: the new version. Remove: the removed object's
    /// version, 0 if there was none. Increment: new value (8 bytes) and version. Scan: a page.
    Ok = 0,
    /// There is no such object. `version` is 0.
    Absent = 1,
    /// A reject rule applied; `version` is the object's, 0 if there is none.
    Rejected = 2,
    /// This server does not own the key's tablet, or may not answer for it now: ask the coordinator
    /// for the map.
    WrongServer = 3,
    /// Live data fills the master's memory.
    OutOfMemory = 4,
    /// Not now, try again: the master is not ready, or the cleaner catches up.
    RetryLater = 5,
    /// Fewer backups than replicas were asked for are there; nothing was written.
    NotEnoughBackups = 6,
    /// Key or value over its limit.
    TooLarge = 7,
    /// Increment of something that is not 8 bytes long.
    NotACounter = 8,
    /// The scan cursor can't be read, or the operation makes no sense.
    Invalid = 9,
    /// The client has said itself that this rpc is over: it comes late, and nothing was done.
    Stale = 10,
    /// The client's lease has ended, and what it once did may be forgotten: nothing was done.
    LeaseOver = 11,
    /// There is no memory to remember the result by: nothing was done, nor will be under this rpc id.
    /// It may be asked for as client 0.
    NotRemembered = 12,
    /// The sum of an increment would not fit in 64 bits; `version` is the counter's, 0 if there is none.
    Overflow = 13,
}

impl Status {
    /// The status with this code.
    #[must_use]
    #[inline]
    pub fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::Ok,
            1 => Self::Absent,
            2 => Self::Rejected,
            3 => Self::WrongServer,
            4 => Self::OutOfMemory,
            5 => Self::RetryLater,
            6 => Self::NotEnoughBackups,
            7 => Self::TooLarge,
            8 => Self::NotACounter,
            9 => Self::Invalid,
            10 => Self::Stale,
            11 => Self::LeaseOver,
            12 => Self::NotRemembered,
            13 => Self::Overflow,
            _ => return None,
        })
    }
}

/// One result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseItem<'a> {
    /// Of which item.
    pub id: u32,
    /// What came of it.
    pub status: Status,
    /// See [`Status`].
    pub version: Version,
    /// See [`Status`].
    pub value: &'a [u8],
}

impl<'a> ResponseItem<'a> {
    /// Appends the result to a response being built.
    #[inline]
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut header = [0; RESPONSE_ITEM_LEN];
        header[..4].copy_from_slice(&self.id.to_le_bytes());
        header[4] = self.status as u8;
        header[8..12].copy_from_slice(&(self.value.len() as u32).to_le_bytes());
        header[12..].copy_from_slice(&self.version.0.to_le_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(self.value);
    }

    /// Reads the next result from a response payload, `Ok(None)` at its end.
    #[inline]
    pub fn read(reader: &mut Reader<'a>) -> Result<Option<Self>, DataError> {
        if reader.is_empty() {
            return Ok(None);
        }
        let id = reader.u32()?;
        // The status and the reserved bytes after it, which are zero.
        let word = reader.u32()?;
        let status = u8::try_from(word).map_err(|_| DataError::Reserved)?;
        let status = Status::from_code(status).ok_or(DataError::Status(status))?;
        let value_len = reader.u32()? as usize;
        let version = Version(reader.u64()?);
        Ok(Some(Self {
            id,
            status,
            version,
            value: reader.take(value_len)?,
        }))
    }
}
