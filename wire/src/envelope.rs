//! The envelope: the header before every payload on a socket.
//!
//! ```text
//!  0        4       6       8        12         16            24       32        40
//!  | magic  |version| kind  | length | checksum | correlation |  to    |  from   | payload ...
//!  |  u32   |  u16  |  u16  |  u32   |   u32    |    u64      |  u64   |  u64    | length bytes
//! ```
//! The checksum is CRC-32C over bytes 0..12, 16..40 and the payload. `to` and `from` are
//! [`Party`]s: a server refuses what is meant for another ServerId (SAFETY 6).

use crate::bytes::{Reader, Writer};
use crate::ids::Party;
use crate::limits::MAX_PAYLOAD;

/// "RKP1", little-endian.
pub const MAGIC: u32 = u32::from_le_bytes(*b"RKP1");
/// The protocol that this build speaks. Changed with every change of any message's layout.
pub const PROTOCOL_VERSION: u16 = 4;
/// Bytes before the payload.
pub const HEADER_LEN: usize = 40;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $code:literal),+ $(,)?) => {
        /// What a payload is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum Kind { $($(#[$doc])* $name = $code),+ }

        impl Kind {
            /// All kinds, in the order of their codes.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The kind with this code.
            #[must_use]
            pub fn from_code(code: u16) -> Option<Self> {
                match code { $($code => Some(Self::$name),)+ _ => None }
            }
        }
    };
}

kinds! {
    /// Opens a connection: [`crate::hello::Hello`].
    Hello = 1,
    /// Answers it: [`crate::hello::Welcome`].
    Welcome = 2,
    /// Proves the key: [`crate::hello::Proof`].
    Proof = 3,
    /// The last envelope before a side closes: [`crate::hello::Refusal`].
    Refusal = 4,
    /// Batch of operations: [`crate::data`].
    DataRequest = 10,
    /// Batch of results: [`crate::data`].
    DataResponse = 11,
    /// Bytes for a replica: [`crate::replicate`].
    Replicate = 20,
    /// Their acknowledgement: [`crate::replicate`].
    ReplicateAck = 21,
    /// Everything else asked of a backup: [`crate::backup::BackupRequest`].
    BackupRequest = 22,
    /// Its answer.
    BackupResponse = 23,
    /// Asked of the coordinator: [`crate::coordinator::Request`].
    CoordinatorRequest = 30,
    /// Its answer.
    CoordinatorResponse = 31,
    /// Told by the coordinator to a server: [`crate::order::Order`].
    Order = 32,
    /// The server's answer.
    OrderReply = 33,
    /// Between the coordinators of a group: a message of `paxos`.
    Group = 34,
    /// A person asks a server how it is: [`crate::order::ServerStatus`].
    StatusRequest = 40,
    /// Its answer.
    StatusResponse = 41,
    /// A server asks another whether it is there. Empty.
    Probe = 42,
    /// It is. Empty.
    ProbeReply = 43,
}

impl Kind {
    /// The kind of request that this kind answers.
    #[must_use]
    pub fn answers(self) -> Option<Self> {
        match self {
            Self::DataResponse => Some(Self::DataRequest),
            Self::ReplicateAck => Some(Self::Replicate),
            Self::BackupResponse => Some(Self::BackupRequest),
            Self::CoordinatorResponse => Some(Self::CoordinatorRequest),
            Self::OrderReply => Some(Self::Order),
            Self::StatusResponse => Some(Self::StatusRequest),
            Self::ProbeReply => Some(Self::Probe),
            _ => None,
        }
    }
}

/// Why an envelope is not one. The connection that carried it is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// The first bytes are not Ramkeep's.
    #[error("not a Ramkeep envelope (magic {0:#010x})")]
    Magic(u32),
    /// Another protocol version.
    #[error("protocol version {0}, this process speaks {PROTOCOL_VERSION}")]
    Version(u16),
    /// A kind this build doesn't know.
    #[error("unknown kind of envelope {0}")]
    Kind(u16),
    /// Longer than any message may be.
    #[error("payload of {0} bytes is over the limit of {MAX_PAYLOAD}")]
    TooLong(u32),
    /// Bytes were damaged on the way.
    #[error("envelope checksum does not fit its bytes")]
    Checksum,
}

/// An envelope's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the payload is.
    pub kind: Kind,
    /// Bytes of payload.
    pub len: u32,
    /// Chosen by the asker, repeated in the answer.
    pub correlation: u64,
    /// Whom it is meant for.
    pub to: Party,
    /// Who sends it.
    pub from: Party,
}

/// A received envelope whose checksum fits, borrowed from the receive buffer.
#[derive(Clone, Copy, Debug)]
pub struct Envelope<'a> {
    /// Its header.
    pub header: Header,
    /// What it carries.
    pub payload: &'a [u8],
}

