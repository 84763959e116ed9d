//! Log entries: typed, length-prefixed, each with its own CRC-32C.
//!
//! ```text
//!  0        4      5       6         8          12
//!  | crc32c | type | flags | key_len | body_len | body: body_len bytes
//!  |  u32   |  u8  |  u8   |   u16   |   u32    |
//! ```
//! The checksum covers bytes 4.. to the body's end. Entries stand unaligned, one after another.
//! Bodies by type:
//! ```text
//!  object       table u32 | version u64 | [expiry u64, if flag EXPIRY] | key | value
//!  tombstone    table u32 | version u64 | segment u64 | key
//!  completion   client u64 | rpc u64 | table u32 | key hash u64 | version u64 | [counter u64]
//!  safe version version u64
//!  header       format u16 | kind u8 | 0 u8 | cluster 16 | master u64 | segment u64 | size u32
//!  digest       count u32 | count * (segment u64 | length u32 | certificate 33)
//!  active       previous head's segment u64
//! ```
//! A completion's `key_len` is how far the client's ack id was behind its rpc id. An object without optional fields costs 24 bytes beside key and value. Types 32 to 47 are
//! reserved for transactions; every type not named here is refused.

use crate::bytes::{Reader, Short, Writer};
use crate::certificate::{Certificate, SegmentKind};
use crate::hash::{KeyHash, key_hash};
use crate::ids::{ClientId, ClusterId, RpcId, SegmentId, ServerId, TableId, Version};
use crate::limits::{
    MAX_KEY, MAX_RPC_WINDOW, MAX_SEGMENTS_PER_LOG, MAX_VALUE, MIN_KEY, SEGMENT_SIZE,
};

/// Bytes before the body.
pub const HEADER_LEN: usize = 12;
/// Format of segments, in each segment's header.
pub const SEGMENT_FORMAT: u16 = 1;
/// Flag of an object: an expiry time follows the version.
pub const FLAG_EXPIRY: u8 = 1;

const OBJECT: u8 = 1;
const TOMBSTONE: u8 = 2;
const COMPLETION: u8 = 3;
const SAFE_VERSION: u8 = 4;
const SEGMENT_HEADER: u8 = 5;
const DIGEST: u8 = 6;
const ACTIVE: u8 = 7;

const OBJECT_FIXED: usize = 4 + 8;
const EXPIRY_LEN: usize = 8;
const TOMBSTONE_FIXED: usize = 4 + 8 + 8;
const COMPLETION_FIXED: usize = 8 + 8 + 4 + 8 + 8;
const COUNTER_LEN: usize = 8;
const SEGMENT_HEADER_BODY: usize = 2 + 1 + 1 + 16 + 8 + 8 + 4;
const DIGEST_ITEM: usize = 8 + 4 + Certificate::LEN;

/// Offset of an object's key in its entry when it has no optional field.
pub const OBJECT_KEY_OFFSET: usize = HEADER_LEN + OBJECT_FIXED;

/// A key, value and version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object<'a> {
    /// Its table.
    pub table: TableId,
    /// Its version.
    pub version: Version,
    /// Microseconds since 1970 after which it is dead, if ever.
    pub expiry: Option<u64>,
    /// Its key.
    pub key: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
}

/// Records a removal: kills `key` at `version`, an object that stood in `segment` of this log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tombstone<'a> {
    /// The object's table.
    pub table: TableId,
    /// The version it had.
    pub version: Version,
    /// Where it stood. Dead once that segment has left the log.
    pub segment: SegmentId,
    /// Its key.
    pub key: &'a [u8],
}

/// Saves the result of an rpc that changed something, so that a retry gets it instead of running again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Who called.
    pub client: ClientId,
    /// Which call.
    pub rpc: RpcId,
    /// All calls of the client up to this one were over, by its own word; from 1 to
    /// [`MAX_RPC_WINDOW`] below `rpc`.
    pub ack: RpcId,
    /// The table it was on; with the key hash, what it moves with when its tablet moves.
    pub table: TableId,
    /// Of the key it was on.
    pub hash: KeyHash,
    /// The version it made, or removed.
    pub version: Version,
    /// What it made of a counter.
    pub counter: Option<i64>,
}

