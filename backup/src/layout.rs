//! The frame file: where each byte of it lies and what it means. Pure; little-endian throughout.
//!
//! ```text
//!  0            4096         8192                                8192 + 1 frame
//!  | superblock | superblock | header page 4096 | contents ...   | header page | contents ...
//!  |   slot 0   |   slot 1   |                  | segment size   |             |
//!
//!  superblock slot
//!  0       8        12   16         24        40       48      64      68      72        76      80
//!  | magic | format | 0  | sequence | cluster | server | boot  | lease | frames| segment | crc32c|
//!  |8 bytes|  u32   |u32 |   u64    | 16 bytes|  u64   | 16 b. |us u32 |  u32  |size u32 |  u32  |
//!
//!  header page: certificate slot 0 at 0, certificate slot 1 at 2048 (another disk sector)
//!
//!  certificate slot
//!  0          8        16        24      28       32       48     49      50            83    124
//!  | sequence | master | segment | epoch | length | boot   | kind | flags | certificate | 0s  | crc32c |
//!  |   u64    |  u64   |   u64   |  u32  |  u32   |16 bytes|  u8  |  u8   |  33 bytes   |     |  u32   |
//! ```
//! Checksums are CRC-32C over everything before them in their slot, the sequence number included.
//!
//! # Invariants
//! 1. A slot counts only if its checksum fits its sequence number; of two that count, the higher
//!    sequence number is the state. So a slot can be rewritten while the other one holds (SAFETY 15).
//! 2. A certificate slot names its replica itself: a frame that is used again can't lend an old
//!    certificate to a new replica, and there is no identity apart that could disagree.
//! 3. Sequence numbers are never used twice in one file. 0 means that nothing is there; one of
//!    [`MAX_SEQUENCE`] or more is not believed, so that counting on never overflows.

use ramkeep_wire::bytes::{Reader, Short, Writer};
use ramkeep_wire::limits::SEGMENT_SIZE;
use ramkeep_wire::{
    BootId, Certificate, ClusterId, ReplicationEpoch, SegmentId, SegmentKind, ServerId,
};

/// The file's name in a backup's directory.
pub const FRAME_FILE: &str = ramkeep_wire::directory::FRAMES;
/// First bytes of either superblock slot.
pub const MAGIC: [u8; 8] = *b"RKFRAMES";
/// The layout drawn above. Changed with every change of it.
pub const FORMAT: u32 = 1;
/// Sequence numbers lie below: no file lives long enough to count so far.
pub const MAX_SEQUENCE: u64 = 1 << 62;
/// Unit of everything in the file.
pub const PAGE: usize = 4096;
/// Where superblock slot 1 starts; slot 0 starts the file.
pub const SUPERBLOCK_SLOT: usize = PAGE;
/// Bytes before the first frame.
pub const SUPERBLOCK_AREA: usize = 2 * SUPERBLOCK_SLOT;
/// Bytes of a frame before its contents.
pub const HEADER: usize = PAGE;
/// Where certificate slot 1 starts in a frame; slot 0 starts the frame.
pub const CERTIFICATE_SLOT: usize = HEADER / 2;
/// Frames in a file at most: 8 TiB of full segments.
pub const MAX_FRAMES: u32 = 1 << 20;

const CRC_LEN: usize = 4;
/// Where a superblock slot has its sequence number.
pub const SUPERBLOCK_SEQUENCE: usize = MAGIC.len() + 4 + 4;
const SUPERBLOCK_CRC: usize = SUPERBLOCK_SEQUENCE + 8 + 16 + 8 + 16 + 4 + 4 + 4;
/// Bytes of a superblock slot that mean something.
pub const SUPERBLOCK_LEN: usize = SUPERBLOCK_CRC + CRC_LEN;

/// Where a certificate slot has its sequence number.
pub const SLOT_SEQUENCE: usize = 0;
const SLOT_USED: usize = 8 + 8 + 8 + 4 + 4 + 16 + 1 + 1 + Certificate::LEN;
/// Bytes of a certificate slot.
pub const SLOT_LEN: usize = 128;
const SLOT_CRC: usize = SLOT_LEN - CRC_LEN;

const FLAG_CLOSED: u8 = 1;

const _: () = assert!(SUPERBLOCK_LEN == 80 && SUPERBLOCK_LEN <= SUPERBLOCK_SLOT);
const _: () = assert!(SLOT_USED == 83 && SLOT_USED <= SLOT_CRC);
const _: () = assert!(SLOT_LEN <= CERTIFICATE_SLOT);
const _: () = assert!(SUPERBLOCK_SEQUENCE.is_multiple_of(8) && SLOT_SEQUENCE.is_multiple_of(8));

/// How many frames of which size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    frames: u32,
    segment_size: u32,
}

