//! Replication: what a master tells a backup to make of a replica, and the acknowledgement.
//!
//! One message states a replica's wished state; a backup that already has it acknowledges again,
//! so repeats are harmless. Layout of [`Replicate`] (payload of `Kind::Replicate`):
//! ```text
//!  0        8      12     16     20     21      22   24           57
//!  | segment| epoch|offset|length| kind | flags | 0  | certificate | bytes ...
//!  |  u64   |  u32 | u32  | u32  |  u8  |  u8   |u16 |  33 bytes   | length - offset bytes, or none
//! ```
//! The master is the envelope's `from`, and its correlation the number of the master's connection:
//! once a backup has heard of a later one, it refuses what is left of those before. Every message
//! is answered once, in order. Layout of [`ReplicateAck`]:
//! ```text
//!  0        8      12     16     17      18  20
//!  | segment| epoch|length|status| flags | 0 | lease grant, microseconds u32 |
//! ```

use crate::bytes::{Reader, Short, Writer};
use crate::certificate::{Certificate, SegmentKind};
use crate::ids::{ReplicationEpoch, SegmentId};

/// Flags of a [`Replicate`].
pub mod flags {
    /// Creates the replica if it isn't there; without it an unknown replica is refused.
    pub const OPEN: u8 = 1;
    /// Nothing follows these bytes.
    pub const CLOSED: u8 = 2;
    /// The replica is whole with these bytes and carries the certificate: recovery may use it.
    /// Without it the bytes are part of a copy under way, invisible to recovery (SAFETY 3).
    pub const COMPLETE: u8 = 4;
    /// Asks for a lease grant; set on messages for heads not yet durably closed.
    pub const LEASE: u8 = 8;
}

/// A replica's wished state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replicate<'a> {
    /// Which segment.
    pub segment: SegmentId,
    /// The replica's epoch from now on; a lower one than the backup holds is refused.
    pub epoch: ReplicationEpoch,
    /// Where `bytes` go: at most what the replica has already.
    pub offset: u32,
    /// The replica's length afterwards: `offset + bytes.len()`.
    pub length: u32,
    /// What the segment is for.
    pub kind: SegmentKind,
    /// See [`flags`].
    pub flags: u8,
    /// Proof of the first `length` bytes; [`Certificate::NONE`] unless complete.
    pub certificate: Certificate,
    /// The bytes at `offset`.
    pub bytes: &'a [u8],
}

impl<'a> Replicate<'a> {
    /// Bytes before `bytes`.
    pub const HEADER_LEN: usize = 24 + Certificate::LEN;

    /// Whether `flag` is set.
    #[must_use]
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Appends the message to an envelope being built.
    pub fn write(&self, out: &mut Vec<u8>) {
        debug_assert_eq!(
            self.offset as usize + self.bytes.len(),
            self.length as usize
        );
        let start = out.len();
        out.resize(start + Self::HEADER_LEN, 0);
        let mut writer = Writer::new(&mut out[start..]);
        writer.u64(self.segment.0);
        writer.u32(self.epoch.0);
        writer.u32(self.offset);
        writer.u32(self.length);
        writer.u8(self.kind as u8);
        writer.u8(self.flags);
        writer.u16(0);
        self.certificate.write(&mut writer);
        out.extend_from_slice(self.bytes);
    }

    /// Reads the message from a payload.
    pub fn read(payload: &'a [u8]) -> Result<Self, ReplicateError> {
        let mut reader = Reader(payload);
        let segment = SegmentId(reader.u64()?);
        let epoch = ReplicationEpoch(reader.u32()?);
        let (offset, length) = (reader.u32()?, reader.u32()?);
        let kind = reader.u8()?;
        let kind = SegmentKind::from_code(kind).ok_or(ReplicateError::Kind(kind))?;
        let flags = reader.u8()?;
        if reader.u16()? != 0 {
            return Err(ReplicateError::Reserved);
        }
        let certificate = Certificate::read(&mut reader)?;
        let bytes = reader.0;
        if (offset as usize).checked_add(bytes.len()) != Some(length as usize) {
            return Err(ReplicateError::Length);
        }
        Ok(Self {
            segment,
            epoch,
            offset,
            length,
            kind,
            flags,
            certificate,
            bytes,
        })
    }
}

