//! What is read from disk: frame files and the coordinator's journal and snapshot, damaged in any
//! way, with checksums that fit and that don't.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ramkeep_backup::layout::{
    CERTIFICATE_SLOT, HEADER, Header, SLOT_LEN, SUPERBLOCK_LEN, SUPERBLOCK_SLOT, Slot, Superblock,
};
use ramkeep_backup::{Area, Backup, FrameStore, Geometry, MemoryStore};
use ramkeep_coordinator::core::default_settings;
use ramkeep_coordinator::journal::{self, HEADER_LEN, RECORD_HEADER_LEN};
use ramkeep_coordinator::{Config, Coordinator};
use ramkeep_wire::{BootId, Micros, PeerId, postcards};

const SEGMENT: u32 = 4096;

fuzz_target!(|input: &[u8]| {
    let Some((&which, bytes)) = input.split_first() else {
        return;
    };
    match which % 4 {
        0 => slots(bytes),
        1 => frame_file(bytes),
        2 => journal_file(bytes),
        _ => journal_that_fits(bytes),
    }
});

/// The slot of `N` bytes at the front, its checksum made to fit.
fn fitting<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    let mut slot: [u8; N] = *bytes.first_chunk()?;
    let sum = crc32c::crc32c(&slot[..N - 4]);
    slot[N - 4..].copy_from_slice(&sum.to_le_bytes());
    Some(slot)
}

fn slots(bytes: &[u8]) {
    let _ = Superblock::choose(bytes);
    let _ = Header::read(bytes, SEGMENT);
    if let Some(slot) = fitting::<SUPERBLOCK_LEN>(bytes)
        && let Ok(superblock) = Superblock::read(&slot)
    {
        assert_eq!(superblock.to_bytes(), slot);
    }
    if let Some(slot) = fitting::<SLOT_LEN>(bytes)
        && let Ok(read) = Slot::read(&slot, SEGMENT)
    {
        assert_eq!(Slot::read(&read.to_bytes(), SEGMENT), Ok(read));
    }
}

/// Opens a file whose slots are the input's, and works with what is found.
fn frame_file(bytes: &[u8]) {
    let geometry = Geometry::new(2, SEGMENT).expect("a possible geometry");
    let mut store = MemoryStore::new(geometry);
    let mut rest = bytes;
    let (Some(a), Some(b)) = (
        fitting::<SUPERBLOCK_LEN>(rest),
        fitting(&rest[SUPERBLOCK_LEN.min(rest.len())..]),
    ) else {
        return;
    };
    let b: [u8; SUPERBLOCK_LEN] = b;
    store.write(Area::Superblock, 0, &with_magic(a, geometry));
    store.write(Area::Superblock, SUPERBLOCK_SLOT, &b);
    rest = &rest[2 * SUPERBLOCK_LEN..];
    for (area, at) in [(0, 0), (0, CERTIFICATE_SLOT), (1, 0), (1, CERTIFICATE_SLOT)] {
        let Some(slot) = fitting::<SLOT_LEN>(rest) else {
            break;
        };
        assert!(at + SLOT_LEN <= HEADER);
        store.write(Area::Frame(area), at, &slot);
        rest = &rest[SLOT_LEN..];
    }
    if let Ok(mut backup) = Backup::open(store, BootId([9; 16]), Micros(1)) {
        assert!(backup.stats().used <= 2);
        let cluster = backup.cluster().unwrap_or_default();
        let _ = backup.assign(cluster, ramkeep_wire::ServerId(7), 1_000);
        let again = Backup::open(backup.into_store(), BootId([9; 16]), Micros(2));
        assert!(again.is_ok(), "what was opened can be opened again");
    }
}

/// A superblock that has the right magic, format and geometry.
fn with_magic(mut slot: [u8; SUPERBLOCK_LEN], geometry: Geometry) -> [u8; SUPERBLOCK_LEN] {
    slot[..8].copy_from_slice(&ramkeep_backup::layout::MAGIC);
    slot[8..12].copy_from_slice(&1u32.to_le_bytes());
    slot[12..16].fill(0);
    slot[68..72].copy_from_slice(&geometry.frames().to_le_bytes());
    slot[72..76].copy_from_slice(&geometry.segment_size().to_le_bytes());
    fitting(&slot).expect("as long as it was")
}

fn journal_file(bytes: &[u8]) {
    let _ = journal::read(bytes);
    let _ = journal::read_snapshot(bytes);
}

/// Lays the input out as a journal whose header and first records fit, and recovers from it.
fn journal_that_fits(bytes: &[u8]) {
    let owner = journal::Owner {
        peer: PeerId(1),
        incarnation: [5; 16],
    };
    let Some((&first, bytes)) = bytes.split_first_chunk::<8>().map(|(a, b)| (a, b)) else {
        return;
    };
    let after = u64::from_le_bytes(first) & 0xff;
    let mut file = journal::header(owner, after);
    let mut index = after;
    let mut rest = bytes;
    while rest.len() > 1 {
        let len = usize::from(rest[0]).min(rest.len() - 1);
        index += 1;
        journal::append_record(&mut file, index, &rest[1..=len]).expect("a short record");
        rest = &rest[1 + len..];
    }
    let read = journal::read(&file).expect("written by this build");
    assert_eq!((read.whole, read.torn), (file.len(), 0));
    assert!(file.len() >= HEADER_LEN + read.records.len() * RECORD_HEADER_LEN);
    let config = Config {
        peer: PeerId(1),
        incarnation: owner.incarnation,
        address: String::new(),
        peers: vec![(PeerId(1), String::new())],
        settings: default_settings(),
        timing: paxos::limits::Timing::default(),
        founds: false,
        entropy: [6; 32],
    };
    // Payloads are whatever the fuzzer thinks of: read or refused, never a panic.
    let payloads = read.records.iter();
    let Ok(records) = payloads
        .map(|(_, payload)| postcards::decode::<Vec<paxos::Record>>(payload))
        .collect::<Result<Vec<_>, _>>()
    else {
        return;
    };
    let stored = paxos::Stored {
        snapshot: None,
        records: records.into_iter().flatten().collect(),
    };
    if let Ok(mut coordinator) = Coordinator::new(Micros(1), config, stored) {
        while coordinator.poll_output().is_some() {}
    }
}