impl Header {
    /// A header for an envelope whose length and checksum [`seal`] fills in.
    #[must_use]
    pub fn new(kind: Kind, correlation: u64, to: Party, from: Party) -> Self {
        Self {
            kind,
            len: 0,
            correlation,
            to,
            from,
        }
    }

    /// The header that answers this one.
    #[must_use]
    pub fn reply(&self, kind: Kind) -> Self {
        Self::new(kind, self.correlation, self.from, self.to)
    }
}

/// Parses the front of `input`. `Ok(None)`: more bytes are needed. Otherwise the envelope and the
/// bytes it took. Magic, version, kind and length are judged as soon as their bytes are there, so
/// that no memory is taken for an envelope that will be refused.
pub fn parse(input: &[u8]) -> Result<Option<(Envelope<'_>, usize)>, EnvelopeError> {
    let Some(header) = parse_header(input)? else {
        return Ok(None);
    };
    let end = HEADER_LEN + header.len as usize;
    if input.len() < end {
        return Ok(None);
    }
    let expected = u32::from_le_bytes([input[12], input[13], input[14], input[15]]);
    if checksum(&input[..HEADER_LEN], &input[HEADER_LEN..end]) != expected {
        return Err(EnvelopeError::Checksum);
    }
    Ok(Some((
        Envelope {
            header,
            payload: &input[HEADER_LEN..end],
        },
        end,
    )))
}

/// Parses a header alone; `Ok(None)`: more bytes are needed. Refuses what can be refused early.
pub fn parse_header(input: &[u8]) -> Result<Option<Header>, EnvelopeError> {
    let mut reader = Reader(input);
    let Ok(magic) = reader.u32() else {
        let seen = input.len();
        return if input == &MAGIC.to_le_bytes()[..seen] {
            Ok(None)
        } else {
            Err(EnvelopeError::Magic(
                input.iter().rev().fold(0, |n, b| n << 8 | u32::from(*b)),
            ))
        };
    };
    if magic != MAGIC {
        return Err(EnvelopeError::Magic(magic));
    }
    let Ok(version) = reader.u16() else {
        return Ok(None);
    };
    if version != PROTOCOL_VERSION {
        return Err(EnvelopeError::Version(version));
    }
    let Ok(code) = reader.u16() else {
        return Ok(None);
    };
    let kind = Kind::from_code(code).ok_or(EnvelopeError::Kind(code))?;
    let Ok(len) = reader.u32() else {
        return Ok(None);
    };
    if len as usize > MAX_PAYLOAD {
        return Err(EnvelopeError::TooLong(len));
    }
    let mut rest = || {
        Ok::<_, crate::bytes::Short>((reader.u32()?, reader.u64()?, reader.u64()?, reader.u64()?))
    };
    let Ok((_, correlation, to, from)) = rest() else {
        return Ok(None);
    };
    Ok(Some(Header {
        kind,
        len,
        correlation,
        to: Party(to),
        from: Party(from),
    }))
}

/// Starts an envelope at the end of `out` and returns where. The payload is appended by the
/// caller, then [`seal`] finishes it. Nothing else may be appended in between.
pub fn begin(out: &mut Vec<u8>, header: Header) -> usize {
    let start = out.len();
    out.resize(start + HEADER_LEN, 0);
    let mut writer = Writer::new(&mut out[start..]);
    writer.u32(MAGIC);
    writer.u16(PROTOCOL_VERSION);
    writer.u16(header.kind as u16);
    writer.u32(0);
    writer.u32(0);
    writer.u64(header.correlation);
    writer.u64(header.to.0);
    writer.u64(header.from.0);
    start
}

/// Finishes the envelope begun at `start`: everything after its header is its payload.
pub fn seal(out: &mut [u8], start: usize) {
    let len = out.len() - start - HEADER_LEN;
    assert!(
        len <= MAX_PAYLOAD,
        "payload of {len} bytes was built over the limit"
    );
    let envelope = &mut out[start..];
    envelope[8..12].copy_from_slice(&(len as u32).to_le_bytes());
    let (header, payload) = envelope.split_at(HEADER_LEN);
    let sum = checksum(header, payload);
    envelope[12..16].copy_from_slice(&sum.to_le_bytes());
}

/// Appends a whole envelope to `out`.
pub fn append(out: &mut Vec<u8>, header: Header, payload: &[u8]) {
    let start = begin(out, header);
    out.extend_from_slice(payload);
    seal(out, start);
}

#[inline]
fn checksum(header: &[u8], payload: &[u8]) -> u32 {
    let sum = crc32c::crc32c(&header[..12]);
    let sum = crc32c::crc32c_append(sum, &header[16..HEADER_LEN]);
    crc32c::crc32c_append(sum, payload)
}
