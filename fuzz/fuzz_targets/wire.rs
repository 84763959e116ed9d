//! Every parser of `wire`: whatever comes in, a value or a typed error; and what was read is
//! written back as it was.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ramkeep_wire::backup::{BackupRequest, BackupResponse};
use ramkeep_wire::bytes::Reader;
use ramkeep_wire::certificate::{CertificateKey, Certifier, Claim};
use ramkeep_wire::coordinator::{Request, Response};
use ramkeep_wire::data::{
    self, Item, Items, Op, RejectRules, ResponseItem, ScanCursor, ScanObject,
};
use ramkeep_wire::entry::{self, Entry, NewEntry};
use ramkeep_wire::envelope::{self, HEADER_LEN, MAGIC, PROTOCOL_VERSION};
use ramkeep_wire::order::{Order, OrderReply, ServerStatus};
use ramkeep_wire::replicate::{Replicate, ReplicateAck};
use ramkeep_wire::segment::{UnverifiedSegment, entries};
use ramkeep_wire::{ClusterId, SegmentId, SegmentKind, ServerId, postcards};
use serde::Serialize;
use serde::de::DeserializeOwned;

fuzz_target!(|input: &[u8]| {
    let Some((&which, bytes)) = input.split_first() else {
        return;
    };
    match which % 8 {
        0 => envelope_as_it_is(bytes),
        1 => envelope_with_fitting_checksum(bytes),
        2 => data_items(bytes),
        3 => replication(bytes),
        4 => entry_with_fitting_checksum(bytes),
        5 => segment(bytes),
        _ => control(bytes),
    }
});

fn envelope_as_it_is(bytes: &[u8]) {
    let header = envelope::parse_header(bytes);
    if let Ok(Some((envelope, len))) = envelope::parse(bytes) {
        assert_eq!(header, Ok(Some(envelope.header)));
        assert_eq!(len, HEADER_LEN + envelope.payload.len());
    }
    let _ = entry::read(bytes);
    let _ = entry::object_in_memory(bytes);
}

fn envelope_with_fitting_checksum(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    if bytes.len() < HEADER_LEN {
        return;
    }
    bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
    bytes[4..6].copy_from_slice(&PROTOCOL_VERSION.to_le_bytes());
    let Ok(Some(header)) = envelope::parse_header(&bytes) else {
        return;
    };
    bytes.resize(HEADER_LEN + header.len as usize, 7);
    let mut rewritten = Vec::new();
    envelope::append(&mut rewritten, header, &bytes[HEADER_LEN..]);
    let (read, len) = envelope::parse(&rewritten)
        .expect("written by this build")
        .expect("whole");
    assert_eq!(
        (read.header, read.payload, len),
        (header, &bytes[HEADER_LEN..], rewritten.len())
    );
}

fn data_items(bytes: &[u8]) {
    if let Ok(mut items) = Items::read(bytes) {
        let mut out = Vec::new();
        let start = data::begin_request(&mut out, items.client, items.ack);
        let mut count = 0;
        let ended = loop {
            match items.next_item() {
                Ok(Some(item)) => {
                    check_item(&item);
                    item.write(&mut out);
                    count += 1;
                }
                other => break other,
            }
        };
        data::set_count(&mut out, start, count);
        // A flag RPC with rpc id 0 is written without it: only the length may differ then.
        if ended.is_ok() && out.len() == bytes.len() {
            assert_eq!(out, bytes);
        }
    }
    let mut reader = Reader(bytes);
    let mut out = Vec::new();
    while let Ok(Some(item)) = ResponseItem::read(&mut reader) {
        item.write(&mut out);
    }
    assert!(bytes.starts_with(&out));
    let mut reader = Reader(bytes);
    let mut out = Vec::new();
    while let Ok(Some(object)) = ScanObject::read(&mut reader) {
        object.write(&mut out);
    }
    assert!(bytes.starts_with(&out));
    if let Ok(cursor) = ScanCursor::read(bytes) {
        let mut out = Vec::new();
        cursor.write(&mut out);
        assert_eq!(out, bytes);
    }
}

fn check_item(item: &Item<'_>) {
    assert!(item.value.len() <= ramkeep_wire::limits::MAX_VALUE);
    assert_eq!(item.key.is_empty(), item.op == Op::Scan);
    assert!(item.op.mutates() || item.rules == RejectRules::default());
    let mut alone = Vec::new();
    item.write(&mut alone);
    assert_eq!(alone.len(), data::item_len(item));
}

