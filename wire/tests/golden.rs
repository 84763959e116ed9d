//! Golden files: the bytes of every layout that is written by hand, as they are for good. A test
//! here that fails means that the protocol version or a format number must change.
//!
//! `UPDATE_GOLDEN=1 cargo test -p ramkeep-wire --test golden` writes them anew.

use std::path::PathBuf;

use ramkeep_wire::certificate::{BLAKE3_KEYED, Certificate, CertificateKey, Certifier, Claim};
use ramkeep_wire::data::{
    self, Item, Op, RejectRules, ResponseItem, ScanCursor, ScanObject, Status,
};
use ramkeep_wire::entry::{Completion, DigestItem, NewEntry, Object, SegmentHeader, Tombstone};
use ramkeep_wire::envelope::{self, Header, Kind};
use ramkeep_wire::hello::{Hello, SharedKey, Side, Welcome};
use ramkeep_wire::replicate::{Replicate, ReplicateAck, ReplicateStatus, flags};
use ramkeep_wire::*;

fn check(name: &str, bytes: &[u8]) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    let text: String = bytes
        .chunks(16)
        .map(|row| {
            let hex: Vec<String> = row.iter().map(|byte| format!("{byte:02x}")).collect();
            hex.join(" ") + "\n"
        })
        .collect();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).expect("golden files can be written");
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, golden, "the layout `{name}` changed");
}

fn entry(new: NewEntry<'_>) -> Vec<u8> {
    let mut bytes = vec![0; new.encoded_len()];
    new.write(&mut bytes);
    bytes
}

const CERTIFICATE: Certificate = Certificate {
    algorithm: BLAKE3_KEYED,
    hash: [0xcc; 32],
};

#[test]
fn entries_keep_their_bytes() {
    let object = Object {
        table: TableId(2),
        version: Version(3),
        expiry: None,
        key: b"key",
        value: b"value",
    };
    let tombstone = Tombstone {
        table: TableId(2),
        version: Version(3),
        segment: SegmentId(4),
        key: b"key",
    };
    let completion = Completion {
        client: ClientId(5),
        rpc: RpcId(600),
        ack: RpcId(88),
        table: TableId(2),
        hash: KeyHash(7),
        version: Version(11),
        counter: Some(-3),
    };
    let header = SegmentHeader {
        kind: SegmentKind::Head,
        cluster: ClusterId([0xaa; 16]),
        master: ServerId(8),
        segment: SegmentId(9),
        size: limits::SEGMENT_SIZE as u32,
    };
    let items = [
        DigestItem {
            segment: SegmentId(1),
            length: 4096,
            certificate: CERTIFICATE,
        },
        DigestItem {
            segment: SegmentId(2),
            length: 0,
            certificate: Certificate::NONE,
        },
    ];
    check("entry_object", &entry(NewEntry::Object(object)));
    let expiring = Object {
        expiry: Some(1_700_000_000_000_000),
        ..object
    };
    check("entry_object_expiring", &entry(NewEntry::Object(expiring)));
    check("entry_tombstone", &entry(NewEntry::Tombstone(tombstone)));
    check("entry_completion", &entry(NewEntry::Completion(completion)));
    check(
        "entry_safe_version",
        &entry(NewEntry::SafeVersion(Version(10))),
    );
    check(
        "entry_segment_header",
        &entry(NewEntry::SegmentHeader(header)),
    );
    check("entry_digest", &entry(NewEntry::Digest(&items)));
    check("entry_active", &entry(NewEntry::Active(SegmentId(1))));
}

#[test]
fn envelopes_keep_their_bytes() {
    let mut out = Vec::new();
    let header = Header::new(
        Kind::DataRequest,
        0x0102_0304_0506_0708,
        Party::server(ServerId(3)),
        Party::client(ClientId(4)),
    );
    envelope::append(&mut out, header, b"payload");
    check("envelope", &out);
}

#[test]
fn hello_macs_keep_their_bytes() {
    let hello = Hello {
        cluster: ClusterId([1; 16]),
        from: Party::client(ClientId(2)),
        to: Party::server(ServerId(3)),
        nonce: [4; 16],
    };
    let welcome = Welcome {
        cluster: ClusterId([5; 16]),
        party: Party::server(ServerId(3)),
        nonce: [6; 16],
        mac: [0; 32],
    };
    let key = SharedKey::from_file_contents(b" the key of a cluster\n").expect("long enough");
    let macs = [Side::Connecting, Side::Accepting]
        .map(|side| hello::mac(Some(&key), side, &hello, &welcome));
    check("hello_macs", macs.as_flattened());
}

#[test]
fn data_items_keep_their_bytes() {
    let mut out = Vec::new();
    let start = data::begin_request(&mut out, ClientId(1), RpcId(2));
    let item = Item {
        op: Op::Write,
        id: 3,
        table: TableId(4),
        rpc: RpcId(5),
        rules: RejectRules {
            exists: true,
            absent: false,
            unless_version: Some(Version(6)),
        },
        key: b"key",
        value: b"value",
    };
    item.write(&mut out);
    data::set_count(&mut out, start, 1);
    check("data_request", &out);
    let mut out = Vec::new();
    let result = ResponseItem {
        id: 3,
        status: Status::Rejected,
        version: Version(7),
        value: b"value",
    };
    result.write(&mut out);
    check("data_response", &out);
    let mut out = Vec::new();
    ScanCursor {
        hash: KeyHash(8),
        until: KeyHash(9),
        after: b"key",
    }
    .write(&mut out);
    check("scan_cursor", &out);
    let mut out = Vec::new();
    ScanObject {
        version: Version(1),
        key: b"key",
        value: b"value",
    }
    .write(&mut out);
    check("scan_object", &out);
}

#[test]
fn replication_keeps_its_bytes() {
    let mut out = Vec::new();
    let message = Replicate {
        segment: SegmentId(1),
        epoch: ReplicationEpoch(2),
        offset: 3,
        length: 8,
        kind: SegmentKind::Head,
        flags: flags::OPEN | flags::COMPLETE | flags::LEASE,
        certificate: CERTIFICATE,
        bytes: b"bytes",
    };
    message.write(&mut out);
    check("replicate", &out);
    let ack = ReplicateAck {
        segment: SegmentId(1),
        epoch: ReplicationEpoch(2),
        length: 8,
        status: ReplicateStatus::Done,
        flags: flags::COMPLETE,
        lease_us: 200_000,
    };
    check("replicate_ack", &ack.to_bytes());
}

#[test]
fn certificates_keep_their_bytes() {
    let claim = Claim {
        cluster: ClusterId([1; 16]),
        master: ServerId(2),
        segment: SegmentId(3),
        kind: SegmentKind::Head,
        epoch: ReplicationEpoch(4),
        length: 8,
        closed: false,
    };
    let mut certifier = Certifier::new(&CertificateKey([7; 32]));
    certifier.update(b"contents");
    check("certificate", &certifier.certify(&claim).hash);
}
