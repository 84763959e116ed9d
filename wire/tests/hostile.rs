//! Whatever bytes come, parsing them gives a value or a typed error: never a panic, and never more
//! memory than the input.

use proptest::prelude::*;
use ramkeep_wire::bytes::Reader;
use ramkeep_wire::certificate::{CertificateKey, Claim};
use ramkeep_wire::data::{
    DataError, Item, Items, Op, RejectRules, ResponseItem, ScanCursor, ScanObject,
};
use ramkeep_wire::entry::{self, Entry, EntryError, NewEntry, Object};
use ramkeep_wire::envelope::{self, EnvelopeError, Header, Kind};
use ramkeep_wire::replicate::{Replicate, ReplicateAck, ReplicateError, ReplicateStatus};
use ramkeep_wire::segment::{UnverifiedSegment, entries};
use ramkeep_wire::*;

fn read_everything(bytes: &[u8]) {
    let _ = envelope::parse(bytes);
    let _ = envelope::parse_header(bytes);
    let _ = entry::read(bytes);
    let _ = entry::object_in_memory(bytes);
    let _ = entries(bytes).count();
    let _ = Replicate::read(bytes);
    let _ = ReplicateAck::read(bytes);
    let _ = ScanCursor::read(bytes);
    if let Ok(mut items) = Items::read(bytes) {
        while let Ok(Some(_)) = items.next_item() {}
    }
    let mut reader = Reader(bytes);
    while let Ok(Some(_)) = ResponseItem::read(&mut reader) {}
    let mut reader = Reader(bytes);
    while let Ok(Some(_)) = ScanObject::read(&mut reader) {}
    let _ = postcards::decode::<coordinator::Request>(bytes);
    let _ = postcards::decode::<coordinator::Response>(bytes);
    let _ = postcards::decode::<order::Order>(bytes);
    let _ = postcards::decode::<backup::BackupRequest>(bytes);
    let _ = postcards::decode::<hello::Hello>(bytes);
}

fn sample_request() -> Vec<u8> {
    let mut out = Vec::new();
    let header = Header::new(Kind::DataRequest, 1, Party::NONE, Party::NONE);
    let start = envelope::begin(&mut out, header);
    let request = data::begin_request(&mut out, ClientId(1), RpcId(1));
    for id in 0..3 {
        let (key, value) = (&b"some key"[..], &b"some value"[..]);
        let rules = RejectRules {
            unless_version: Some(Version(1)),
            ..RejectRules::default()
        };
        let table = TableId(1);
        Item {
            op: Op::Write,
            id,
            table,
            rpc: RpcId(9),
            rules,
            key,
            value,
        }
        .write(&mut out);
    }
    data::set_count(&mut out, request, 3);
    envelope::seal(&mut out, start);
    out
}

fn sample_segment() -> Vec<u8> {
    let mut bytes = Vec::new();
    for version in 1..4 {
        let new = NewEntry::Object(Object {
            table: TableId(1),
            version: Version(version),
            expiry: None,
            key: b"key",
            value: &[7; 100],
        });
        let start = bytes.len();
        bytes.resize(start + new.encoded_len(), 0);
        new.write(&mut bytes[start..]);
    }
    bytes
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        read_everything(&bytes);
    }

    #[test]
    fn damaged_messages_never_panic(
        at in any::<prop::sample::Index>(), flip in 1u8.., cut in any::<prop::sample::Index>(),
    ) {
        for sample in [sample_request(), sample_segment()] {
            let mut bytes = sample.clone();
            let index = at.index(bytes.len());
            bytes[index] ^= flip;
            read_everything(&bytes);
            read_everything(&bytes[envelope::HEADER_LEN.min(bytes.len())..]);
            read_everything(&sample[..cut.index(sample.len())]);
        }
    }

    #[test]
    fn a_damaged_envelope_is_refused(at in any::<prop::sample::Index>(), flip in 1u8..) {
        let mut bytes = sample_request();
        let index = at.index(bytes.len());
        bytes[index] ^= flip;
        // A longer length asks for more bytes; anything else is an error.
        prop_assert!(!matches!(envelope::parse(&bytes), Ok(Some(_))));
    }

    #[test]
    fn a_damaged_entry_is_refused(at in any::<prop::sample::Index>(), flip in 1u8..) {
        let sample = sample_segment();
        let mut bytes = sample.clone();
        let index = at.index(bytes.len());
        bytes[index] ^= flip;
        let good = |bytes: &[u8]| entries(bytes).take_while(Result::is_ok).count();
        prop_assert_eq!(good(&sample), 3);
        prop_assert!(good(&bytes) < 3);
    }
}