/// Says whose segment this is; the first entry of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// What the segment is for.
    pub kind: SegmentKind,
    /// The cluster.
    pub cluster: ClusterId,
    /// The master whose log it belongs to.
    pub master: ServerId,
    /// Its id.
    pub segment: SegmentId,
    /// Its size in bytes.
    pub size: u32,
}

/// One segment as a digest names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DigestItem {
    /// Its id.
    pub segment: SegmentId,
    /// Its closed length; for the digest's own segment 0 with no certificate, for it is open.
    pub length: u32,
    /// Its certificate when closed.
    pub certificate: Certificate,
}

/// Names every segment of the log, the digest's own included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest<'a> {
    items: &'a [u8],
}

impl<'a> Digest<'a> {
    /// Segments named.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len() / DIGEST_ITEM
    }

    /// Whether none is named.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The segments, in the order written.
    pub fn iter(&self) -> impl Iterator<Item = DigestItem> + 'a {
        self.items.chunks_exact(DIGEST_ITEM).filter_map(|item| {
            let mut reader = Reader(item);
            Some(DigestItem {
                segment: SegmentId(reader.u64().ok()?),
                length: reader.u32().ok()?,
                certificate: Certificate::read(&mut reader).ok()?,
            })
        })
    }
}

/// An entry whose checksum fits and whose fields make sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry<'a> {
    /// A key, value and version.
    Object(Object<'a>),
    /// A removal.
    Tombstone(Tombstone<'a>),
    /// An rpc's result.
    Completion(Completion),
    /// Versions of new keys are at least this.
    SafeVersion(Version),
    /// Whose segment this is.
    SegmentHeader(SegmentHeader),
    /// The segments of the log.
    Digest(Digest<'a>),
    /// This head counts: the one before it, named here, is closed on all its backups (SAFETY 11).
    Active(SegmentId),
}

/// Why bytes are not an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// Cut short.
    #[error("entry is cut short")]
    Short,
    /// Damaged.
    #[error("entry checksum does not fit its bytes")]
    Checksum,
    /// A type this build doesn't know.
    #[error("unknown type of entry {0}")]
    Type(u8),
    /// A flag this build doesn't know.
    #[error("unknown flags {0:#04x} of an entry")]
    Flags(u8),
    /// Lengths that don't add up, or over their limits.
    #[error("entry's lengths do not add up")]
    Length,
    /// A field with a value that can't be.
    #[error("entry has an impossible field")]
    Field,
}

impl From<Short> for EntryError {
    fn from(_: Short) -> Self {
        Self::Short
    }
}

/// What to write: mirrors [`Entry`], with the digest as a list.
#[derive(Clone, Copy, Debug)]
pub enum NewEntry<'a> {
    /// See [`Entry::Object`].
    Object(Object<'a>),
    /// See [`Entry::Tombstone`].
    Tombstone(Tombstone<'a>),
    /// See [`Entry::Completion`].
    Completion(Completion),
    /// See [`Entry::SafeVersion`].
    SafeVersion(Version),
    /// See [`Entry::SegmentHeader`].
    SegmentHeader(SegmentHeader),
    /// See [`Entry::Digest`].
    Digest(&'a [DigestItem]),
    /// See [`Entry::Active`].
    Active(SegmentId),
    /// An entry as it stands elsewhere, checksum included: what replay copies.
    Verbatim(&'a [u8]),
}

/// Bytes of an object's entry.
#[must_use]
#[inline]
pub const fn object_len(key: usize, value: usize, expiry: bool) -> usize {
    HEADER_LEN + OBJECT_FIXED + if expiry { EXPIRY_LEN } else { 0 } + key + value
}

/// Bytes of the tombstone of a key of this length.
#[must_use]
#[inline]
pub const fn tombstone_len(key: usize) -> usize {
    HEADER_LEN + TOMBSTONE_FIXED + key
}

/// Bytes of a completion, of a counter or not.
#[must_use]
#[inline]
pub fn completion_len(counter: bool) -> usize {
    HEADER_LEN + COMPLETION_FIXED + if counter { COUNTER_LEN } else { 0 }
}

impl NewEntry<'_> {
    /// Bytes that [`NewEntry::write`] fills.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        match self {
            Self::Object(o) => object_len(o.key.len(), o.value.len(), o.expiry.is_some()),
            Self::Tombstone(t) => tombstone_len(t.key.len()),
            Self::Completion(c) => completion_len(c.counter.is_some()),
            Self::SafeVersion(_) | Self::Active(_) => HEADER_LEN + 8,
            Self::SegmentHeader(_) => HEADER_LEN + SEGMENT_HEADER_BODY,
            Self::Digest(items) => HEADER_LEN + 4 + items.len() * DIGEST_ITEM,
            Self::Verbatim(entry) => entry.len(),
        }
    }

    /// Fills `buffer`, whose length must be [`NewEntry::encoded_len`].
    pub fn write(&self, buffer: &mut [u8]) {
        assert_eq!(
            buffer.len(),
            self.encoded_len(),
            "an entry fills its buffer exactly"
        );
        if let Self::Verbatim(entry) = self {
            return buffer.copy_from_slice(entry);
        }
        let body_len = (buffer.len() - HEADER_LEN) as u32;
        let (kind, flags, key_len) = self.header();
        let mut writer = Writer::new(&mut buffer[4..]);
        writer.u8(kind);
        writer.u8(flags);
        writer.u16(key_len);
        writer.u32(body_len);
        self.write_body(&mut writer);
        let sum = crc32c::crc32c(&buffer[4..]);
        buffer[..4].copy_from_slice(&sum.to_le_bytes());
    }

    fn header(&self) -> (u8, u8, u16) {
        match self {
            Self::Object(o) => (
                OBJECT,
                if o.expiry.is_some() { FLAG_EXPIRY } else { 0 },
                o.key.len() as u16,
            ),
            Self::Tombstone(t) => (TOMBSTONE, 0, t.key.len() as u16),
            // Fits: the window is that wide.
            Self::Completion(c) => (COMPLETION, 0, (c.rpc.0 - c.ack.0) as u16),
            Self::SafeVersion(_) => (SAFE_VERSION, 0, 0),
            Self::SegmentHeader(_) => (SEGMENT_HEADER, 0, 0),
            Self::Digest(_) => (DIGEST, 0, 0),
            Self::Active(_) => (ACTIVE, 0, 0),
            Self::Verbatim(_) => (0, 0, 0),
        }
    }

    #[inline]
    fn write_body(&self, writer: &mut Writer<'_>) {
        match self {
            Self::Object(o) => {
                writer.u32(o.table.0);
                writer.u64(o.version.0);
                if let Some(expiry) = o.expiry {
                    writer.u64(expiry);
                }
                writer.put(o.key);
                writer.put(o.value);
            }
            Self::Tombstone(t) => {
                writer.u32(t.table.0);
                writer.u64(t.version.0);
                writer.u64(t.segment.0);
                writer.put(t.key);
            }
            Self::Completion(c) => {
                writer.u64(c.client.0);
                writer.u64(c.rpc.0);
                writer.u32(c.table.0);
                writer.u64(c.hash.0);
                writer.u64(c.version.0);
                if let Some(counter) = c.counter {
                    writer.put(&counter.to_le_bytes());
                }
            }
            Self::SafeVersion(version) => writer.u64(version.0),
            Self::SegmentHeader(h) => write_segment_header(writer, h),
            Self::Digest(items) => write_digest(writer, items),
            Self::Active(previous) => writer.u64(previous.0),
            Self::Verbatim(_) => {}
        }
    }
}

fn write_segment_header(writer: &mut Writer<'_>, header: &SegmentHeader) {
    writer.u16(SEGMENT_FORMAT);
    writer.u8(header.kind as u8);
    writer.u8(0);
    writer.put(&header.cluster.0);
    writer.u64(header.master.0);
    writer.u64(header.segment.0);
    writer.u32(header.size);
}

fn write_digest(writer: &mut Writer<'_>, items: &[DigestItem]) {
    writer.u32(items.len() as u32);
    for item in items {
        writer.u64(item.segment.0);
        writer.u32(item.length);
        item.certificate.write(writer);
    }
}

/// Length of the entry at the front of `bytes`, judged by its header alone.
pub fn entry_len(bytes: &[u8]) -> Result<usize, EntryError> {
    let mut reader = Reader(bytes);
    reader.u64()?;
    let len = HEADER_LEN + reader.u32()? as usize;
    if len > SEGMENT_SIZE {
        Err(EntryError::Length)
    } else {
        Ok(len)
    }
}

/// The entry at the front of `bytes` and its length; checksum and fields are verified.
pub fn read(bytes: &[u8]) -> Result<(Entry<'_>, usize), EntryError> {
    let len = entry_len(bytes)?;
    let entry = bytes.get(..len).ok_or(EntryError::Short)?;
    let mut reader = Reader(entry);
    if reader.u32()? != crc32c::crc32c(&entry[4..]) {
        return Err(EntryError::Checksum);
    }
    read_verified(entry).map(|entry| (entry, len))
}

/// The same without looking at the checksum: for bytes whose checksums were verified before.
pub fn read_again(bytes: &[u8]) -> Result<(Entry<'_>, usize), EntryError> {
    let len = entry_len(bytes)?;
    let entry = bytes.get(..len).ok_or(EntryError::Short)?;
    read_verified(entry).map(|entry| (entry, len))
}

fn read_verified(entry: &[u8]) -> Result<Entry<'_>, EntryError> {
    let (kind, flags) = (entry[4], entry[5]);
    let key_len = usize::from(u16::from_le_bytes([entry[6], entry[7]]));
    if flags & !FLAG_EXPIRY != 0 || (flags != 0 && kind != OBJECT) {
        return Err(EntryError::Flags(flags));
    }
    if key_len != 0 && !matches!(kind, OBJECT | TOMBSTONE | COMPLETION) {
        return Err(EntryError::Length);
    }
    let mut reader = Reader(&entry[HEADER_LEN..]);
    let value = match kind {
        OBJECT => Entry::Object(read_object(&mut reader, flags, key_len)?),
        TOMBSTONE => Entry::Tombstone(read_tombstone(&mut reader, key_len)?),
        COMPLETION => Entry::Completion(read_completion(&mut reader, key_len)?),
        SAFE_VERSION => Entry::SafeVersion(Version(reader.u64()?)),
        SEGMENT_HEADER => Entry::SegmentHeader(read_segment_header(&mut reader)?),
        DIGEST => Entry::Digest(read_digest(&mut reader)?),
        ACTIVE => Entry::Active(SegmentId(reader.u64()?)),
        other => return Err(EntryError::Type(other)),
    };
    if reader.is_empty() {
        Ok(value)
    } else {
        Err(EntryError::Length)
    }
}