/// A replication message that can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplicateError {
    /// Cut short.
    #[error(transparent)]
    Short(#[from] Short),
    /// Unknown kind of segment.
    #[error("unknown kind of segment {0}")]
    Kind(u8),
    /// Offset, bytes and length do not add up.
    #[error("offset and bytes do not add up to the length")]
    Length,
    /// Unknown status in an acknowledgement.
    #[error("unknown status {0} of an acknowledgement")]
    Status(u8),
    /// Bytes that have no meaning yet are not zero.
    #[error("reserved bytes are not zero")]
    Reserved,
    /// Bytes after an acknowledgement.
    #[error("bytes after the end")]
    Trailing,
}

/// What a backup says of a [`Replicate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ReplicateStatus {
    /// Done: the replica holds `length` bytes at `epoch`.
    Done = 0,
    /// The bytes start past what the replica has (`length` says how much that is).
    Gap = 1,
    /// No such replica, and the message does not open one.
    Unknown = 2,
    /// The replica holds a higher epoch (named in the acknowledgement).
    StaleEpoch = 3,
    /// The replica is closed and the message would change it.
    Closed = 4,
    /// No frame is free.
    NoFrame = 5,
    /// The master is fenced: decided crashed. It must not go on.
    Fenced = 6,
    /// Over the segment's size, or bytes differ from those held.
    Refused = 7,
}

impl ReplicateStatus {
    fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::Done,
            1 => Self::Gap,
            2 => Self::Unknown,
            3 => Self::StaleEpoch,
            4 => Self::Closed,
            5 => Self::NoFrame,
            6 => Self::Fenced,
            7 => Self::Refused,
            _ => return None,
        })
    }
}

/// A backup's acknowledgement; the backup is the envelope's `from`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicateAck {
    /// Which segment.
    pub segment: SegmentId,
    /// The replica's epoch now.
    pub epoch: ReplicationEpoch,
    /// The replica's length now.
    pub length: u32,
    /// What came of the message.
    pub status: ReplicateStatus,
    /// COMPLETE of [`flags`]: the certificate on record covers `length` bytes at `epoch`. CLOSED:
    /// the replica is closed.
    pub flags: u8,
    /// Lease granted to the master from when the backup received the message; 0 for none.
    pub lease_us: u32,
}

impl ReplicateAck {
    /// Bytes of the payload.
    pub const LEN: usize = 24;

    /// The payload.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let mut writer = Writer::new(&mut bytes);
        writer.u64(self.segment.0);
        writer.u32(self.epoch.0);
        writer.u32(self.length);
        writer.u8(self.status as u8);
        writer.u8(self.flags);
        writer.u16(0);
        writer.u32(self.lease_us);
        bytes
    }

    /// Reads a payload.
    pub fn read(payload: &[u8]) -> Result<Self, ReplicateError> {
        let mut reader = Reader(payload);
        let segment = SegmentId(reader.u64()?);
        let epoch = ReplicationEpoch(reader.u32()?);
        let length = reader.u32()?;
        let status = reader.u8()?;
        let status = ReplicateStatus::from_code(status).ok_or(ReplicateError::Status(status))?;
        let flags = reader.u8()?;
        if reader.u16()? != 0 {
            return Err(ReplicateError::Reserved);
        }
        let lease_us = reader.u32()?;
        if !reader.is_empty() {
            return Err(ReplicateError::Trailing);
        }
        Ok(Self {
            segment,
            epoch,
            length,
            status,
            flags,
            lease_us,
        })
    }
}

const _: () = assert!(ReplicateAck::LEN == 8 + 4 + 4 + 1 + 1 + 2 + 4);