#[test]
fn an_oversized_envelope_is_refused_by_its_header_alone() {
    let mut bytes = sample_request();
    bytes[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    let refused = envelope::parse_header(&bytes[..12]);
    assert_eq!(refused, Err(EnvelopeError::TooLong(u32::MAX)));
}

/// A request of one item, read back.
fn read_back(item: Item<'_>) -> Result<Option<Op>, DataError> {
    let mut out = Vec::new();
    let start = data::begin_request(&mut out, ClientId(1), RpcId(1));
    item.write(&mut out);
    data::set_count(&mut out, start, 1);
    Items::read(&out)?
        .next_item()
        .map(|item| item.map(|item| item.op))
}

#[test]
fn an_item_brings_nothing_that_its_operation_has_no_use_for() {
    let all = [Op::Read, Op::Write, Op::Remove, Op::Increment, Op::Scan];
    let (exists, absent) = (true, true);
    let rules = [
        RejectRules {
            exists,
            ..RejectRules::default()
        },
        RejectRules {
            absent,
            ..RejectRules::default()
        },
        RejectRules {
            unless_version: Some(Version(1)),
            ..RejectRules::default()
        },
    ];
    for op in all {
        let plain = Item {
            op,
            id: 1,
            table: TableId(1),
            rpc: RpcId(7),
            rules: RejectRules::default(),
            key: if op == Op::Scan { b"" } else { b"key" },
            value: b"value",
        };
        assert_eq!(read_back(plain), Ok(Some(op)));
        for rules in rules {
            let read = read_back(Item { rules, ..plain });
            if op.mutates() {
                assert_eq!(read, Ok(Some(op)));
            } else {
                assert!(matches!(read, Err(DataError::Flags(_))), "{op:?} {rules:?}");
            }
        }
        let key = if op == Op::Scan { &b"key"[..] } else { b"" };
        assert_eq!(read_back(Item { key, ..plain }), Err(DataError::Length));
    }
}

#[test]
fn reserved_bytes_that_are_not_zero_are_refused() {
    let mut out = Vec::new();
    let (status, version) = (data::Status::Ok, Version(1));
    ResponseItem {
        id: 1,
        status,
        version,
        value: b"value",
    }
    .write(&mut out);
    for at in 5..8 {
        let mut bytes = out.clone();
        bytes[at] = 1;
        let read = ResponseItem::read(&mut Reader(&bytes));
        assert_eq!(read, Err(DataError::Reserved));
    }

    let header = NewEntry::SegmentHeader(entry::SegmentHeader {
        kind: SegmentKind::Head,
        cluster: ClusterId([1; 16]),
        master: ServerId(2),
        segment: SegmentId(3),
        size: 4_096,
    });
    let mut bytes = vec![0; header.encoded_len()];
    header.write(&mut bytes);
    assert!(entry::read(&bytes).is_ok());
    bytes[entry::HEADER_LEN + 3] = 1;
    let sum = crc32c::crc32c(&bytes[4..]);
    bytes[..4].copy_from_slice(&sum.to_le_bytes());
    assert_eq!(entry::read(&bytes), Err(EntryError::Field));
}

#[test]
fn replication_messages_with_more_than_they_say_are_refused() {
    let message = Replicate {
        segment: SegmentId(1),
        epoch: ReplicationEpoch(2),
        offset: 0,
        length: 5,
        kind: SegmentKind::Head,
        flags: 0,
        certificate: Certificate::NONE,
        bytes: b"bytes",
    };
    let mut bytes = Vec::new();
    message.write(&mut bytes);
    for at in [22, 23] {
        let mut bytes = bytes.clone();
        bytes[at] = 1;
        assert_eq!(Replicate::read(&bytes), Err(ReplicateError::Reserved));
    }
    bytes.push(0);
    assert_eq!(Replicate::read(&bytes), Err(ReplicateError::Length));

    let ack = ReplicateAck {
        segment: SegmentId(1),
        epoch: ReplicationEpoch(2),
        length: 5,
        status: ReplicateStatus::Done,
        flags: 0,
        lease_us: 6,
    };
    for at in [18, 19] {
        let mut bytes = ack.to_bytes();
        bytes[at] = 1;
        assert_eq!(ReplicateAck::read(&bytes), Err(ReplicateError::Reserved));
    }
    let mut bytes = ack.to_bytes().to_vec();
    assert_eq!(ReplicateAck::read(&bytes), Ok(ack));
    bytes.push(0);
    assert_eq!(ReplicateAck::read(&bytes), Err(ReplicateError::Trailing));
}

#[test]
fn a_segment_is_verified_only_with_its_own_header() {
    let key = CertificateKey([1; 32]);
    let claim = Claim::closed(
        ClusterId([2; 16]),
        ServerId(3),
        SegmentId(4),
        SegmentKind::Head,
        0,
    );
    let bytes = sample_segment();
    let claim = Claim {
        length: bytes.len() as u32,
        ..claim
    };
    let mut certifier = certificate::Certifier::new(&key);
    certifier.update(&bytes);
    let certificate = certifier.certify(&claim);
    let error = UnverifiedSegment::new(claim, certificate, &bytes).verify(&key);
    assert_eq!(error.err(), Some(segment::SegmentError::Header));
}

#[test]
fn an_entry_reads_back_as_written() {
    let bytes = sample_segment();
    let (entry, len) = entry::read(&bytes).expect("a good entry");
    let Entry::Object(object) = entry else {
        panic!("an object was written")
    };
    assert_eq!(entry::object_in_memory(&bytes[..len]), Some(object));
    assert_eq!((object.version, object.key), (Version(1), &b"key"[..]));
}
