//! Data operations: batches of items in one envelope, answered by batches of items.
//!
//! Request payload (`Kind::DataRequest`):
//! ```text
//!  0        8        16        20
//!  | client | ack id | count   | items ...
//!  |  u64   |  u64   |  u32    |
//! ```
//! `client` 0: no client lease, the rpc ids are not remembered. `ack id`: the client has the results of
//! all its calls up to this one, or has given them up. Each item:
//! ```text
//!  0    1       2         4    8       12          16
//!  | op | flags | key_len | id | table | value_len | [rpc id u64, if flag RPC]
//!  | u8 |  u8   |  u16    | u32|  u32  |   u32     | [version u64, if flag VERSION] | key | value
//! ```
//! Response payload (`Kind::DataResponse`): items until the end:
//! ```text
//!  0    4        5    6    8           12        20
//!  | id | status | 0  | 0  | value_len | version | value
//!  | u32|  u8    | u8 | u16|   u32     |  u64    |
//! ```
//! Items are answered in any order, each once; answers to one request may come in several
//! envelopes. An item's id is unique among those in flight on its connection.

use crate::bytes::{Reader, Short, Writer};
use crate::hash::KeyHash;
use crate::ids::{ClientId, RpcId, TableId, Version};
use crate::limits::{MAX_ITEMS, MAX_KEY, MAX_VALUE, MIN_KEY};

/// Bytes before a request's items.
pub const REQUEST_HEADER_LEN: usize = 20;
/// Bytes of a request item before optional fields, key and value.
pub const ITEM_HEADER_LEN: usize = 16;
/// Bytes of a response item before its value.
pub const RESPONSE_ITEM_LEN: usize = 20;

/// What an item asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Op {
    /// The object of a key.
    Read = 1,
    /// Set a key's value.
    Write = 2,
    /// Remove a key's object.
    Remove = 3,
    /// Add the value (8 bytes, two's complement) to a counter; absent counts as 0.
    Increment = 4,
    /// A page of a table: the key is empty, the value a [`ScanCursor`].
    Scan = 5,
}

impl Op {
    /// The operation with this code.
    #[must_use]
    #[inline]
    pub fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Read),
            2 => Some(Self::Write),
            3 => Some(Self::Remove),
            4 => Some(Self::Increment),
            5 => Some(Self::Scan),
            _ => None,
        }
    }

    /// Whether it may change an object.
    #[must_use]
    #[inline]
    pub fn mutates(self) -> bool {
        matches!(self, Self::Write | Self::Remove | Self::Increment)
    }
}

/// Flags of a request item.
pub mod flags {
    /// An rpc id follows the header.
    pub const RPC: u8 = 1;
    /// A version follows: reject unless the object has it.
    pub const VERSION: u8 = 2;
    /// Reject if the object exists.
    pub const IF_ABSENT: u8 = 4;
    /// Reject if it does not.
    pub const IF_EXISTS: u8 = 8;
    /// All that have a meaning with an operation that changes an object.
    pub const MUTATION: u8 = RPC | VERSION | IF_ABSENT | IF_EXISTS;
    /// The same for one that only looks.
    pub const LOOK: u8 = RPC;
}

/// Conditions under which an operation is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RejectRules {
    /// Reject if the object exists.
    pub exists: bool,
    /// Reject if it does not.
    pub absent: bool,
    /// Reject unless it exists with just this version.
    pub unless_version: Option<Version>,
}

impl RejectRules {
    /// Whether the operation is refused for an object at `current` (`None`: there is no object).
    #[must_use]
    #[inline]
    pub fn reject(&self, current: Option<Version>) -> bool {
        (self.exists && current.is_some())
            || (self.absent && current.is_none())
            || self
                .unless_version
                .is_some_and(|wanted| current != Some(wanted))
    }
}

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item<'a> {
    /// What to do.
    pub op: Op,
    /// Chosen by the client, repeated in the answer.
    pub id: u32,
    /// On which table.
    pub table: TableId,
    /// The call it belongs to.
    pub rpc: RpcId,
    /// When to refuse.
    pub rules: RejectRules,
    /// On which key.
    pub key: &'a [u8],
    /// With which value.
    pub value: &'a [u8],
}

