//! Requests: the items that a client asks for (`Kind::DataRequest`).
//!
//! Request payload:
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

use super::error::DataError;
use crate::bytes::{Reader, Writer};
use crate::ids::{ClientId, RpcId, TableId, Version};
use crate::limits::{MAX_ITEMS, MAX_KEY, MAX_VALUE, MIN_KEY};

/// Bytes before a request's items.
pub const REQUEST_HEADER_LEN: usize = 20;
/// Bytes of a request item before optional fields, key and value.
pub const ITEM_HEADER_LEN: usize = 16;

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
    /// A page of a table: the key is empty, the value a [`ScanCursor`](super::ScanCursor).
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
