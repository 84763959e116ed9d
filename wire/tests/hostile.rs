//! Whatever bytes come, parsing them gives a value or a typed error: never a panic, and never more
//! memory than the input.

use proptest::prelude::*;
use ramkeep_wire::bytes::Reader;
use ramkeep_wire::certificate::{CertificateKey, Claim};
use ramkeep_wire::data::{Item, Items, Op, RejectRules, ResponseItem, ScanCursor, ScanObject};
use ramkeep_wire::entry::{self, Entry, NewEntry, Object};
use ramkeep_wire::envelope::{self, EnvelopeError, Header, Kind};
use ramkeep_wire::replicate::{Replicate, ReplicateAck};
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
