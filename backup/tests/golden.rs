//! The frame file's bytes, pinned: a change of them is a change of the format.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is its failure")]

use ramkeep_backup::layout::{
    Geometry, Header, LayoutError, MAX_SEQUENCE, SLOT_LEN, Slot, Superblock,
};
use ramkeep_wire::*;

const SUPERBLOCK: &str = include_str!("golden/superblock.hex");
const SLOT: &str = include_str!("golden/slot.hex");
const SIZE: u32 = 8 << 20;

fn superblock() -> Superblock {
    Superblock {
        sequence: 0x0102_0304_0506_0708,
        cluster: ClusterId(*b"cluster 16 bytes"),
        server: ServerId(0x1112_1314),
        boot: BootId(*b"boot id 16 bytes"),
        lease_us: 200_000,
        geometry: Geometry::new(64, SIZE).unwrap(),
    }
}

fn slot() -> Slot {
    Slot {
        sequence: 0x0102_0304_0506_0708,
        master: ServerId(0x2122_2324),
        segment: SegmentId(0x3132_3334),
        epoch: ReplicationEpoch(0x4142_4344),
        length: 0x0051_5253,
        boot: BootId(*b"boot id 16 bytes"),
        kind: SegmentKind::Survivor,
        closed: true,
        certificate: Certificate {
            algorithm: 1,
            hash: std::array::from_fn(|i| 0xa0 + i as u8),
        },
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .chunks(16)
        .map(|line| line.iter().map(|b| format!("{b:02x}")).collect::<String>() + "\n")
        .collect()
}

#[test]
fn a_superblock_has_its_golden_bytes() {
    let bytes = superblock().to_bytes();
    assert_eq!(hex(&bytes), SUPERBLOCK);
    assert_eq!(Superblock::read(&bytes), Ok(superblock()));
}

#[test]
fn a_certificate_slot_has_its_golden_bytes() {
    let bytes = slot().to_bytes();
    assert_eq!(hex(&bytes), SLOT);
    assert_eq!(Slot::read(&bytes, SIZE), Ok(slot()));
}

#[test]
fn no_flipped_bit_is_read_as_a_superblock_or_slot() {
    let (superblock, slot) = (superblock().to_bytes(), slot().to_bytes());
    for bit in 0..superblock.len() * 8 {
        let mut bytes = superblock;
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(Superblock::read(&bytes).is_err(), "superblock bit {bit}");
    }
    for bit in 0..SLOT_LEN * 8 {
        let mut bytes = slot;
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(Slot::read(&bytes, SIZE).is_err(), "slot bit {bit}");
    }
}

/// The bytes with a field changed and the checksum made to fit.
fn forged<const N: usize>(mut bytes: [u8; N], at: usize, field: &[u8]) -> [u8; N] {
    bytes[at..at + field.len()].copy_from_slice(field);
    let sum = crc32c::crc32c(&bytes[..N - 4]);
    bytes[N - 4..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

#[test]
fn impossible_values_are_refused_by_name() {
    let reached = LayoutError::Impossible("sequence number");
    let (too_far, most) = (MAX_SEQUENCE.to_le_bytes(), u64::MAX.to_le_bytes());
    let superblocks: [(usize, &[u8], LayoutError); 10] = [
        (0, b"X", LayoutError::Foreign),
        (8, &[2], LayoutError::Format(2)),
        (
            12,
            &[1],
            LayoutError::Impossible("bytes that should be zero"),
        ),
        (16, &[0; 8], reached),
        (16, &too_far, reached),
        (16, &most, reached),
        (68, &[0; 4], LayoutError::Impossible("number of frames")),
        (68, &[0xff; 4], LayoutError::Impossible("number of frames")),
        (72, &[1], LayoutError::Impossible("size of a segment")),
        (72, &[0xff; 4], LayoutError::Impossible("size of a segment")),
    ];
    for (at, field, error) in superblocks {
        let bytes = forged(superblock().to_bytes(), at, field);
        assert_eq!(Superblock::read(&bytes), Err(error), "superblock byte {at}");
    }
    let name = LayoutError::Impossible("name of a replica");
    let state = LayoutError::Impossible("state of a replica");
    let zero = LayoutError::Impossible("bytes that should be zero");
    let slots: [(usize, &[u8], LayoutError); 11] = [
        (0, &[0; 8], LayoutError::Empty),
        (0, &too_far, reached),
        (0, &most, reached),
        (8, &[0; 8], name),
        (16, &[0; 8], name),
        (
            28,
            &[0xff; 4],
            LayoutError::Impossible("length of a replica"),
        ),
        (48, &[9], LayoutError::Impossible("kind of a segment")),
        (49, &[2], state),
        (50, &[0], state),
        (83, &[1], zero),
        (123, &[1], zero),
    ];
    for (at, field, error) in slots {
        let bytes = forged(slot().to_bytes(), at, field);
        assert_eq!(Slot::read(&bytes, SIZE), Err(error), "slot byte {at}");
    }
}

#[test]
fn of_two_superblocks_that_do_not_count_the_error_tells_most() {
    let mut area = vec![0; 8192];
    assert_eq!(Superblock::choose(&area), Err(LayoutError::Empty));
    area[4096..4100].copy_from_slice(b"else");
    assert_eq!(Superblock::choose(&area), Err(LayoutError::Foreign));
    let torn = &superblock().to_bytes()[..70];
    area[..70].copy_from_slice(torn);
    assert_eq!(Superblock::choose(&area), Err(LayoutError::Checksum));
    assert!(matches!(
        Superblock::choose(&area[..100]),
        Err(LayoutError::Short(_))
    ));
}

#[test]
fn short_pages_are_no_state() {
    let page = slot().to_bytes();
    for len in 0..SLOT_LEN {
        assert_eq!(Header::read(&page[..len], SIZE).state, None);
    }
    assert_eq!(Header::read(&page, SIZE).state, Some((slot(), 0)));
}