/// Why a request can't be read. The connection it came on is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DataError {
    /// Cut short.
    #[error("data message is cut short")]
    Short,
    /// More items than allowed.
    #[error("{0} items in one envelope, at most {MAX_ITEMS} are allowed")]
    Items(u32),
    /// Unknown operation.
    #[error("unknown operation {0}")]
    Op(u8),
    /// Unknown flags, or reject rules for an operation that has none.
    #[error("flags {0:#04x} of an item mean nothing here")]
    Flags(u8),
    /// Unknown status in a response.
    #[error("unknown status {0} of an item")]
    Status(u8),
    /// Bytes that have no meaning yet are not zero.
    #[error("reserved bytes of an item are not zero")]
    Reserved,
    /// Bytes after the last item.
    #[error("bytes after the last item")]
    Trailing,
    /// Key or value of a length that can't be.
    #[error("key or value of an impossible length")]
    Length,
}

impl From<Short> for DataError {
    fn from(_: Short) -> Self {
        Self::Short
    }
}

/// The items of a request payload.
#[derive(Clone, Copy, Debug)]
pub struct Items<'a> {
    /// Whose calls these are.
    pub client: ClientId,
    /// All its rpc ids up to this one are over.
    pub ack: RpcId,
    remaining: u32,
    reader: Reader<'a>,
}

impl<'a> Items<'a> {
    /// Reads a request payload's header.
    pub fn read(payload: &'a [u8]) -> Result<Self, DataError> {
        let mut reader = Reader(payload);
        let (client, ack, remaining) =
            (ClientId(reader.u64()?), RpcId(reader.u64()?), reader.u32()?);
        if remaining as usize > MAX_ITEMS {
            return Err(DataError::Items(remaining));
        }
        Ok(Self {
            client,
            ack,
            remaining,
            reader,
        })
    }

    /// Items not read yet.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.remaining as usize
    }

    /// The next item, `Ok(None)` after the last.
    #[inline]
    pub fn next_item(&mut self) -> Result<Option<Item<'a>>, DataError> {
        if self.remaining == 0 {
            return if self.reader.is_empty() {
                Ok(None)
            } else {
                Err(DataError::Trailing)
            };
        }
        self.remaining -= 1;
        read_item(&mut self.reader).map(Some)
    }
}

#[inline]
fn read_item<'a>(reader: &mut Reader<'a>) -> Result<Item<'a>, DataError> {
    let header = reader.array::<ITEM_HEADER_LEN>()?;
    let op = Op::from_code(header[0]).ok_or(DataError::Op(header[0]))?;
    let flags = header[1];
    let known = if op.mutates() {
        flags::MUTATION
    } else {
        flags::LOOK
    };
    if flags & !known != 0 {
        return Err(DataError::Flags(flags));
    }
    let field = |at: usize| {
        u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let key_len = usize::from(u16::from_le_bytes([header[2], header[3]]));
    let value_len = field(12) as usize;
    if value_len > MAX_VALUE || (key_len < MIN_KEY) != (op == Op::Scan) {
        return Err(DataError::Length);
    }
    let rpc = if flags & flags::RPC != 0 {
        RpcId(reader.u64()?)
    } else {
        RpcId(0)
    };
    let version = if flags & flags::VERSION != 0 {
        Some(Version(reader.u64()?))
    } else {
        None
    };
    let rules = RejectRules {
        exists: flags & flags::IF_ABSENT != 0,
        absent: flags & flags::IF_EXISTS != 0,
        unless_version: version,
    };
    let (key, value) = (reader.take(key_len)?, reader.take(value_len)?);
    Ok(Item {
        op,
        id: field(4),
        table: TableId(field(8)),
        rpc,
        rules,
        key,
        value,
    })
}

/// Appends a request payload's header to an envelope being built; returns where, for
/// [`set_count`].
pub fn begin_request(out: &mut Vec<u8>, client: ClientId, ack: RpcId) -> usize {
    let start = out.len();
    out.extend_from_slice(&client.0.to_le_bytes());
    out.extend_from_slice(&ack.0.to_le_bytes());
    out.extend_from_slice(&0u32.to_le_bytes());
    start
}

/// Sets whose calls are in the request begun at `start`.
pub fn set_client(out: &mut [u8], start: usize, client: ClientId) {
    out[start..start + 8].copy_from_slice(&client.0.to_le_bytes());
}