fn read_object<'a>(
    reader: &mut Reader<'a>,
    flags: u8,
    key_len: usize,
) -> Result<Object<'a>, EntryError> {
    let (table, version) = (TableId(reader.u32()?), Version(reader.u64()?));
    let expiry = if flags & FLAG_EXPIRY != 0 {
        Some(reader.u64()?)
    } else {
        None
    };
    let key = reader.take(key_len)?;
    let value = reader.take(reader.0.len())?;
    if key.len() < MIN_KEY || value.len() > MAX_VALUE {
        return Err(EntryError::Length);
    }
    Ok(Object {
        table,
        version,
        expiry,
        key,
        value,
    })
}

fn read_tombstone<'a>(
    reader: &mut Reader<'a>,
    key_len: usize,
) -> Result<Tombstone<'a>, EntryError> {
    let (table, version) = (TableId(reader.u32()?), Version(reader.u64()?));
    let segment = SegmentId(reader.u64()?);
    let key = reader.take(key_len)?;
    if key.len() < MIN_KEY {
        return Err(EntryError::Length);
    }
    Ok(Tombstone {
        table,
        version,
        segment,
        key,
    })
}

fn read_completion(reader: &mut Reader<'_>, behind: usize) -> Result<Completion, EntryError> {
    let (client, rpc) = (ClientId(reader.u64()?), RpcId(reader.u64()?));
    if behind == 0 {
        return Err(EntryError::Field);
    }
    let ack = rpc.0.checked_sub(behind as u64).ok_or(EntryError::Field)?;
    Ok(Completion {
        client,
        rpc,
        ack: RpcId(ack),
        table: TableId(reader.u32()?),
        hash: KeyHash(reader.u64()?),
        version: Version(reader.u64()?),
        counter: if reader.is_empty() {
            None
        } else {
            Some(i64::from_le_bytes(reader.array()?))
        },
    })
}