fn replication(bytes: &[u8]) {
    if let Ok(message) = Replicate::read(bytes) {
        let mut out = Vec::new();
        message.write(&mut out);
        assert_eq!(out, bytes);
    }
    if let Ok(ack) = ReplicateAck::read(bytes) {
        assert_eq!(ack.to_bytes(), bytes);
    }
}

/// Lays the bytes out as entries whose lengths and checksums fit; returns them.
fn sealed_entries(mut bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while bytes.len() >= entry::HEADER_LEN {
        let len = usize::from(bytes[8]) | usize::from(bytes[9] & 3) << 8;
        let (header, rest) = bytes.split_at(entry::HEADER_LEN);
        let (body, rest) = rest.split_at(len.min(rest.len()));
        let start = out.len();
        out.extend_from_slice(header);
        out[start + 8..start + 12].copy_from_slice(&(body.len() as u32).to_le_bytes());
        out.extend_from_slice(body);
        let sum = crc32c::crc32c(&out[start + 4..]);
        out[start..start + 4].copy_from_slice(&sum.to_le_bytes());
        bytes = rest;
    }
    out
}

fn entry_with_fitting_checksum(bytes: &[u8]) {
    let sealed = sealed_entries(bytes);
    for found in entries(&sealed) {
        let Ok((at, entry)) = found else { break };
        let len = entry::entry_len(&sealed[at..]).expect("it was read");
        rewrite(&sealed[at..at + len], &entry);
        let _ = entry.place();
    }
}

fn rewrite(bytes: &[u8], entry: &Entry<'_>) {
    let items: Vec<_>;
    let new = match entry {
        Entry::Object(object) => {
            assert_eq!(entry::object_in_memory(bytes), Some(*object));
            NewEntry::Object(*object)
        }
        Entry::Tombstone(tombstone) => NewEntry::Tombstone(*tombstone),
        Entry::Completion(completion) => NewEntry::Completion(*completion),
        Entry::SafeVersion(version) => NewEntry::SafeVersion(*version),
        // One byte of it is reserved and not read.
        Entry::SegmentHeader(_) => return,
        Entry::Digest(digest) => {
            items = digest.iter().collect();
            assert_eq!(items.len(), digest.len());
            NewEntry::Digest(&items)
        }
        Entry::Active(segment) => NewEntry::Active(*segment),
    };
    let mut out = vec![0; new.encoded_len()];
    new.write(&mut out);
    assert_eq!(out, bytes);
}

fn segment(bytes: &[u8]) {
    let key = CertificateKey([3; 32]);
    let contents = sealed_entries(bytes);
    let claim = Claim {
        cluster: ClusterId([0xaa; 16]),
        master: ServerId(8),
        segment: SegmentId(9),
        kind: SegmentKind::Head,
        epoch: ramkeep_wire::ReplicationEpoch(1),
        length: contents.len() as u32,
        closed: false,
    };
    let mut certifier = Certifier::new(&key);
    certifier.update(&contents);
    let certificate = certifier.certify(&claim);
    if let Ok(verified) = UnverifiedSegment::new(claim, certificate, &contents).verify(&key) {
        assert_eq!(verified.entries().count(), entries(&contents).count());
    }
    let damaged = UnverifiedSegment::new(claim, certificate, bytes).verify(&key);
    assert!(damaged.is_err() || bytes == contents);
}

fn control(bytes: &[u8]) {
    let Some((&which, bytes)) = bytes.split_first() else {
        return;
    };
    match which % 9 {
        0 => message::<Request>(bytes),
        1 => message::<Response>(bytes),
        2 => message::<Order>(bytes),
        3 => message::<OrderReply>(bytes),
        4 => message::<ServerStatus>(bytes),
        5 => message::<BackupRequest>(bytes),
        6 => message::<BackupResponse>(bytes),
        7 => message::<paxos::Envelope>(bytes),
        _ => {
            if let Ok((response, rest)) = BackupResponse::read(bytes) {
                let mut again = postcards::encode(&response);
                again.extend_from_slice(rest);
                assert_eq!(BackupResponse::read(&again), Ok((response, rest)));
            }
        }
    }
}

fn message<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(read) = postcards::decode::<T>(bytes) {
        let written = postcards::encode(&read);
        assert!(
            written.len() <= bytes.len(),
            "postcard is written in its shortest form"
        );
        assert_eq!(postcards::decode::<T>(&written), Ok(read));
    }
}
