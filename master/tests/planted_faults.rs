//! The checks bite: with a fault planted, what must hold does not hold.
#![cfg(feature = "mutants")]
#![allow(clippy::unwrap_used, reason = "a failed step of a test is its failure")]

use ramkeep_master::store::{DataSession, MasterLease, Store, StoreConfig};
use ramkeep_wire::bytes::Reader;
use ramkeep_wire::data::{self, Item, Op, RejectRules, ResponseItem, ScanCursor, Status};
use ramkeep_wire::envelope::{self, Header, Kind};
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::order::TabletGrant;
use ramkeep_wire::{
    ClientId, ClusterId, KeyHash, Party, RpcId, SegmentId, ServerId, TableId, key_hash,
};

const TABLE: TableId = TableId(1);
const KEY: &[u8] = b"k";

fn store() -> Store {
    let store = Store::new(StoreConfig {
        cluster: ClusterId([1; 16]),
        master: ServerId(1),
        key: None,
        memory: 1 << 20,
        segment_size: 64 << 10,
        first_segment: SegmentId(1),
    })
    .unwrap();
    store
        .take_tablets(&[TabletGrant {
            table: TABLE,
            first: KeyHash(0),
            last: KeyHash(u64::MAX),
        }])
        .unwrap();
    store
}

/// What comes of one item whose answer is judged by `lease`.
fn answer(store: &Store, op: Op, value: &[u8], lease: impl FnOnce() -> MasterLease) -> Status {
    let mut request = Vec::new();
    let start = data::begin_request(&mut request, ClientId(0), RpcId(0));
    Item {
        op,
        id: 1,
        table: TABLE,
        rpc: RpcId(0),
        rules: RejectRules::default(),
        key: if op == Op::Scan { b"" } else { KEY },
        value,
    }
    .write(&mut request);
    data::set_count(&mut request, start, 1);
    let header = Header::new(Kind::DataRequest, 1, Party::NONE, Party::NONE);
    let (mut session, mut out) = (DataSession::new(), Vec::new());
    let mut batch = session.begin(store, &mut out);
    batch.envelope(&header, &request).unwrap();
    batch.end(lease);
    let (reply, _) = envelope::parse(&out).unwrap().unwrap();
    let item = ResponseItem::read(&mut Reader(reply.payload));
    item.unwrap().unwrap().status
}

/// Whether a page shows what was there when it was looked up, although the right to show it ends
/// while the lease is judged.
fn judged_after_looking() -> bool {
    let store = store();
    let mut cursor = Vec::new();
    ScanCursor {
        hash: key_hash(TABLE, KEY),
        until: key_hash(TABLE, KEY),
        after: b"",
    }
    .write(&mut cursor);
    let status = answer(&store, Op::Scan, &cursor, || {
        assert!(store.drop_table(TABLE));
        MasterLease::Held
    });
    status == Status::Ok
}

#[test]
fn a_lease_judged_before_looking_shows() {
    assert!(judged_after_looking());
    let before = mutants::plant(Some(Mutant::LeaseBeforeLooking));
    let with = judged_after_looking();
    mutants::plant(before);
    assert!(
        !with,
        "what was looked up after the lease was judged went out"
    );
}