/// Sets the number of items of the request begun at `start`.
pub fn set_count(out: &mut [u8], start: usize, count: u32) {
    out[start + 16..start + 20].copy_from_slice(&count.to_le_bytes());
}

/// Bytes that [`Item::write`] appends.
#[must_use]
pub fn item_len(item: &Item<'_>) -> usize {
    ITEM_HEADER_LEN
        + if item.rpc.0 != 0 { 8 } else { 0 }
        + if item.rules.unless_version.is_some() {
            8
        } else {
            0
        }
        + item.key.len()
        + item.value.len()
}

impl Item<'_> {
    /// Appends the item to a request being built. Key and value must be within their limits.
    pub fn write(&self, out: &mut Vec<u8>) {
        assert!(
            self.key.len() <= MAX_KEY && self.value.len() <= MAX_VALUE,
            "checked by the client"
        );
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        let flags = flag(self.rpc.0 != 0, flags::RPC)
            | flag(self.rules.unless_version.is_some(), flags::VERSION)
            | flag(self.rules.exists, flags::IF_ABSENT)
            | flag(self.rules.absent, flags::IF_EXISTS);
        let mut header = [0; ITEM_HEADER_LEN];
        let mut writer = Writer::new(&mut header);
        writer.u8(self.op as u8);
        writer.u8(flags);
        writer.u16(self.key.len() as u16);
        writer.u32(self.id);
        writer.u32(self.table.0);
        writer.u32(self.value.len() as u32);
        out.extend_from_slice(&header);
        if self.rpc.0 != 0 {
            out.extend_from_slice(&self.rpc.0.to_le_bytes());
        }
        if let Some(version) = self.rules.unless_version {
            out.extend_from_slice(&version.0.to_le_bytes());
        }
        out.extend_from_slice(self.key);
        out.extend_from_slice(self.value);
    }
}

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

/// Where a scan goes on: after `key` of hash `hash`, in order of (hash, key).
///
/// As an item's value: `hash u64 | until u64 | key bytes`. An empty key means: from `hash` on,
/// inclusive. `until` is the last hash wanted, inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanCursor<'a> {
    /// Go on at this hash.
    pub hash: KeyHash,
    /// Stop after this one.
    pub until: KeyHash,
    /// Go on after this key of that hash.
    pub after: &'a [u8],
}

impl<'a> ScanCursor<'a> {
    /// Appends the cursor.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.hash.0.to_le_bytes());
        out.extend_from_slice(&self.until.0.to_le_bytes());
        out.extend_from_slice(self.after);
    }

    /// Reads one from an item's value.
    pub fn read(value: &'a [u8]) -> Result<Self, DataError> {
        let mut reader = Reader(value);
        let (hash, until) = (KeyHash(reader.u64()?), KeyHash(reader.u64()?));
        if reader.0.len() > MAX_KEY {
            return Err(DataError::Length);
        }
        Ok(Self {
            hash,
            until,
            after: reader.0,
        })
    }
}

/// One object in a scan's page. A page is `more u8 | objects until the end`; each object is
/// `version u64 | key_len u16 | value_len u32 | key | value`, in order of (hash, key). `more` 0:
/// the range is at its end; 1: go on after the last object's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanObject<'a> {
    /// Its version.
    pub version: Version,
    /// Its key.
    pub key: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
}

impl<'a> ScanObject<'a> {
    /// Appends the object to a page.
    pub fn write(&self, page: &mut Vec<u8>) {
        page.extend_from_slice(&self.version.0.to_le_bytes());
        page.extend_from_slice(&(self.key.len() as u16).to_le_bytes());
        page.extend_from_slice(&(self.value.len() as u32).to_le_bytes());
        page.extend_from_slice(self.key);
        page.extend_from_slice(self.value);
    }

    /// Reads the next object of a page after its first byte, `Ok(None)` at its end.
    pub fn read(reader: &mut Reader<'a>) -> Result<Option<Self>, DataError> {
        if reader.is_empty() {
            return Ok(None);
        }
        let version = Version(reader.u64()?);
        let (key_len, value_len) = (usize::from(reader.u16()?), reader.u32()? as usize);
        Ok(Some(Self {
            version,
            key: reader.take(key_len)?,
            value: reader.take(value_len)?,
        }))
    }
}