impl Geometry {
    /// # Errors
    /// [`LayoutError::Impossible`] unless there is a frame, there are at most [`MAX_FRAMES`], and
    /// segments are whole pages and no longer than any segment may be.
    pub fn new(frames: u32, segment_size: u32) -> Result<Self, LayoutError> {
        if frames == 0 || frames > MAX_FRAMES {
            return Err(LayoutError::Impossible("number of frames"));
        }
        let size = segment_size as usize;
        if size == 0 || size > SEGMENT_SIZE || !size.is_multiple_of(PAGE) {
            return Err(LayoutError::Impossible("size of a segment"));
        }
        Ok(Self {
            frames,
            segment_size,
        })
    }

    /// Frames in the file.
    #[must_use]
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// Bytes of a frame's contents.
    #[must_use]
    pub fn segment_size(&self) -> u32 {
        self.segment_size
    }

    /// Bytes of a frame, header page and contents.
    #[must_use]
    pub fn frame_len(&self) -> usize {
        HEADER + self.segment_size as usize
    }

    /// Where frame `index` starts in the file.
    #[must_use]
    pub fn frame_at(&self, index: u32) -> usize {
        SUPERBLOCK_AREA + index as usize * self.frame_len()
    }

    /// Bytes of the whole file.
    #[must_use]
    pub fn file_len(&self) -> usize {
        self.frame_at(self.frames)
    }
}

/// Why bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Nothing was ever written there.
    #[error("nothing is there")]
    Empty,
    /// Not a frame file.
    #[error("not a Ramkeep frame file")]
    Foreign,
    /// Another format.
    #[error("frame file of format {0}, this build reads format {FORMAT}")]
    Format(u32),
    /// A checksum does not fit.
    #[error("checksum does not fit: bytes are torn or damaged")]
    Checksum,
    /// The checksum fits but no Ramkeep wrote this.
    #[error("impossible value: {0}")]
    Impossible(&'static str),
    /// Fewer bytes than the slot has.
    #[error(transparent)]
    Short(#[from] Short),
}

/// Whose frames these are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Grows with every rewrite.
    pub sequence: u64,
    /// The cluster; zero before the first enlistment.
    pub cluster: ClusterId,
    /// The server that used the frames last; 0 before the first enlistment.
    pub server: ServerId,
    /// The boot of the machine it ran on.
    pub boot: BootId,
    /// The lease length it granted by, microseconds (SAFETY 7); 0 before the first enlistment.
    pub lease_us: u32,
    /// The frames that follow.
    pub geometry: Geometry,
}

impl Superblock {
    /// The slot's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; SUPERBLOCK_LEN] {
        let mut bytes = [0; SUPERBLOCK_LEN];
        let mut writer = Writer::new(&mut bytes);
        writer.put(&MAGIC);
        writer.u32(FORMAT);
        writer.u32(0);
        writer.u64(self.sequence);
        writer.put(&self.cluster.0);
        writer.u64(self.server.0);
        writer.put(&self.boot.0);
        writer.u32(self.lease_us);
        writer.u32(self.geometry.frames);
        writer.u32(self.geometry.segment_size);
        debug_assert_eq!(writer.written(), SUPERBLOCK_CRC);
        let sum = crc32c::crc32c(&bytes[..SUPERBLOCK_CRC]);
        bytes[SUPERBLOCK_CRC..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads one slot.
    ///
    /// # Errors
    /// [`LayoutError`] for everything that [`to_bytes`](Self::to_bytes) can't have written.
    pub fn read(slot: &[u8]) -> Result<Self, LayoutError> {
        let mut reader = Reader(slot);
        let bytes = reader.array::<SUPERBLOCK_LEN>()?;
        if bytes.iter().all(|&byte| byte == 0) {
            return Err(LayoutError::Empty);
        }
        let mut reader = Reader(&bytes);
        if reader.array()? != MAGIC {
            return Err(LayoutError::Foreign);
        }
        let format = reader.u32()?;
        if format != FORMAT {
            return Err(LayoutError::Format(format));
        }
        check(&bytes, SUPERBLOCK_CRC)?;
        if reader.u32()? != 0 {
            return Err(LayoutError::Impossible("bytes that should be zero"));
        }
        let sequence = reader.u64()?;
        if sequence == 0 || sequence >= MAX_SEQUENCE {
            return Err(LayoutError::Impossible("sequence number"));
        }
        Ok(Self {
            sequence,
            cluster: ClusterId(reader.array()?),
            server: ServerId(reader.u64()?),
            boot: BootId(reader.array()?),
            lease_us: reader.u32()?,
            geometry: Geometry::new(reader.u32()?, reader.u32()?)?,
        })
    }

    /// The superblock of the file that begins with `area`, and the slot (0 or 1) that holds it.
    ///
    /// # Errors
    /// When neither slot counts: what the slot that got furthest says, so that a torn superblock is
    /// told from a foreign file.
    pub fn choose(area: &[u8]) -> Result<(Self, usize), LayoutError> {
        let second = area.get(SUPERBLOCK_SLOT..).ok_or(Short)?;
        match (Self::read(area), Self::read(second)) {
            (Ok(a), Ok(b)) if b.sequence > a.sequence => Ok((b, 1)),
            (Ok(a), _) => Ok((a, 0)),
            (_, Ok(b)) => Ok((b, 1)),
            (Err(a), Err(b)) => Err(if rank(a) >= rank(b) { a } else { b }),
        }
    }
}

/// How much of a superblock was recognised before this error.
fn rank(error: LayoutError) -> u8 {
    match error {
        LayoutError::Empty => 0,
        LayoutError::Short(_) => 1,
        LayoutError::Foreign => 2,
        LayoutError::Format(_) => 3,
        LayoutError::Checksum => 4,
        LayoutError::Impossible(_) => 5,
    }
}

/// A complete replica, as the slot of its frame states it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Grows with every certificate written to the file.
    pub sequence: u64,
    /// Whose segment.
    pub master: ServerId,
    /// Which.
    pub segment: SegmentId,
    /// The replica's epoch.
    pub epoch: ReplicationEpoch,
    /// Bytes of contents under the certificate.
    pub length: u32,
    /// The boot of the machine that wrote this (SAFETY 14).
    pub boot: BootId,
    /// What the segment is for.
    pub kind: SegmentKind,
    /// Nothing follows these bytes.
    pub closed: bool,
    /// Proof of them.
    pub certificate: Certificate,
}