fn read_segment_header(reader: &mut Reader<'_>) -> Result<SegmentHeader, EntryError> {
    if reader.u16()? != SEGMENT_FORMAT {
        return Err(EntryError::Field);
    }
    let kind = SegmentKind::from_code(reader.u8()?).ok_or(EntryError::Field)?;
    if reader.u8()? != 0 {
        return Err(EntryError::Field);
    }
    Ok(SegmentHeader {
        kind,
        cluster: ClusterId(reader.array()?),
        master: ServerId(reader.u64()?),
        segment: SegmentId(reader.u64()?),
        size: reader.u32()?,
    })
}

fn read_digest<'a>(reader: &mut Reader<'a>) -> Result<Digest<'a>, EntryError> {
    let count = reader.u32()? as usize;
    if count > MAX_SEGMENTS_PER_LOG || reader.0.len() != count * DIGEST_ITEM {
        return Err(EntryError::Length);
    }
    Ok(Digest {
        items: reader.take(count * DIGEST_ITEM)?,
    })
}

/// The object at the front of `bytes`, without checking its checksum: for bytes that this process
/// wrote itself. `None` when the entry is not an object or is cut short.
#[must_use]
#[inline]
pub fn object_in_memory(bytes: &[u8]) -> Option<Object<'_>> {
    let header = bytes.first_chunk::<OBJECT_KEY_OFFSET>()?;
    if header[4] != OBJECT {
        return None;
    }
    let key_len = usize::from(u16::from_le_bytes([header[6], header[7]]));
    let body_len = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
    let mut rest = bytes.get(OBJECT_KEY_OFFSET..HEADER_LEN + body_len)?;
    let mut expiry = None;
    if header[5] & FLAG_EXPIRY != 0 {
        let (field, after) = rest.split_first_chunk::<EXPIRY_LEN>()?;
        expiry = Some(u64::from_le_bytes(*field));
        rest = after;
    }
    let (key, value) = rest.split_at_checked(key_len)?;
    let (mut table, mut version) = ([0; 4], [0; 8]);
    table.copy_from_slice(&header[12..16]);
    version.copy_from_slice(&header[16..24]);
    Some(Object {
        table: TableId(u32::from_le_bytes(table)),
        version: Version(u64::from_le_bytes(version)),
        expiry,
        key,
        value,
    })
}

/// Where a key belongs: table and key hash, of the entries that have one.
impl Entry<'_> {
    /// The table and key hash that decide which tablet the entry belongs to.
    #[must_use]
    pub fn place(&self) -> Option<(TableId, KeyHash)> {
        match self {
            Self::Object(o) => Some((o.table, key_hash(o.table, o.key))),
            Self::Tombstone(t) => Some((t.table, key_hash(t.table, t.key))),
            Self::Completion(c) => Some((c.table, c.hash)),
            _ => None,
        }
    }
}

const _: () = assert!(MAX_KEY <= u16::MAX as usize);
const _: () = assert!(MAX_RPC_WINDOW <= u16::MAX as u64);
const _: () = assert!(OBJECT_KEY_OFFSET == 24);