impl Slot {
    /// The slot's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; SLOT_LEN] {
        let mut bytes = [0; SLOT_LEN];
        let mut writer = Writer::new(&mut bytes);
        writer.u64(self.sequence);
        writer.u64(self.master.0);
        writer.u64(self.segment.0);
        writer.u32(self.epoch.0);
        writer.u32(self.length);
        writer.put(&self.boot.0);
        writer.u8(self.kind as u8);
        writer.u8(if self.closed { FLAG_CLOSED } else { 0 });
        self.certificate.write(&mut writer);
        debug_assert_eq!(writer.written(), SLOT_USED);
        let sum = crc32c::crc32c(&bytes[..SLOT_CRC]);
        bytes[SLOT_CRC..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads one slot of a frame whose contents have `segment_size` bytes.
    ///
    /// # Errors
    /// [`LayoutError`] for everything that [`to_bytes`](Self::to_bytes) can't have written.
    pub fn read(slot: &[u8], segment_size: u32) -> Result<Self, LayoutError> {
        let bytes = Reader(slot).array::<SLOT_LEN>()?;
        let mut reader = Reader(&bytes);
        let sequence = reader.u64()?;
        if sequence == 0 {
            return Err(LayoutError::Empty);
        }
        check(&bytes, SLOT_CRC)?;
        if sequence >= MAX_SEQUENCE {
            return Err(LayoutError::Impossible("sequence number"));
        }
        let (master, segment) = (ServerId(reader.u64()?), SegmentId(reader.u64()?));
        let (epoch, length) = (ReplicationEpoch(reader.u32()?), reader.u32()?);
        let boot = BootId(reader.array()?);
        let (kind, flags) = (reader.u8()?, reader.u8()?);
        let certificate = Certificate::read(&mut reader)?;
        if bytes[SLOT_USED..SLOT_CRC].iter().any(|&byte| byte != 0) {
            return Err(LayoutError::Impossible("bytes that should be zero"));
        }
        if master == ServerId(0) || segment == SegmentId(0) {
            return Err(LayoutError::Impossible("name of a replica"));
        }
        if length > segment_size {
            return Err(LayoutError::Impossible("length of a replica"));
        }
        if flags & !FLAG_CLOSED != 0 || !certificate.is_some() {
            return Err(LayoutError::Impossible("state of a replica"));
        }
        Ok(Self {
            sequence,
            master,
            segment,
            epoch,
            length,
            boot,
            kind: SegmentKind::from_code(kind)
                .ok_or(LayoutError::Impossible("kind of a segment"))?,
            closed: flags & FLAG_CLOSED != 0,
            certificate,
        })
    }
}

/// What the header page of a frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The state, and which slot (0 or 1) holds it.
    pub state: Option<(Slot, usize)>,
    /// A slot holds something that does not count: torn by a kill, or damaged.
    pub damaged: bool,
}

impl Header {
    /// Reads a frame's header page.
    #[must_use]
    pub fn read(page: &[u8], segment_size: u32) -> Self {
        let second = page.get(CERTIFICATE_SLOT..).unwrap_or_default();
        let (a, b) = (
            Slot::read(page, segment_size),
            Slot::read(second, segment_size),
        );
        let torn =
            |slot: &Result<Slot, LayoutError>| matches!(slot, Err(e) if *e != LayoutError::Empty);
        let damaged = torn(&a) || torn(&b);
        let state = match (a.ok(), b.ok()) {
            (Some(a), Some(b)) if b.sequence > a.sequence => Some((b, 1)),
            (Some(a), _) => Some((a, 0)),
            (None, b) => b.map(|slot| (slot, 1)),
        };
        Self { state, damaged }
    }
}

fn check(bytes: &[u8], at: usize) -> Result<(), LayoutError> {
    let stored = Reader(&bytes[at..]).u32()?;
    if crc32c::crc32c(&bytes[..at]) == stored {
        Ok(())
    } else {
        Err(LayoutError::Checksum)
    }
}
